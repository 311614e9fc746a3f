//! The container runtime of the node: its configuration, its start, and its image.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cri::Cri;
use super::image::{self, IMAGE};
use crate::chain::STANDARD_DIRS;

/// Debian's package containerd.
const CONTAINERD: &str = "/usr/bin/containerd";
/// The programs of a release.
const PROGRAMS: [&str; 3] = ["containerd", "ctr", "containerd-shim-runc-v2"];
/// How long it may take to start and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running containerd with nothing but its CRI plugin. It ends when this goes out of scope.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    log: PathBuf,
    socket: PathBuf,
    cri: Cri,
}

/// Where things are.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// A directory of its own.
    dir: PathBuf,
    /// The directory of network configurations.
    conf_dir: PathBuf,
    /// The directory of CNI plugins.
    bin_dir: PathBuf,
    /// The program to run as runc.
    runc: PathBuf,
}

impl Places {
    /// The places of a node in `dir`.
    pub(super) fn of(dir: &Path) -> Places {
        Places {
            dir: dir.join("containerd"),
            conf_dir: dir.join("cni"),
            bin_dir: dir.join("bin"),
            runc: dir.join("runc"),
        }
    }
}

impl Containerd {
    /// Starts it and waits until it and its network are ready; then imports the image.
    pub(super) fn start(places: &Places) -> Result<Containerd> {
        let dir = &places.dir;
        let (config, log, socket) = (dir.join("config.toml"), dir.join("containerd.log"), dir.join("c.sock"));
        fs::write(&config, configuration(places, &socket, major_version()?))?;
        let output = File::create(&log)?;
        let mut command = Command::new(CONTAINERD);
        command.arg("-c").arg(&config).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut child =
            command.spawn().with_context(|| format!("starting {CONTAINERD} (Debian package containerd)"))?;
        match connect(&socket, &mut child) {
            Ok(cri) => {
                let containerd = Containerd { child, log, socket, cri };
                containerd.import(&dir.join("image.tar")).with_context(|| containerd.complaints())?;
                Ok(containerd)
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.context(complaints(&log)))
            }
        }
    }

    /// Its interface for kubelets.
    pub(super) fn cri(&self) -> &Cri {
        &self.cri
    }

    /// What its log says that is worse than a message.
    pub(super) fn complaints(&self) -> String {
        complaints(&self.log)
    }

    /// Ends it with SIGTERM. One that has ended stays so.
    pub(super) fn stop(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM)?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "containerd did not stop within {PATIENCE:?}");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn import(&self, path: &Path) -> Result<()> {
        image::write(path)?;
        let mut command = Command::new("ctr");
        command
            .arg("-a")
            .arg(&self.socket)
            .args(["-n", "k8s.io", "images", "import", "--all-platforms"])
            .arg(path);
        let output = command.output().context("starting ctr (Debian package containerd)")?;
        ensure!(
            output.status.success(),
            "importing the image failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Puts the programs below `root` in place of the machine's, for this mount namespace only. Its CNI plugins
/// come along: those of Debian 12 do not speak version 1.1.0 of the specification.
pub(super) fn put_in_place(root: &Path) -> Result<()> {
    for program in PROGRAMS.map(|program| format!("usr/bin/{program}")) {
        bind(&root.join(&program), &Path::new("/").join(&program))?;
    }
    bind(&root.join("usr/lib/cni"), Path::new(STANDARD_DIRS[0]))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("mounting {} at {}", from.display(), to.display()))
}

fn connect(socket: &Path, child: &mut Child) -> Result<Cri> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let outcome = Cri::connect(socket).and_then(|cri| cri.is_ready().map(|ready| (cri, ready)));
        match outcome {
            Ok((cri, true)) => return Ok(cri),
            Ok((_, false)) if Instant::now() > deadline => {
                bail!("containerd was not ready within {PATIENCE:?}")
            }
            Err(error) if Instant::now() > deadline => return Err(error),
            _ => {}
        }
        if let Some(status) = child.try_wait()? {
            bail!("containerd ended with {status}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn complaints(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let bad = |line: &&str| ["level=error", "level=fatal"].iter().any(|level| line.contains(level));
    let lines: Vec<_> = text.lines().rev().filter(bad).take(5).collect();
    format!("containerd complains, newest first:\n{}", lines.join("\n"))
}

/// `containerd github.com/containerd/containerd 1.6.20~ds1 ...`, or with a v before the number.
fn major_version() -> Result<u32> {
    let output = Command::new(CONTAINERD).arg("--version").output();
    let output = output.with_context(|| format!("starting {CONTAINERD} (Debian package containerd)"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v');
    let major = version.split('.').next().unwrap_or_default().parse();
    major.with_context(|| format!("`{CONTAINERD} --version` says {:?}", text.trim()))
}

/// Everything below `dir`; no limits, no devices, no plugin that is not needed.
fn configuration(places: &Places, socket: &Path, major: u32) -> String {
    let Places { dir, conf_dir, bin_dir, runc } = places;
    let (dir, conf_dir, bin_dir) = (dir.display(), conf_dir.display(), bin_dir.display());
    let (runc, socket) = (runc.display(), socket.display());
    let head = format!(
        r#"root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{socket}"
[ttrpc]
address = "{socket}.ttrpc"
"#
    );
    let runtime = "netns_mounts_under_state_dir = true\nrestrict_oom_score_adj = true\ndisable_apparmor = true\n\
                   tolerate_missing_hugetlb_controller = true\n";
    let options = "runtime_type = \"io.containerd.runc.v2\"\n";
    if major >= 2 {
        return format!(
            "version = 3\n{head}[plugins.'io.containerd.cri.v1.images']\nsnapshotter = \"overlayfs\"\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = \"{IMAGE}\"\n\
             [plugins.'io.containerd.cri.v1.runtime']\n{runtime}\
             [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = [\"{bin_dir}\"]\nconf_dir = \"{conf_dir}\"\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n{options}\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nBinaryName = \"{runc}\"\n"
        );
    }
    format!(
        "version = 2\n{head}[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = \"{IMAGE}\"\n\
         disable_tcp_service = true\n{runtime}\
         [plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = \"{bin_dir}\"\nconf_dir = \"{conf_dir}\"\n\
         [plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = \"overlayfs\"\n\
         [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\n{options}\
         [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]\nBinaryName = \"{runc}\"\n"
    )
}
