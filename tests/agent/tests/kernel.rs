//! Pods that run: redirected although no plugin was called for them, and kept so.

mod day;
mod disorder;
mod endurance;
mod leaving;
pub(crate) mod place;
mod privileges;
mod resetting;
mod starting;

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use apiserver::{ApiServer, Kind};
use harness::cli::Outcome;
use harness::{Family, Node, Pod, Process, Service, kernel_test};
use serde_json::{Value, json};

use crate::driver::{Agent, CAPABILITIES, injected, until, with_capabilities};
use crate::shown::{free_port, get, value};

/// A cluster whose agent works on the test's node.
pub(crate) struct World<'a> {
    pub(crate) node: &'a Node,
    pub(crate) api: ApiServer,
    pub(crate) address: SocketAddr,
}

impl<'a> World<'a> {
    pub(crate) fn new(node: &'a Node) -> World<'a> {
        World { node, api: ApiServer::start(), address: free_port() }
    }

    pub(crate) fn agent(&self, arguments: &[&str]) -> Agent {
        let listen = self.address.to_string();
        let arguments = [&["--listen", listen.as_str()], arguments].concat();
        let kubeconfig = self.api.kubeconfig(self.node.dir());
        Agent::start_on(self.node.redirect(), self.node.dir(), &kubeconfig, &arguments)
    }

    /// Tells the API server of a pod that runs.
    pub(crate) fn tell(&self, pod: &Pod, change: impl FnOnce(&mut Value)) {
        let mut object = injected(pod.name());
        object["metadata"]["uid"] = json!(uid(pod));
        object["status"] =
            json!({ "phase": "Running", "podIPs": [{ "ip": pod.ip4() }, { "ip": pod.ip6() }] });
        change(&mut object);
        self.api.store().put(Kind::PODS, object);
    }

    fn reasons(&self, pod: &Pod) -> Vec<String> {
        self.api.events_about(pod.name()).into_iter().map(|(reason, _)| reason).collect()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.node.dir().join("agent.log")).unwrap_or_default()
    }
}

/// The uid that a kubelet named the cgroup after.
fn uid(pod: &Pod) -> String {
    let name = pod.cgroup().file_name().unwrap().to_str().unwrap();
    name.strip_prefix("pod").unwrap().to_owned()
}

/// Another pod, whose application listens, so that a connection ends somewhere also where it is not captured.
struct Other {
    pod: Pod,
    app: Process,
}

impl Other {
    fn new(node: &Node) -> Other {
        let pod = node.pod("other");
        let app = pod.app();
        app.serve(
            &[pod.at(Family::V4, 8080), pod.at(Family::V6, 8080), pod.at(Family::V4, 8081)],
            Service::Tell,
        )
        .unwrap();
        Other { pod, app }
    }

    /// Whether the connection of an application to this port ends at its sidecar.
    fn captures(&self, app: &Process, family: Family, port: u16) -> bool {
        app.connect(self.pod.at(family, port)).is_ok_and(|socket| socket.seen().listener == 15001)
    }
}

#[test]
fn a_pod_that_runs_is_redirected_in_both_directions() {
    kernel_test(|node| {
        let world = World::new(node);
        let (pod, other) = (node.pod("web"), Other::new(node));
        // All of it was there before the agent: the listeners, too.
        let _sidecar = pod.sidecar();
        let app = pod.app();
        assert!(!other.captures(&app, Family::V4, 8080));
        world.tell(&pod, |_| {});
        let agent = world.agent(&["--repair-pods"]);
        until("outbound is captured", || other.captures(&app, Family::V4, 8080));
        assert!(other.captures(&app, Family::V6, 8080));
        for family in Family::ALL {
            let seen = other.app.connect(pod.at(family, 8080)).unwrap().seen();
            assert_eq!((seen.listener, seen.original_dst), (15006, Ok(pod.at(family, 8080))));
        }
        until("an event says so", || world.reasons(&pod) == ["RepairBrokenPod"]);
        assert_eq!(value(world.address, "redirect_cni_pods_enrolled"), Some(1.0));
        until("none is missing", || value(world.address, "redirect_cni_pods_not_enrolled") == Some(0.0));
        let repaired = "redirect_cni_repairs_total{type=\"repair\",result=\"success\"}";
        assert_eq!(value(world.address, repaired), Some(1.0));
        let outbound = "redirect_cni_connections_total{verdict=\"outbound_redirected\"}";
        assert!(value(world.address, outbound).unwrap() >= 2.0);
        until("it is ready", || get(world.address, "/readyz").0 == 200);
        // Nothing ends with the agent.
        drop(agent);
        assert!(other.captures(&app, Family::V4, 8080));
    });
}

