//! The chart: every combination of what changes its shape renders and is valid, and each has exactly the
//! rights, privileges and mounts that the agent needs for it.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use harness::binary;
use serde_json::{Value, json};

use redirect_deploy_tests::helm::{self, Helm, Rendered, strings};

const PLATFORMS: [&str; 7] = ["", "gke", "k3s", "k3d", "microk8s", "minikube", "openshift"];
/// The values of `repair`, by the mode that is in force then.
const MODES: [(&str, &str); 4] = [
    ("off", r#"{"enabled":false}"#),
    ("repair", "{}"),
    ("label", r#"{"repairPods":false,"labelPods":true}"#),
    ("delete", r#"{"repairPods":false,"deletePods":true}"#),
];

/// What was asked for.
struct Case {
    values: Value,
    mode: &'static str,
    api: bool,
    running: bool,
    removing: bool,
    multus: bool,
    own_file: bool,
    extras: bool,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for platform in PLATFORMS {
        for (mode, repair) in MODES {
            // One bit for each of six switches. A platform changes directories only, but for OpenShift.
            let switches = if ["", "openshift"].contains(&platform) { 64 } else { 1 };
            for bits in 0..switches {
                let bit = |n: u32| bits & (1 << n) != 0;
                let (kubernetes, live, removing) = (bit(0), bit(1), bit(2));
                let multus = bit(3) || platform == "openshift";
                let mode = if removing { "off" } else { mode };
                let live = live && !removing;
                let values = json!({
                    "global": { "platform": platform, "networkPolicy": { "enabled": bit(5) }, "logAsJson": bit(5) },
                    "podSource": if kubernetes { "kubernetes" } else { "annotations" },
                    "repair": serde_json::from_str::<Value>(repair).expect("JSON"),
                    "livePolicy": bit(1),
                    "nodeEntry": if removing { "remove" } else { "keep" },
                    "provider": if bit(3) { "multus" } else { "default" },
                    "chained": !bit(3),
                    "istioOwnedCNIConfig": bit(4),
                    "metrics": {
                        "podMonitor": { "enabled": bit(5), "labels": { "release": "x" } },
                        "prometheusRule": { "enabled": bit(5) },
                        "dashboard": { "enabled": bit(5) },
                    },
                    "resourceQuotas": { "enabled": bit(5) },
                });
                let api = !removing && (kubernetes || mode != "off" || live);
                let running = mode == "repair" || live;
                let (own_file, extras) = (bit(4), bit(5));
                cases.push(Case { values, mode, api, running, removing, multus, own_file, extras });
            }
        }
    }
    cases
}

#[test]
fn every_combination_renders_is_valid_and_asks_for_what_it_needs_only() {
    let mut helm = Helm::start();
    let cases = cases();
    let mut arguments = BTreeSet::new();
    for case in &cases {
        let rendered = helm.render(&case.values);
        assert_eq!(rendered.kinds(), expected_kinds(case), "{}", case.values);
        rights(case, &rendered);
        privileges(case, &rendered);
        mounts(case, &rendered);
        flags(case, &rendered);
        arguments.insert(rendered.arguments().into_iter().map(str::to_owned).collect::<Vec<_>>());
    }
    println!("{} combinations, {} command lines", cases.len(), arguments.len());
    for arguments in &arguments {
        understood(arguments);
    }
}

fn expected_kinds(case: &Case) -> Vec<&'static str> {
    let mut kinds = vec!["ConfigMap", "DaemonSet", "ServiceAccount"];
    if case.api {
        kinds.extend(["ClusterRole", "ClusterRoleBinding"]);
    }
    if case.multus && !case.removing {
        kinds.push("NetworkAttachmentDefinition");
    }
    if case.extras {
        kinds.extend(["ConfigMap", "NetworkPolicy", "PodMonitor", "PrometheusRule", "ResourceQuota"]);
    }
    kinds.sort_unstable();
    kinds
}

/// `tests/rights.rs` shows that the agent uses each of them, and no other.
fn rights(case: &Case, rendered: &Rendered) {
    let token = &rendered.pod()["automountServiceAccountToken"];
    assert_eq!(*token, json!(case.api), "a token is there only for who asks the API server: {}", case.values);
    if !case.api {
        return;
    }
    let pods = match case.mode {
        "delete" => json!(["get", "list", "watch", "delete"]),
        _ => json!(["get", "list", "watch"]),
    };
    let mut rules = vec![json!({ "apiGroups": [""], "resources": ["pods"], "verbs": pods })];
    if case.mode == "label" {
        rules.push(json!({ "apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"] }));
    }
    let events =
        json!({ "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"] });
    rules.push(events);
    assert_eq!(rendered.one("ClusterRole")["rules"], json!(rules), "{}", case.values);
}

