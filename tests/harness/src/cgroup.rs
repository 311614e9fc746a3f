//! A cgroup that is removed, with everything below it, when it goes out of scope.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A directory in the cgroup2 hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    keep: bool,
}

impl Cgroup {
    /// Where cgroup2 is mounted. On a hybrid host that is not `/sys/fs/cgroup`, so mountinfo is asked.
    #[must_use]
    pub fn mount_point() -> PathBuf {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
        mounts
            .lines()
            .find_map(cgroup2_mount)
            .expect("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
    }

    /// Makes the cgroup `path`, parents included.
    #[must_use]
    pub fn create(path: PathBuf) -> Cgroup {
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("make cgroup {}: {error}", path.display()));
        Cgroup { path, keep: false }
    }

    /// Makes a cgroup below this one. It lives as long as this one.
    #[must_use]
    pub fn child(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("make cgroup {}: {error}", path.display()));
        path
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the cgroup where it is, for somebody who wants to look at it.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }

    /// Kills what runs in the cgroup and removes it; gone already is fine. For a cgroup that this test, or a
    /// killed run of it, has made.
    ///
    /// # Errors
    /// When a cgroup is still busy after five seconds.
    pub fn remove(path: &Path) -> io::Result<()> {
        if !path.exists() {
            return Ok(());
        }
        let _ = fs::write(path.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match remove_tree(path) {
                // A process that was just killed keeps its cgroup busy until it is gone.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => return result,
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = Cgroup::remove(&self.path) {
            // The residue check names it again and fails the test.
            eprintln!("remove cgroup {}: {error}", self.path.display());
        }
    }
}

/// Removes the directories bottom-up; the files in them are the kernel's and go with them.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// The mount point of a mountinfo line that is a cgroup2 mount.
fn cgroup2_mount(line: &str) -> Option<PathBuf> {
    let (mount, file_system) = line.split_once(" - ")?;
    (file_system.split(' ').next()? == "cgroup2").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
}
