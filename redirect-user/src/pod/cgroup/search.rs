//! A pod's cgroup by its uid: first where kubelets put it, then everywhere below the root, within limits.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;
use crate::path_error::PathError;

/// How many directories a search looks at. A node with 250 pods of ten containers has about 3,000.
const DIRECTORIES_MAX: usize = 50_000;
/// How deep a search goes. A node in a container in a pod of another node has its pods at about ten.
const DEPTH_MAX: usize = 16;

/// Finds the cgroup of the pod with this uid.
pub(super) fn by_uid(root: &Path, uid: &str) -> Result<PathBuf, Error> {
    if uid.is_empty() || !uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(Error::BadUid { uid: crate::policy::grammar::shorten(uid) });
    }
    let usual = usual_places(uid).into_iter().map(|place| root.join(place)).find(|path| path.is_dir());
    usual.map_or_else(|| everywhere(root, uid), Ok)
}

/// The six places of a kubelet that has the whole node.
fn usual_places(uid: &str) -> Vec<PathBuf> {
    let escaped = uid.replace('-', "_");
    let mut places = Vec::with_capacity(6);
    for qos in ["", "burstable", "besteffort"] {
        places.push(Path::new("kubepods").join(qos).join(format!("pod{uid}")));
        let prefix = if qos.is_empty() { "kubepods".to_owned() } else { format!("kubepods-{qos}") };
        places.push(expand_slice(&format!("{prefix}-pod{escaped}.slice")));
    }
    places
}

/// The names that the pod's directory may have.
fn names(uid: &str) -> [String; 2] {
    [format!("pod{uid}"), format!("-pod{}.slice", uid.replace('-', "_"))]
}

/// Breadth first, so that the cgroups of pods are met before those of their containers.
fn everywhere(root: &Path, uid: &str) -> Result<PathBuf, Error> {
    let names = names(uid);
    let mut found: Option<PathBuf> = None;
    let mut queue = VecDeque::from([(root.to_owned(), 0)]);
    let mut looked = 0;
    while let Some((directory, depth)) = queue.pop_front() {
        if looked == DIRECTORIES_MAX {
            return Err(Error::SearchLimit { uid: uid.to_owned(), root: root.to_owned(), looked });
        }
        looked += 1;
        for (name, path) in children(&directory, root)? {
            if name == names[0] || name.ends_with(&names[1]) {
                if let Some(first) = found {
                    return Err(Error::Ambiguous { uid: uid.to_owned(), first, second: path });
                }
                found = Some(path);
            } else if depth < DEPTH_MAX {
                queue.push_back((path, depth + 1));
            }
        }
    }
    let names = vec![names[0].clone(), format!("*{}", names[1])];
    found.ok_or_else(|| Error::NotFound { uid: uid.to_owned(), root: root.to_owned(), names, looked })
}

fn children(directory: &Path, root: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        // A cgroup may go away while it is looked at; the root may not.
        Err(error) if directory != root && error.kind() != io::ErrorKind::PermissionDenied => {
            return Ok(Vec::new());
        }
        Err(source) => return Err(PathError { what: "list", path: directory.to_owned(), source }.into()),
    };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(directories.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect())
}

/// `a-b-c.slice` is `a.slice/a-b.slice/a-b-c.slice`, see systemd.slice(5).
pub(super) fn expand_slice(slice: &str) -> PathBuf {
    let name = slice.trim_end_matches(".slice");
    let dashes = name.match_indices('-').map(|(at, _)| at);
    dashes.chain([name.len()]).map(|end| format!("{}.slice", &name[..end])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "5a1f3c2e-0000-4000-8000-00000000abcd";
    const ESCAPED: &str = "5a1f3c2e_0000_4000_8000_00000000abcd";
    const STATIC: &str = "0123456789abcdef0123456789abcdef";

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, directories: &[&str]) -> Tree {
            let root = std::env::temp_dir().join(format!("redirect-search-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&root).unwrap();
            for directory in directories {
                std::fs::create_dir_all(root.join(directory)).unwrap();
            }
            Tree(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn both_drivers_all_classes_nested_roots_and_static_pods() {
        let table = [
            (UID, format!("kubepods/pod{UID}")),
            (UID, format!("kubepods/burstable/pod{UID}")),
            (UID, format!("kubepods/besteffort/pod{UID}")),
            (UID, format!("kubepods.slice/kubepods-pod{ESCAPED}.slice")),
            (UID, format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice")),
            (UID, format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{ESCAPED}.slice")),
            (UID, format!("docker/0123/kubelet/kubepods/burstable/pod{UID}")),
            (
                UID,
                format!(
                    "system.slice/docker-1.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{ESCAPED}.slice"
                ),
            ),
            (STATIC, format!("kubepods/burstable/pod{STATIC}")),
            (STATIC, format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice")),
        ];
        for (index, (uid, place)) in table.iter().enumerate() {
            let tree = Tree::new(
                &format!("table{index}"),
                &["init.scope", "kubepods/besteffort", &format!("{place}/c0ffee")],
            );
            assert_eq!(by_uid(&tree.0, uid).unwrap(), tree.0.join(place));
        }
    }

    #[test]
    fn another_pod_is_not_taken_for_it() {
        let other = UID.replace('a', "b");
        let tree = Tree::new("other", &[&format!("x/kubepods/pod{other}"), &format!("x/kubepods/pod{UID}0")]);
        let error = by_uid(&tree.0, UID).unwrap_err();
        assert!(matches!(&error, Error::NotFound { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(UID) && text.contains(ESCAPED) && text.contains(&tree.0.display().to_string()),
            "{text}"
        );
    }

    #[test]
    fn two_candidates_are_an_error_that_names_both() {
        let (first, second) = (format!("a/kubepods/pod{UID}"), format!("b/kubepods/pod{UID}"));
        let tree = Tree::new("two", &[&first, &second]);
        let text = by_uid(&tree.0, UID).unwrap_err().to_string();
        assert!(text.contains(&first) && text.contains(&second), "{text}");
    }

    #[test]
    fn a_uid_cannot_be_a_path() {
        for bad in ["", "../etc", "a/b", "a_b", "a.b", "a b", "é"] {
            assert!(matches!(by_uid(Path::new("/nonexistent"), bad), Err(Error::BadUid { .. })), "{bad}");
        }
        assert!(matches!(by_uid(Path::new("/nonexistent"), UID), Err(Error::Path(_))));
    }

    #[test]
    fn a_search_is_bounded_in_depth() {
        let deep = format!("{}/pod{UID}", "d/".repeat(DEPTH_MAX + 2));
        let tree = Tree::new("deep", &[&deep]);
        assert!(matches!(by_uid(&tree.0, UID), Err(Error::NotFound { .. })));
    }
}