#[test]
fn the_chart_and_the_unit_give_the_capabilities_of_the_table() {
    let text = fs::read_to_string(helm::root().join("SECURITY.md")).expect("SECURITY.md");
    let section = text.split_once("## What the agent needs\n").expect("the section").1;
    let rows =
        section.split("\n## ").next().unwrap_or_default().lines().filter(|line| line.starts_with("| "));
    let words = |row: &str| {
        let cell = row.split('|').nth(2).unwrap_or_default().to_owned();
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
    };
    let rows: Vec<_> = rows.skip(1).map(words).collect();
    let [always, keep, running] = &rows[..] else { panic!("three rows: {rows:?}") };
    let short = |lists: &[&Vec<String>]| -> BTreeSet<String> {
        let names = lists.iter().flat_map(|list| list.iter());
        names.map(|name| name.strip_prefix("CAP_").expect(name).to_owned()).collect()
    };
    let mut helm = Helm::start();
    for (entry, repairs, expected) in [
        ("keep", true, short(&[always, keep, running])),
        ("keep", false, short(&[always, keep])),
        ("remove", false, short(&[always])),
    ] {
        let values = json!({ "nodeEntry": entry, "repair": { "enabled": repairs }, "livePolicy": false });
        let rendered = helm.render(&values);
        let given = strings(&rendered.container()["securityContext"]["capabilities"]["add"]);
        let given: BTreeSet<_> = given.into_iter().map(str::to_owned).collect();
        assert_eq!(given, expected, "{values}");
    }
    let unit = helm::root().join("deploy/package/redirect-cni-agent.service");
    let unit = fs::read_to_string(unit).expect("the unit");
    let set = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a set");
    let mut all: BTreeSet<_> = rows.into_iter().flatten().collect();
    all.insert("CAP_DAC_OVERRIDE".to_owned());
    assert_eq!(set.split(' ').map(str::to_owned).collect::<BTreeSet<_>>(), all);
}

