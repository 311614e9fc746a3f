//! Files and folders for root only: records, counts and times name pods and their policies.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::path_error::PathError;

/// Makes the state directory or one below it, with those above it. One that is there stays as it is.
///
/// # Errors
/// It cannot be made.
pub fn make_dir(path: &Path) -> Result<(), PathError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(PathError::at("make the state directory", path))
}

/// Opens a file with these options; it is for root only if it is made now.
///
/// # Errors
/// It cannot be opened.
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn others_can_neither_look_nor_read() {
        let scratch = std::env::temp_dir().join(format!("redirect-private-{}", std::process::id()));
        let (dir, file) = (scratch.join("a/b"), scratch.join("a/b/file"));
        make_dir(&dir).unwrap();
        make_dir(&dir).unwrap();
        open(OpenOptions::new().append(true), &file).unwrap();
        open(OpenOptions::new().append(true), &file).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&scratch), mode(&dir), mode(&file)), (0o700, 0o700, 0o600));
        std::fs::remove_dir_all(scratch).unwrap();
    }
}
