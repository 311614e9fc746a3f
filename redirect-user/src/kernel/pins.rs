//! Every path below bpffs, as pure functions of values.
//!
//! ```text
//! <bpffs>/redirect-cni/
//!   new/                                   an installation that has not finished
//!   old/                                   one that is being removed
//!   v<ABI>/object                          a symbolic link whose text says what is installed
//!   v<ABI>/progs/<hook>                    programs, loaded once per node, and their constants (`rodata`)
//!   v<ABI>/progs-new/                      during an upgrade, the other set of programs
//!   v<ABI>/maps/<map>
//!   v<ABI>/pods/<container-id>/<ifname>/   one attachment:
//!       <hook>                             a link, perhaps one of several names that it has
//!       netns-<cookie>/                    a folder whose name says which pod's entries the maps hold
//! ```

use std::path::{Path, PathBuf};

use redirect_common::ABI_VERSION;

use crate::ids::AttachmentId;
use crate::kernel::filter::Filter;
use crate::kernel::hook::Hook;
use crate::node::Node;
use crate::node::names;
use crate::path_error::is_gone;

/// The folder of all versions.
#[must_use]
pub fn root(node: &Node) -> PathBuf {
    node.bpffs.join("redirect-cni")
}

/// Where an installation is prepared before it is renamed to its [`Generation`]'s folder.
#[must_use]
pub fn unfinished(node: &Node) -> PathBuf {
    root(node).join("new")
}

/// Where a removal begins: what has been renamed to this is not installed any more, however far it gets.
#[must_use]
pub fn discarded(node: &Node) -> PathBuf {
    root(node).join("old")
}

/// The variable that gives a build with debug assertions another ABI version, so that tests have two versions
/// of the same plugin. A release build does not look at it.
pub const ABI_VARIABLE: &str = "REDIRECT_ABI_VERSION";

/// The ABI version of this library's programs.
#[must_use]
pub fn abi() -> u32 {
    let other = || std::env::var(ABI_VARIABLE).ok()?.parse().ok();
    if cfg!(debug_assertions) { other().unwrap_or(ABI_VERSION) } else { ABI_VERSION }
}

/// The pins of this library's version.
#[must_use]
pub fn current(node: &Node) -> Generation {
    Generation { folder: root(node).join(format!("v{}", abi())), abi: abi() }
}

/// Programs, maps and attachments of one ABI version: a folder of its own, so that two versions can stand
/// side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    folder: PathBuf,
    abi: u32,
}

impl Generation {
    /// A folder that was found by listing; `None` when it is not a version's.
    #[must_use]
    pub fn found(folder: PathBuf) -> Option<Generation> {
        let abi = folder.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()?;
        Some(Generation { folder, abi })
    }

    /// Which ABI version.
    #[must_use]
    pub fn abi(&self) -> u32 {
        self.abi
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A symbolic link whose target is no path but says what is installed: see [`crate::kernel::stamp`].
    #[must_use]
    pub fn stamp(&self) -> PathBuf {
        self.folder.join("object")
    }

    /// The folder of the programs.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.folder.join("progs")
    }

    /// Where an upgrade prepares the next set of programs.
    #[must_use]
    pub fn replacement(&self) -> PathBuf {
        self.folder.join("progs-new")
    }

    /// A pinned program.
    #[must_use]
    pub fn program(&self, hook: Hook) -> PathBuf {
        self.programs().join(hook.name())
    }

    /// A pinned program of the guard.
    #[must_use]
    pub fn filter(&self, filter: Filter) -> PathBuf {
        self.programs().join(filter.name())
    }

    /// The folder of the maps.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.folder.join("maps")
    }

    /// A pinned map.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.folder.join(map_file(name))
    }

    /// The folder of all attachments.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.folder.join("pods")
    }

    /// The folder of a container's attachments.
    #[must_use]
    pub fn container(&self, container_id: &str) -> PathBuf {
        self.pods().join(names::encode(container_id))
    }

    /// The folder of one attachment.
    #[must_use]
    pub fn attachment(&self, id: &AttachmentId) -> AttachmentFolder {
        AttachmentFolder { path: self.container(&id.container_id).join(names::encode(&id.ifname)) }
    }

    /// Whether the version has pins of an attachment. What cannot be looked at counts as yes.
    #[must_use]
    pub fn has(&self, id: &AttachmentId) -> bool {
        !is_gone(self.attachment(id).path())
    }
}

/// Where in a version's folder a map is pinned. The compiler's read-only data belongs to the programs and is
/// replaced with them; its name has dots, which bpffs refuses.
#[must_use]
pub fn map_file(name: &str) -> PathBuf {
    match name.strip_prefix('.') {
        Some(_) => PathBuf::from("progs").join(constants_file(name)),
        None => PathBuf::from("maps").join(name),
    }
}

/// The file name of a map of constants, such as `.rodata.cst16`, beside the programs.
#[must_use]
pub fn constants_file(name: &str) -> String {
    name.trim_start_matches('.').replace('.', "_")
}

/// The folder of one attachment: its links, and the name of its pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentFolder {
    path: PathBuf,
}

impl AttachmentFolder {
    /// A folder that was found by listing.
    #[must_use]
    pub fn found(path: PathBuf) -> AttachmentFolder {
        AttachmentFolder { path }
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the container, in which this one is.
    #[must_use]
    pub fn container(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// The pin of a link.
    #[must_use]
    pub fn link(&self, hook: Hook) -> PathBuf {
        self.path.join(hook.name())
    }

    /// The folder in it that names the pod's network namespace.
    #[must_use]
    pub fn netns(&self, cookie: u64) -> PathBuf {
        self.path.join(format!("netns-{cookie:x}"))
    }
}

/// The cookie that a folder's name holds, see [`AttachmentFolder::netns`].
#[must_use]
pub fn cookie_in(path: &Path) -> Option<u64> {
    u64::from_str_radix(path.file_name()?.to_str()?.strip_prefix("netns-")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_survives_in_a_folder_name() {
        let id = AttachmentId { container_id: "c.1".into(), ifname: "eth0".into() };
        let folder = current(&Node::new("/bpf", "/run/x")).attachment(&id);
        assert_eq!(cookie_in(&folder.netns(u64::MAX)), Some(u64::MAX));
        assert_eq!(cookie_in(&folder.link(Hook::Connect4)), None);
        assert!(folder.path().ends_with("pods/c_2e1/eth0"));
    }
}
