//! The pod's cgroup: found from what the runtime says or from the pod's uid, made where the runtime is about
//! to make it itself, and checked before anything is attached to it.
//!
//! A pod-level cgroup has one of two names, by the kubelet's cgroup driver, in one of three places, by the
//! pod's QoS class, below a root that differs between nodes (a node in a container has its own):
//!
//! ```text
//! cgroupfs  <root>/kubepods/{,burstable/,besteffort/}pod<uid>
//! systemd   <root>/kubepods.slice/{,kubepods-burstable.slice/,kubepods-besteffort.slice/}
//!               kubepods{,-burstable,-besteffort}-pod<uid with _ for ->.slice
//! ```

mod check;
mod error;
mod life;
mod mount;
mod search;

use std::io;
use std::path::{Component, Path, PathBuf};

pub use self::check::alive;
pub(crate) use self::check::populated;
pub use self::error::Error;
pub use self::life::pids;
pub use self::life::{Life, life};
pub use self::mount::root;

use crate::kernel::hook::Hook;

/// What is known about where a pod's cgroup is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clues<'a> {
    /// Where cgroup v2 is mounted, if the configuration says so; else it is found in mountinfo.
    pub root: Option<&'a Path>,
    /// The path that the runtime gave (`runtimeConfig.cgroupPath`): the kubelet's `cgroup_parent`.
    pub runtime_path: Option<&'a str>,
    /// The pod's uid (`K8S_POD_UID`).
    pub uid: Option<&'a str>,
    /// The hooks that are going to be linked there; all, if nothing says so.
    pub hooks: Option<&'a [Hook]>,
}

/// A pod's cgroup that is fit for attaching.
#[derive(Debug)]
pub struct PodCgroup {
    /// The directory.
    pub path: PathBuf,
    /// The directories that were made for it, the outer ones first.
    pub made: Vec<PathBuf>,
}

impl PodCgroup {
    /// Removes the directories that [`find`] made, unless somebody put processes or cgroups into them
    /// meanwhile: the undo of a failed ADD.
    pub fn undo(&self) {
        for path in self.made.iter().rev() {
            if std::fs::remove_dir(path).is_err() {
                return;
            }
        }
    }
}

/// Finds, or makes, and checks the pod's cgroup.
///
/// # Errors
/// See [`Error`]; nothing that was made is left behind.
pub fn find(clues: Clues<'_>) -> Result<PodCgroup, Error> {
    let root = mount::root(clues.root)?;
    let found = locate(&root, clues)?;
    if let Err(error) = check::usable(&root, &found.path, clues.hooks.unwrap_or(Hook::ALL)) {
        found.undo();
        return Err(error);
    }
    Ok(found)
}

/// The runtime's path counts more than the uid: what it names is where the containers will be.
fn locate(root: &Path, clues: Clues<'_>) -> Result<PodCgroup, Error> {
    let existing = |path| PodCgroup { path, made: Vec::new() };
    let named = clues.runtime_path.filter(|path| !path.is_empty()).map(in_tree).transpose()?;
    if let Some(relative) = &named
        && let path = root.join(relative)
        && path.is_dir()
    {
        return Ok(existing(path));
    }
    match (named, clues.uid) {
        (Some(relative), _) => make(root, &relative),
        (None, Some(uid)) => search::by_uid(root, uid).map(existing),
        (None, None) => Err(Error::NoClue),
    }
}

/// The runtime's path as one below the root. A bare slice is systemd's short form for the nested one.
fn in_tree(path: &str) -> Result<PathBuf, Error> {
    let bad = |why| Error::BadPath { path: crate::policy::grammar::shorten(path), why };
    let mut relative = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => relative.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(bad("leaves the cgroup tree")),
        }
    }
    if relative.as_os_str().is_empty() {
        return Err(bad("is the root of the cgroup tree: that would capture the whole node"));
    }
    match relative.to_str() {
        Some(slice) if !slice.contains('/') && slice.ends_with(".slice") => Ok(search::expand_slice(slice)),
        _ => Ok(relative),
    }
}

