//! Load once: puts the programs and maps of this version on the node.
//!
//! Everything is pinned below a folder of its own and put in place by renaming, the stamp last, so an
//! installation is there whole or not at all.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, ProgramArray};
use aya::pin::PinError;
use aya::programs::{Program, ProgramError, SkLookup};
use aya::{Ebpf, EbpfLoader};

use crate::kernel::filter::Filter;
use crate::kernel::folders::{self, remove_tree};
use crate::kernel::hook::Hook;
use crate::kernel::object::OBJECT;
use crate::kernel::pins;
use crate::kernel::refusal;
use crate::kernel::stamp::Stamp;
use crate::node::fault;
use crate::node::lock::NodeLock;
use crate::node::{Node, is_bpffs};
use crate::path_error::{PathError, fine_if_gone, is_gone, is_not_found};

/// Why the programs could not be put on the node.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text of a variant says what its fields are")]
pub enum Error {
    /// The path is not a bpf file system.
    #[error("{path} is not a bpf file system; mount one: mount -t bpf bpf {path}")]
    NoBpffs {
        /// The path.
        path: PathBuf,
    },
    /// A folder or pin could not be changed.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The object could not be loaded.
    #[error(
        "cannot load the kernel programs: {}; `redirect doctor` says what this node lacks",
        refusal::of_object(refused, false)
    )]
    Load {
        /// Not a `source`: a chain of causes would print the verifier's whole log.
        refused: Box<aya::EbpfError>,
    },
    /// The kernel refused a program.
    #[error(
        "the kernel refused program {program}: {}; Linux 6.1 or newer is needed, and `redirect doctor` says what \
         this node lacks",
        refusal::of_program(refused, false)
    )]
    Program {
        program: String,
        /// Not a `source`, as above.
        refused: Box<ProgramError>,
    },
    /// A map or program could not be pinned.
    #[error("cannot pin {path}: {source}")]
    Pin { path: PathBuf, source: Box<PinError> },
    /// The pods' own programs cannot be made to go on in `inbound`.
    #[error("cannot lead the pods' programs to {path}: {source}")]
    Lead {
        /// The pinned program.
        path: PathBuf,
        source: Box<aya::EbpfError>,
    },
    /// The object lacks a program: object and library were not built together.
    #[error("the embedded object has no program {program}; rebuild with `cargo xtask build-ebpf`")]
    Missing {
        /// Which.
        program: &'static str,
    },
}

/// How much of this version is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// Nothing.
    Not,
    /// Pins are missing: half a removal, or somebody removed them.
    Partly {
        /// The first one that is missing.
        missing: PathBuf,
    },
    /// Every pin is there.
    Wholly,
}

/// Looks for every pin of this version.
#[must_use]
pub fn state(node: &Node) -> Installed {
    let pins = pins::current(node);
    if is_gone(&pins.programs()) && is_gone(&pins.maps()) {
        return Installed::Not;
    }
    // Without a stamp the exchange of an installation was interrupted: programs and maps may not belong
    // together.
    let maps = match Stamp::read(&pins) {
        Some(stamp) => stamp.maps,
        // What cannot be looked at is not gone, and to make a node's maps again costs its pods their
        // listeners.
        None if is_unreadable(&pins.stamp()) => Vec::new(),
        None => return Installed::Partly { missing: pins.stamp() },
    };
    let filters = Filter::ALL.iter().map(|filter| pins.filter(*filter));
    let programs = Hook::ALL.iter().map(|hook| pins.program(*hook)).chain(filters);
    let all = programs.chain(maps.iter().map(|map| pins.map(map)));
    let folders = [pins.programs(), pins.maps()].map(|folder| (list(&folder), folder));
    let is_missing = |pin: &PathBuf| {
        let listed = folders.iter().find(|(_, folder)| pin.starts_with(folder));
        listed.and_then(|(there, _)| there.as_ref()).is_some_and(|there| !there.contains(pin))
    };
    match { all }.find(is_missing) {
        Some(missing) => Installed::Partly { missing },
        None => Installed::Wholly,
    }
}

