//! The container image: the two static binaries and nothing else, as an OCI image layout in an archive. `ctr
//! images import`, `skopeo copy oci-archive:` and `crane push` take it as it is.

use std::path::PathBuf;
use std::str::FromStr as _;

use anyhow::Result;
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, PlatformBuilder, RootFsBuilder, Sha256Digest,
};
use sha2::{Digest as _, Sha256};

use crate::release::Release;
use crate::tree::Tree;
use crate::{archive, deb};

/// Writes `redirect-cni-VERSION-ARCH.oci.tar` and returns its path.
pub(crate) fn build(release: &Release, content: &Tree) -> Result<PathBuf> {
    let mut layout = Tree::default();
    let manifest = add_manifest(&mut layout, release, content)?;
    write(layout, manifest, release, &format!("-{}", deb::architecture(&release.arch)))
}

/// Writes `redirect-cni-VERSION.oci.tar`, one image for several architectures, and returns its path.
pub(crate) fn build_index(images: &[(Release, Tree)]) -> Result<PathBuf> {
    let mut layout = Tree::default();
    let manifests = images.iter().map(|(release, content)| add_manifest(&mut layout, release, content));
    let manifests = manifests.collect::<Result<Vec<_>>>()?;
    let index = blob(&mut layout, MediaType::ImageIndex, index_of(manifests)?)?;
    write(layout, index, &images[0].0, "")
}

/// Layer, configuration and manifest of one architecture; describes the manifest.
fn add_manifest(layout: &mut Tree, release: &Release, content: &Tree) -> Result<Descriptor> {
    let plain = archive::tar(content, "", release.date)?;
    let layer = blob(layout, MediaType::ImageLayerGzip, archive::gzip(&plain)?)?;
    let arch = Arch::from(deb::architecture(&release.arch));
    let labels = [
        ("org.opencontainers.image.title", "redirect-cni"),
        ("org.opencontainers.image.version", release.version.as_str()),
        ("org.opencontainers.image.licenses", "MIT OR Apache-2.0"),
    ];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = ImageConfigurationBuilder::default()
        .architecture(arch.clone())
        .os(Os::Linux)
        .config(
            ConfigBuilder::default()
                .entrypoint(vec!["/usr/bin/redirect".to_owned()])
                .cmd(vec!["agent".to_owned()])
                .env(vec!["PATH=/usr/bin".to_owned()])
                .labels(labels.iter().cloned().collect::<std::collections::HashMap<_, _>>())
                .build()?,
        )
        .rootfs(
            RootFsBuilder::default()
                .typ("layers")
                .diff_ids(vec![format!("sha256:{}", hex(&plain))])
                .build()?,
        )
        .build()?;
    let config = blob(layout, MediaType::ImageConfig, canonical(&config)?)?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(vec![layer])
        .build()?;
    let mut manifest = blob(layout, MediaType::ImageManifest, canonical(&manifest)?)?;
    manifest.set_platform(Some(PlatformBuilder::default().architecture(arch).os(Os::Linux).build()?));
    Ok(manifest)
}

/// Completes a layout whose image is `top`, and writes it.
fn write(mut layout: Tree, mut top: Descriptor, release: &Release, suffix: &str) -> Result<PathBuf> {
    // The tag for those who give the name themselves, and the whole name for containerd.
    let names = [
        ("org.opencontainers.image.ref.name", release.version.clone()),
        ("io.containerd.image.name", format!("docker.io/library/redirect-cni:{}", release.version)),
    ];
    let names = names.map(|(key, name)| (key.to_owned(), name)).into_iter().collect();
    top.set_annotations(Some(names));
    layout.file("index.json", 0o644, index_of(vec![top])?);
    let marker = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;
    layout.file("oci-layout", 0o644, canonical(&marker)?);
    let path = release.out.join(format!("redirect-cni-{}{suffix}.oci.tar", release.version));
    std::fs::write(&path, archive::tar(&layout, "", release.date)?)?;
    Ok(path)
}

fn index_of(manifests: Vec<Descriptor>) -> Result<Vec<u8>> {
    let index = ImageIndexBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build()?;
    canonical(&index)
}

/// JSON with sorted keys: the builders keep labels in maps that have no order.
fn canonical(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&serde_json::to_value(value)?)?)
}

fn blob(layout: &mut Tree, kind: MediaType, content: Vec<u8>) -> Result<Descriptor> {
    let digest = hex(&content);
    let descriptor = DescriptorBuilder::default()
        .media_type(kind)
        .digest(Sha256Digest::from_str(&digest)?)
        .size(content.len() as u64)
        .build()?;
    layout.file(&format!("blobs/sha256/{digest}"), 0o644, content);
    Ok(descriptor)
}

/// The SHA-256 of some bytes in hexadecimal digits.
pub(crate) fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