/// Makes the cgroup that the runtime named and that was not made yet. Only what Kubernetes owns is made: a
/// path elsewhere that does not exist is a mistake.
fn make(root: &Path, relative: &Path) -> Result<PodCgroup, Error> {
    let kubernetes = |part: Component<'_>| part.as_os_str().to_string_lossy().starts_with("kubepods");
    let path = root.join(relative);
    if let Some(other) = other_driver(root, relative) {
        let path = format!("/{}", relative.display());
        return Err(Error::OtherDriver { path, other });
    }
    if !relative.components().any(kubernetes) {
        let path = format!("/{}", relative.display());
        return Err(Error::BadPath {
            path,
            why: "does not exist, and is not below kubepods, where it would be made",
        });
    }
    let mut cgroup = PodCgroup { path: path.clone(), made: Vec::new() };
    let mut at = root.to_owned();
    for part in relative.components() {
        at.push(part);
        match std::fs::create_dir(&at) {
            Ok(()) => cgroup.made.push(at.clone()),
            // Somebody else, the runtime perhaps, made it at the same time.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                cgroup.undo();
                return Err(Error::Make { path, source });
            }
        }
    }
    Ok(cgroup)
}

/// The node's tree of pods when it is of the other cgroup driver's shape than the path: the processes would
/// be there, and not in what would be made.
fn other_driver(root: &Path, relative: &Path) -> Option<PathBuf> {
    let mut at = root.to_owned();
    for part in relative.components() {
        let name = part.as_os_str().to_str()?;
        if name.starts_with("kubepods") {
            let other = match name.strip_suffix(".slice") {
                Some(plain) => at.join(plain),
                None => at.join(format!("{name}.slice")),
            };
            return (!at.join(name).is_dir() && other.is_dir()).then_some(other);
        }
        at.push(part);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_slice_is_expanded_as_systemd_does() {
        for (given, expected) in [
            ("kubepods.slice", "kubepods.slice"),
            (
                "kubepods-burstable-pod11_22.slice",
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod11_22.slice",
            ),
            ("/kubepods-pod1.slice", "kubepods.slice/kubepods-pod1.slice"),
            ("/kubepods.slice/kubepods-pod1.slice", "kubepods.slice/kubepods-pod1.slice"),
            ("/kubepods/burstable/pod11-22", "kubepods/burstable/pod11-22"),
            ("kubelet/./kubepods//pod1/", "kubelet/kubepods/pod1"),
        ] {
            assert_eq!(in_tree(given).unwrap(), Path::new(expected), "{given}");
        }
    }

    #[test]
    fn a_path_never_leaves_the_tree_or_is_its_root() {
        for bad in ["/", ".", "../kubepods/pod1", "/kubepods/../../etc", ".."] {
            let error = in_tree(bad).unwrap_err();
            assert!(matches!(error, Error::BadPath { .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_made_is_unmade_and_only_below_kubepods() {
        let root = std::env::temp_dir().join(format!("redirect-cgroup-make-{}", std::process::id()));
        std::fs::create_dir_all(root.join("kubepods")).unwrap();
        let made = make(&root, Path::new("kubepods/burstable/pod1")).unwrap();
        assert!(made.path.is_dir());
        // A second maker finds it and leaves it to the first.
        let again = make(&root, Path::new("kubepods/burstable/pod1")).unwrap();
        again.undo();
        assert!(made.path.is_dir());
        made.undo();
        assert!(!root.join("kubepods/burstable").exists() && root.join("kubepods").exists());
        let error = make(&root, Path::new("system.slice/sshd.service")).unwrap_err().to_string();
        assert!(error.contains("system.slice/sshd.service") && error.contains("kubepods"), "{error}");
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_path_of_the_other_drivers_shape_is_refused() {
        let root = std::env::temp_dir().join(format!("redirect-cgroup-driver-{}", std::process::id()));
        std::fs::create_dir_all(root.join("kubepods.slice")).unwrap();
        let error = make(&root, Path::new("kubepods/burstable/pod1")).unwrap_err().to_string();
        assert!(error.contains("kubepods.slice") && error.contains("cgroupDriver"), "{error}");
        assert!(!root.join("kubepods").exists());
        std::fs::remove_dir(root.join("kubepods.slice")).unwrap();
        std::fs::create_dir_all(root.join("kubelet/kubepods")).unwrap();
        let slice = Path::new("kubelet/kubepods.slice/kubepods-pod1.slice");
        assert!(matches!(make(&root, slice), Err(Error::OtherDriver { .. })));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn without_path_and_uid_the_error_names_both() {
        let text = locate(Path::new("/sys/fs/cgroup"), Clues { runtime_path: Some(""), ..Clues::default() })
            .unwrap_err()
            .to_string();
        assert!(text.contains("cgroupPath") && text.contains("K8S_POD_UID"), "{text}");
    }
}