/// What is in a folder: nothing when it is not there, none when it cannot be read.
fn list(folder: &Path) -> Option<HashSet<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Some(entry.ok()?.path())).collect(),
        Err(error) if is_not_found(&error) => Some(HashSet::new()),
        Err(_) => None,
    }
}

/// Whether a symbolic link is there and cannot be read now.
fn is_unreadable(path: &Path) -> bool {
    fs::read_link(path).is_err() && !is_gone(path)
}

/// Whether this version is installed: every pin is there.
#[must_use]
pub fn installed(node: &Node) -> bool {
    state(node) == Installed::Wholly
}

/// What [`ensure`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It was there.
    Already,
    /// It was made, with empty maps: pods that were attached before must be repaired.
    Fresh,
}

/// Installs this version if it is not there, wholly.
///
/// # Errors
/// See [`Error`]; nothing is left half-done.
pub fn ensure(node: &Node, _lock: &NodeLock) -> Result<Ensured, Error> {
    let found = state(node);
    if found == Installed::Wholly {
        return Ok(Ensured::Already);
    }
    if !is_bpffs(&node.bpffs).unwrap_or(false) {
        return Err(Error::NoBpffs { path: node.bpffs.clone() });
    }
    if let Installed::Partly { missing } = &found {
        tracing::warn!(missing = %missing.display(), "the installation has lost pins and is made again");
    }
    let unfinished = pins::unfinished(node);
    remove_tree(&unfinished)?;
    let result = prepare(&unfinished).and_then(|maps| {
        fault::point("install-rename");
        put_in_place(node, &unfinished, maps)
    });
    let _ = remove_tree(&unfinished);
    if result.is_err() {
        // What else is in these folders keeps them.
        let _ = fs::remove_dir(pins::current(node).folder());
        let _ = fs::remove_dir(pins::root(node));
    }
    result.map(|()| Ensured::Fresh)
}

/// Programs and maps go to their places, the stamp last. The pods' links stay where they are.
fn put_in_place(node: &Node, unfinished: &Path, maps: Vec<String>) -> Result<(), Error> {
    let pins = pins::current(node);
    folders::make(&pins.pods())?;
    discard(node, &pins.stamp())?;
    for (from, to) in [("maps", pins.maps()), ("progs", pins.programs())] {
        discard(node, &to)?;
        fs::rename(unfinished.join(from), &to).map_err(PathError::at("put in place", to))?;
    }
    Stamp::own(maps).write(&pins)?;
    Ok(())
}

/// Removes something in two steps: what has been renamed counts as gone.
fn discard(node: &Node, path: &Path) -> Result<(), Error> {
    let old = pins::discarded(node);
    remove_tree(&old)?;
    if is_gone(path) {
        return Ok(());
    }
    folders::make(&old)?;
    fs::rename(path, old.join("discarded")).map_err(PathError::at("discard", path))?;
    fault::point("discard-renamed");
    Ok(remove_tree(&old)?)
}

/// Removes every version from the node. Links of living pods keep their programs and maps until they go
/// themselves.
///
/// # Errors
/// A pin cannot be removed.
pub fn remove(node: &Node, _lock: &NodeLock) -> Result<(), Error> {
    remove_tree(&pins::unfinished(node))?;
    for generation in folders::generations(node)? {
        discard(node, generation.folder())?;
    }
    remove_tree(&pins::discarded(node))?;
    fine_if_gone(fs::remove_dir(pins::root(node))).map_err(PathError::at("remove", pins::root(node)))?;
    Ok(())
}

/// Removes the folder of another version when no pod uses it any more.
///
/// # Errors
/// A pin cannot be removed.
pub(crate) fn remove_unused(node: &Node, _lock: &NodeLock) -> Result<(), Error> {
    for generation in folders::generations(node)? {
        if generation != pins::current(node) && folders::list(&generation.pods())?.is_empty() {
            discard(node, generation.folder())?;
        }
    }
    Ok(())
}

