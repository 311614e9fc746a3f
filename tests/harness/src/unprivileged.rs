//! Programs as a container runs them: the ids of a user, most often without capabilities and without a way to
//! get any. And programs that a profile keeps from bpf(2).

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

/// Has a seccomp filter answer every bpf(2) of this command with an error, as a container's profile does; a
/// security module's refusal looks the same.
pub fn refuse_bpf(command: &mut Command, errno: i32) {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let line = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    // `struct seccomp_data` begins with the number of the system call.
    let lines = [
        line(LOAD_WORD, 0, 0),
        line(JUMP_IF_EQUAL, 1, libc::SYS_bpf as u32),
        line(RETURN, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        line(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let before_exec = move || {
        let mut lines = lines;
        let filter = libc::sock_fprog { len: lines.len() as u16, filter: lines.as_mut_ptr() };
        // SAFETY: an integer, and a filter that outlives the call.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec the closure makes two system calls; it neither allocates nor takes a
    // lock.
    unsafe { command.pre_exec(before_exec) };
}
