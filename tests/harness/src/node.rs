//! A node for one test: a bpffs, a state directory, a branch of the cgroup tree and a wire that joins pods.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::cgroup::Cgroup;
use crate::keep::keep;
use crate::pod::Pod;
use crate::wire::Wire;

/// What names of directories and cgroups of tests begin with; what a killed test left is found by it.
pub(crate) const PREFIX: &str = "redirect-test-";

/// The permission to use the kernel's tables: one test on the machine at a time, in all processes,
/// because programs, maps and links are counted machine-wide.
#[derive(Debug)]
pub struct MachineLock {
    _file: File,
}

impl MachineLock {
    /// Waits for the lock, then removes what a killed test left (not with `KEEP` in the environment). It is
    /// free again when this goes out of scope, or its process dies.
    #[must_use]
    pub fn take() -> MachineLock {
        let run_lock = Path::new("/run/lock");
        let temp = std::env::temp_dir();
        let dir = if run_lock.is_dir() { run_lock } else { &temp };
        let path = dir.join("redirect-cni-tests.lock");
        let file = File::create(&path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
        file.lock().unwrap_or_else(|error| panic!("lock {}: {error}", path.display()));
        if !keep() {
            sweep();
        }
        MachineLock { _file: file }
    }
}

/// A node. Everything of it goes when it goes out of scope; declare it before its pods.
///
/// Its mounts are made in the mount namespace of the test: the programs under test and the agents are
/// processes of their own and must find them by path. A killed test leaves them; the next one removes them
/// first.
#[derive(Debug)]
pub struct Node {
    // In this order: what is attached goes before the cgroups that it is attached to.
    bpffs: Mount,
    cgroup: Cgroup,
    wire: OnceCell<Wire>,
    dir: TempDir,
}

impl Node {
    /// Makes a node.
    #[must_use]
    pub fn new(_lock: &MachineLock) -> Node {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make namespaces and load programs: run them as root"
        );
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir().expect("make a directory");
        for sub in ["bpf", "run", "netns"] {
            fs::create_dir(dir.path().join(sub)).expect("make a directory");
        }
        let bpffs = Mount::bpf(dir.path().join("bpf"));
        let cgroup = Cgroup::create(Cgroup::mount_point().join(name));
        Node { bpffs, cgroup, wire: OnceCell::new(), dir }
    }

    /// Its bpffs.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs.path
    }

    /// Unmounts its bpffs with all that is pinned there, as a clean-up job might.
    pub fn unmount_bpffs(&self) {
        umount2(self.bpffs(), MntFlags::MNT_DETACH).expect("unmount the bpffs");
    }

    /// The directory for the state of what is under test.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A directory of the node for files of the test.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The top of its branch of the cgroup tree; `kubepods` is below it.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// How to look at it by hand.
    #[must_use]
    pub fn how_to_look(&self) -> String {
        format!(
            "bpffs {}, state {}, cgroup {}",
            self.bpffs().display(),
            self.state_dir().display(),
            self.cgroup().display()
        )
    }

    /// A pod on the node's wire.
    #[must_use]
    pub fn pod(&self, name: &str) -> Pod {
        self.wire.get_or_init(|| self.new_wire("wire")).pod(name)
    }

    /// A wire of its own. The first pod on each wire has the same addresses, the second too, and so on.
    #[must_use]
    pub fn new_wire(&self, name: &str) -> Wire {
        Wire::new(name, self.dir.path().join("netns"), self.cgroup.path().join("kubepods/burstable"))
    }
}

/// A mount that is unmounted when it goes out of scope.
#[derive(Debug)]
struct Mount {
    path: PathBuf,
}

impl Mount {
    fn bpf(path: PathBuf) -> Mount {
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>)
            .unwrap_or_else(|error| panic!("mount bpf at {}: {error}", path.display()));
        Mount { path }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = umount2(&self.path, MntFlags::MNT_DETACH);
        // EINVAL: a test has unmounted it.
        if let Err(error) =
            unmounted.or_else(|error| if error == Errno::EINVAL { Ok(()) } else { Err(error) })
        {
            eprintln!("unmount {}: {error}", self.path.display());
        }
    }
}

/// Removes what killed tests left: mounts and directories by their names, and cgroups.
fn sweep() {
    let temp = std::env::temp_dir();
    let ours = format!("{}/{PREFIX}", temp.display());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    for path in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if path.starts_with(&ours) {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
    for dir in entries_with_prefix(&temp) {
        let _ = fs::remove_dir_all(dir);
    }
    for dir in entries_with_prefix(&Cgroup::mount_point()) {
        let _ = Cgroup::remove(&dir);
    }
}

/// The entries of a directory that tests made.
pub(crate) fn entries_with_prefix(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().starts_with(PREFIX)).map(|e| e.path()).collect()
}