#[test]
fn links_that_are_lost_come_back_within_seconds() {
    kernel_test(|node| {
        let world = World::new(node);
        let (pod, other) = (node.pod("web"), Other::new(node));
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        world.tell(&pod, |_| {});
        let _agent = world.agent(&["--repair-pods"]);
        until("it is captured", || other.captures(&app, Family::V4, 8080));
        let version =
            fs::read_dir(node.bpffs().join("redirect-cni")).unwrap().next().unwrap().unwrap().path();
        for round in 0..2 {
            fs::remove_dir_all(version.join("pods")).unwrap();
            fs::create_dir(version.join("pods")).unwrap();
            let lost = Instant::now();
            until("the link is dead", || {
                !other.captures(&app, Family::V4, 8080) || lost.elapsed().as_secs() > 1
            });
            until(&format!("it is captured again in round {round}"), || {
                other.captures(&app, Family::V4, 8080)
            });
        }
        until("each repair is told", || !world.reasons(&pod).is_empty());
    });
}

#[test]
fn pods_that_are_not_ours_and_pods_that_have_ended_are_left_alone() {
    kernel_test(|node| {
        let world = World::new(node);
        let names = ["plain", "init", "ended", "host", "bad"];
        let pods: Vec<Pod> = names.iter().map(|name| node.pod(name)).collect();
        let apps: Vec<Process> = pods.iter().map(Pod::app).collect();
        world.tell(&pods[0], |pod| pod["metadata"]["annotations"] = json!({}));
        world.tell(&pods[1], |pod| pod["spec"]["initContainers"] = json!([{ "name": "istio-init" }]));
        world.tell(&pods[2], |pod| pod["status"]["phase"] = json!("Succeeded"));
        world.tell(&pods[3], |pod| pod["spec"]["hostNetwork"] = json!(true));
        world.tell(&pods[4], |pod| {
            pod["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundPorts"] = json!("http");
        });
        let _agent = world.agent(&["--repair-pods"]);
        until("the one with istio-init is told", || world.reasons(&pods[1]) == ["NotRedirected"]);
        until("the one with the bad annotation is told", || world.reasons(&pods[4]) == ["InvalidAnnotation"]);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(node.attached(), Vec::<String>::new());
        assert_eq!(world.reasons(&pods[1]).len() + world.reasons(&pods[4]).len(), 2, "each is told once");
        drop(apps);
    });
}

#[test]
fn broken_pods_are_labelled_or_deleted_as_istio_does() {
    kernel_test(|node| {
        let world = World::new(node);
        let failed = |pod: &mut Value| {
            pod["status"]["initContainerStatuses"] = json!([{
                "name": "istio-validation",
                "state": { "waiting": { "reason": "CrashLoopBackOff" } },
                "lastState": { "terminated": { "exitCode": 126, "reason": "Error" } },
            }]);
        };
        let (labelled, deleted) = (node.pod("labelled"), node.pod("deleted"));
        world.tell(&labelled, failed);
        let agent = world.agent(&["--label-pods"]);
        let label = || {
            let pod = world.api.store().get(Kind::PODS, "shop", "labelled").unwrap();
            pod["metadata"]["labels"]["cni.istio.io/uninitialized"].clone()
        };
        until("it is labelled", || label() == "true");
        until("an event says so", || world.reasons(&labelled) == ["LabelBrokenPod"]);
        drop(agent);
        world.api.store().remove(Kind::PODS, "shop", "labelled");
        world.tell(&deleted, failed);
        let _agent = world.agent(&["--label-pods", "--delete-pods"]);
        until("it is deleted", || world.api.store().get(Kind::PODS, "shop", "deleted").is_none());
        until("an event says so", || world.reasons(&deleted) == ["DeleteBrokenPod"]);
    });
}

