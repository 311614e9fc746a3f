//! The parts of an initial root file system: scripts, modules, and the archive.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::kernels::Files;
use crate::cmd;

/// Makes the archive of a directory, beside it.
pub(super) fn pack(root: &Path, scratch: &Path) -> Result<PathBuf> {
    let archive = scratch.join("initrd");
    let pack = "find . | cpio --create --format=newc --quiet";
    let packed =
        Command::new("sh").args(["-c", pack]).current_dir(root).output().context("cannot run cpio")?;
    fs::File::create(&archive)?.write_all(&packed.stdout)?;
    Ok(archive)
}

/// Writes a script that can be executed.
pub(super) fn write_script(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// Unpacks the modules that are needed, with those that they need; their names in order.
pub(super) fn modules(files: &Files, wanted: &[&str], to: &Path) -> Result<String> {
    let base = files.modules.ancestors().nth(3).context("modules are below a directory")?;
    let mut order = Vec::new();
    for module in wanted {
        let mut modprobe = Command::new("modprobe");
        modprobe.arg("--set-version").arg(files.release()).arg("--dirname").arg(base);
        let shown = cmd::output(modprobe.args(["--show-depends", module]))?;
        for path in shown.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let path = Path::new(path.trim());
            let (name, unpack) = match path.extension().and_then(|end| end.to_str()) {
                Some("xz") => (path.file_stem(), Some("xz")),
                Some("zst") => (path.file_stem(), Some("zstd")),
                _ => (path.file_name(), None),
            };
            let name = name.context("a module has a name")?.to_string_lossy().into_owned();
            if order.contains(&name) {
                continue;
            }
            match unpack {
                None => fs::copy(path, to.join(&name)).map(drop)?,
                Some(program) => {
                    let out = fs::File::create(to.join(&name))?;
                    cmd::run(Command::new(program).arg("-dc").arg(path).stdout(out))?;
                }
            }
            order.push(name);
        }
    }
    Ok(order.iter().map(|name| format!("{name}\n")).collect())
}
