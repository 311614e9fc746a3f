//! docs/maps.md against the object that the compiler made: maps, kinds, sizes, and which program uses which
//! map.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use aya_obj::generated::bpf_map_type;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind};
use redirect_user::kernel::filter::Filter;
use redirect_user::kernel::hook::Hook;

use crate::table::{assert_same, column, rows, section};

const PLACE: &str = "the table in docs/maps.md";
/// Who else writes or reads: the hand-written program in a pod's namespace, and parts of user space.
const OTHERS: &[&str] = &["attach", "detach", "install", "upgrade", "trace", "stats", "check", "stub"];

/// The object, which the build script of `redirect-user` has built.
fn object() -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above this package");
    let path = root.join("target/ebpf/bpfel-unknown-none/release/redirect-ebpf");
    std::fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// The columns: name, kind, entries, key and value, written by, read by, when it is full.
fn table() -> Vec<Vec<String>> {
    rows(&section("docs/maps.md", "# The maps"))
}

fn kind(number: u32) -> &'static str {
    use bpf_map_type as t;
    let names: [(bpf_map_type, &str); 11] = [
        (t::BPF_MAP_TYPE_HASH, "hash"),
        (t::BPF_MAP_TYPE_ARRAY, "array"),
        (t::BPF_MAP_TYPE_PROG_ARRAY, "program array"),
        (t::BPF_MAP_TYPE_PERCPU_HASH, "per-CPU hash"),
        (t::BPF_MAP_TYPE_PERCPU_ARRAY, "per-CPU array"),
        (t::BPF_MAP_TYPE_LRU_HASH, "LRU hash"),
        (t::BPF_MAP_TYPE_LRU_PERCPU_HASH, "per-CPU LRU hash"),
        (t::BPF_MAP_TYPE_LPM_TRIE, "LPM trie"),
        (t::BPF_MAP_TYPE_SOCKHASH, "socket hash"),
        (t::BPF_MAP_TYPE_SK_STORAGE, "socket storage"),
        (t::BPF_MAP_TYPE_RINGBUF, "ring buffer"),
    ];
    names
        .iter()
        .find(|(kind, _)| *kind as u32 == number)
        .unwrap_or_else(|| panic!("give map type {number} a name in tests/documents/maps.rs"))
        .1
}

#[test]
fn every_map_is_documented_with_kind_and_size() {
    let data = object();
    let parsed = aya_obj::Object::parse(&data).expect("the object can be parsed");
    let maps = parsed.maps.iter().filter(|(name, _)| !name.starts_with('.'));
    let real = maps.map(|(name, map)| {
        let size = if map.max_entries() == 0 { "–".to_owned() } else { map.max_entries().to_string() };
        format!("{name}: {}, {size}", kind(map.map_type()))
    });
    let documented = table().iter().map(|row| format!("{}: {}, {}", row[0], row[1], row[2])).collect();
    assert_same(PLACE, &documented, &real.collect());
}

/// Whether a hook or a filter of the guard has this name.
fn is_program(name: &str) -> bool {
    Hook::from_name(name).is_some() || Filter::ALL.iter().any(|filter| filter.name() == name)
}

/// What each function refers to, by the relocations of its section: maps, and other functions.
fn references(data: &[u8]) -> BTreeMap<String, BTreeSet<String>> {
    let file = object::File::parse(data).expect("an ELF file");
    let mut references: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for function in
        file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
    {
        let (Some(section), Ok(name)) = (function.section_index(), function.name()) else { continue };
        let section = file.section_by_index(section).expect("a symbol's section");
        let place = function.address()..function.address() + function.size();
        for (_, relocation) in section.relocations().filter(|(offset, _)| place.contains(offset)) {
            let RelocationTarget::Symbol(index) = relocation.target() else { continue };
            let to =
                file.symbol_by_index(index).ok().and_then(|symbol| symbol.name().ok().map(str::to_owned));
            references.entry(name.to_owned()).or_default().insert(to.unwrap_or_default());
        }
    }
    references
}

/// The programs that use each map, by themselves or by a function that they call.
fn used(data: &[u8]) -> BTreeMap<String, BTreeSet<String>> {
    let references = references(data);
    let mut users: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for program in references.keys().filter(|name| is_program(name)) {
        let (mut reached, mut next) = (BTreeSet::new(), vec![program.clone()]);
        while let Some(name) = next.pop() {
            if reached.insert(name.clone()) {
                next.extend(references.get(&name).into_iter().flatten().cloned());
            }
        }
        for name in reached {
            users.entry(name).or_default().insert(program.clone());
        }
    }
    users
}

/// The programs that a cell names: "connect" is connect4 and connect6, "guard" its two filters; what follows
/// a semicolon ends with a verb.
fn named(cells: &[&String]) -> BTreeSet<String> {
    let mut programs = BTreeSet::new();
    for word in cells.iter().flat_map(|cell| cell.split([',', ';'])) {
        let word = word.trim().trim_end_matches(" removes");
        let both = [format!("{word}4"), format!("{word}6")];
        if is_program(word) {
            programs.insert(word.to_owned());
        } else if word == "guard" {
            programs.extend(Filter::ALL.map(|filter| filter.name().to_owned()));
        } else if both.iter().all(|name| Hook::from_name(name).is_some()) {
            programs.extend(both);
        } else {
            assert!(OTHERS.contains(&word), "{PLACE}: {word:?} is neither a program nor one of {OTHERS:?}");
        }
    }
    programs
}

#[test]
fn writers_and_readers_are_the_programs_that_use_the_map() {
    let used = used(&object());
    assert!(used.contains_key("PODS"), "relocations are found: {used:?}");
    let none = BTreeSet::new();
    for row in table() {
        let place = format!("written by and read by of {} in {PLACE}", row[0]);
        let (documented, real) = (named(&[&row[4], &row[5]]), used.get(&row[0]).unwrap_or(&none));
        if documented.is_empty() && real.is_empty() {
            continue;
        }
        assert_same(&place, &documented, real);
    }
}

#[test]
fn each_map_is_in_the_picture_and_has_a_way_out_when_it_is_full() {
    let text = section("docs/maps.md", "# The maps");
    let (_, picture) = text.split_once("```mermaid").expect("a picture");
    let picture = picture.split("```").next().unwrap_or_default();
    for name in column(&table(), 0) {
        assert!(picture.contains(&name), "docs/maps.md: draw {name} into the picture");
    }
    assert!(table().iter().all(|row| row.len() == 7 && !row[6].is_empty()), "{PLACE}: seven columns");
}
