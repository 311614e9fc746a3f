//! `redirect explain`: what would change the verdict, names as the pod knows them, and manifests.

use std::fs;
use std::process::{Command, Stdio};

use harness::cli::Outcome;
use harness::{Node, binary, kernel_test};
use serde_json::Value;

fn explain(node: &Node, arguments: &[&str]) -> Value {
    node.json(&[&["explain"], arguments].concat())
}

#[test]
fn what_it_advises_gives_the_other_verdict() {
    kernel_test(|node| {
        let pod = node.pod("web");
        // A policy, a question, what is advised, and the policy that follows the advice.
        let table: [(&[&str], &str, &str, &[&str]); 5] = [
            (&["--exclude-outbound-ports", "3306"], "10.0.0.7:3306", "take 3306 out of", &[]),
            (&["--exclude-outbound-ip-ranges", "10.0.0.0/24"], "10.0.0.7:80", "take 10.0.0.0/24 out of", &[]),
            (&[], "10.0.0.7:80", "add 80 to", &["--exclude-outbound-ports", "80"]),
            (&[], "10.0.0.7:80", "or 10.0.0.7 to", &["--exclude-outbound-ip-ranges", "10.0.0.7/32"]),
            (
                &["--include-outbound-ip-ranges", "10.1.0.0/16"],
                "10.0.0.7:80",
                "add 10.0.0.7 to traffic.sidecar.istio.io/includeOutboundIPRanges",
                &["--include-outbound-ip-ranges", "10.1.0.0/16,10.0.0.7/32"],
            ),
        ];
        for (policy, dst, advice, other) in table {
            node.attach(&pod, policy);
            let before = explain(node, &["web", "--dst", dst]);
            assert!(before["change"].as_str().expect("text").contains(advice), "{before}");
            node.attach(&pod, other);
            let after = explain(node, &["web", "--dst", dst]);
            assert_ne!(before["verdict"], after["verdict"], "{before}, {after}");
        }
        node.attach(&pod, &[]);
        let before = explain(node, &["web", "--inbound", "8080"]);
        assert!(before["change"].as_str().expect("text").contains("add 8080 to"), "{before}");
        node.attach(&pod, &["--exclude-inbound-ports", "8080"]);
        assert_ne!(before["verdict"], explain(node, &["web", "--inbound", "8080"])["verdict"]);
    });
}

#[test]
fn a_name_is_asked_as_the_pod_would() {
    kernel_test(|node| {
        let pod = node.pod("web");
        node.attach(&pod, &["--exclude-outbound-ports", "3306"]);
        let empty = Outcome::of(node.redirect().args(["explain", "web", "--dst", "reviews:9080"]));
        assert!(empty.code == Some(1) && empty.stderr.contains("no process"), "{empty:?}");
        // A container with a file of hosts of its own.
        let hosts = node.dir().join("hosts");
        fs::write(&hosts, "10.0.0.7 reviews\n").expect("write a file");
        let script = format!("mount --bind {} /etc/hosts && echo ready && exec sleep 60", hosts.display());
        let mut container = Command::new("unshare");
        container.args(["--mount", "sh", "-c", &script]).stdout(Stdio::piped());
        pod.netns().enter(&mut container, Some(&pod.container("app")));
        let mut container = container.spawn().expect("start a container");
        let mut ready = [0; 6];
        std::io::Read::read_exact(container.stdout.as_mut().expect("a pipe"), &mut ready)
            .expect("it is ready");
        let redirected = explain(node, &["web", "--dst", "reviews:9080"]);
        assert_eq!(
            (&redirected[0]["dst"], &redirected[0]["ruleName"]),
            (&Value::from("10.0.0.7:9080"), &Value::from("included-range")),
            "{redirected}"
        );
        assert_eq!(explain(node, &["web", "--dst", "reviews:3306"])[0]["ruleName"], "excluded-port");
        let unknown =
            Outcome::of(node.redirect().args(["explain", "web", "--dst", "no-such-name.invalid:80"]));
        assert!(unknown.code == Some(1) && unknown.stderr.contains("no-such-name.invalid:80"), "{unknown:?}");
        for wrong in ["reviews", ":80", "reviews:http"] {
            let outcome = Outcome::of(node.redirect().args(["explain", "web", "--dst", wrong]));
            assert!(
                outcome.code == Some(1) && outcome.stderr.contains("neither an address nor a name"),
                "{outcome:?}"
            );
        }
        container.kill().expect("end the container");
        container.wait().expect("it ends");
    });
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata:
      annotations:
        traffic.sidecar.istio.io/excludeOutboundPorts: \"3306\"
    spec:
      containers:
      - {name: web, image: x}
";

/// Runs it on a manifest; no node is needed.
fn from(text: &str, arguments: &[&str]) -> Outcome {
    let folder = tempfile::tempdir().expect("make a directory");
    let file = folder.path().join("manifest.yaml");
    fs::write(&file, text).expect("write a file");
    Outcome::of(Command::new(binary("redirect")).args(["explain", "--from"]).arg(file).args(arguments))
}

#[test]
fn a_manifest_is_explained_before_it_is_deployed() {
    let bare = from(DEPLOYMENT, &[]);
    assert!(
        bare.code == Some(1) && bare.stdout.contains("would not be enrolled: no_proxy_container"),
        "{bare:?}"
    );
    assert!(bare.stdout.contains("--assume-injected"), "{bare:?}");
    let injected = from(DEPLOYMENT, &["--assume-injected", "--dst", "10.0.0.7:3306"]);
    assert_eq!(injected.code, Some(0), "{injected:?}");
    for part in ["shop/web would be enrolled", "direct\n", "excludeOutboundPorts has 3306", "take 3306 out"] {
        assert!(injected.stdout.contains(part), "{part}: {injected:?}");
    }
    let json = from(DEPLOYMENT, &["--assume-injected", "--inbound", "80", "-o", "json"]);
    let value: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(
        (&value["enrolled"], &value["explanation"]["ruleName"]),
        (&Value::Bool(true), &Value::from("all"))
    );
    let excluded =
        from(DEPLOYMENT, &["--assume-injected", "--plugin-conf", r#"{"excludeNamespaces":["shop"]}"#]);
    assert!(excluded.code == Some(1) && excluded.stdout.contains("excluded_namespace"), "{excluded:?}");
    let nothing = DEPLOYMENT.replace("excludeOutboundPorts: \"3306\"", "excludeOutboundIPRanges: 0.0.0.0/0");
    assert!(from(&nothing, &["--assume-injected"]).stdout.contains("warning: nothing that it sends"));
    let invalid = DEPLOYMENT.replace("3306", "mysql");
    let invalid = from(&invalid, &["--assume-injected"]);
    assert!(invalid.code == Some(1) && invalid.stderr.contains("excludeOutboundPorts"), "{invalid:?}");
    assert!(from("kind: Service\nmetadata: {name: x}\n", &[]).stderr.contains("has no pod"));
    assert!(from("a: [", &[]).stderr.contains("neither YAML nor JSON"));
}
