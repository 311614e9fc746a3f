//! The plugin's place on the node: every kind of file, and those who take the entry out again.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use apiserver::Kind;
use harness::binary;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::driver::{Agent, Cluster, until};

/// A node's two directories.
struct Place {
    dir: TempDir,
}

const PLAIN: &str = r#"{ "cniVersion": "0.3.1", "name": "k8s-pod-network", "plugins": [ { "type": "calico", "mtu": 1.50 }, { "type": "portmap" } ] }"#;
const SINGLE: &str = r#"{ "cniVersion": "0.4.0", "name": "rkt", "type": "bridge", "isGateway": true }"#;

impl Place {
    fn new() -> Place {
        let place = Place { dir: TempDir::with_prefix("redirect-conf-").unwrap() };
        fs::create_dir(place.conf()).unwrap();
        fs::create_dir(place.bin()).unwrap();
        place
    }

    fn conf(&self) -> PathBuf {
        self.dir.path().join("net.d")
    }

    fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.conf().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    /// Runs `redirect node VERB`.
    fn node(&self, verb: &str, more: &[&str]) -> std::process::Output {
        let mut command = Command::new(binary("redirect"));
        command.args(["node", verb, "--cni-conf-dir"]).arg(self.conf());
        command.arg("--cni-bin-dir").arg(self.bin()).args(more).output().unwrap()
    }

    #[track_caller]
    fn done(&self, verb: &str, more: &[&str]) {
        let output = self.node(verb, more);
        assert!(output.status.success(), "{output:?}");
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.conf())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn agent(&self, cluster: &Cluster, more: &[&str]) -> Agent {
        let (conf, bin) = (self.conf(), self.bin());
        let (conf, bin) = (conf.to_str().unwrap(), bin.to_str().unwrap());
        let arguments = ["--install", "--cni-conf-dir", conf, "--cni-bin-dir", bin];
        cluster.agent(&[&arguments, more].concat())
    }
}

/// What a runtime takes: the first valid file, by the rules of libcni.
fn taken(conf: &Path) -> Option<(String, Value)> {
    let mut files: Vec<PathBuf> = fs::read_dir(conf).ok()?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.into_iter().find_map(|file| {
        let extension = file.extension()?.to_str()?.to_owned();
        let value: Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
        let valid = match extension.as_str() {
            "conflist" => value["plugins"].as_array().is_some_and(|plugins| !plugins.is_empty()),
            "conf" | "json" => value["type"].is_string(),
            _ => false,
        };
        let name = file.file_name()?.to_str()?.to_owned();
        (valid && value["name"].is_string()).then_some((name, value))
    })
}

/// Whether the file that a runtime takes ends with our entry, once.
fn in_place(conf: &Path) -> bool {
    taken(conf).is_some_and(|(_, list)| {
        let kinds: Vec<&str> = list["plugins"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|plugin| plugin["type"].as_str())
            .collect();
        kinds.last() == Some(&"redirect-cni")
            && kinds.iter().filter(|kind| **kind == "redirect-cni").count() == 1
    })
}

