//! A small Debian for the operator's commands: a root directory of its own with the node's processes, kernel
//! file systems and CNI directories, so that packages are installed there and not on the machine.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};

use crate::node::{Node, shipped};

/// Where runtimes have their socket.
const SOCKET: &str = "/run/containerd/containerd.sock";

/// The root directory. It goes with the stage.
pub(crate) struct Debian(PathBuf);

impl Debian {
    /// Makes it, with files of `cargo xtask dist` in its root.
    pub(crate) fn new(node: &Node, files: &[&str]) -> Result<Debian> {
        let lower = harness::envoy::cache().context("a cache")?.join("debian/bookworm");
        ensure!(lower.join("usr/bin/dpkg").exists(), "no small Debian: run `cargo xtask setup deploy`");
        let [root, up, work] = ["debian", "debian-up", "debian-work"].map(|name| node.dir().join(name));
        for dir in [&root, &up, &work] {
            fs::create_dir(dir)?;
        }
        let layers =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), up.display(), work.display());
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
            .context("mounting the small Debian")?;
        fs::create_dir_all(Path::new(SOCKET).parent().context("a folder")?)?;
        fs::write(SOCKET, "")?;
        bind(&node.socket(), Path::new(SOCKET))?;
        for path in ["/proc", "/sys", "/run"].map(Path::new).into_iter() {
            bind(path, &inside(&root, path))?;
        }
        for path in [node.bin_dir(), node.conf_dir()] {
            let place = inside(&root, &path);
            fs::create_dir_all(&place)?;
            bind(&path, &place)?;
        }
        for name in files {
            fs::copy(shipped(name)?, root.join(name))?;
        }
        Ok(Debian(root))
    }

    /// Runs a command line in it as an operator does, in `/`. Returns what it prints.
    pub(crate) fn run(&self, line: &str) -> Result<String> {
        let mut command = Command::new("chroot");
        command.arg(&self.0).args(["/bin/sh", "-ec", line]).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
        let output = command.output().context("starting chroot")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (said, complaint) = (text(&output.stdout), text(&output.stderr));
        ensure!(output.status.success(), "`{line}`: {}\n{said}{complaint}", output.status);
        Ok(said)
    }
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&OsStr>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&OsStr>)
        .with_context(|| format!("mounting {} at {}", from.display(), to.display()))
}
