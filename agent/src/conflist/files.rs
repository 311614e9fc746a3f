//! The files of a configuration directory: which one the runtime takes, and our entry in it.
//!
//! Every write is a temporary file, fsync and rename, so that the runtime never reads half a file. Each
//! function may be interrupted anywhere and repeated.

use std::fs::{self, File, Metadata};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::list::Conf;

/// What a file that we converted is kept under, beside the list that it became.
pub const ORIGINAL: &str = ".redirect-cni-orig";
/// What a file is called while it is written; a runtime looks at `.conf`, `.conflist` and `.json` only.
const UNFINISHED: &str = ".redirect-cni-new";

/// Why a file cannot be read or changed.
#[derive(Debug, Error)]
#[error("cannot {what} {}: {source}{hint}", path.display())]
pub struct Error {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
    hint: &'static str,
}

impl Error {
    fn new(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| {
            let hint = match source.raw_os_error() {
                Some(libc::EROFS) => {
                    "; the file system is read-only: this platform keeps its CNI configuration somewhere else, \
                     see --cni-conf-dir and --cni-bin-dir"
                }
                _ => "",
            };
            Error { what, path, source, hint }
        }
    }
}

/// What a pass over the directory did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The file that the runtime takes; none where the directory has no valid one. Where no entry is wanted,
    /// a directory.
    pub primary: Option<PathBuf>,
    /// Files that were written, made or taken away.
    pub changed: Vec<PathBuf>,
    /// Files that a runtime skips, and why.
    pub skipped: Vec<String>,
}

/// The configuration files of a directory in the order in which a runtime looks at them.
///
/// # Errors
/// The directory cannot be read.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::new("list", dir))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.is_file() && (is_list(file) || has_extension(file, &["conf", "json"])));
    files.sort();
    Ok(files)
}

/// Puts `entry` last into what the runtime takes, or into the file `own`, which follows what it would take
/// without. With `named`, a file of this name counts and no other; whether it ends with `.conf` or
/// `.conflist` makes no difference, as the one becomes the other.
///
/// # Errors
/// A file cannot be written. What was done stays, and is right.
pub fn enable(dir: &Path, entry: &str, own: Option<&str>, named: Option<&str>) -> Result<Done, Error> {
    let mut done = Done::default();
    let own = own.map(|name| dir.join(name));
    let stem = |file: &Path| file.with_extension("");
    let named = named.map(|name| stem(&dir.join(name)));
    let mut primary = None;
    for file in files(dir)? {
        if Some(&file) == own.as_ref() || named.as_ref().is_some_and(|named| *named != stem(&file)) {
            continue;
        }
        match take(&file) {
            Ok(text) if primary.is_none() => primary = Some((file, text)),
            Ok(_) => {}
            Err(problem) => done.skipped.push(format!("{}: {problem}", file.display())),
        }
    }
    let Some((file, text)) = primary else { return Ok(done) };
    let target = match &own {
        Some(own) => follow(own, &file, &text, entry, &mut done)?,
        None => insert(&file, &text, entry, &mut done)?,
    };
    for stray in files(dir)?.into_iter().filter(|file| *file != target && is_list(file)) {
        remove_entry(&stray, &mut done)?;
    }
    done.primary = Some(target);
    Ok(done)
}

/// Takes our entry out of every file, and puts back the files that were converted for it.
///
/// # Errors
/// A file cannot be written.
pub fn disable(dir: &Path) -> Result<Done, Error> {
    let mut done = Done::default();
    let entries = fs::read_dir(dir).map_err(Error::new("list", dir))?;
    let names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    for name in names.iter().filter_map(|name| name.strip_suffix(ORIGINAL)) {
        put_back(dir, name, &mut done)?;
    }
    for file in files(dir)?.iter().filter(|file| is_list(file)) {
        remove_entry(file, &mut done)?;
    }
    Ok(done)
}

/// The list of ours in the file itself, or beside a single plugin's file. Returns where it is.
fn insert(file: &Path, text: &str, entry: &str, done: &mut Done) -> Result<PathBuf, Error> {
    let Ok(conf) = parse(file, text) else { return Ok(file.to_owned()) };
    let Some(new) = conf.with_entry(entry) else { return Ok(file.to_owned()) };
    if conf.is_list() {
        write(file, &new, file)?;
        done.changed.push(file.to_owned());
        return Ok(file.to_owned());
    }
    // The new file first, and then the old one away: in between the runtime still has the old one.
    let list = file.with_extension("conflist");
    let foreign = list.exists() && !original(file).exists();
    if foreign {
        fs::copy(&list, original(&list)).map_err(Error::new("copy", &list))?;
    }
    write(&list, &new, file)?;
    fs::rename(file, original(file)).map_err(Error::new("move away", file))?;
    sync(file.parent().unwrap_or(file))?;
    done.changed.extend([list.clone(), file.to_owned()]);
    Ok(list)
}

