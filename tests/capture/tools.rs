//! `explain`, `trace` and `upgrade` against what really happens.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use aya::programs::ProgramInfo;
use harness::{Event, Family, kernel_test};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::output;

#[test]
fn explain_names_the_rule_and_the_annotation() {
    kernel_test(|node| {
        let pod = node.pod("pod");
        node.attach(
            &pod,
            &[
                "--exclude-outbound-ports",
                "3306",
                "--exclude-outbound-ip-ranges",
                "10.1.0.0/16",
                "--dns-capture",
            ],
        );
        let own = pod.at(Family::V4, 80).to_string();
        for (arguments, verdict, rule, cause) in [
            (&["--dst", "192.0.2.1:80"][..], "to outbound (15001)", 14, "includeOutboundIPRanges is *"),
            (&["--dst", "192.0.2.1:3306"], "direct", 1, "excludeOutboundPorts has 3306"),
            (&["--dst", "10.1.2.3:80"], "direct", 12, "excludeOutboundIPRanges has 10.1.0.0/16"),
            (&["--dst", "10.1.2.3:53", "--udp"], "to dns (15053)", 10, "DNS capture"),
            (&["--dst", "192.0.2.1:443", "--udp"], "direct", 15, "UDP"),
            (&["--dst", "192.0.2.1:80", "--uid", "1337"], "direct", 5, "uid 1337"),
            (&["--dst", &own, "--uid", "1337"], "to inbound (15006)", 3, "uid 1337"),
            (&["--dst", &own], "direct", 4, "the pod itself"),
            (&["--dst", &own, "--src", "127.0.0.6", "--uid", "1337"], "direct", 2, "127.0.0.6"),
            (&["--inbound", "8080"], "to inbound (15006)", 4, "includeInboundPorts is *"),
            (&["--inbound", "15021"], "direct", 3, "15021"),
            (&["--inbound", "15008"], "direct", 2, "HBONE"),
        ] {
            let mut command = node.redirect();
            command.args(["--output", "json", "explain", pod.name()]).args(arguments);
            let value: Value = serde_json::from_str(&output(&mut command)).unwrap();
            assert_eq!(value["verdict"], verdict, "{arguments:?}");
            assert_eq!(value["rule"], rule, "{arguments:?}");
            assert!(value["cause"].as_str().unwrap().contains(cause), "{arguments:?}: {value}");
        }
    });
}

#[test]
fn trace_shows_every_decision_while_somebody_reads() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("pod"), node.pod("other"));
        node.attach(&pod, &[]);
        node.attach(&other, &[]);
        let (_sidecar, _other_sidecar) = (pod.sidecar(), other.sidecar());
        let mut trace = node
            .redirect()
            .args(["--output", "json", "trace", pod.name()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("start redirect trace");
        let mut lines = BufReader::new(trace.stdout.take().expect("a pipe")).lines();
        let (app, stranger) = (pod.app(), other.app());
        // Until the reader is there nothing is written; keep dialling until the first record comes.
        let reader = std::thread::spawn(move || lines.next().map(|line| (line.expect("a line"), lines)));
        while !reader.is_finished() {
            drop(stranger.connect("192.0.2.99:80".parse().unwrap()));
            drop(app.connect("192.0.2.10:80".parse().unwrap()));
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let (first, _rest) = reader.join().expect("the reader").expect("a record");
        let record: Value = serde_json::from_str(&first).unwrap();
        assert_eq!(record["dst"], "192.0.2.10:80");
        assert_eq!(record["verdict"], "to-outbound");
        assert_eq!(record["rule"], "included-range");
        assert_eq!(record["hook"], "connect");
        assert_eq!(record["uid"], 1000);
        assert_eq!(record["pid"], app.pid());
        kill(Pid::from_raw(trace.id() as i32), Signal::SIGINT).expect("end the trace");
        assert!(trace.wait().expect("wait for the trace").success());
        let shown = node.json(&["show", pod.name()]);
        assert_eq!(shown[0]["drift"], serde_json::json!([]), "the switch is off again");
    });
}

#[test]
fn an_upgrade_loses_no_connection() {
    kernel_test(|node| {
        let (pod, client) = (node.pod("pod"), node.pod("client"));
        node.attach(&pod, &[]);
        let _sidecar = pod.sidecar();
        let app = pod.app();
        let far = "192.0.2.10:80".parse().unwrap();
        let before = app.connect(far).unwrap();
        let programs = |value: &Value| -> BTreeMap<String, u64> {
            let links = value[0]["links"].as_array().unwrap().iter();
            let of_link = |link: &Value| {
                (link["hook"].as_str().unwrap().to_owned(), link["programId"].as_u64().unwrap())
            };
            links.map(of_link).collect()
        };
        let inbound = || {
            let pin = format!("redirect-cni/v{}/progs/inbound", redirect_common::ABI_VERSION);
            ProgramInfo::from_pin(node.bpffs().join(pin)).expect("inbound is pinned").id()
        };
        let (old, old_inbound) = (programs(&node.json(&["show", pod.name()])), inbound());
        let mut upgrade =
            node.redirect().args(["--output", "json", "upgrade"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut dialled = 0;
        while upgrade.try_wait().unwrap().is_none() || dialled < 50 {
            assert_eq!(app.connect(far).unwrap().seen().original_dst, Ok(far));
            assert_eq!(client.app().connect(pod.at(Family::V4, 8080)).unwrap().seen().listener, 15006);
            dialled += 1;
        }
        assert!(upgrade.wait().unwrap().success());
        let shown = node.json(&["show", pod.name()]);
        assert_eq!(shown[0]["drift"], serde_json::json!([]));
        let new = programs(&shown);
        assert_eq!(old.keys().collect::<Vec<_>>(), new.keys().collect::<Vec<_>>());
        for (hook, program) in &old {
            // The pod's own program stays in its namespace, and leads to the new `inbound` from now on.
            assert_eq!(new[hook] == *program, hook == "inbound", "{hook}: {old:?} {new:?}");
        }
        assert_ne!(inbound(), old_inbound);
        // The record of a connection from before is read by the programs of after.
        assert_eq!(before.peername(), Ok(far));
        assert_eq!(before.seen().original_dst, Ok(far));
        assert_eq!(node.count(&pod, Event::HandoffMissing), 0);
    });
}