/// `tests/agent/tests/kernel/privileges.rs` shows that a running pod needs three of them; the scratch pod, in
/// which the node is tried, has processes of other users.
fn privileges(case: &Case, rendered: &Rendered) {
    let mut added = vec!["NET_ADMIN", "SYS_ADMIN"];
    if !case.removing {
        added.extend(["SETUID", "SETGID", "NET_BIND_SERVICE"]);
    }
    if case.running {
        added.push("SYS_PTRACE");
    }
    let context = &rendered.container()["securityContext"];
    assert_eq!(context["capabilities"], json!({ "drop": ["ALL"], "add": added }), "{}", case.values);
    assert_eq!(context["privileged"], false);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(rendered.pod()["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for key in ["hostNetwork", "hostIPC"] {
        assert!(rendered.pod()[key].is_null(), "{key}");
    }
    assert_eq!(rendered.pod()["priorityClassName"], "system-node-critical");
}

fn mounts(case: &Case, rendered: &Rendered) {
    let (bin, conf, netns) = directories(case.values["global"]["platform"].as_str().unwrap_or_default());
    let on_node = |name: &str| {
        let volumes = rendered.pod()["volumes"].as_array().expect("volumes");
        let volume = volumes.iter().find(|volume| volume["name"] == name).expect("every mount has a volume");
        volume["hostPath"]["path"].as_str().map(str::to_owned)
    };
    let mounts = rendered.container()["volumeMounts"].as_array().expect("mounts").iter();
    let writable = |mount: &Value| mount["readOnly"] != json!(true);
    let found: BTreeSet<_> = mounts
        .map(|mount| {
            let path = mount["mountPath"].as_str().expect("a path").to_owned();
            (path, on_node(mount["name"].as_str().expect("a name")), writable(mount))
        })
        .collect();
    let mount = |path: &str, node: &str, writable| (path.to_owned(), Some(node.to_owned()), writable);
    let expected = BTreeSet::from([
        ("/etc/redirect-cni".to_owned(), None, false),
        mount("/host/cni-bin", bin, true),
        mount("/host/cni-conf", conf, true),
        mount("/sys/fs/bpf", "/sys/fs/bpf", true),
        mount("/sys/fs/cgroup", "/sys/fs/cgroup", true),
        mount("/run/redirect-cni", "/run/redirect-cni", true),
        mount(netns, netns, false),
    ]);
    assert_eq!(found, expected, "{}", case.values);
    let volumes = rendered.pod()["volumes"].as_array().expect("volumes").len();
    assert_eq!(volumes, expected.len(), "a volume that is not mounted: {}", case.values);
}

/// Istio's table of platforms.
fn directories(platform: &str) -> (&'static str, &'static str, &'static str) {
    let (bin, conf, netns) = ("/opt/cni/bin", "/etc/cni/net.d", "/var/run/netns");
    match platform {
        "gke" => ("/home/kubernetes/bin", conf, netns),
        "k3s" => ("/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/agent/etc/cni/net.d", netns),
        "k3d" => ("/bin", "/var/lib/rancher/k3s/agent/etc/cni/net.d", netns),
        "microk8s" => {
            ("/var/snap/microk8s/current/opt/cni/bin", "/var/snap/microk8s/current/args/cni-network", netns)
        }
        "minikube" => (bin, conf, "/var/run/docker/netns"),
        "openshift" => ("/var/lib/cni/bin", "/etc/cni/multus/net.d", netns),
        _ => (bin, conf, netns),
    }
}

fn flags(case: &Case, rendered: &Rendered) {
    let arguments = rendered.arguments();
    let has = |flag: &str| arguments.iter().any(|argument| argument.split('=').next() == Some(flag));
    assert_eq!(has("--remove-entry"), case.removing, "{arguments:?}");
    assert_eq!((has("--install"), has("--verify")), (!case.removing, !case.removing), "{arguments:?}");
    assert_eq!(has("--no-entry"), case.multus && !case.removing, "{arguments:?}");
    assert_eq!(has("--own-conf-file"), case.own_file && !case.multus && !case.removing, "{arguments:?}");
    assert_eq!((has("--in-cluster"), has("--no-pods")), (case.api, !case.api), "{arguments:?}");
    for mode in ["repair", "label", "delete"] {
        assert_eq!(has(&format!("--{mode}-pods")), case.mode == mode, "{arguments:?}");
    }
    assert_eq!(rendered.entry()["podSource"], case.values["podSource"]);
    assert_eq!(rendered.notes.contains("helm uninstall"), case.removing);
}

/// The agent takes this command line: it fails at the first file that is not here, and not at its usage.
fn understood(arguments: &[String]) {
    let output = Command::new(binary("redirect"))
        .args(arguments)
        .env("NODE_NAME", "node-1")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .output()
        .expect("the agent starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    assert!(
        text.contains("--plugin-conf: cannot read /etc/redirect-cni/entry.json"),
        "{arguments:?}: {text}"
    );
}

#[test]
fn helm_lint_has_nothing_to_say() {
    let said = Helm::start().lint(&json!({}));
    let messages: Vec<_> = said["messages"].as_array().expect("messages").iter().collect();
    let bad: Vec<_> = messages.iter().filter(|m| m["severity"].as_u64() > Some(1)).collect();
    assert!(bad.is_empty() && said["errors"].as_array().is_none_or(Vec::is_empty), "{said}");
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    let mut helm = Helm::start();
    let bad = [
        (json!({ "imagePullPolicy": "Always" }), "imagePullPolicy"),
        (json!({ "global": { "platform": "rancher" } }), "platform"),
        (json!({ "cniBinDir": "opt/cni/bin" }), "cniBinDir"),
        (json!({ "cniConfFileName": "/etc/cni/net.d/10-x.conflist" }), "cniConfFileName"),
        (json!({ "istioOwnedCNIConfigFileName": "02-redirect-cni.conf" }), "istioOwnedCNIConfigFileName"),
        (json!({ "istioOwnedCNIConfigFileName": "02-istio.conflist" }), "istioOwnedCNIConfigFileName"),
        (json!({ "proxy": { "uid": -1 } }), "uid"),
        (json!({ "proxy": { "inboundPort": 0 } }), "inboundPort"),
        (json!({ "guard": "on" }), "guard"),
        (json!({ "podSource": "api" }), "podSource"),
        (json!({ "repair": { "mode": "label" } }), "mode"),
        (json!({ "defaults": { "excludeOutboundPort": "25" } }), "excludeOutboundPort"),
        (json!({ "metrics": { "port": 70000 } }), "port"),
        (json!({ "nodeEntry": "delete" }), "nodeEntry"),
        (json!({ "terminationGracePeriodSeconds": "10s" }), "terminationGracePeriodSeconds"),
        (json!({ "resourceQuotas": { "enabled": "yes" } }), "enabled"),
    ];
    for (values, name) in &bad {
        let refusal = helm.refusal(values);
        assert!(refusal.as_ref().is_some_and(|text| text.contains(name)), "{values}: {refusal:?}");
    }
    assert_eq!(helm.refusal(&json!({})), None, "the defaults are fine");
    let error = helm.try_render(&json!({ "chained": false })).expect_err("refused");
    assert!(error.contains("provider=multus"), "{error}");
}

#[test]
fn the_schema_has_every_value_and_no_other() {
    let folder = helm::chart();
    let schema = fs::read_to_string(folder.join("values.schema.json")).expect("the schema");
    let schema: Value = serde_json::from_str(&schema).expect("JSON");
    let rendered = Helm::start().render(&json!({}));
    assert!(rendered.has("DaemonSet"));
    let text = fs::read_to_string(folder.join("values.yaml")).expect("values");
    let mut named = BTreeSet::new();
    names(&schema["properties"], &mut named);
    for name in &named {
        let found = text.lines().any(|line| line.trim_start().starts_with(&format!("{name}:")));
        assert!(found, "{name} is in the schema and not in values.yaml");
    }
    let words = text.lines().filter(|line| !line.trim_start().starts_with(['#', '-']));
    for name in words.filter_map(|line| line.trim().split(':').next()).filter(|name| !name.is_empty()) {
        let free = ["requests", "rollingUpdate", "grafana_dashboard"];
        assert!(
            named.contains(name) || free.contains(&name),
            "{name} is in values.yaml and not in the schema"
        );
    }
    // Every value does something: its name is in a template.
    let templates: String = fs::read_dir(folder.join("templates"))
        .expect("templates")
        .flatten()
        .map(|file| fs::read_to_string(file.path()).expect("a template"))
        .collect();
    for name in &named {
        // These go into the entry as they are, with all that is in them.
        let of_proxy = ["container", "uid", "gid", "outboundPort", "inboundPort", "dnsPort"];
        assert!(
            templates.contains(&format!(".{name}")) || of_proxy.contains(&name.as_str()),
            "{name} is not used"
        );
    }
}

/// The names of objects' properties, at every depth that the schema knows. What is in `defaults` has no
/// default.
fn names(properties: &Value, into: &mut BTreeSet<String>) {
    for (name, value) in properties.as_object().into_iter().flatten() {
        into.insert(name.clone());
        if name != "defaults" {
            names(&value["properties"], into);
        }
    }
}

#[test]
fn values_go_where_they_belong() {
    let mut helm = Helm::start();
    let rendered = helm.render(&json!({
        "hub": "example.org/mesh", "tag": 7, "variant": "debug", "pullPolicy": "Always",
        "cniBinDir": "/b", "cniConfDir": "/c", "cniNetnsDir": "/n", "cniConfFileName": "10-x.conflist",
        "excludeNamespaces": ["a"], "dnsCapture": true, "guard": "audit", "forbidOptOut": true,
        "defaults": { "excludeOutboundPorts": "25" }, "refuseRuntimeClasses": ["x*"],
        "proxy": { "uid": 1500 }, "logging": { "level": "debug" }, "staticPods": "/etc/kubernetes/manifests",
        "podLabels": { "team": "net" }, "env": { "RUST_BACKTRACE": 1 }, "nodeSelector": { "zone": "a" },
        "metrics": { "port": 9090 }, "revision": "canary",
    }));
    let container = rendered.container();
    assert_eq!(container["image"], "example.org/mesh/redirect-cni:7-debug");
    assert_eq!(container["imagePullPolicy"], "Always");
    let arguments = rendered.arguments();
    for wanted in ["--cni-conf-file=10-x.conflist", "--listen=[::]:9090", "--pods=/host/static-pods"] {
        assert!(arguments.contains(&wanted), "{wanted}: {arguments:?}");
    }
    assert_eq!(container["env"][1], json!({ "name": "RUST_BACKTRACE", "value": "1" }));
    assert_eq!(container["ports"][0]["containerPort"], 9090);
    for probe in ["readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], "metrics");
    }
    let selector = &rendered.pod()["nodeSelector"];
    assert_eq!(*selector, json!({ "kubernetes.io/os": "linux", "zone": "a" }));
    let labels = &rendered.one("DaemonSet")["spec"]["template"]["metadata"]["labels"];
    // istiod's untaint controller knows a CNI agent by this label.
    assert_eq!(labels["k8s-app"], "istio-cni-node");
    assert_eq!((&labels["team"], &labels["istio.io/rev"]), (&json!("net"), &json!("canary")));
    let paths: Vec<_> = rendered.pod()["volumes"].as_array().expect("volumes").iter().collect();
    let paths: Vec<_> = paths.iter().filter_map(|volume| volume["hostPath"]["path"].as_str()).collect();
    for path in ["/b", "/c", "/n", "/etc/kubernetes/manifests"] {
        assert!(paths.contains(&path), "{path}: {paths:?}");
    }
    let entry = rendered.entry();
    // Pods of the agent's own namespace must start without it.
    assert_eq!(strings(&entry["excludeNamespaces"]), [helm::NAMESPACE, "a"]);
    for (key, value) in [
        ("dnsCapture", json!(true)),
        ("guard", json!("audit")),
        ("forbidOptOut", json!(true)),
        ("defaults", json!({ "excludeOutboundPorts": "25" })),
        ("refuseRuntimeClasses", json!(["x*"])),
        ("logLevel", json!("debug")),
    ] {
        assert_eq!(entry[key], value, "{key}");
    }
    assert_eq!((&entry["proxy"]["uid"], &entry["proxy"]["gid"]), (&json!(1500), &json!(1337)));
}

/// The definition for Multus is what the plugin takes when it is called with it, without a list.
#[test]
fn the_definition_for_multus_has_the_name_that_the_injector_asks_for() {
    let rendered = Helm::start().render(&json!({ "global": { "platform": "openshift" } }));
    let network = rendered.one("NetworkAttachmentDefinition");
    assert_eq!(
        (&network["metadata"]["name"], &network["metadata"]["namespace"]),
        (&json!("istio-cni"), &json!("default"))
    );
    let config: Value =
        serde_json::from_str(network["spec"]["config"].as_str().expect("text")).expect("JSON");
    assert_eq!((&config["type"], &config["name"]), (&json!("redirect-cni"), &json!("istio-cni")));
    let mut plain = config.clone();
    for key in ["cniVersion", "name"] {
        plain.as_object_mut().expect("an object").remove(key);
    }
    assert_eq!(plain, rendered.entry());
}
