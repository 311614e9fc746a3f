//! The Debian package, put together by dpkg-deb from a folder.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::release::{DESCRIPTION, Release, SUMMARY};
use crate::tree::{Kind, Tree};

/// Debian's word for this machine's architecture.
pub(crate) fn architecture(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Writes `redirect-cni_VERSION_ARCH.deb` and returns its path.
pub(crate) fn build(release: &Release, tree: &Tree) -> Result<PathBuf> {
    let scratch = tempfile::tempdir().context("cannot make a directory for the package's content")?;
    // A temporary directory is closed to others; what is in the package must not be.
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
    tree.write(scratch.path())?;
    control(release, tree, &scratch.path().join("DEBIAN"))?;
    let name = format!("redirect-cni_{}_{}.deb", release.version, architecture(&release.arch));
    let path = release.out.join(name);
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.args(["--root-owner-group", "--uniform-compression", "-Zxz", "--build"])
        .arg(scratch.path())
        .arg(&path)
        .env("SOURCE_DATE_EPOCH", release.date.to_string());
    let output = dpkg.output().context("cannot start dpkg-deb (apt-get install dpkg)")?;
    ensure!(output.status.success(), "dpkg-deb failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(path)
}

fn control(release: &Release, tree: &Tree, folder: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    let size: usize = tree
        .files()
        .map(|(_, file)| match &file.kind {
            Kind::Content(content) => content.len(),
            Kind::Link(_) => 0,
        })
        .sum();
    let fields = [
        ("Package", "redirect-cni".into()),
        ("Version", release.version.clone()),
        ("Architecture", architecture(&release.arch).into()),
        ("Maintainer", "redirect-cni developers <redirect-cni@localhost>".into()),
        ("Section", "net".into()),
        ("Priority", "optional".into()),
        ("Installed-Size", size.div_ceil(1024).to_string()),
        ("Description", format!("{}\n {}", SUMMARY, DESCRIPTION.join("\n "))),
    ];
    let text: String = fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    fs::write(folder.join("control"), text)?;
    let ours = tree.files().filter(|(_, file)| file.is_configuration);
    let conffiles: String = ours.map(|(path, _)| format!("/{path}\n")).collect();
    fs::write(folder.join("conffiles"), conffiles)?;
    for script in ["postinst", "prerm", "postrm"] {
        let target = folder.join(script);
        fs::copy(release.root.join("deploy/package").join(script), &target)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
