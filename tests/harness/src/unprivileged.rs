//! Programs as a container runs them: the ids of a user, most often without capabilities and without a way to
//! get any.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::process::User;

/// A command that runs `program` as `user` without any capability, also in its bounding set, and without a
/// way to get one (no_new_privs).
///
/// The program is opened here and started by its descriptor, so `user` needs no access to the directories
/// that it lies in: a build directory or a cache below root's home.
///
/// # Errors
/// If the program cannot be opened.
pub fn unprivileged(program: &Path, user: User) -> Result<Command> {
    with(program, user, &["--bounding-set=-all", "--inh-caps=-all"])
}

/// The same with the capabilities that the kernel leaves to the user: all, for root.
///
/// # Errors
/// If the program cannot be opened.
pub fn privileged(program: &Path, user: User) -> Result<Command> {
    with(program, user, &[])
}

fn with(program: &Path, user: User, sets: &[&str]) -> Result<Command> {
    let file = File::open(program).with_context(|| format!("opening {}", program.display()))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={}", user.uid), &format!("--regid={}", user.gid), "--clear-groups"]);
    command.args(sets).args(["--no-new-privs", "--", &path]);
    let before_exec = move || fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).map(drop).map_err(Into::into);
    // SAFETY: between fork and exec the closure makes one system call on a descriptor that is open already;
    // it neither allocates nor takes a lock.
    unsafe { command.pre_exec(before_exec) };
    Ok(command)
}
