//! The Helm chart as one archive, as `helm package` would name it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::archive;
use crate::release::Release;
use crate::tree::Tree;

/// Writes `redirect-cni-VERSION.tgz` and returns its path.
pub(crate) fn build(release: &Release) -> Result<PathBuf> {
    let folder = release.root.join("deploy/helm/redirect-cni");
    let about = fs::read_to_string(folder.join("Chart.yaml"))?;
    for key in ["version", "appVersion"] {
        let wanted = format!("{key}: {}", release.version);
        ensure!(
            about.lines().any(|line| line == wanted),
            "deploy/helm/redirect-cni/Chart.yaml must say {wanted:?}, the version of the workspace"
        );
    }
    let mut tree = Tree::default();
    add(&mut tree, &folder, "redirect-cni")?;
    let path = release.out.join(format!("redirect-cni-{}.tgz", release.version));
    fs::write(&path, archive::gzip(&archive::tar(&tree, "", release.date)?)?)?;
    Ok(path)
}

fn add(tree: &mut Tree, folder: &Path, place: &str) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a file name that is no text")?;
        let place = format!("{place}/{name}");
        match path.is_dir() {
            true => add(tree, &path, &place)?,
            false => tree.copy(&place, 0o644, &path)?,
        }
    }
    Ok(())
}
