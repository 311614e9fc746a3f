//! What a pod says stays inside its line of the log and inside the text of a reply: no line feed and no
//! escape sequence of it reaches a terminal.

use serde_json::json;

use crate::call::{Call, Place, STATUS, hand_over};

/// A second line that looks like one of the plugin's, in red.
const FORGED: &str = "80\n2026-01-01T00:00:00.000000Z  INFO call{verb=\"ADD\"}: enrolled \u{1b}[31m";

#[track_caller]
fn assert_whole(what: &str, stderr: &str) {
    assert!(stderr.lines().all(|line| line.starts_with("20")), "{what} begins a line: {stderr}");
    assert!(
        !stderr.contains("2026-01-01T00:00:00.000000Z  INFO call{verb=\"ADD\"}: enrolled \u{1b}"),
        "{what}"
    );
    assert!(stderr.chars().all(|c| c == '\n' || !c.is_control()), "{what}: a control character: {stderr:?}");
    assert!(stderr.lines().count() <= 2, "{what} begins a line: {stderr}");
}

#[test]
fn annotations_cannot_write_lines_of_the_log() {
    let place = Place::new();
    let names = [
        "sidecar.istio.io/status",
        "sidecar.istio.io/inject",
        "sidecar.istio.io/interceptionMode",
        "traffic.sidecar.istio.io/includeOutboundIPRanges",
        "traffic.sidecar.istio.io/excludeOutboundIPRanges",
        "traffic.sidecar.istio.io/includeOutboundPorts",
        "traffic.sidecar.istio.io/excludeOutboundPorts",
        "traffic.sidecar.istio.io/includeInboundPorts",
        "traffic.sidecar.istio.io/excludeInboundPorts",
        "traffic.sidecar.istio.io/excludeInterfaces",
        "traffic.sidecar.istio.io/kubevirtInterfaces",
        "istio.io/reroute-virtual-interfaces",
        "status.sidecar.istio.io/port",
        "inject.istio.io/templates",
        "proxy.istio.io/config",
    ];
    for name in names {
        let mut annotations = json!({ STATUS.0: STATUS.1 });
        annotations[name] = json!(FORGED);
        let mut conf = place.conf();
        conf["runtimeConfig"] = json!({ "io.kubernetes.cri.pod-annotations": annotations });
        let reply = Call::new("ADD").pod("shop", "web-0", "11").stdin(conf.to_string()).run();
        assert!(!reply.stderr.is_empty(), "{name} is logged");
        assert_whole(name, &reply.stderr);
    }
}

#[test]
fn names_in_the_environment_cannot_write_lines_of_the_log() {
    let place = Place::new();
    for key in ["K8S_POD_NAME", "K8S_POD_NAMESPACE", "K8S_POD_UID", "COLOUR"] {
        let args = format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;{key}={FORGED}");
        let reply = Call::new("ADD").env("CNI_ARGS", args).stdin(place.conf().to_string()).run();
        reply.refused(4);
        assert!(reply.stderr.chars().all(|c| c == '\n' || !c.is_control()), "{key}: {:?}", reply.stderr);
    }
    let details = Call::new("ADD").env("CNI_ARGS", format!("CO{FORGED}=x")).stdin("{}").run().refused(4);
    assert!(!details.contains('\u{1b}') && details.contains("\\n"), "{details}");
}

#[test]
fn keys_of_the_configuration_cannot_write_lines_of_the_log() {
    let place = Place::new();
    for key in ["podSource", "logLevel", "name", "cniVersion", "agentSocket", "cgroupRoot"] {
        let mut conf = place.conf();
        conf[key] = json!(FORGED);
        let reply = Call::new("ADD").pod("shop", "web-0", "11").stdin(conf.to_string()).run();
        assert_whole(key, &reply.stderr);
    }
}

/// What is no text is quoted as it stands in the configuration, and a key's name is text of somebody, too.
#[test]
fn what_is_quoted_of_the_configuration_stays_in_its_line() {
    let place = Place::new();
    let mut conf = place.conf();
    hand_over(&mut conf, &[STATUS]);
    let conf = conf.to_string();
    let conf = conf.strip_suffix('}').expect("an object");
    let forged_key = json!({ FORGED: "x" });
    for raw in [
        "\"dnsCapture\":[\n\"2026 \u{9b}31m\u{7f}\"]".to_owned(),
        format!("\"defaults\":{forged_key}"),
        "\"logLevel\":[\n\"2026 \u{9b}31m\u{7f}\"],\"guard\":1".to_owned(),
    ] {
        let reply = Call::new("ADD").pod("shop", "web-0", "11").stdin(format!("{conf},{raw}}}")).run();
        let details = reply.refused(7);
        assert!(!details.contains(char::is_control), "{details:?}");
        assert_whole(&raw, &reply.stderr);
    }
}
