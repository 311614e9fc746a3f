//! The RPM package.

use std::path::PathBuf;

use anyhow::{Context, Result};
use rpm::{BuildConfig, CompressionType, FileOptions, PackageBuilder};

use crate::release::{DESCRIPTION, Release, SUMMARY};
use crate::tree::{Kind, Tree};

/// Writes `redirect-cni-VERSION-1.ARCH.rpm` and returns its path.
pub(crate) fn build(release: &Release, tree: &Tree) -> Result<PathBuf> {
    let date = u32::try_from(release.date).context("the date of the release does not fit an RPM")?;
    let config = BuildConfig::v4().compression(CompressionType::Gzip).source_date(date);
    let mut builder =
        PackageBuilder::new("redirect-cni", &release.version, "MIT OR Apache-2.0", &release.arch, SUMMARY);
    builder.using_config(config).release("1").description(DESCRIPTION.join("\n")).build_host("redirect-cni");
    for (path, file) in tree.files() {
        let place = format!("/{path}");
        match &file.kind {
            Kind::Content(content) => {
                let options = FileOptions::new(place).permissions(file.mode as u16);
                let options = if file.is_configuration { options.config().noreplace() } else { options };
                builder.with_file_contents(content.clone(), options)?;
            }
            Kind::Link(target) => {
                builder.with_symlink(FileOptions::symlink(place, target))?;
            }
        }
    }
    let script = |name: &str| {
        let path = release.root.join("deploy/package").join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    builder.post_install_script(script("postinst")?);
    builder.pre_uninstall_script(script("prerm")?);
    builder.post_uninstall_script(script("postrm")?);
    let package = builder.build()?;
    let path = release.out.join(format!("redirect-cni-{}-1.{}.rpm", release.version, release.arch));
    package.write_file(&path)?;
    Ok(path)
}