#[test]
fn the_policy_of_a_running_pod_follows_its_annotations() {
    kernel_test(|node| {
        let world = World::new(node);
        let (pod, other) = (node.pod("web"), Other::new(node));
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        world.tell(&pod, |_| {});
        let _agent = world.agent(&["--repair-pods", "--live-policy"]);
        until("it is captured", || other.captures(&app, Family::V4, 8080));
        let exclude = |ports: &str| {
            world.api.store().change(Kind::PODS, "shop", "web", |pod| {
                pod["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundPorts"] =
                    json!(ports);
            });
            Instant::now()
        };
        let changed = exclude("8080");
        until("port 8080 is excluded", || !other.captures(&app, Family::V4, 8080));
        let took = changed.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(other.captures(&app, Family::V4, 8081));
        exclude("8081");
        until("port 8080 is captured again", || other.captures(&app, Family::V4, 8080));
        assert!(!other.captures(&app, Family::V4, 8081));
        until("events say so", || world.reasons(&pod).contains(&"PolicyChanged".to_owned()));
        // What makes no sense leaves the pod as it is.
        exclude("eighty");
        until("that is told", || world.reasons(&pod).contains(&"InvalidAnnotation".to_owned()));
        assert!(other.captures(&app, Family::V4, 8080));
        println!("an annotation was in force after {took:?}");
    });
}

#[test]
fn addresses_that_come_later_are_followed() {
    kernel_test(|node| {
        let world = World::new(node);
        let pod = node.pod("web");
        let _sidecar = pod.sidecar();
        node.attach(&pod, &[]);
        let _agent = world.agent(&[]);
        until("the agent is ready", || get(world.address, "/readyz").0 == 200);
        std::thread::sleep(Duration::from_secs(3));
        pod.netns().ip("addr add 10.99.0.7/32 dev eth0");
        let since = Instant::now();
        let known = || {
            let shown = node.json(&["show", pod.name()]);
            shown.to_string().contains("10.99.0.7")
        };
        until("the address is the pod's own", known);
        assert!(since.elapsed() < Duration::from_secs(2), "{:?}: {}", since.elapsed(), world.log());
    });
}

/// Another version's plugin has attached the pod, as in the midst of an upgrade of the node. A filter of this
/// version would not find the pod in its own maps, and would refuse all that goes through.
#[test]
fn a_pod_of_another_version_is_not_cut_off_when_an_address_comes() {
    kernel_test(|node| {
        let world = World::new(node);
        let (pod, other) = (node.pod("web"), Other::new(node));
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        let _agent = world.agent(&[]);
        until("the agent is ready", || get(world.address, "/readyz").0 == 200);
        let next = (redirect_common::ABI_VERSION + 1).to_string();
        let attached =
            node.attach_command(&pod).env(redirect_user::kernel::pins::ABI_VARIABLE, next).status();
        assert!(attached.unwrap().success());
        // The agent has seen the pod when the first address is told; all that follows must go on.
        std::thread::sleep(Duration::from_secs(3));
        pod.netns().ip("link add net1 type veth peer name far1\nlink set far1 up\nlink set net1 up");
        let mut tried = 0;
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(3) {
            pod.netns().ip(&format!("addr add 10.99.0.{}/32 dev net1", 7 + tried));
            for family in Family::ALL {
                assert!(other.captures(&app, family, 8080), "{family:?} after {tried}: {}", world.log());
                let seen = other.app.connect(pod.at(family, 8080)).unwrap().seen();
                assert_eq!(seen.listener, 15006, "{family:?} after {tried}: {}", world.log());
            }
            tried += 1;
            std::thread::sleep(Duration::from_millis(100));
        }
        // Brought over, it is planned with what came.
        let upgraded = Outcome::of(node.redirect().arg("upgrade"));
        assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
        until("its addresses are known", || {
            node.json(&["show", pod.name()]).to_string().contains("10.99.0.7")
        });
        assert!(other.captures(&app, Family::V4, 8080));
    });
}

