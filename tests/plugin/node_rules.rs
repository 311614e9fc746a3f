//! What the node's configuration says about pods: defaults for what they do not say, and what they may not
//! do.

use harness::kernel_test;
use serde_json::json;

use crate::agent::{Agent, conf as conf_with_agent, manifest};
use crate::call::{Call, PREV_RESULT, Place, STATUS, hand_over, with_prev_result};
use crate::sandbox::{Sandbox, assert_nothing_attached};

#[test]
fn the_nodes_defaults_and_the_pods_proxy_config_become_the_policy() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let defaults =
            json!({ "excludeOutboundIPRanges": "169.254.169.254/32", "excludeOutboundPorts": "25" });
        let sandbox = Sandbox::new(node, &pod, "c0ffee").with("defaults", defaults);
        let policy_of = |annotations: &[(&str, &str)]| {
            sandbox.clone().annotated(annotations).add();
            let policy = node.list()[0]["policy"].clone();
            let explained = node.json(&["explain", "c0ffee", "--dst", "192.0.2.1:25"]);
            let cause = explained["cause"].as_str().unwrap_or_default();
            assert!(
                cause.starts_with("the node's default of") && cause.ends_with("Ports has 25"),
                "{explained}"
            );
            sandbox.del();
            policy
        };
        let policy = policy_of(&[(
            "proxy.istio.io/config",
            "proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: \"true\"\nstatusPort: 18000\n",
        )]);
        assert_eq!(policy["excludeOutboundIpRanges"], json!(["169.254.169.254/32"]), "{policy}");
        assert_eq!(policy["excludeOutboundPorts"], json!([25]), "{policy}");
        assert_eq!(policy["excludeInboundPorts"], json!([15020, 15021, 15090, 18000]), "{policy}");
        assert_eq!(policy["dnsCapture"], true, "{policy}");
        // What the pod says takes the place of what the node says.
        let policy = policy_of(&[("traffic.sidecar.istio.io/excludeOutboundIPRanges", "")]);
        assert_eq!((&policy["excludeOutboundIpRanges"], &policy["dnsCapture"]), (&json!([]), &json!(false)));
        assert_nothing_attached(node);
    });
}

#[test]
fn what_the_node_says_is_as_strict_as_an_annotation() {
    let place = Place::new();
    for (defaults, part) in [
        (json!({ "excludeOutboundPorts": "80-90" }), "defaults.excludeOutboundPorts: \"80-90\""),
        (json!({ "excludeOutboundPort": "80" }), "defaults.excludeOutboundPort: there is no such annotation"),
        (json!({ "excludeInterfaces": ["net1"] }), "defaults.excludeInterfaces"),
    ] {
        let mut conf = place.conf();
        conf["defaults"] = defaults;
        hand_over(&mut conf, &[STATUS]);
        let call = Call::new("ADD").pod("shop", "web-0", "1").stdin(with_prev_result(&conf, PREV_RESULT));
        assert!(call.run().refused(7).contains(part), "{part}");
        conf["cniVersion"] = json!("1.1.0");
        let told = Call::new("STATUS").stdin(conf.to_string()).run().refused(7);
        assert!(told.contains(part), "STATUS: {told}");
    }
    let mut conf = place.conf();
    hand_over(&mut conf, &[STATUS, ("proxy.istio.io/config", "proxyMetadata: [1]")]);
    let call = Call::new("ADD").pod("shop", "web-0", "1").stdin(conf.to_string());
    let details = call.run().refused(101);
    assert!(details.contains("proxy.istio.io/config") && details.contains("shop/web-0"), "{details}");
}

#[test]
fn a_pod_may_not_opt_out_where_the_node_forbids_it() {
    let place = Place::new();
    for (annotation, value) in [
        ("sidecar.istio.io/interceptionMode", "NONE"),
        ("sidecar.istio.io/inject", "false"),
        ("inject.istio.io/templates", "gateway"),
        ("inject.istio.io/templates", "grpc-agent"),
        ("proxy.istio.io/config", r#"{"proxyMetadata":{"DISABLE_ENVOY":"true"}}"#),
    ] {
        let mut conf = place.conf();
        hand_over(&mut conf, &[STATUS, (annotation, value)]);
        let add = |conf: &serde_json::Value, namespace: &str| {
            let call = Call::new("ADD").pod(namespace, "web-0", "1");
            call.stdin(with_prev_result(conf, PREV_RESULT)).run()
        };
        assert_eq!(add(&conf, "shop").success(), PREV_RESULT, "{annotation}={value}");
        conf["forbidOptOut"] = json!(true);
        let details = add(&conf, "shop").refused(107);
        assert!(details.contains("pod shop/web-0") && details.contains("forbidOptOut"), "{details}");
        assert_eq!(add(&conf, "istio-system").success(), PREV_RESULT, "{annotation}={value}");
    }
    let mut plain = place.conf();
    plain["forbidOptOut"] = json!(true);
    hand_over(&mut plain, &[]);
    let call = Call::new("ADD").pod("shop", "web-0", "1").stdin(with_prev_result(&plain, PREV_RESULT));
    assert_eq!(call.run().success(), PREV_RESULT, "a pod without a sidecar is none of the mesh");
}

#[test]
fn a_runtime_class_with_a_kernel_of_its_own_is_refused() {
    let place = Place::new();
    let _agent = Agent::start(&place.dir);
    let add = |conf: &serde_json::Value| {
        Call::new("ADD").pod("shop", "web-0", "uid-1").stdin(with_prev_result(conf, PREV_RESULT)).run()
    };
    let mut conf = conf_with_agent(&place);
    manifest(&place, |pod| pod["spec"]["runtimeClassName"] = json!("kata-qemu"));
    let details = add(&conf).refused(107);
    assert!(details.contains("pod shop/web-0") && details.contains("\"kata-qemu\""), "{details}");
    assert!(details.contains("refuseRuntimeClasses"), "{details}");
    // As far as the namespace, which does not exist: the class is allowed.
    conf["refuseRuntimeClasses"] = json!(["gvisor"]);
    add(&conf).refused(8);
    manifest(&place, |pod| pod["spec"]["runtimeClassName"] = json!("runc"));
    conf["refuseRuntimeClasses"] = json!(null);
    add(&conf).refused(8);
}