#[test]
fn enable_and_disable_leave_every_byte_of_others_alone() {
    let place = Place::new();
    place.write("10-calico.conflist", PLAIN);
    fs::set_permissions(place.file("10-calico.conflist"), fs::Permissions::from_mode(0o640)).unwrap();
    place.write("99-loopback.conflist", PLAIN);
    place.done("enable", &["--plugin-conf", r#"{"podSource":"annotations"}"#]);
    assert!(in_place(&place.conf()), "{}", place.read("10-calico.conflist"));
    let list: Value = serde_json::from_str(&place.read("10-calico.conflist")).unwrap();
    assert_eq!(list["cniVersion"], "0.3.1", "the list's version is kept");
    let entry = &list["plugins"][2];
    assert_eq!(entry["capabilities"]["io.kubernetes.cri.pod-annotations"], true);
    assert_eq!(entry["podSource"], "annotations");
    assert!(place.read("10-calico.conflist").contains("1.50"));
    assert_eq!(fs::metadata(place.file("10-calico.conflist")).unwrap().mode() & 0o777, 0o640);
    assert_eq!(fs::metadata(place.bin().join("redirect-cni")).unwrap().mode() & 0o777, 0o755);
    let before = fs::metadata(place.file("10-calico.conflist")).unwrap().ino();
    place.done("enable", &["--plugin-conf", r#"{"podSource":"annotations"}"#]);
    assert_eq!(
        fs::metadata(place.file("10-calico.conflist")).unwrap().ino(),
        before,
        "nothing to do, nothing done"
    );
    place.done("disable", &[]);
    assert_eq!(place.read("10-calico.conflist"), PLAIN);
    assert_eq!(place.names(), ["10-calico.conflist", "99-loopback.conflist"]);
    assert!(place.bin().join("redirect-cni").exists(), "running pods are deleted with it");
}

#[test]
fn a_conf_is_converted_with_its_name_and_version_and_comes_back() {
    let place = Place::new();
    place.write("10-bridge.conf", SINGLE);
    place.done("enable", &[]);
    let (file, list) = taken(&place.conf()).unwrap();
    assert_eq!(file, "10-bridge.conflist");
    assert_eq!((&list["name"], &list["cniVersion"]), (&json!("rkt"), &json!("0.4.0")));
    assert_eq!(list["plugins"][0]["type"], "bridge");
    assert!(in_place(&place.conf()));
    place.done("disable", &[]);
    assert_eq!(place.names(), ["10-bridge.conf"]);
    assert_eq!(place.read("10-bridge.conf"), SINGLE);
}

#[test]
fn a_list_that_stood_beside_a_converted_conf_comes_back_too() {
    let place = Place::new();
    place.write("10-a.conf", SINGLE);
    place.write("10-a.conflist", PLAIN);
    place.done("enable", &[]);
    assert!(in_place(&place.conf()));
    assert_eq!(taken(&place.conf()).unwrap().1["name"], "rkt");
    place.done("disable", &[]);
    assert_eq!((place.read("10-a.conf"), place.read("10-a.conflist")), (SINGLE.to_owned(), PLAIN.to_owned()));
    assert_eq!(place.names(), ["10-a.conf", "10-a.conflist"]);
}

#[test]
fn files_that_a_runtime_skips_are_skipped_and_named() {
    let place = Place::new();
    for (name, text) in [
        ("00-bad.conflist", "{"),
        ("01-no-name.conflist", r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#),
        ("02-no-plugins.conflist", r#"{"name":"n"}"#),
        ("03-empty.conflist", r#"{"name":"n","plugins":[]}"#),
        ("04-list.conf", PLAIN),
        ("05-note.txt", PLAIN),
    ] {
        place.write(name, text);
    }
    let output = place.node("enable", &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("00-bad.conflist") && text.contains("02-no-plugins"),
        "{text}"
    );
    place.write("50-ok.conflist", r#"{"name":"n","plugins":[{"type":"a"}]}"#);
    place.done("enable", &[]);
    assert_eq!(taken(&place.conf()).unwrap().0, "50-ok.conflist");
    assert!(in_place(&place.conf()));
    assert_eq!(place.read("00-bad.conflist"), "{");
}

#[test]
fn an_entry_that_is_there_is_replaced_and_strays_are_removed() {
    let place = Place::new();
    let ours = r#"{"type":"redirect-cni","podSource":"annotations"}"#;
    let list = |plugins: &str| format!(r#"{{"name":"n","plugins":[{plugins}]}}"#);
    place.write("10-a.conflist", &list(&format!(r#"{ours},{{"type":"a"}},{ours}"#)));
    place.write("20-b.conflist", &list(&format!(r#"{{"type":"b"}},{ours}"#)));
    place.done("enable", &[]);
    assert!(in_place(&place.conf()), "{}", place.read("10-a.conflist"));
    assert!(!place.read("20-b.conflist").contains("redirect-cni"));
}

#[test]
fn a_file_of_our_own_follows_the_one_that_it_stands_before() {
    let place = Place::new();
    place.write("10-azure.conflist", PLAIN);
    let own = ["--own-conf-file", "02-redirect-cni.conflist"];
    place.done("enable", &own);
    assert_eq!(taken(&place.conf()).unwrap().0, "02-redirect-cni.conflist");
    assert!(in_place(&place.conf()));
    assert_eq!(place.read("10-azure.conflist"), PLAIN, "the other one is not touched");
    place.write("10-azure.conflist", &PLAIN.replace("portmap", "azure-vnet"));
    place.done("enable", &own);
    assert!(place.read("02-redirect-cni.conflist").contains("azure-vnet"));
    place.done("disable", &[]);
    assert_eq!(place.names(), ["10-azure.conflist"]);
    assert!(!place.node("enable", &["--own-conf-file", "../x.conflist"]).status.success());
}

#[test]
fn the_agent_waits_for_a_file_and_follows_one_that_sorts_before() {
    let (place, cluster) = (Place::new(), Cluster::start());
    let mut agent = place.agent(&cluster, &[]);
    until("the plugin is there before any entry", || place.bin().join("redirect-cni").exists());
    assert!(taken(&place.conf()).is_none());
    place.write("50-late.conflist", PLAIN);
    until("the entry is in the new file", || in_place(&place.conf()));
    place.write("10-first.conf", SINGLE);
    until("the entry is in the file that sorts before", || {
        in_place(&place.conf()) && taken(&place.conf()).unwrap().0 == "10-first.conflist"
    });
    until("and no longer in the other one", || place.read("50-late.conflist") == PLAIN);
    // Nothing is removed at the end.
    assert_eq!(agent.stop(), Some(0));
    assert!(in_place(&place.conf()) && place.bin().join("redirect-cni").exists());
}

#[test]
fn a_directory_that_is_missing_or_replaced_is_waited_for() {
    let (place, cluster) = (Place::new(), Cluster::start());
    fs::remove_dir(place.conf()).unwrap();
    let _agent = place.agent(&cluster, &[]);
    std::thread::sleep(Duration::from_millis(500));
    for round in 0..2 {
        fs::create_dir(place.conf()).unwrap();
        place.write("10-a.conflist", PLAIN);
        until(&format!("the entry is in the directory of round {round}"), || in_place(&place.conf()));
        fs::remove_dir_all(place.conf()).unwrap();
    }
}

#[test]
fn the_binary_is_replaced_whole_and_kept() {
    let (place, cluster) = (Place::new(), Cluster::start());
    place.write("10-a.conflist", PLAIN);
    let _agent = place.agent(&cluster, &[]);
    until("installed", || in_place(&place.conf()));
    let wanted = fs::read(binary("redirect-cni")).unwrap();
    for damage in 0..3 {
        match damage {
            0 => fs::remove_file(place.bin().join("redirect-cni")).unwrap(),
            1 => fs::write(place.bin().join("redirect-cni"), "another version").unwrap(),
            _ => fs::set_permissions(place.bin().join("redirect-cni"), fs::Permissions::from_mode(0o600))
                .unwrap(),
        }
        until("the plugin is whole and can be run", || {
            let file = place.bin().join("redirect-cni");
            fs::read(&file).is_ok_and(|bytes| bytes == wanted)
                && fs::metadata(&file).is_ok_and(|metadata| metadata.mode() & 0o111 == 0o111)
        });
    }
    assert_eq!(fs::read_dir(place.bin()).unwrap().count(), 1, "no unfinished file is left");
}

#[test]
fn four_players_lose_twenty_rounds_each() {
    let (place, cluster) = (Place::new(), Cluster::start());
    place.write("05-cilium.conflist", PLAIN);
    let _agent = place.agent(&cluster, &[]);
    until("installed", || in_place(&place.conf()));
    let readable = AtomicBool::new(true);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A runtime that looks all the time must never find a list that is half written by us.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let text = fs::read_to_string(place.file("05-cilium.conflist")).unwrap_or_default();
                if text.contains("redirect-cni") && serde_json::from_str::<Value>(&text).is_err() {
                    readable.store(false, Ordering::Relaxed);
                }
            }
        });
        let mut rewrites = 0;
        for round in 0..20 {
            let started = Instant::now();
            for player in 0..4 {
                match player {
                    0 => place.write("05-cilium.conflist", PLAIN),
                    1 => {
                        place.write("05-cilium.conflist", "");
                        place.write("05-cilium.conflist", PLAIN);
                    }
                    2 => {
                        place.write("new", PLAIN);
                        fs::rename(place.file("new"), place.file("05-cilium.conflist")).unwrap();
                    }
                    _ => {
                        fs::rename(place.file("05-cilium.conflist"), place.file("04-moved.conflist"))
                            .unwrap();
                        fs::rename(place.file("04-moved.conflist"), place.file("05-cilium.conflist"))
                            .unwrap();
                        place.write("05-cilium.conflist", PLAIN);
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            until(&format!("the entry is back in round {round}"), || in_place(&place.conf()));
            rewrites += 1;
            assert!(started.elapsed() < Duration::from_secs(4), "round {round} took {:?}", started.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(rewrites, 20);
    });
    assert!(readable.load(Ordering::Relaxed), "a list with our entry was seen half written");
    let log = cluster.log();
    assert!(log.contains("cni.exclusive"), "the fight is named: {log}");
    // Once a second at most: 20 rounds of four rewrites each lead to far fewer of ours.
    let ours =
        log.lines().filter(|line| line.contains("05-cilium") && line.contains("changed so that")).count();
    assert!((20..=45).contains(&ours), "{ours} rewrites in 20 rounds of 4");
}

#[test]
fn the_network_that_istios_injector_asks_multus_for_is_kept() {
    let cluster = Cluster::start();
    let _agent = cluster.agent(&["--multus", "--plugin-conf", r#"{"podSource":"annotations"}"#]);
    let network = || cluster.api.store().get(Kind::NETWORKS, "default", "istio-cni");
    let config = || {
        let network = network()?;
        serde_json::from_str::<Value>(network["spec"]["config"].as_str()?).ok()
    };
    let right = || {
        config().is_some_and(|config| {
            config["type"] == "redirect-cni"
                && config["name"] == "istio-cni"
                && config["podSource"] == "annotations"
        })
    };
    until("the network is there", right);
    cluster.api.store().change(Kind::NETWORKS, "default", "istio-cni", |network| {
        network["spec"]["config"] = json!("{}");
    });
    until("it is put right", right);
    cluster.api.store().remove(Kind::NETWORKS, "default", "istio-cni");
    until("it is made again", right);
}
