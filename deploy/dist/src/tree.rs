//! What goes where on the machine of somebody who installs it: one list for archive and packages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Files by their path below the root, without a leading slash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    files: BTreeMap<String, File>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) mode: u32,
    /// Whether it is the operator's: an upgrade does not overwrite what was changed in it.
    pub(crate) is_configuration: bool,
    pub(crate) kind: Kind,
}

/// What it holds.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Content(Vec<u8>),
    Link(String),
}

impl Tree {
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        self.files.insert(path.into(), File { mode, is_configuration: false, kind: Kind::Content(content) });
    }

    /// A file that operators change, from one that is there.
    pub(crate) fn configuration(&mut self, path: &str, from: &Path) -> Result<()> {
        self.copy(path, 0o644, from)?;
        self.files.entry(path.into()).and_modify(|file| file.is_configuration = true);
        Ok(())
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        let kind = Kind::Link(target.into());
        self.files.insert(path.into(), File { mode: 0o777, is_configuration: false, kind });
    }

    /// A copy of a file that is there.
    pub(crate) fn copy(&mut self, path: &str, mode: u32, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(path, mode, content);
        Ok(())
    }

    /// All files of a folder, without those below.
    pub(crate) fn copy_all(&mut self, folder: &str, mode: u32, from: &Path) -> Result<()> {
        for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().context("a file name that is no text")?;
            self.copy(&format!("{folder}/{name}"), mode, &entry.path())?;
        }
        Ok(())
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files.iter().map(|(path, file)| (path.as_str(), file))
    }

    /// Every folder on the way to a file, parents first.
    pub(crate) fn folders(&self) -> BTreeSet<&str> {
        let ends = |path: &str| path.match_indices('/').map(|(at, _)| at).collect::<Vec<_>>();
        self.files.keys().flat_map(|path| ends(path).into_iter().map(|at| &path[..at])).collect()
    }

    /// Writes it below a folder.
    pub(crate) fn write(&self, root: &Path) -> Result<()> {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        for (path, file) in self.files() {
            let target = root.join(path);
            let folder = target.parent().context("a path has a folder")?;
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            match &file.kind {
                Kind::Content(content) => {
                    fs::write(&target, content)
                        .with_context(|| format!("cannot write {}", target.display()))?;
                    fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
                }
                Kind::Link(to) => symlink(to, &target)?,
            }
        }
        Ok(())
    }
}

/// What the packages and the archive install.
pub(crate) fn installed(root: &Path, binaries: &Path, generated: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    let package = root.join("deploy/package");
    tree.copy("usr/bin/redirect", 0o755, &binaries.join("redirect"))?;
    tree.copy("usr/lib/redirect-cni/redirect-cni", 0o755, &binaries.join("redirect-cni"))?;
    // `kubectl redirect`, and what it asks for completions, are found by these names.
    for name in ["kubectl-redirect", "kubectl_complete-redirect"] {
        tree.link(&format!("usr/bin/{name}"), "redirect");
    }
    for unit in ["redirect-cni.service", "redirect-cni-agent.service"] {
        tree.copy(&format!("usr/lib/systemd/system/{unit}"), 0o644, &package.join(unit))?;
    }
    tree.configuration("etc/redirect-cni/plugin.json", &package.join("plugin.json"))?;
    tree.configuration("etc/default/redirect-cni-agent", &package.join("redirect-cni-agent.default"))?;
    tree.copy("usr/lib/tmpfiles.d/redirect-cni.conf", 0o644, &package.join("tmpfiles.conf"))?;
    tree.copy_all("usr/share/man/man1", 0o644, &generated.join("man"))?;
    for (file, place) in [
        ("redirect.bash", "usr/share/bash-completion/completions/redirect"),
        ("_redirect", "usr/share/zsh/vendor-completions/_redirect"),
        ("redirect.fish", "usr/share/fish/vendor_completions.d/redirect.fish"),
    ] {
        tree.copy(place, 0o644, &generated.join("completions").join(file))?;
    }
    let doc = "usr/share/doc/redirect-cni";
    for name in ["LICENSE-APACHE", "LICENSE-MIT", "LICENSE-GPL-2.0", "README.md", "CHANGELOG.md"] {
        tree.copy(&format!("{doc}/{name}"), 0o644, &root.join(name))?;
    }
    tree.copy(&format!("{doc}/copyright"), 0o644, &package.join("copyright"))?;
    tree.copy(&format!("{doc}/configuration.md"), 0o644, &root.join("cni/README.md"))?;
    Ok(tree)
}
