//! cni/README.md against the plugin: keys of the configuration, outcomes, error codes.
//!
//! The plugin is a program and no library, so keys and codes are read from its source.

use std::collections::BTreeSet;

use redirect_user::enrol::Reason;
use redirect_user::policy::parameters::PARAMETERS;
use serde_json::Value;

use crate::table::{assert_same, column, rows, section, text_of};

const PLACE: &str = "cni/README.md";
/// Keys that are no operator's: the runtime and the specification set them. The text below the table names
/// them.
const SET_BY_RUNTIME: &[&str] = &["cniVersion", "name", "runtimeConfig", "prevResult", "cgroupPath"];
/// Members of an entry of `cni.dev/valid-attachments`.
const OF_ATTACHMENTS: &[&str] = &["containerID", "ifname"];

/// The part of a source file that is no test.
fn source(path: &str) -> String {
    let text = text_of(path);
    text.split("#[cfg(test)]").next().unwrap_or(&text).to_owned()
}

/// Keys that are read: `proxy.get("uid")` is `proxy.uid`, `keys.path("logFile")` is `logFile`.
fn keys_read(source: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for (at, _) in source.match_indices("(\"") {
        let key: String = source[at + 2..].chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
        let ends = source[at + 2 + key.len()..].starts_with('"');
        let before = source[..at].trim_end_matches(|c: char| c.is_alphanumeric() || "_:<>".contains(c));
        let Some(receiver) = before.strip_suffix('.').map(str::trim_end) else { continue };
        if ends && key.starts_with(|c: char| c.is_ascii_lowercase()) {
            keys.insert(if receiver.ends_with("proxy") { format!("proxy.{key}") } else { key });
        }
    }
    keys
}

/// The keys in the table's first column; `a`, `.b` in one cell are `a` and its neighbour.
fn keys_documented() -> BTreeSet<String> {
    let cells = column(&rows(&section(PLACE, "## Configuration")), 0);
    let mut keys = BTreeSet::new();
    for cell in cells {
        let mut parent = String::new();
        for key in cell.split(',').map(|key| key.trim().trim_matches('`')) {
            match key.strip_prefix('.') {
                Some(key) => keys.insert(format!("{parent}.{key}")),
                None => keys.insert(key.to_owned()),
            };
            if let Some((before, _)) = key.split_once('.').filter(|(before, _)| !before.is_empty()) {
                before.clone_into(&mut parent);
            }
        }
    }
    keys
}

#[test]
fn every_key_of_the_configuration_is_documented() {
    let mut real = keys_read(&source("cni/src/conf.rs"));
    real.retain(|key| {
        !SET_BY_RUNTIME.contains(&&**key) && !OF_ATTACHMENTS.contains(&&**key) && key != "proxy"
    });
    assert_same("the table of keys in cni/README.md", &keys_documented(), &real);
    let text = section(PLACE, "## Configuration");
    for key in SET_BY_RUNTIME {
        assert!(
            text.contains(&format!("`{key}`")),
            "{PLACE}: say under Configuration that the runtime sets {key}"
        );
    }
}

#[test]
fn a_key_is_found_however_it_is_read() {
    let text = "proxy.get(\"uid\")?; self.keys\n  .get::<u32>(\"lockTime\"); keys.path_or(\"stateDir\", D); f(\"x\")";
    assert_eq!(keys_read(text), ["lockTime", "proxy.uid", "stateDir"].map(str::to_owned).into());
}

#[test]
fn every_outcome_is_documented() {
    let mut real: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.label().to_owned()).collect();
    real.extend(["enrolled".to_owned(), "failed_N".to_owned()]);
    assert_same(
        "the table of outcomes in cni/README.md",
        &column(&rows(&section(PLACE, "## Which pods")), 0),
        &real,
    );
}

#[test]
fn every_annotation_is_documented_with_its_default() {
    let text = section(PLACE, "## Configuration");
    let (_, table) = text.split_once("\n| annotation").expect("cni/README.md has a table of annotations");
    let documented = rows(&format!("| annotation{table}"))
        .iter()
        .map(|row| format!("{} = {:?}", row[0], row[1]))
        .collect();
    let real =
        PARAMETERS.iter().map(|parameter| format!("{} = {:?}", parameter.name, parameter.default)).collect();
    assert_same("the table of annotations in cni/README.md", &documented, &real);
}

#[test]
fn configurations_in_documents_are_json_with_keys_that_exist() {
    let known = keys_documented();
    let mut entries = 0;
    for place in ["README.md", PLACE] {
        for block in text_of(place).split("```json\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            let value: Value =
                serde_json::from_str(block).unwrap_or_else(|error| panic!("{place}: {error}:\n{block}"));
            let plugins = value["plugins"].as_array().cloned().unwrap_or_else(|| vec![value]);
            for entry in plugins.iter().filter(|entry| entry["type"] == "redirect-cni") {
                entries += 1;
                let keys = entry.as_object().expect("an entry is an object").keys();
                let unknown: Vec<_> = keys
                    .filter(|key| !["type", "capabilities"].contains(&&***key) && !known.contains(*key))
                    .collect();
                assert!(unknown.is_empty(), "{place} shows keys that do not exist: {unknown:?}");
            }
        }
    }
    assert!(entries >= 2, "both documents show a configuration");
}

/// `(105, "cannot change ..")` in the source, with any blanks, as `105: cannot change ..`.
fn codes(source: &str) -> BTreeSet<String> {
    let one_line = source.split_whitespace().collect::<Vec<_>>().join(" ").replace("( ", "(");
    let mut codes = BTreeSet::new();
    for (at, _) in one_line.match_indices('(') {
        let rest = &one_line[at + 1..];
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if let Some((message, _)) = rest[digits..].strip_prefix(", \"").and_then(|text| text.split_once('"'))
            && digits > 0
        {
            codes.insert(format!("{}: {message}", &rest[..digits]));
        }
    }
    codes
}

#[test]
fn every_error_code_is_documented_with_its_message() {
    let table = rows(&section(PLACE, "## Error codes"));
    let documented = table.iter().map(|row| format!("{}: {}", row[0], row[1])).collect();
    assert_same(
        "the table of error codes in cni/README.md",
        &documented,
        &codes(&source("cni/src/error.rs")),
    );
}

#[test]
fn a_code_is_found_across_lines() {
    let text = "A => (1, \"one\"),\n B => {\n (\n 51,\n \"two, three\",\n) } f(5, 6) g(\"x\")";
    assert_eq!(codes(text), ["1: one", "51: two, three"].map(str::to_owned).into());
}
