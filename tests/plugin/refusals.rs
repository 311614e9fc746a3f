//! Every refusal, read as an operator reads it: what was tried, on what, with which value, and what to do
//! next.
//!
//! One case for each code of `cni/src/error.rs`. Each prints what the kubelet would show in the pod's events;
//! `--nocapture` shows them all.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::process::{Command, Stdio};

use harness::{Node, binary, kernel_test};
use serde_json::{Value, json};

use crate::call::{Call, PREV_RESULT, Place, Reply, STATUS, hand_over, with_prev_result};
use crate::collect::status;
use crate::sandbox::{Sandbox, pins};

/// A code, what names the object and the value, and the next step.
type Case<'a> = (u64, &'a [&'a str], &'a str);

/// 100 is a panic, which no input brings about; `reply.rs` tests its text.
const NOT_PROVOKED: [u64; 1] = [100];

#[track_caller]
fn read(reply: &Reply, (code, parts, next): Case<'_>) -> u64 {
    let error = reply.error();
    let (msg, details) = (error["msg"].as_str().unwrap_or(""), error["details"].as_str().unwrap_or(""));
    println!("{code}: {msg}; {details}");
    assert_eq!(error["code"], code, "{reply:?}");
    for part in parts.iter().chain([&next]) {
        assert!(details.contains(part), "{code} does not say {part:?}: {details}");
    }
    // Other lines tell of pods of the node, perhaps of this one.
    let mut errors = reply.stderr.lines().filter(|line| line.contains(" ERROR "));
    let twice = errors.find(|line| line.matches("shop/web-0").count() > 1);
    assert_eq!(twice, None, "a line of the log repeats the pod");
    code
}

fn add(conf: &Value) -> Call {
    Call::new("ADD").pod("shop", "web-0", "uid-1").stdin(with_prev_result(conf, PREV_RESULT))
}

/// ADD of an injected pod with annotations.
fn annotated(place: &Place, annotations: &[(&str, &str)]) -> Value {
    let mut conf = place.conf();
    let all: Vec<_> = [STATUS].iter().chain(annotations).copied().collect();
    hand_over(&mut conf, &all);
    conf
}

/// Reads a directory as its stdin, which no runtime does.
fn with_unreadable_stdin() -> Reply {
    let output = Command::new(binary("redirect-cni"))
        .env_clear()
        .envs([("CNI_COMMAND", "STATUS"), ("CNI_PATH", "/opt/cni/bin")])
        .stdin(File::open("/").expect("open a directory"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .expect("start redirect-cni");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Reply {
        code: output.status.code(),
        signal: None,
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

/// Those that need neither root nor a kernel.
fn of_input() -> Vec<u64> {
    let place = Place::new();
    let with = |key: &str, value: Value| {
        let mut conf = annotated(&place, &[]);
        conf[key] = value;
        conf
    };
    let ports = ("traffic.sidecar.istio.io/includeInboundPorts", "80,x");
    let none = ("sidecar.istio.io/interceptionMode", "NONE");
    let mut forbidden = annotated(&place, &[none]);
    forbidden["forbidOptOut"] = json!(true);
    let asking = with("podSource", json!("kubernetes"));
    vec![
        read(&add(&with("cniVersion", json!("0.2.0"))).run(), (1, &["cniVersion", "0.2.0"], "speaks 0.3.1")),
        read(&add(&with("podSource", json!("api"))).run(), (2, &["podSource", "api"], "supported are")),
        read(
            &add(&annotated(&place, &[])).env("CNI_COMMAND", "CHECK").run(),
            (3, &["c0ffee", "eth0", "shop/web-0"], "ADD"),
        ),
        read(
            &add(&place.conf()).without("CNI_IFNAME").run(),
            (4, &["CNI_IFNAME", "is not set"], "the runtime sets it"),
        ),
        read(&with_unreadable_stdin(), (5, &["stdin"], "runtime")),
        read(
            &Call::new("ADD").stdin("{").run(),
            (6, &["the network configuration on stdin", "line 1"], "EOF while parsing"),
        ),
        read(&add(&with("proxy", json!({ "uid": -1 }))).run(), (7, &["proxy.uid", "-1"], "expected")),
        read(&add(&annotated(&place, &[])).run(), (8, &["/nonexistent/netns", "CNI_NETNS"], "runtime")),
        read(&add(&asking).run(), (11, &["agent.sock", "shop/web-0"], "is the redirect-cni agent running")),
        read(
            &Call::new("STATUS").stdin(with("cniVersion", json!("1.1.0")).to_string()).run(),
            (50, &["is not a bpf file system"], "mount -t bpf"),
        ),
        read(&add(&annotated(&place, &[ports])).run(), (101, &["shop/web-0", ports.0, "80,x"], "port")),
        read(&add(&place.conf()).run(), (103, &["shop/web-0"], "capabilities")),
        read(&add(&forbidden).run(), (107, &["shop/web-0", none.0, "interception_none"], "forbidOptOut")),
    ]
}

/// Those of a real pod.
fn of_pods(node: &Node) -> Vec<u64> {
    let pod = node.pod("web");
    let sandbox = Sandbox::new(node, &pod, "c0ffee");
    let mut codes = Vec::new();
    let elsewhere = sandbox.clone().with("runtimeConfig", {
        let mut config = sandbox.conf["runtimeConfig"].clone();
        config["cgroupPath"] = json!("/elsewhere/pod");
        config
    });
    codes.push(read(&elsewhere.call("ADD").run(), (104, &["/elsewhere/pod"], "cgroup")));
    let interfaces = ("traffic.sidecar.istio.io/excludeInterfaces", "eth0");
    pod.netns().ip("rule add from 10.77.0.2 lookup 100 priority 32000");
    let by_rule = sandbox.clone().annotated(&[interfaces]);
    codes.push(read(&by_rule.call("ADD").run(), (102, &["shop/web-0", interfaces.0, "32000"], "ip rule")));
    pod.netns().ip("link set lo down");
    codes.push(read(&sandbox.call("ADD").run(), (105, &["netns"], "lo must be up")));
    pod.netns().ip("link set lo up");
    sandbox.add();
    let unmounted = sandbox.clone().with("bpffsRoot", json!(node.dir()));
    codes.push(read(&status(&unmounted).run(), (51, &["is not a bpf file system"], "redirect repair")));
    fs::remove_file(pins(node).container("c0ffee").join("eth0/connect4")).expect("remove a pin");
    codes.push(read(&sandbox.check(), (106, &["the link of connect4 is gone"], "repaired now")));
    sandbox.del();
    codes
}

#[test]
fn every_code_says_object_value_and_next_step() {
    let source = include_str!("../../cni/src/error.rs");
    let table = source.split("fn code(").nth(1).expect("the table of codes");
    let table: BTreeSet<u64> = table
        .split('(')
        .filter_map(|piece| piece.split_once(", \"")?.0.trim().parse().ok())
        .filter(|code| !NOT_PROVOKED.contains(code))
        .collect();
    kernel_test(|node| {
        let provoked: BTreeSet<u64> = of_input().into_iter().chain(of_pods(node)).collect();
        assert_eq!(provoked, table);
    });
}
