//! What the binaries are made of: a CycloneDX bill of materials of the crates that cargo links into them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};
use cyclonedx_bom::models::component::{Classification, Component, Components};
use cyclonedx_bom::models::license::{LicenseChoice, Licenses};
use cyclonedx_bom::models::metadata::Metadata as BomMetadata;
use cyclonedx_bom::prelude::{Bom, NormalizedString, Purl, SpdxExpression, SpecVersion};

use crate::release::Release;

/// The packages whose binaries are shipped.
const SHIPPED: [&str; 2] = ["redirect-tool", "redirect-cni"];

/// Writes `redirect-cni-VERSION.cdx.json`, of the crates for these architectures, and returns its path.
pub(crate) fn build(release: &Release, archs: &[&str]) -> Result<PathBuf> {
    let platforms = archs.iter().map(|arch| format!("--filter-platform={arch}-unknown-linux-gnu"));
    let options: Vec<_> = std::iter::once("--locked".into()).chain(platforms).collect();
    let metadata = MetadataCommand::new()
        .manifest_path(release.root.join("Cargo.toml"))
        .other_options(options)
        .exec()
        .context("cargo metadata")?;
    let components =
        linked(&metadata)?.into_iter().map(|id| component(&metadata, id)).collect::<Result<Vec<_>>>()?;
    let mut whole = Component::new(Classification::Application, "redirect-cni", &release.version, None);
    whole.licenses = Some(license("MIT OR Apache-2.0"));
    let bom = Bom {
        // A random serial number would make each build another one.
        serial_number: None,
        metadata: Some(BomMetadata { component: Some(whole), ..BomMetadata::default() }),
        components: Some(Components(components)),
        ..Bom::default()
    };
    let path = release.out.join(format!("redirect-cni-{}.cdx.json", release.version));
    let mut file = std::fs::File::create(&path)?;
    bom.output_as_json(&mut file, SpecVersion::V1_5).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    Ok(path)
}

/// Every package that a shipped one links, in order of their ids; build and test dependencies are not linked.
fn linked(metadata: &Metadata) -> Result<BTreeSet<&PackageId>> {
    let resolve = metadata.resolve.as_ref().context("cargo metadata has no resolved graph")?;
    let mut found = BTreeSet::new();
    let mut next: Vec<&PackageId> = metadata
        .packages
        .iter()
        .filter(|package| SHIPPED.contains(&package.name.as_str()))
        .map(|package| &package.id)
        .collect();
    while let Some(id) = next.pop() {
        if !found.insert(id) {
            continue;
        }
        let node = resolve.nodes.iter().find(|node| node.id == *id).context("a package without a node")?;
        let normal = node
            .deps
            .iter()
            .filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal));
        next.extend(normal.map(|dep| &dep.pkg));
    }
    Ok(found)
}

fn component(metadata: &Metadata, id: &PackageId) -> Result<Component> {
    let package = metadata.packages.iter().find(|package| package.id == *id).context("an unknown package")?;
    let version = package.version.to_string();
    let mut component = Component::new(
        Classification::Library,
        package.name.as_str(),
        &version,
        Some(format!("{}@{version}", package.name)),
    );
    component.purl = Purl::new("cargo", package.name.as_str(), &version).ok();
    component.licenses = package.license.as_deref().map(license);
    component.description = package.description.as_deref().map(NormalizedString::new);
    Ok(component)
}

/// Some crates still write `A/B` for `A OR B`.
fn license(expression: &str) -> Licenses {
    let text = expression.replace('/', " OR ");
    Licenses(vec![LicenseChoice::Expression(SpdxExpression::new(&text))])
}
