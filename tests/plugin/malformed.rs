//! Input that must be refused: one error JSON with the right code on stdout, exit status 1, and never a
//! panic.

use serde_json::json;

use crate::call::{Call, Place, STATUS, hand_over, with_prev_result};

#[test]
fn variables_that_are_missing_or_wrong() {
    let place = Place::new();
    let call = |verb| Call::new(verb).stdin(place.conf().to_string());
    let table = [
        (call("ADD").without("CNI_COMMAND"), "CNI_COMMAND is not set"),
        (call(""), "CNI_COMMAND is not set"),
        (call("add"), "\"add\""),
        (call("REMOVE"), "\"REMOVE\""),
        (call("ADD").without("CNI_CONTAINERID"), "CNI_CONTAINERID is not set"),
        (call("ADD").without("CNI_NETNS"), "CNI_NETNS is not set"),
        (call("ADD").without("CNI_IFNAME"), "CNI_IFNAME is not set"),
        (call("DEL").without("CNI_CONTAINERID"), "CNI_CONTAINERID is not set"),
        (call("DEL").without("CNI_IFNAME"), "CNI_IFNAME is not set"),
        (call("CHECK").without("CNI_NETNS"), "CNI_NETNS is not set"),
        (call("ADD").env("CNI_CONTAINERID", "../../etc"), "CNI_CONTAINERID is \"../../etc\""),
        (call("ADD").env("CNI_CONTAINERID", b"\xff\xfe"), "CNI_CONTAINERID is not UTF-8"),
        (
            call("ADD").env("CNI_IFNAME", "a-name-that-is-too-long"),
            "CNI_IFNAME is \"a-name-that-is-too-long\"",
        ),
        (call("ADD").env("CNI_IFNAME", "a/b"), "CNI_IFNAME is \"a/b\""),
        (call("ADD").env("CNI_ARGS", "K8S_POD_NAME"), "CNI_ARGS has \"K8S_POD_NAME\""),
        (
            call("ADD").env("CNI_ARGS", "COLOUR=blue"),
            "CNI_ARGS has unknown keys and no IgnoreUnknown=1: COLOUR",
        ),
        (call("ADD").env("CNI_ARGS", "IgnoreUnknown=2"), "CNI_ARGS has a bad IgnoreUnknown"),
        (call("ADD").env("CNI_ARGS", "K8S_POD_UID=../x"), "K8S_POD_UID=\"../x\""),
        (call("ADD").env("CNI_ARGS", b"K8S_POD_NAME=\xff"), "CNI_ARGS is not UTF-8"),
    ];
    for (call, part) in table {
        let details = call.run().refused(4);
        assert!(details.contains(part), "{part}: {details}");
    }
}

#[test]
fn configurations_that_are_no_json() {
    for text in ["", " ", "{", "null", "[]", "\"x\"", "{}}", "{'a':1}", "{\"a\":1,}", "\u{0}", "nonsense"] {
        for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            Call::new(verb).stdin(text).run().refused(6);
        }
    }
    Call::new("ADD").stdin(b"{\"cniVersion\":\"1.0.0\",\"name\":\"\xff\"}").run().refused(6);
    let brackets = ("[".repeat(100_000), "]".repeat(100_000));
    let deep = format!(
        r#"{{"cniVersion":"1.0.0","stateDir":"/proc/redirect-cni","x":{}1{}}}"#,
        brackets.0, brackets.1
    );
    // Depth in a key that is not read does no harm; it must not overflow the stack either.
    assert!(Call::new("ADD").stdin(deep).run().signal.is_none());
    let endless = vec![b' '; (16 << 20) + 1];
    assert!(Call::new("ADD").stdin(endless).run().refused(6).contains("longer than"));
}

