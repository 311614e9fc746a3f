//! One recorded pair per verb and version of the specification: `golden/<version>/<verb>.request.json` is
//! what the plugin gets, `<verb>.reply` what it prints, byte for byte.
//!
//! In both, `$DIR` stands for the test's directory. A reply with a `code` goes with exit status 1, any other
//! with 0. After a change that is meant, run the test with `REDIRECT_BLESS=1` and read the diff.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::call::{Call, Place};

/// The verbs, with the names of their pairs.
const PAIRS: [&str; 7] = ["add-chained", "add-alone", "del", "check", "gc", "status", "version"];
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn every_verb_of_every_version_answers_as_recorded() {
    for version in VERSIONS {
        for pair in PAIRS {
            compare(version, pair);
        }
    }
}

#[test]
fn no_pair_is_forgotten() {
    let mut names: Vec<String> = VERSIONS.iter().flat_map(|version| files(version)).collect();
    names.sort();
    let mut expected: Vec<String> = VERSIONS
        .iter()
        .flat_map(|version| PAIRS.iter().map(move |pair| format!("{version}/{pair}")))
        .flat_map(|name| [format!("{name}.reply"), format!("{name}.request.json")])
        .collect();
    expected.sort();
    assert_eq!(names, expected);
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("plugin/golden")
}

fn files(version: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder().join(version)).expect("the pairs of a version");
    entries.map(|entry| format!("{version}/{}", entry.unwrap().file_name().to_string_lossy())).collect()
}

fn compare(version: &str, pair: &str) {
    let place = Place::new();
    let dir = place.dir.display().to_string();
    let request =
        std::fs::read_to_string(folder().join(version).join(format!("{pair}.request.json"))).unwrap();
    let request: Value = serde_json::from_str(&request.replace("$DIR", &dir)).expect("a request is JSON");
    let mut call = Call::new("").without("CNI_CONTAINERID").without("CNI_IFNAME").without("CNI_NETNS");
    for (name, value) in request["env"].as_object().expect("variables") {
        call = call.env(name, value.as_str().expect("a variable is text"));
    }
    let reply = call.stdin(request["stdin"].to_string()).run();
    assert_eq!(request["stdin"]["cniVersion"], version, "{version}/{pair}");

    let printed = reply.stdout.replace(&dir, "$DIR");
    let file = folder().join(version).join(format!("{pair}.reply"));
    if std::env::var_os("REDIRECT_BLESS").is_some() {
        std::fs::write(&file, &printed).unwrap();
    }
    let recorded =
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert_eq!(printed, recorded, "{version}/{pair}: {reply:?}");
    let failed = serde_json::from_str::<Value>(&recorded).is_ok_and(|reply| reply.get("code").is_some());
    assert_eq!(reply.code, Some(i32::from(failed)), "{version}/{pair}: {reply:?}");
}