/// Loads every program and lets it go again: what the verifier of this kernel says.
///
/// # Errors
/// The refusal as one line of text; with `whole` the verifier's log follows it.
pub fn try_load(whole: bool) -> Result<String, String> {
    let mut object = EbpfLoader::new().load(OBJECT).map_err(|error| refusal::of_object(&error, whole))?;
    for name in program_names() {
        let program = object.program_mut(name).ok_or_else(|| Error::Missing { program: name }.to_string())?;
        load_program(program).map_err(|error| format!("{name}: {}", refusal::of_program(&error, whole)))?;
    }
    Ok("every program can be loaded".into())
}

/// Every program: those of the hooks, then the guard's.
fn program_names() -> impl Iterator<Item = &'static str> {
    Hook::ALL.iter().map(|hook| hook.name()).chain(Filter::ALL.iter().map(|filter| filter.name()))
}

/// Loads and pins everything below a folder; the names of the maps.
fn prepare(unfinished: &Path) -> Result<Vec<String>, Error> {
    for folder in ["progs", "maps"] {
        folders::make(&unfinished.join(folder))?;
    }
    let mut object =
        EbpfLoader::new().load(OBJECT).map_err(|error| Error::Load { refused: Box::new(error) })?;
    for (name, map) in object.maps() {
        let path = unfinished.join(pins::map_file(name));
        map.pin(&path).map_err(|source| Error::Pin { path, source: Box::new(source) })?;
    }
    fault::point("install-maps");
    load_all(&mut object, &unfinished.join("progs"))?;
    lead_to_inbound(&unfinished.join("maps").join("INBOUND"), &unfinished.join("progs"))?;
    Ok(map_names(&object))
}

/// Makes the programs in the pods' namespaces go on in the `inbound` of a folder of programs: one step for
/// all pods.
///
/// # Errors
/// The map or the program is not pinned.
pub(crate) fn lead_to_inbound(map: &Path, programs: &Path) -> Result<(), Error> {
    let program = programs.join(Hook::Inbound.name());
    let set = || -> Result<(), aya::EbpfError> {
        let mut array = ProgramArray::try_from(Map::from_map_data(MapData::from_pin(map)?)?)?;
        let inbound = SkLookup::from_pin(&program)?;
        Ok(array.set(0, inbound.fd()?, 0)?)
    };
    set().map_err(|source| Error::Lead { path: program.clone(), source: Box::new(source) })
}

/// Loads the programs of this binary onto the node's maps and pins them in a folder, for an upgrade.
///
/// # Errors
/// See [`Error`].
pub(crate) fn prepare_programs(node: &Node, _lock: &NodeLock, folder: &Path) -> Result<Stamp, Error> {
    folders::make(folder)?;
    let maps = folders::list(&pins::current(node).maps())?;
    let mut loader = EbpfLoader::new();
    for path in &maps {
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            loader.map_pin_path(name, path.as_path());
        }
    }
    let mut object = loader.load(OBJECT).map_err(|error| Error::Load { refused: Box::new(error) })?;
    for (name, map) in object.maps().filter(|(name, _)| name.starts_with('.')) {
        let path = folder.join(pins::constants_file(name));
        map.pin(&path).map_err(|source| Error::Pin { path, source: Box::new(source) })?;
    }
    load_all(&mut object, folder)?;
    Ok(Stamp::own(map_names(&object)))
}

/// The maps that a version pins in its folder of maps.
pub(crate) fn map_names(object: &Ebpf) -> Vec<String> {
    let mut names: Vec<String> =
        object.maps().map(|(name, _)| name.to_owned()).filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

fn load_all(object: &mut Ebpf, folder: &Path) -> Result<(), Error> {
    for name in program_names() {
        load(object, name, folder.join(name))?;
    }
    Ok(())
}

fn load(object: &mut Ebpf, name: &'static str, path: PathBuf) -> Result<(), Error> {
    let program = object.program_mut(name).ok_or(Error::Missing { program: name })?;
    load_program(program)
        .map_err(|error| Error::Program { program: name.into(), refused: Box::new(error) })?;
    program.pin(&path).map_err(|source| Error::Pin { path, source: Box::new(source) })
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        other => unreachable!("hook.rs lists no program of type {:?}", other.prog_type()),
    }
}