/// A file of our own with the plugins of `file` and our entry.
fn follow(own: &Path, file: &Path, text: &str, entry: &str, done: &mut Done) -> Result<PathBuf, Error> {
    let new = match parse(file, text) {
        Ok(conf) => conf.with_entry(entry).unwrap_or_else(|| text.to_owned()),
        Err(_) => return Ok(own.to_owned()),
    };
    if fs::read_to_string(own).is_ok_and(|old| old == new) {
        return Ok(own.to_owned());
    }
    write(own, &new, file)?;
    done.changed.push(own.to_owned());
    Ok(own.to_owned())
}

fn remove_entry(file: &Path, done: &mut Done) -> Result<(), Error> {
    let Ok(text) = fs::read_to_string(file) else { return Ok(()) };
    let Ok(conf) = Conf::list(&text) else { return Ok(()) };
    let Some(without) = conf.without_entry() else { return Ok(()) };
    let own = file.file_name().is_some_and(|name| name.to_string_lossy().contains(super::list::TYPE));
    if conf.is_ours_alone() || own {
        fs::remove_file(file).map_err(Error::new("remove", file))?;
    } else {
        write(file, &without, file)?;
    }
    done.changed.push(file.to_owned());
    Ok(())
}

/// Puts back `name`, which was converted. A list that somebody wrote meanwhile in its place is left to him.
fn put_back(dir: &Path, name: &str, done: &mut Done) -> Result<(), Error> {
    let file = dir.join(name);
    let kept = original(&file);
    let list = file.with_extension("conflist");
    let text = fs::read_to_string(&list).unwrap_or_default();
    let ours = Conf::list(&text).is_ok_and(|conf| conf.has_entry());
    if !ours && list.exists() || file.exists() && file != list {
        fs::remove_file(&kept).map_err(Error::new("remove", &kept))?;
        return Ok(());
    }
    fs::rename(&kept, &file).map_err(Error::new("put back", &file))?;
    if file != list && list.exists() && !original(&list).exists() {
        fs::remove_file(&list).map_err(Error::new("remove", &list))?;
    }
    sync(dir)?;
    done.changed.push(file);
    Ok(())
}

/// The text of a file that a runtime would take, or why it would not.
fn take(file: &Path) -> Result<String, String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    parse(file, &text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn parse<'a>(file: &Path, text: &'a str) -> Result<Conf<'a>, super::list::Invalid> {
    if is_list(file) { Conf::list(text) } else { Conf::single(text) }
}

fn is_list(file: &Path) -> bool {
    has_extension(file, &["conflist"])
}

fn has_extension(file: &Path, extensions: &[&str]) -> bool {
    file.extension().and_then(|extension| extension.to_str()).is_some_and(|e| extensions.contains(&e))
}

fn original(file: &Path) -> PathBuf {
    with_suffix(file, ORIGINAL)
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Writes a file whole or not at all, with the mode and the owner of `like`.
fn write(file: &Path, text: &str, like: &Path) -> Result<(), Error> {
    let metadata = fs::metadata(like).map_err(Error::new("look at", like))?;
    let unfinished = with_suffix(file, UNFINISHED);
    write_bytes(&unfinished, text.as_bytes(), &metadata).map_err(Error::new("write", &unfinished))?;
    fs::rename(&unfinished, file).map_err(Error::new("replace", file))?;
    sync(file.parent().unwrap_or(file))
}

fn write_bytes(path: &Path, bytes: &[u8], like: &Metadata) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.set_permissions(fs::Permissions::from_mode(like.mode() & 0o7777))?;
    chown(path, Some(like.uid()), Some(like.gid()))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A rename is on disk when its directory is.
fn sync(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::new("write", dir))
}

/// Puts a program into a directory, by a temporary file and rename: a runtime that starts it now gets the old
/// one or the new one. False when it was there already.
///
/// # Errors
/// It cannot be read, or not be written.
pub fn install_binary(source: &Path, dir: &Path) -> Result<bool, Error> {
    let bytes = fs::read(source).map_err(Error::new("read", source))?;
    let target = dir.join(super::list::TYPE);
    if fs::read(&target).is_ok_and(|there| there == bytes)
        && fs::metadata(&target).is_ok_and(|metadata| metadata.mode() & 0o111 == 0o111)
    {
        return Ok(false);
    }
    let unfinished = dir.join(format!(".{}{UNFINISHED}", super::list::TYPE));
    let put = || {
        let mut file = File::create(&unfinished)?;
        file.set_permissions(fs::Permissions::from_mode(0o755))?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, &target)
    };
    put().map_err(Error::new("install", &target))?;
    sync(dir)?;
    Ok(true)
}

/// Takes the program away; fine when it is gone.
///
/// # Errors
/// It cannot be removed.
pub fn remove_binary(dir: &Path) -> Result<bool, Error> {
    let target = dir.join(super::list::TYPE);
    match fs::remove_file(&target) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::new("remove", &target)(error)),
    }
}
