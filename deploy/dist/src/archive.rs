//! Archives that are the same for the same content: sorted, owned by root, with one date for everything.

use std::io::Write;

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use crate::tree::{Kind, Tree};

/// A tar archive of a tree; each path begins with `prefix`.
pub(crate) fn tar(tree: &Tree, prefix: &str, date: u64) -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    for folder in tree.folders() {
        let mut header = header(EntryType::Directory, 0o755, date);
        archive.append_data(&mut header, format!("{prefix}{folder}/"), std::io::empty())?;
    }
    for (path, file) in tree.files() {
        let path = format!("{prefix}{path}");
        match &file.kind {
            Kind::Content(content) => {
                let mut header = header(EntryType::Regular, file.mode, date);
                header.set_size(content.len() as u64);
                archive.append_data(&mut header, path, content.as_slice())?;
            }
            Kind::Link(target) => {
                archive.append_link(&mut header(EntryType::Symlink, 0o777, date), path, target)?;
            }
        }
    }
    Ok(archive.into_inner()?)
}

fn header(kind: EntryType, mode: u32, date: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(date);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

/// Compresses without a name or a date in the header.
pub(crate) fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(content)?;
    Ok(encoder.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_tree_in_another_order_gives_the_same_bytes() {
        let mut one = Tree::default();
        one.file("usr/bin/b", 0o755, b"b".to_vec());
        one.file("usr/a", 0o644, b"a".to_vec());
        let mut other = Tree::default();
        other.file("usr/a", 0o644, b"a".to_vec());
        other.file("usr/bin/b", 0o755, b"b".to_vec());
        let archive = gzip(&tar(&one, "", 7).unwrap()).unwrap();
        assert_eq!(archive, gzip(&tar(&other, "", 7).unwrap()).unwrap());
        let mut reader = tar::Archive::new(flate2::read::GzDecoder::new(archive.as_slice()));
        let names: Vec<_> = reader
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["usr/", "usr/bin/", "usr/a", "usr/bin/b"]);
    }
}
