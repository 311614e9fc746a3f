//! A network namespace with a path, so that `--netns PATH` and `nsenter --net=PATH` find it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace, kept alive by a bind mount and gone when this goes out of scope.
#[derive(Debug)]
pub struct NetNs {
    path: PathBuf,
    handle: File,
    keep: bool,
}

impl NetNs {
    /// Makes a namespace with `lo` up and mounts it at `path`.
    #[must_use]
    pub fn create(path: PathBuf) -> NetNs {
        File::create(&path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        // A thread of its own: its namespace ends with it, the test's own is never left.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("unshare a network namespace");
                let own = Path::new("/proc/thread-self/ns/net");
                mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .unwrap_or_else(|error| panic!("mount a namespace at {}: {error}", path.display()));
            });
        });
        let handle = File::open(&path).expect("open the namespace just made");
        NetNs::ready(path, handle)
    }

    /// Makes a namespace as a runtime does for a pod with `hostUsers: false`: it belongs to a user namespace
    /// in which the ids from 0 are the machine's from `first_id`, and in which no process is left.
    #[must_use]
    pub fn create_for_users(path: PathBuf, first_id: u32) -> NetNs {
        File::create(&path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        let mut command = Command::new("unshare");
        command.args(["--user", "--net", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().expect("start `unshare` (Debian package util-linux)");
        let of_child = |name: &str| Path::new("/proc").join(child.id().to_string()).join(name);
        let inode = |path: &Path| fs::metadata(path).map(|metadata| metadata.ino()).unwrap_or(0);
        let own = inode(Path::new("/proc/self/ns/net"));
        while inode(&of_child("ns/net")) == own {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        for map in ["uid_map", "gid_map"] {
            fs::write(of_child(map), format!("0 {first_id} 65536\n")).expect("map the ids");
        }
        mount(Some(&of_child("ns/net")), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .unwrap_or_else(|error| panic!("mount a namespace at {}: {error}", path.display()));
        drop(child.stdin.take());
        child.wait().expect("wait for the process in the user namespace");
        let handle = File::open(&path).expect("open the namespace just made");
        NetNs::ready(path, handle)
    }

    /// A namespace just made, as every test wants it.
    ///
    /// A connection whose process has gone and whose peer is gone, too, waits in FIN-WAIT-1 for an answer and
    /// keeps its namespace, and the guard's programs with it: 106 seconds with the kernel's eight retries.
    /// The sysctl is `tcp_orphan_retries` in the kernel's ip-sysctl document.
    fn ready(path: PathBuf, handle: File) -> NetNs {
        let netns = NetNs { path, handle, keep: false };
        netns.ip("link set lo up");
        netns.sysctl("net/ipv4/tcp_orphan_retries", "1");
        netns
    }

    /// The path that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `body` in the namespace, on a thread of its own. Sockets made there belong to the namespace but
    /// not to a pod's cgroup; a [`crate::Process`] has both.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.handle, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                body()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs lines of iproute2 commands (without the leading `ip`) in the namespace.
    pub fn ip(&self, lines: &str) {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        self.enter(&mut command, None);
        let mut child = command.spawn().expect("start `ip` (Debian package iproute2)");
        child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("write to ip");
        let output = child.wait_with_output().expect("wait for ip");
        assert!(
            output.status.success(),
            "ip failed in {}: {}\n{lines}",
            self.path.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// What a command prints that runs in the namespace.
    #[must_use]
    pub fn output_of(&self, command: &mut Command) -> String {
        self.enter(command, None);
        let output = command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Sets a sysctl of the namespace, named as a path (`net/ipv4/ip_local_port_range`).
    pub fn sysctl(&self, name: &str, value: &str) {
        self.run(|| {
            fs::write(Path::new("/proc/sys").join(name), value)
                .unwrap_or_else(|error| panic!("set {name} to {value}: {error}"));
        });
    }

    /// Makes `command` start in this namespace and, where one is given, in a cgroup.
    pub fn enter(&self, command: &mut Command, cgroup: Option<&Path>) {
        let netns = self.handle.try_clone().expect("duplicate a descriptor");
        let mut procs = cgroup.map(|path| {
            File::options()
                .write(true)
                .open(path.join("cgroup.procs"))
                .unwrap_or_else(|error| panic!("open cgroup.procs of {}: {error}", path.display()))
        });
        let before_exec = move || {
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            // "0" stands for the writer.
            procs.as_mut().map_or(Ok(()), |file| file.write_all(b"0"))
        };
        // SAFETY: between fork and exec the closure makes two system calls on descriptors that are open
        // already; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(before_exec) };
    }

    /// Leaves the namespace where it is, for somebody who wants to look at it.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.path.display());
        }
        let _ = fs::remove_file(&self.path);
    }
}
