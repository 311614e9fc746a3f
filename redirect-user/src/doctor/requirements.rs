//! What an ADD needs.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::checks::{BPFFS, CGROUP2, COOKIE, PRIVILEGES, PROGRAMS, ROOM, STATE, VERSION, WHOLE};
use super::finding::{Finding, Options, Says};
use crate::attach::full::{self, Fill};
use crate::kernel::capabilities;
use crate::kernel::install::{self, Installed};
use crate::kernel::pins;
use crate::kernel::stamp::Stamp;
use crate::kernel::sys;
use crate::node::{Node, is_bpffs};
use crate::pod::cgroup;
use crate::ready;

pub(super) fn examine(node: &Node, options: &Options) -> Vec<Finding> {
    let mut findings = vec![
        PRIVILEGES.says(privileges()),
        BPFFS.says(bpffs(node)),
        CGROUP2.says(cgroup2(options)),
        COOKIE.says(netns_cookie()),
        PROGRAMS.says(programs(options)),
        STATE.says(state_dir(node)),
    ];
    if !options.before {
        findings.extend([VERSION.says(version(node)), WHOLE.says(whole(node)), ROOM.says(room(node))]);
    }
    findings
}

fn privileges() -> Says {
    let Some(lacking) = capabilities::lacking() else {
        return Says::Untried("/proc/self/status does not say which capabilities this process has".into());
    };
    if !lacking.is_empty() {
        let names: Vec<_> = lacking.iter().map(|one| one.name).collect();
        return Says::Missing(format!("this process lacks {}", names.join(", ")));
    }
    match sys::may_use_bpf() {
        true => Says::Found("a program can be loaded".into()),
        false if sys::in_first_user_namespace() => {
            Says::Missing("the kernel refuses to load the smallest program".into())
        }
        false => Says::Missing(sys::why_forbidden().into()),
    }
}

fn bpffs(node: &Node) -> Says {
    let path = node.bpffs.display();
    match is_bpffs(&node.bpffs) {
        Ok(true) => Says::Found(path.to_string()),
        Ok(false) => Says::Missing(format!("{path} is not one")),
        Err(error) => Says::Missing(format!("{path}: {error}")),
    }
}

/// The root is found as the plugin finds it.
fn cgroup2(options: &Options) -> Says {
    match cgroup::root(options.cgroup_root.as_deref()) {
        Ok(path) => Says::Found(path.display().to_string()),
        Err(error) => Says::Missing(error.to_string()),
    }
}

fn netns_cookie() -> Says {
    match socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None) {
        Err(error) => Says::Untried(format!("no socket can be made: {error}")),
        Ok(socket) => match sys::netns_cookie(&socket) {
            Ok(cookie) => Says::Found(format!("this one is {cookie}")),
            Err(_) => Says::Missing("SO_NETNS_COOKIE is not known".into()),
        },
    }
}

/// The verifier is asked about every program; the answer names the helper or field that an old kernel lacks.
/// Without the privilege to ask, nothing is known.
fn programs(options: &Options) -> Says {
    if !sys::may_use_bpf() {
        return Says::Untried("this process may not load programs".into());
    }
    match install::try_load(options.verifier_log) {
        Ok(text) => Says::Found(text),
        Err(text) => Says::Missing(text),
    }
}

fn version(node: &Node) -> Says {
    match Stamp::read(&pins::current(node)) {
        Some(stamp) if stamp.is_own() => Says::Found(format!("installed ({stamp})")),
        Some(stamp) => Says::Warning(format!("installed, of another build ({stamp})")),
        None => Says::Found("none is installed; the first ADD does that".into()),
    }
}

fn whole(node: &Node) -> Says {
    match install::state(node) {
        Installed::Not => Says::Found("none; the first ADD makes it".into()),
        Installed::Partly { missing } => Says::Missing(format!("{} is missing", missing.display())),
        Installed::Wholly => Says::Found("every program and map is pinned".into()),
    }
}

/// The fullest map, or those without room.
fn room(node: &Node) -> Says {
    if !install::installed(node) {
        return Says::Untried("there are no maps".into());
    }
    let said = |fill: &Fill| {
        let most = fill.most(node).map(|(holder, held)| format!(", most of them of {holder}, {held}"));
        format!("{}: {} of {} entries{}", fill.map, fill.entries, fill.limit, most.unwrap_or_default())
    };
    let fills = match full::all(node) {
        Ok(fills) => fills,
        Err(error) => return Says::Untried(error.to_string()),
    };
    let full: Vec<_> = fills.iter().filter(|fill| fill.is_full()).map(said).collect();
    if !full.is_empty() {
        return Says::Missing(full.join("; "));
    }
    let fullest = fills.iter().max_by_key(|fill| fill.entries as u64 * 1_000_000 / u64::from(fill.limit));
    Says::Found(fullest.map_or_else(String::new, |fill| format!("the fullest is {}", said(fill))))
}

fn state_dir(node: &Node) -> Says {
    match ready::state_is_writable(node) {
        Ok(()) => Says::Found(node.state_dir.display().to_string()),
        Err(error) => Says::Missing(error.to_string()),
    }
}
