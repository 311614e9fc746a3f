//! What is installed: version and hash of the object, the maps that it has, and the features that it knows.
//!
//! bpffs keeps no files, but it keeps symbolic links, and a link's target may be any text: `0.1.0 f00dfeed
//! PODS,SETS 1ffff`.

use std::fs;
use std::io;

use crate::kernel::features;
use crate::kernel::pins::{self, Generation};
use crate::node::Node;
use crate::path_error::{PathError, fine_if_gone};

/// Beside the pins of an installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The version of the binary that installed it.
    pub version: String,
    /// A hash of the embedded object.
    pub hash: String,
    /// The maps that must be pinned, in alphabetical order.
    pub maps: Vec<String>,
    /// The bits of a pod's configuration that the programs know, see [`features`].
    pub features: u32,
}

impl Stamp {
    /// The stamp of the object that this binary carries.
    #[must_use]
    pub fn own(maps: Vec<String>) -> Stamp {
        let (version, hash) = (env!("CARGO_PKG_VERSION").to_owned(), env!("REDIRECT_OBJECT_HASH").to_owned());
        Stamp { version, hash, maps, features: features::KNOWN }
    }

    /// Whether the programs are those that this binary carries.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.hash == env!("REDIRECT_OBJECT_HASH")
    }

    /// Whether this binary is of an older version than the programs.
    #[must_use]
    pub fn is_newer_than_this(&self) -> bool {
        numbers(&self.version) > numbers(env!("CARGO_PKG_VERSION"))
    }

    /// Reads what is installed; `None` when nothing says so.
    #[must_use]
    pub fn read(generation: &Generation) -> Option<Stamp> {
        let target = fs::read_link(generation.stamp()).ok()?;
        Stamp::parse(target.to_str()?)
    }

    /// Writes it, in the place of the one that was there.
    ///
    /// # Errors
    /// bpffs refuses.
    pub(crate) fn write(&self, generation: &Generation) -> Result<(), PathError> {
        let (path, unfinished) = (generation.stamp(), generation.folder().join("object-new"));
        let text = format!("{} {} {} {:x}", self.version, self.hash, self.maps.join(","), self.features);
        let written: io::Result<()> = fine_if_gone(fs::remove_file(&unfinished))
            .and_then(|()| std::os::unix::fs::symlink(text, &unfinished))
            .and_then(|()| fs::rename(&unfinished, &path));
        written.map_err(PathError::at("write", path))
    }

    fn parse(text: &str) -> Option<Stamp> {
        let mut words = text.split(' ');
        let (version, hash, maps) = (words.next()?, words.next()?, words.next()?);
        let maps = maps.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let features = words.next().and_then(|bits| u32::from_str_radix(bits, 16).ok());
        let features = features.unwrap_or(features::FIRST);
        Some(Stamp { version: version.to_owned(), hash: hash.to_owned(), maps, features })
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "version {}, object {}", self.version, self.hash)
    }
}

/// Programs of another build that do not know what a policy needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the programs on this node are of version {version} and do not know {features}, which the policy needs; {}run \
     `redirect upgrade` to put those of this version in their place",
    upgrade.as_ref().map_or_else(String::new, |error| format!("an upgrade was tried and failed ({error}); "))
)]
pub struct Lacking {
    /// The version that is installed.
    pub version: String,
    /// What is lacking, in an operator's words.
    pub features: String,
    /// Why the upgrade failed that was tried before.
    pub upgrade: Option<String>,
}

/// What the installed programs lack of these bits of a configuration.
#[must_use]
pub fn lacking(node: &Node, bits: u32) -> Option<Lacking> {
    let stamp = Stamp::read(&pins::current(node)).filter(|stamp| !stamp.is_own())?;
    let missing = bits & !stamp.features;
    (missing != 0).then(|| Lacking {
        version: stamp.version,
        features: features::words(missing),
        upgrade: None,
    })
}

fn numbers(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written_and_versions_compare_by_number() {
        let stamp = Stamp::parse("0.10.0 abc PODS,SETS").unwrap();
        assert_eq!(stamp.maps, ["PODS", "SETS"]);
        assert!(stamp.is_newer_than_this() && !stamp.is_own());
        assert_eq!(stamp.features, features::FIRST);
        assert_eq!(Stamp::parse("0.1.0 abc PODS 3").unwrap().features, 3);
        assert!(!Stamp::parse("0.0.9 abc ").unwrap().is_newer_than_this());
        assert_eq!(Stamp::parse("nonsense"), None);
    }
}
