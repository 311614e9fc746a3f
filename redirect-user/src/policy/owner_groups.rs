//! `ISTIO_OUTBOUND_OWNER_GROUPS` and `ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE`: whose outbound traffic is
//! captured, by group.
//!
//! Both come from the environment of the process that calls the plugin, hold names or numbers, and mean for
//! every pod of the node the same. Names are those of the node's `/etc/group`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use thiserror::Error;

use crate::policy::OwnerGroups;
use crate::policy::grammar::shorten;

/// The variable with the groups whose traffic is captured; `*` (the default) means all.
pub const INCLUDE: &str = "ISTIO_OUTBOUND_OWNER_GROUPS";
/// The variable with the groups whose traffic is not captured; read only where [`INCLUDE`] is `*`.
pub const EXCLUDE: &str = "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE";

/// How many groups a list may have. Every pod of the node has them in the maps.
pub const MOST_GROUPS: usize = 256;

/// Why the groups cannot be read.
#[derive(Debug, Error)]
pub enum Error {
    /// An item between two commas is empty.
    #[error("{variable}={value:?} has an empty item; separate group names or ids with single commas")]
    Empty {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// More groups than are kept.
    #[error("{variable} has {count} groups; at most {MOST_GROUPS} are kept for each pod, so leave some out")]
    TooMany {
        /// The variable.
        variable: &'static str,
        /// How many groups.
        count: usize,
    },
    /// A name that is not in the group file.
    #[error("{variable} names the group {name:?}, which {} does not have; use its numeric id", file.display())]
    Unknown {
        /// The variable.
        variable: &'static str,
        /// The name.
        name: String,
        /// The group file.
        file: PathBuf,
    },
    /// A name, and no group file to look it up in.
    #[error("{variable} names the group {name:?}, but {} cannot be read; use its numeric id", file.display())]
    Unreadable {
        /// The variable.
        variable: &'static str,
        /// The name.
        name: String,
        /// The group file.
        file: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
}

/// The two variables as they were found.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    /// [`INCLUDE`].
    pub include: Option<String>,
    /// [`EXCLUDE`].
    pub exclude: Option<String>,
    /// Where names are looked up; `/etc/group` unless a test says otherwise.
    pub group_file: Option<PathBuf>,
}

impl Variables {
    /// The variables of this process.
    #[must_use]
    pub fn from_env() -> Variables {
        let read = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Variables { include: read(INCLUDE), exclude: read(EXCLUDE), group_file: None }
    }

    /// What they mean. An include list makes the exclude list void, as in Istio.
    pub fn parse(&self) -> Result<OwnerGroups, Error> {
        match self.include.as_deref() {
            None | Some("*") => {
                self.groups(EXCLUDE, self.exclude.as_deref().unwrap_or("")).map(OwnerGroups::AllBut)
            }
            Some(list) => self.groups(INCLUDE, list).map(OwnerGroups::Only),
        }
    }

    fn groups(&self, variable: &'static str, list: &str) -> Result<BTreeSet<u32>, Error> {
        if list.is_empty() {
            return Ok(BTreeSet::new());
        }
        let count = list.split(',').count();
        if count > MOST_GROUPS {
            return Err(Error::TooMany { variable, count });
        }
        list.split(',').map(|item| self.group(variable, list, item.trim())).collect()
    }

    fn group(&self, variable: &'static str, list: &str, item: &str) -> Result<u32, Error> {
        if item.is_empty() {
            return Err(Error::Empty { variable, value: shorten(list) });
        }
        if item.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(gid) = item.parse()
        {
            return Ok(gid);
        }
        let file = self.group_file.clone().unwrap_or_else(|| PathBuf::from("/etc/group"));
        let name = shorten(item);
        match std::fs::read(&file) {
            Ok(text) => {
                gid_of(&String::from_utf8_lossy(&text), item).ok_or(Error::Unknown { variable, name, file })
            }
            Err(source) => Err(Error::Unreadable { variable, name, file, source }),
        }
    }
}

/// The id of a group in the text of a group file (`name:password:id:members`, see group(5)).
fn gid_of(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(include: Option<&str>, exclude: Option<&str>) -> Result<OwnerGroups, Error> {
        let file = std::env::temp_dir().join(format!(
            "redirect-groups-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&file, "root:x:0:\nistio:x:1337:envoy\nbroken\nusers:x:100:a,b\n").unwrap();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let variables =
            Variables { include: owned(include), exclude: owned(exclude), group_file: Some(file.clone()) };
        let parsed = variables.parse();
        std::fs::remove_file(file).unwrap();
        parsed
    }

    #[test]
    fn there_are_not_more_groups_than_are_kept() {
        let list = |count: usize| vec!["7"; count].join(",");
        assert!(parse(Some(&list(MOST_GROUPS)), None).is_ok());
        let text = parse(None, Some(&list(MOST_GROUPS + 1))).unwrap_err().to_string();
        assert!(text.contains(EXCLUDE) && text.contains("257 groups; at most 256"), "{text}");
    }

    #[test]
    fn everything_is_captured_unless_said_otherwise() {
        assert_eq!(parse(None, None).unwrap(), OwnerGroups::AllBut(BTreeSet::new()));
        assert_eq!(parse(Some("*"), Some("")).unwrap(), OwnerGroups::AllBut(BTreeSet::new()));
        assert_eq!(
            parse(None, Some("istio, 202")).unwrap(),
            OwnerGroups::AllBut(BTreeSet::from([202, 1337]))
        );
    }

    #[test]
    fn an_include_list_makes_the_exclude_list_void() {
        assert_eq!(
            parse(Some("101,users"), Some("nonsense")).unwrap(),
            OwnerGroups::Only(BTreeSet::from([100, 101]))
        );
        assert_eq!(parse(Some(""), None).unwrap(), OwnerGroups::Only(BTreeSet::new()));
    }

    #[test]
    fn what_is_not_a_group_is_named() {
        let text = parse(None, Some("nobody-here")).unwrap_err().to_string();
        assert!(
            text.contains(EXCLUDE) && text.contains("nobody-here") && text.contains("redirect-groups-"),
            "{text}"
        );
        assert!(matches!(parse(Some("1,,2"), None), Err(Error::Empty { variable: INCLUDE, .. })));
        assert!(matches!(parse(Some("broken"), None), Err(Error::Unknown { .. })));
        assert!(matches!(parse(Some("99999999999"), None), Err(Error::Unknown { .. })));
        let variables = Variables {
            include: Some("istio".to_owned()),
            group_file: Some(PathBuf::from("/nonexistent/group")),
            ..Variables::default()
        };
        assert!(matches!(variables.parse(), Err(Error::Unreadable { .. })));
    }
}
