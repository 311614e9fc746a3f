//! Who is captured, seen from outside: a pod that is not ours gets the previous result back in every
//! state of the node, and its reason is logged and counted; a pod that is ours needs the node.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::call::{Call, PREV_RESULT, Place, Reply, STATUS, hand_over, with_prev_result};

fn add(conf: &Value) -> Reply {
    Call::new("ADD").pod("shop", "web-0", "1").stdin(with_prev_result(conf, PREV_RESULT)).run()
}

#[track_caller]
fn assert_left_alone(reply: &Reply, reason: &str) {
    assert_eq!(reply.success(), PREV_RESULT);
    assert!(reply.stderr.contains(&format!("reason={reason}")), "{reply:?}");
}

#[test]
fn each_reason_is_logged_and_counted_and_the_result_passed_on() {
    let place = Place::new();
    let with = |annotations: &[(&str, &str)]| {
        let mut conf = place.conf();
        hand_over(&mut conf, annotations);
        conf
    };
    let status = |text: &'static str| (STATUS.0, text);
    let table = [
        (with(&[]), "not_injected"),
        (with(&[("prometheus.io/scrape", "true")]), "not_injected"),
        (with(&[status(r#"{"containers":["other"]}"#)]), "no_proxy_container"),
        (with(&[status(r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"#)]), "istio_init"),
        (with(&[STATUS, ("inject.istio.io/templates", "gateway")]), "not_a_sidecar"),
        (with(&[STATUS, ("inject.istio.io/templates", "grpc-agent")]), "envoy_disabled"),
        (with(&[STATUS, ("sidecar.istio.io/inject", "false")]), "inject_false"),
        (with(&[STATUS, ("sidecar.istio.io/interceptionMode", "NONE")]), "interception_none"),
    ];
    let mut expected = std::collections::BTreeMap::new();
    for (conf, reason) in &table {
        assert_left_alone(&add(conf), reason);
        *expected.entry((*reason).to_owned()).or_insert(0) += 1;
    }
    assert_eq!(place.outcomes(), expected);
}

#[test]
fn an_excluded_namespace_counts_before_everything_else() {
    let place = Place::new();
    let mut conf = place.conf();
    hand_over(&mut conf, &[STATUS, ("traffic.sidecar.istio.io/excludeInboundPorts", "nonsense")]);
    for namespace in ["kube-system", "istio-system"] {
        let call = Call::new("ADD").pod(namespace, "x", "1").stdin(with_prev_result(&conf, PREV_RESULT));
        assert_left_alone(&call.run(), "excluded_namespace");
    }
    conf["excludeNamespaces"] = json!(["shop"]);
    assert_left_alone(&add(&conf), "excluded_namespace");
    conf["excludeNamespaces"] = json!([]);
    add(&conf).refused(101);
}

#[test]
fn a_container_outside_kubernetes_is_left_alone() {
    let place = Place::new();
    for args in ["", "IgnoreUnknown=1", "IgnoreUnknown=1;K8S_POD_NAME=x", "K8S_POD_NAMESPACE=x;K8S_POD_NAME="]
    {
        let call = Call::new("ADD").env("CNI_ARGS", args).stdin(with_prev_result(&place.conf(), PREV_RESULT));
        assert_left_alone(&call.run(), "not_kubernetes");
    }
}

#[test]
fn a_pod_without_a_sidecar_needs_no_agent_no_bpffs_no_lock_and_no_privilege() {
    let place = Place::new();
    let mut conf = place.conf();
    conf["podSource"] = json!("kubernetes");
    hand_over(&mut conf, &[]);
    std::fs::set_permissions(&place.dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let call = Call::new("ADD").pod("shop", "web-0", "1").stdin(with_prev_result(&conf, PREV_RESULT));
    assert_left_alone(&call.unprivileged().run(), "not_injected");
    assert_eq!(Call::new("DEL").stdin(conf.to_string()).unprivileged().run().success(), "");
    assert!(!place.state().join("lock").exists());
}

#[test]
fn a_runtime_that_hands_nothing_over_is_an_error_of_the_source_that_needs_it() {
    let place = Place::new();
    let details = add(&place.conf()).refused(103);
    assert!(
        details.contains("io.kubernetes.cri.pod-annotations") && details.contains("shop/web-0"),
        "{details}"
    );
    // `null` is how a runtime hands over the annotations of a pod that has none.
    let mut conf = place.conf();
    conf["runtimeConfig"] = json!({ "io.kubernetes.cri.pod-annotations": null });
    assert_left_alone(&add(&conf), "not_injected");
}

#[test]
fn without_a_previous_result_the_result_is_empty_and_of_the_confs_version() {
    let place = Place::new();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut conf = place.conf();
        conf["cniVersion"] = json!(version);
        hand_over(&mut conf, &[]);
        let reply = Call::new("ADD").pod("shop", "web-0", "1").stdin(conf.to_string()).run();
        let result: Value = serde_json::from_str(reply.success()).unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!((&result["ips"], &result["interfaces"]), (&json!([]), &json!([])));
    }
}

#[test]
fn logs_go_to_stderr_and_to_the_file_by_level() {
    let place = Place::new();
    let file = place.dir.join("plugin.log");
    let mut conf = place.conf();
    hand_over(&mut conf, &[]);
    conf["logFile"] = json!(file);
    for _ in 0..2 {
        add(&conf).success();
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    for part in ["ADD", "c0ffee", "shop/web-0", "not_injected"] {
        assert!(lines.iter().all(|line| line.contains(part)), "{part}: {text}");
    }
    conf["logLevel"] = json!("error");
    assert_eq!(add(&conf).stderr, "");
    // A log that cannot be written is worth a warning, not a pod.
    conf["logLevel"] = json!("warn");
    conf["logFile"] = json!("/nonexistent/plugin.log");
    let reply = add(&conf);
    reply.success();
    assert!(reply.stderr.contains("/nonexistent/plugin.log"), "{reply:?}");
}