#[test]
fn versions_that_are_not_spoken() {
    for version in
        ["\"0.1.0\"", "\"0.2.0\"", "\"0.3.0\"", "\"1.2.0\"", "\"2.0.0\"", "\"\"", "\"1.0\"", "null"]
    {
        for verb in ["ADD", "CHECK", "GC", "STATUS"] {
            let details = Call::new(verb).stdin(format!(r#"{{"cniVersion":{version}}}"#)).run().refused(1);
            assert!(details.contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{details}");
        }
    }
    Call::new("ADD").stdin("{}").run().refused(1);
    assert!(Call::new("ADD").stdin(r#"{"cniVersion":1}"#).run().refused(7).contains("cniVersion"));
}

#[test]
fn whoever_asks_for_versions_gets_an_answer() {
    for (text, version) in [
        ("", "1.1.0"),
        ("nonsense", "1.1.0"),
        (r#"{"cniVersion":"0.1.0"}"#, "1.1.0"),
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
    ] {
        let reply = Call::new("VERSION").without("CNI_CONTAINERID").stdin(text).run();
        let answer: serde_json::Value = serde_json::from_str(reply.success()).unwrap();
        assert_eq!(answer["cniVersion"], version, "{text}");
        assert_eq!(answer["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    }
}

#[test]
fn keys_of_the_wrong_type_are_named_and_unknown_keys_ignored() {
    let place = Place::new();
    let table = [
        ("stateDir", json!(5), 7),
        ("stateDir", json!("relative/path"), 7),
        ("bpffsRoot", json!(["/sys/fs/bpf"]), 7),
        ("excludeNamespaces", json!("kube-system"), 7),
        ("excludeNamespaces", json!([1]), 7),
        ("proxy", json!("istio-proxy"), 7),
        ("proxy", json!({ "uid": "1337" }), 7),
        ("proxy", json!({ "outboundPort": 65536 }), 7),
        ("dnsCapture", json!("true"), 7),
        ("agentSocket", json!("agent.sock"), 7),
        ("agentTimeoutSeconds", json!(0), 7),
        ("podSource", json!("crd"), 2),
        ("defaults", json!("10.96.0.0/12"), 7),
        ("forbidOptOut", json!("yes"), 7),
        ("refuseRuntimeClasses", json!({}), 7),
        ("podSource", json!(null), 0),
        ("runtimeConfig", json!([]), 7),
        ("runtimeConfig", json!({ "io.kubernetes.cri.pod-annotations": ["a"] }), 7),
        ("runtimeConfig", json!({ "portMappings": "text" }), 0),
        ("colour", json!({ "deeply": ["unknown"] }), 0),
    ];
    for (key, value, code) in table {
        let mut conf = place.conf();
        hand_over(&mut conf, &[STATUS]);
        conf[key] = value.clone();
        let call = Call::new("ADD").pod("shop", "web-0", "1");
        let reply = call.stdin(conf.to_string()).run();
        if code == 0 {
            assert_ne!(reply.error()["code"], 7, "{key}={value}");
        } else {
            let details = reply.refused(code);
            assert!(details.contains(key), "{key}={value}: {details}");
        }
    }
}

#[test]
fn a_mistake_about_the_mesh_does_not_stop_a_pod_outside_it() {
    let place = Place::new();
    let mut conf = place.conf();
    for (key, value) in [
        ("proxy", json!([])),
        ("dnsCapture", json!("true")),
        ("agentSocket", json!("agent.sock")),
        ("agentTimeoutSeconds", json!(0)),
        ("podSource", json!("crd")),
        ("defaults", json!({ "excludeOutboundPorts": "smtp" })),
        ("forbidOptOut", json!("yes")),
        ("refuseRuntimeClasses", json!(1)),
        ("cgroupRoot", json!(false)),
    ] {
        conf[key] = value;
    }
    hand_over(&mut conf, &[]);
    for verb in ["ADD", "CHECK", "DEL"] {
        Call::new(verb).pod("shop", "web-0", "1").stdin(conf.to_string()).run().success();
        Call::new(verb).stdin(conf.to_string()).run().success();
    }
    hand_over(&mut conf, &[STATUS]);
    for verb in ["ADD", "CHECK"] {
        Call::new(verb).pod("kube-system", "dns-0", "1").stdin(conf.to_string()).run().success();
        Call::new(verb).pod("shop", "web-0", "1").stdin(conf.to_string()).run().refused(7);
    }
}

#[test]
fn del_needs_no_key_to_be_right_but_the_two_that_it_uses() {
    let place = Place::new();
    let keys = [
        "cniVersion",
        "name",
        "type",
        "capabilities",
        "podSource",
        "agentSocket",
        "agentTimeoutSeconds",
        "excludeNamespaces",
        "proxy",
        "dnsCapture",
        "defaults",
        "forbidOptOut",
        "refuseRuntimeClasses",
        "cgroupRoot",
        "guard",
        "lockTimeoutSeconds",
        "logLevel",
        "logFile",
        "prevResult",
        "runtimeConfig",
        "cni.dev/valid-attachments",
        "colour",
    ];
    for value in [json!(-7), json!("nonsense"), json!([[]]), json!({ "x": 1 }), json!(null), json!(false)] {
        let mut all = place.conf();
        for key in keys {
            let mut one = place.conf();
            (one[key], all[key]) = (value.clone(), value.clone());
            let reply = Call::new("DEL").stdin(one.to_string()).run();
            assert_eq!(reply.success(), "", "{key}={value}");
        }
        let reply = Call::new("DEL").env("CNI_ARGS", "nonsense").stdin(all.to_string()).run();
        assert_eq!(reply.success(), "", "everything is {value}");
    }
    for key in ["stateDir", "bpffsRoot"] {
        let mut conf = place.conf();
        conf[key] = json!("relative");
        assert!(Call::new("DEL").stdin(conf.to_string()).run().refused(7).contains(key));
    }
}

#[test]
fn a_bad_log_setting_fails_no_verb_and_is_told() {
    let place = Place::new();
    let pipe = place.dir.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("make a pipe");
    let table = [
        ("logLevel", json!("warning"), "logLevel is \"warning\"; supported are off"),
        ("logLevel", json!(3), "configuration key logLevel"),
        ("logFile", json!("cni.log"), "\"cni.log\" is not an absolute path"),
        ("logFile", json!(false), "configuration key logFile"),
        ("logFile", json!(place.dir), "cannot open the log file"),
        // No reader: to wait for one would be for ever.
        ("logFile", json!(pipe), "cannot open the log file"),
        ("logFile", json!("/dev/full"), ""),
    ];
    for (key, value, remark) in table {
        let mut conf = place.conf();
        conf["cniVersion"] = json!("1.1.0");
        conf["cni.dev/valid-attachments"] = json!([]);
        conf[key] = value.clone();
        for verb in ["ADD", "DEL", "CHECK", "GC"] {
            let reply = Call::new(verb).stdin(conf.to_string()).run();
            reply.success();
            assert!(reply.stderr.contains(remark), "{verb} with {key}={value}: {}", reply.stderr);
        }
    }
}

#[test]
fn a_stderr_that_takes_nothing_fails_no_verb() {
    use std::process::{Command, Stdio};
    let place = Place::new();
    let conf = place.dir.join("conf.json");
    std::fs::write(&conf, place.conf().to_string()).expect("write the configuration");
    for (target, arguments) in [("closed", "2>&-"), ("full", "2>/dev/full")] {
        let output = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("exec \"$0\" <\"$1\" {arguments}"))
            .arg(harness::binary("redirect-cni"))
            .arg(&conf)
            .env_clear()
            .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c0ffee"), ("CNI_IFNAME", "eth0")])
            .env("CNI_NETNS", "/nonexistent/netns")
            .stdin(Stdio::null())
            .output()
            .expect("start redirect-cni");
        assert!(output.status.success(), "stderr is {target}: {output:?}");
        assert!(output.stdout.starts_with(b"{\"cniVersion\""), "stderr is {target}: {output:?}");
    }
}

#[test]
fn previous_results_that_are_none() {
    let place = Place::new();
    for (text, part) in [
        ("[]", "prevResult:"),
        ("\"x\"", "prevResult:"),
        (r#"{"ips":"10.0.0.1"}"#, "prevResult.ips:"),
        (r#"{"ips":[{}]}"#, "prevResult.ips[0].address"),
        (r#"{"ips":[{"address":"10.0.0.1"}]}"#, "prevResult.ips[0].address"),
        (r#"{"ips":[{"address":"300.0.0.1/8"}]}"#, "prevResult.ips[0].address"),
    ] {
        for verb in ["ADD", "CHECK"] {
            let details = Call::new(verb).stdin(with_prev_result(&place.conf(), text)).run().refused(6);
            assert!(details.contains(part), "{details}");
        }
    }
}

#[test]
fn annotations_of_an_enrolled_pod_that_cannot_be_used() {
    let place = Place::new();
    let table = [
        ("sidecar.istio.io/interceptionMode", "redirect", 101),
        ("sidecar.istio.io/interceptionMode", "tproxy", 101),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/8, 11.0.0.0/8", 101),
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "*", 101),
        ("traffic.sidecar.istio.io/includeOutboundPorts", "http", 101),
        ("traffic.sidecar.istio.io/excludeOutboundPorts", "80-90", 101),
        ("traffic.sidecar.istio.io/includeInboundPorts", "80,", 101),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "*", 101),
        ("traffic.sidecar.istio.io/excludeInterfaces", "eth0 -j DROP", 101),
        ("traffic.sidecar.istio.io/kubevirtInterfaces", "tap0", 102),
        ("istio.io/reroute-virtual-interfaces", "docker0", 102),
        ("status.sidecar.istio.io/port", "-1", 101),
        ("sidecar.istio.io/status", "not json", 101),
    ];
    for (annotation, value, code) in table {
        let mut conf = place.conf();
        hand_over(&mut conf, &[STATUS, (annotation, value)]);
        let details = Call::new("ADD").pod("shop", "web-0", "1").stdin(conf.to_string()).run().refused(code);
        assert!(details.contains(&format!("{annotation}={value:?}")), "{details}");
        assert!(details.contains("shop/web-0"), "{details}");
    }
    assert_eq!(place.outcomes(), [("failed_101".to_owned(), 11), ("failed_102".to_owned(), 2)].into());
}

#[test]
fn namespaces_that_cannot_be_redirected() {
    let place = Place::new();
    let mut conf = place.conf();
    hand_over(&mut conf, &[STATUS]);
    let call = Call::new("ADD").pod("shop", "web-0", "1").stdin(conf.to_string());
    assert!(call.run().refused(8).contains("/nonexistent/netns"));
    let own = call.env("CNI_NETNS", "/proc/self/ns/net").run().refused(8);
    assert!(own.contains("the plugin itself runs in"), "{own}");
}

#[test]
fn groups_of_the_environment_that_do_not_exist() {
    let place = Place::new();
    let mut conf = place.conf();
    hand_over(&mut conf, &[STATUS]);
    let call = Call::new("ADD").env("ISTIO_OUTBOUND_OWNER_GROUPS", "no-such-group");
    let details = call.clone().pod("shop", "web-0", "1").stdin(conf.to_string()).run().refused(4);
    assert!(
        details.contains("ISTIO_OUTBOUND_OWNER_GROUPS") && details.contains("no-such-group"),
        "{details}"
    );
    // A pod that is not ours does not care.
    call.pod("kube-system", "dns-0", "1").stdin(conf.to_string()).run().success();
}

#[test]
fn a_reply_that_nobody_reads_is_no_panic() {
    use std::process::{Command, Stdio};
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(harness::binary("redirect-cni"))
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .expect("start redirect-cni");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(1), &b""[..]));
}
