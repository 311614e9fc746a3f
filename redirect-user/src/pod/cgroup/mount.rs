//! Where cgroup v2 is mounted: in `/sys/fs/cgroup` on most nodes, in `/sys/fs/cgroup/unified` on hybrid ones.

use std::path::{Path, PathBuf};

use super::error::Error;
use crate::path_error::PathError;

const MOUNTINFO: &str = "/proc/self/mountinfo";
/// Looked at first: mountinfo has a line for every container and network namespace of the node, and ADD must
/// not take longer the more pods there are.
const USUAL: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The configured root, or where it usually is, or the one that mountinfo names.
///
/// # Errors
/// There is none, or the configured one is not cgroup v2.
pub fn root(configured: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = configured {
        return match super::check::is_cgroup2(path) {
            Ok(true) => Ok(path.to_owned()),
            Ok(false) => Err(Error::Root { path: path.to_owned() }),
            Err(source) => Err(PathError { what: "open", path: path.to_owned(), source }.into()),
        };
    }
    let is_unified = |path: &Path| super::check::is_cgroup2(path).unwrap_or(false);
    if let Some(usual) = USUAL.map(Path::new).into_iter().find(|path| is_unified(path)) {
        return Ok(usual.to_owned());
    }
    let text = std::fs::read_to_string(MOUNTINFO)
        .map_err(|source| Error::Mountinfo { path: PathBuf::from(MOUNTINFO), source })?;
    unified(&text)
}

/// Where cgroup v2 is mounted in this mount namespace.
pub(crate) fn mounts() -> std::io::Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string(MOUNTINFO)?;
    let unified = text.lines().filter_map(Mount::parse).filter(|mount| mount.kind == "cgroup2");
    Ok(unified.map(|mount| PathBuf::from(mount.point)).collect())
}

/// The mount of the whole cgroup v2 tree, or else of the largest part of it that is mounted.
fn unified(mountinfo: &str) -> Result<PathBuf, Error> {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
    // Bind mounts of a part have a longer root; of two mounts of the same, the last one covers the first.
    let unified =
        mounts.iter().rev().filter(|mount| mount.kind == "cgroup2").min_by_key(|mount| mount.root.len());
    match unified {
        Some(mount) => Ok(PathBuf::from(&mount.point)),
        None if mounts.iter().any(|mount| mount.kind == "cgroup") => Err(Error::V1Only),
        None => Err(Error::NotMounted),
    }
}

/// One line of mountinfo, see proc_pid_mountinfo(5).
struct Mount {
    root: String,
    point: String,
    kind: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Mount> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let root = unescape(fields.next()?);
        let point = unescape(fields.next()?);
        Some(Mount { root, point, kind: after.split(' ').next()?.to_owned() })
    }
}

/// Spaces, tabs, line feeds and backslashes are written as three octal digits.
fn unescape(field: &str) -> String {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        match (first, tail.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 20 0:22 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
27 25 0:24 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw";

    #[test]
    fn the_unified_tree_is_found_wherever_it_is() {
        assert_eq!(unified(HYBRID).unwrap(), Path::new("/sys/fs/cgroup/unified"));
        let pure = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(unified(pure).unwrap(), Path::new("/sys/fs/cgroup"));
        let escaped = r"30 23 0:26 / /srv/my\040node\134x rw - cgroup2 none rw";
        assert_eq!(unified(escaped).unwrap(), Path::new(r"/srv/my node\x"));
    }

    #[test]
    fn a_bind_mount_of_a_part_does_not_hide_the_whole() {
        let text = "\
31 1 0:26 /docker/x /mnt/part rw - cgroup2 cgroup2 rw
32 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
33 1 0:26 /docker/y /mnt/other rw - cgroup2 cgroup2 rw";
        assert_eq!(unified(text).unwrap(), Path::new("/sys/fs/cgroup"));
        // Of two mounts of the same, the later one is what one sees.
        let text = "\
31 1 0:26 / /first rw - cgroup2 cgroup2 rw
32 1 0:26 / /second rw - cgroup2 cgroup2 rw";
        assert_eq!(unified(text).unwrap(), Path::new("/second"));
    }

    #[test]
    fn v1_only_and_nothing_at_all_are_told_apart() {
        let v1 = "26 25 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        assert!(matches!(unified(v1), Err(Error::V1Only)));
        assert!(matches!(unified("1 0 8:1 / / rw - ext4 /dev/sda1 rw"), Err(Error::NotMounted)));
        assert!(matches!(unified("garbage\n\n - \n1 2 3 -"), Err(Error::NotMounted)));
    }

    #[test]
    fn a_configured_root_must_be_cgroup_v2() {
        assert!(matches!(root(Some(Path::new("/tmp"))), Err(Error::Root { .. })));
        assert!(matches!(root(Some(Path::new("/nonexistent"))), Err(Error::Path(_))));
    }
}
