//! A real kubectl takes the API server of these tests for one: what the agent meets there is what it meets
//! elsewhere.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use apiserver::Kind;
use apiserver::kubectl::Kubectl;
use serde_json::{Value, json};

use crate::driver::Cluster;

#[test]
fn kubectl_gets_describes_patches_labels_and_deletes() {
    let cluster = Cluster::start();
    let Some(kubectl) = Kubectl::find(&cluster.kubeconfig()) else { return };
    cluster.pod("web-0", |_| {});
    cluster.pod("web-1", |pod| pod["metadata"]["labels"]["app"] = json!("cart"));
    let names = |arguments: &[&str]| -> Vec<String> {
        let text = kubectl.done(&[&["get", "pods", "-n", "shop", "-o", "name"], arguments].concat());
        text.lines().map(str::to_owned).collect()
    };
    assert_eq!(names(&[]), ["pod/web-0", "pod/web-1"]);
    assert_eq!(names(&["-l", "app=cart"]), ["pod/web-1"]);
    assert_eq!(names(&["--field-selector", "spec.nodeName=elsewhere"]), [""; 0]);
    assert_eq!(names(&["--chunk-size", "1"]), ["pod/web-0", "pod/web-1"]);

    let event = json!({
        "metadata": { "name": "web-0.1", "namespace": "shop" }, "type": "Warning", "reason": "NotEnrolled",
        "message": "it has no sidecar", "count": 1, "lastTimestamp": "2026-01-01T00:00:00Z",
        "involvedObject": { "kind": "Pod", "namespace": "shop", "name": "web-0", "uid":
            cluster.api.store().get(Kind::PODS, "shop", "web-0").unwrap()["metadata"]["uid"] },
    });
    cluster.api.store().put(Kind::EVENTS, event);
    let described = kubectl.done(&["describe", "pod", "-n", "shop", "web-0"]);
    assert!(described.contains("NotEnrolled") && described.contains("it has no sidecar"), "{described}");

    let _ = kubectl.done(&["label", "pod", "-n", "shop", "web-0", "cni.istio.io/uninitialized=true"]);
    let patch = r#"{"metadata":{"annotations":{"a":"b"}}}"#;
    for kind in ["merge", "strategic"] {
        let _ = kubectl.done(&["patch", "pod", "-n", "shop", "web-0", "--type", kind, "-p", patch]);
    }
    let pod = cluster.api.store().get(Kind::PODS, "shop", "web-0").unwrap();
    assert_eq!(pod["metadata"]["labels"]["cni.istio.io/uninitialized"], "true");
    assert_eq!(pod["metadata"]["annotations"]["a"], "b");

    let _ = kubectl.done(&["delete", "pod", "-n", "shop", "web-1", "--wait=false"]);
    assert_eq!(names(&[]), ["pod/web-0"]);
    let missing = kubectl.run(&["get", "pod", "-n", "shop", "web-1"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("NotFound"), "{missing:?}");
    cluster.api.let_in(&["another"]);
    let refused = kubectl.run(&["get", "pods", "-n", "shop"]);
    assert!(!refused.status.success(), "{refused:?}");
}

#[test]
fn kubectl_watches() {
    let cluster = Cluster::start();
    let Some(kubectl) = Kubectl::find(&cluster.kubeconfig()) else { return };
    cluster.pod("web-0", |_| {});
    let mut watch = kubectl
        .command(&["get", "pods", "-n", "shop", "-w", "--output-watch-events", "-o", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(watch.stdout.take().unwrap());
    let mut events = serde_json::Deserializer::from_reader(output).into_iter::<Value>();
    let mut next = || {
        let event = events.next().unwrap().unwrap();
        (event["type"].as_str().unwrap().to_owned(), event["object"]["metadata"]["name"].clone())
    };
    assert_eq!(next(), ("ADDED".into(), json!("web-0")));
    cluster.pod("web-1", |_| {});
    assert_eq!(next(), ("ADDED".into(), json!("web-1")));
    cluster.api.store().change(Kind::PODS, "shop", "web-0", |pod| pod["status"]["phase"] = json!("Running"));
    assert_eq!(next(), ("MODIFIED".into(), json!("web-0")));
    cluster.api.store().remove(Kind::PODS, "shop", "web-1");
    assert_eq!(next(), ("DELETED".into(), json!("web-1")));
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn kubectl_watches_as_a_person_does() {
    let cluster = Cluster::start();
    let Some(kubectl) = Kubectl::find(&cluster.kubeconfig()) else { return };
    cluster.pod("web-0", |_| {});
    let mut watch =
        kubectl.command(&["get", "pods", "-n", "shop", "-w"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    assert!(lines.next().unwrap().starts_with("NAME"));
    assert!(lines.next().unwrap().starts_with("web-0"));
    cluster.pod("web-1", |_| {});
    assert!(lines.next().unwrap().starts_with("web-1"));
    watch.kill().unwrap();
    watch.wait().unwrap();
}
