//! A container image made from one static program, without a registry: everything else that a container needs
//! is mounted into it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The name that the image has on the node.
pub const IMAGE: &str = "localhost/base:1";
/// The program, of Debian's package busybox-static.
const BUSYBOX: &str = "/bin/busybox";
/// Directories of the root file system; what is mounted below them is made by the runtime.
const DIRECTORIES: [&str; 12] =
    ["bin", "dev", "etc", "lib", "lib64", "proc", "root", "run", "sys", "tmp", "usr", "var"];
/// Names under which the program is there.
const APPLETS: [&str; 3] = ["bin/cat", "bin/sh", "bin/sleep"];

/// Writes the image to `path`, in the layout that container runtimes import.
pub(super) fn write(path: &Path) -> Result<()> {
    let busybox =
        fs::read(BUSYBOX).with_context(|| format!("reading {BUSYBOX} (Debian package busybox-static)"))?;
    let layer = layer(&busybox)?;
    let config = blob(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "1000000"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    }));
    let manifest = blob(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }));
    let mut described = descriptor(MANIFEST, &manifest);
    described["annotations"] =
        json!({ "io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": "1" });
    let index = blob(&json!({ "schemaVersion": 2, "manifests": [described] }));
    let mut archive = Archive::default();
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    archive.file("index.json", &index, 0o644)?;
    for content in [&config, &manifest, &layer] {
        archive.file(&digest(content).replace("sha256:", "blobs/sha256/"), content, 0o644)?;
    }
    fs::write(path, archive.finish()?).with_context(|| format!("writing {}", path.display()))
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn layer(busybox: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for name in DIRECTORIES {
        archive.entry(
            name,
            tar::EntryType::Directory,
            None,
            &[],
            if name == "tmp" { 0o1777 } else { 0o755 },
        )?;
    }
    archive.file("bin/busybox", busybox, 0o755)?;
    for name in APPLETS {
        archive.entry(name, tar::EntryType::Symlink, Some("busybox"), &[], 0o777)?;
    }
    archive.finish()
}

/// Go's name for the machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn blob(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn digest(content: &[u8]) -> String {
    let bytes = Sha256::digest(content);
    bytes.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

/// A tar archive in memory.
struct Archive {
    builder: tar::Builder<Vec<u8>>,
}

impl Default for Archive {
    fn default() -> Archive {
        Archive { builder: tar::Builder::new(Vec::new()) }
    }
}

impl Archive {
    fn file(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        self.entry(name, tar::EntryType::Regular, None, content, mode)
    }

    fn entry(
        &mut self,
        name: &str,
        kind: tar::EntryType,
        target: Option<&str>,
        content: &[u8],
        mode: u32,
    ) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len().try_into()?);
        if let Some(target) = target {
            header.set_link_name(target)?;
        }
        self.builder.append_data(&mut header, name, content).with_context(|| format!("packing {name}"))
    }

    fn finish(self) -> Result<Vec<u8>> {
        self.builder.into_inner().context("finishing an archive")
    }
}
