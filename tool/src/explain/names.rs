//! A name as the pod knows it: asked by a process of ours that goes into the pod, with the pod's
//! `resolv.conf` and `hosts`, and through the pod's own redirection.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use redirect_user::attach::record::Attachment;
use redirect_user::pod::cgroup;

/// What the process in the pod is started with.
#[derive(Debug, clap::Args)]
pub(crate) struct ActorArgs {
    /// The process of the pod whose view of the world it takes.
    #[arg(long)]
    pid: i32,
    /// That process' cgroup.
    #[arg(long)]
    cgroup: PathBuf,
    /// `HOST:PORT`
    #[arg(long)]
    name: String,
}

/// The addresses of `HOST:PORT` as a process of the pod would find them.
pub(super) fn resolve(attachment: &Attachment, name: &str) -> Result<Vec<SocketAddr>> {
    if !name.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        bail!(
            "--dst {name:?} is neither an address nor a name with a port: 10.0.0.1:80, [fd00::1]:80, reviews:9080"
        );
    }
    let (pid, cgroup) = member(attachment).with_context(|| {
        format!("the pod has no process that can be seen from here, so {name} cannot be asked as it would: give an address")
    })?;
    let asked = Command::new("/proc/self/exe")
        .args(["resolve-actor", "--pid", &pid.to_string(), "--name", name, "--cgroup"])
        .arg(cgroup)
        .output()
        .context("start a process for the pod")?;
    let complaint = String::from_utf8_lossy(&asked.stderr);
    if !asked.status.success() {
        bail!("{name} cannot be resolved in the pod: {}", complaint.trim().trim_start_matches("redirect: "));
    }
    serde_json::from_slice(&asked.stdout).context("read the addresses")
}

/// A process of the pod that is not the sidecar, if there is one, and the cgroup that it is in.
fn member(attachment: &Attachment) -> Option<(i32, PathBuf)> {
    let pids = cgroup::pids(&attachment.cgroup).ok()?;
    let ids = pids.iter().filter(|pid| **pid > 0);
    let is_sidecar = |pid: &&i32| ids_of(**pid).is_some_and(|(uid, _)| uid == attachment.host_uid);
    let pid = ids.clone().find(|pid| !is_sidecar(pid)).or_else(|| ids.clone().next())?;
    Some((*pid, folder_of(&attachment.cgroup, *pid)?))
}

/// The cgroup below `top` that has a process: a pod's own may not have any beside those of its containers.
fn folder_of(top: &Path, pid: i32) -> Option<PathBuf> {
    let procs = fs::read_to_string(top.join("cgroup.procs")).ok()?;
    if procs.lines().any(|line| line == pid.to_string()) {
        return Some(top.to_owned());
    }
    let folders = fs::read_dir(top).ok()?.flatten().filter(|entry| entry.path().is_dir());
    folders.into_iter().find_map(|entry| folder_of(&entry.path(), pid))
}

/// Real uid and gid of a process.
fn ids_of(pid: i32) -> Option<(u32, u32)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let first = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some((first("Uid:")?, first("Gid:")?))
}

/// Is the process in the pod: goes there, asks, and prints the addresses as JSON.
pub(crate) fn act(args: &ActorArgs) -> Result<ExitCode> {
    enter(args).with_context(|| format!("cannot enter the pod of process {}", args.pid))?;
    let mut found: Vec<SocketAddr> = args.name.to_socket_addrs().context("the resolver says")?.collect();
    found.dedup();
    println!("{}", serde_json::to_string(&found)?);
    Ok(ExitCode::SUCCESS)
}

fn enter(args: &ActorArgs) -> io::Result<()> {
    let open = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", args.pid));
    let (net, mnt) = (open("net")?, open("mnt")?);
    let (uid, gid) = ids_of(args.pid).ok_or_else(|| io::Error::other("it has ended"))?;
    fs::write(args.cgroup.join("cgroup.procs"), "0")?;
    setns(net, CloneFlags::CLONE_NEWNET)?;
    setns(mnt, CloneFlags::CLONE_NEWNS)?;
    setgroups(&[])?;
    setgid(Gid::from_raw(gid))?;
    setuid(Uid::from_raw(uid))?;
    Ok(())
}