#[test]
fn a_node_without_a_bpf_file_system_says_what_to_do_and_heals() {
    kernel_test(|node| {
        let world = World::new(node);
        let mut elsewhere = std::process::Command::new(harness::binary("redirect"));
        elsewhere.arg("--bpffs").arg(node.dir()).arg("--state-dir").arg(node.state_dir());
        let kubeconfig = world.api.kubeconfig(node.dir());
        let listen = world.address.to_string();
        let _agent = Agent::start_on(elsewhere, node.dir(), &kubeconfig, &["--listen", &listen]);
        until("readiness names it", || get(world.address, "/readyz").1.contains("bpf"));
        until("the log says what to do", || world.log().contains("mount"));
    });
}

#[test]
fn what_belongs_to_a_pod_that_is_gone_is_collected() {
    kernel_test(|node| {
        let world = World::new(node);
        let pod = node.pod("web");
        node.attach(&pod, &[]);
        drop(pod);
        assert_eq!(node.attached(), ["web"]);
        let _agent = world.agent(&[]);
        until("it is collected", || node.attached().is_empty());
    });
}

/// The stamp of the installed programs becomes that of another build, which is of this version.
pub(crate) fn stamp(node: &Node, other: &str) {
    let version = format!("redirect-cni/v{}", redirect_common::ABI_VERSION);
    let stamp = node.bpffs().join(version).join("object");
    let maps = fs::read_link(&stamp).unwrap();
    let maps = maps.to_str().unwrap().split(' ').nth(2).unwrap().to_owned();
    fs::remove_file(&stamp).unwrap();
    std::os::unix::fs::symlink(format!("{other} 0123456789abcdef {maps}"), &stamp).unwrap();
}

fn is_of(node: &Node, other: &str) -> bool {
    let version = fs::read_dir(node.bpffs().join("redirect-cni")).unwrap().next().unwrap().unwrap().path();
    fs::read_link(version.join("object")).unwrap().to_str().unwrap().starts_with(&format!("{other} "))
}

#[test]
fn new_programs_are_tried_aside_and_old_ones_stay_when_they_fail() {
    kernel_test(|node| {
        let world = World::new(node);
        let (pod, other) = (node.pod("web"), Other::new(node));
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        node.attach(&pod, &[]);
        stamp(node, "0.0.1");
        // The scratch pod's sidecar cannot become its user: the trial fails.
        let arguments = ["--listen", &world.address.to_string(), "--verify"];
        let kubeconfig = world.api.kubeconfig(node.dir());
        let crippled = with_capabilities(node, &CAPABILITIES);
        let agent = Agent::start_on(crippled, node.dir(), &kubeconfig, &arguments);
        until("the trial has failed", || {
            get(world.address, "/readyz").1.contains("verify: the new programs")
        });
        assert!(is_of(node, "0.0.1"), "the old programs stay: {}", world.log());
        assert!(other.captures(&app, Family::V4, 8080));
        drop(agent);
        let _agent = world.agent(&["--verify"]);
        until("the node is ready", || get(world.address, "/readyz").0 == 200);
        assert!(!is_of(node, "0.0.1"), "running pods have the new programs: {}", world.log());
        assert!(other.captures(&app, Family::V4, 8080));
        assert_eq!(node.attached(), ["web"], "the scratch pod is gone");
    });
}

#[test]
fn an_older_agent_takes_a_node_back_to_its_programs_and_its_plugin_leaves_newer_ones() {
    kernel_test(|node| {
        let world = World::new(node);
        let (pod, next, other) = (node.pod("web"), node.pod("next"), Other::new(node));
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        node.attach(&pod, &[]);
        stamp(node, "99.0.0");
        // A pod that starts before the agent is back has the newer programs, which stay.
        node.attach(&next, &[]);
        assert!(is_of(node, "99.0.0"));
        let stream = app.connect(other.pod.at(Family::V4, 8080)).unwrap();
        let _agent = world.agent(&["--verify"]);
        until("the node is ready", || get(world.address, "/readyz").0 == 200);
        assert!(!is_of(node, "99.0.0"), "the newer programs are gone: {}", world.log());
        assert!(world.log().contains("running pods have the new programs"), "{}", world.log());
        assert_eq!(stream.seen().listener, 15001, "a connection from before lives on");
        assert!(other.captures(&app, Family::V4, 8080));
        // `redirect list` fails where a pod is not as it was attached.
        assert_eq!(node.json(&["list"]).as_array().map(Vec::len), Some(2));
    });
}
