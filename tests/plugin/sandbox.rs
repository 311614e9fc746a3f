//! A sandbox as a runtime has it: a pod of the harness under a container id, and the calls that a runtime
//! makes for it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use harness::cgroup::Cgroup;
use harness::{Family, Node, Pod, Process, Service, User};
use redirect_user::kernel::pins::{self, Generation};
use serde_json::{Value, json};

use crate::call::{Call, PREV_RESULT, Reply, STATUS, hand_over, with_prev_result};

/// What a runtime knows when it calls the plugin.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) ifname: String,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) uid: String,
    pub(crate) conf: Value,
    pub(crate) fault: Option<String>,
}

impl Sandbox {
    /// The sandbox of an injected pod, with the cgroup's path handed over as containerd does.
    pub(crate) fn new(node: &Node, pod: &Pod, id: &str) -> Sandbox {
        let mut conf = json!({
            "cniVersion": "1.0.0",
            "name": "mesh",
            "type": "redirect-cni",
            "podSource": "annotations",
            "bpffsRoot": node.bpffs(),
            "stateDir": node.state_dir(),
            "runtimeConfig": { "cgroupPath": runtime_path(pod.cgroup()) },
        });
        hand_over(&mut conf, &[STATUS]);
        let directory = pod.cgroup().file_name().expect("a pod's cgroup has a name").to_string_lossy();
        let uid = directory.strip_prefix("pod").expect("cgroupfs naming").to_owned();
        let netns = Some(pod.netns().path().to_owned());
        Sandbox { id: id.to_owned(), ifname: "eth0".to_owned(), netns, uid, conf, fault: None }
    }

    /// The same pod in another network namespace: what a runtime makes when the old sandbox is gone.
    pub(crate) fn again(&self, id: &str, netns: &Path) -> Sandbox {
        Sandbox { id: id.to_owned(), netns: Some(netns.to_owned()), ..self.clone() }
    }

    /// With a key of the configuration set.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Sandbox {
        self.conf[key] = value;
        self
    }

    /// With this cgroup's path handed over.
    pub(crate) fn in_cgroup(mut self, cgroup: &Path) -> Sandbox {
        self.conf["runtimeConfig"]["cgroupPath"] = json!(runtime_path(cgroup));
        self
    }

    /// For another interface.
    pub(crate) fn ifname(mut self, ifname: &str) -> Sandbox {
        self.ifname = ifname.to_owned();
        self
    }

    /// With annotations besides the injector's.
    pub(crate) fn annotated(mut self, annotations: &[(&str, &str)]) -> Sandbox {
        let all: Vec<_> = [STATUS].iter().chain(annotations).copied().collect();
        hand_over(&mut self.conf, &all);
        self
    }

    /// The process of the next calls is killed at this step.
    pub(crate) fn fault(mut self, step: &str) -> Sandbox {
        self.fault = Some(step.to_owned());
        self
    }

    /// The call of a verb.
    pub(crate) fn call(&self, verb: &str) -> Call {
        let mut call = Call::new(verb)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_IFNAME", &self.ifname)
            .pod("shop", "web-0", &self.uid)
            .stdin(with_prev_result(&self.conf, PREV_RESULT));
        call = match &self.netns {
            Some(netns) => call.env("CNI_NETNS", netns.as_os_str().as_encoded_bytes()),
            None => call.without("CNI_NETNS"),
        };
        match &self.fault {
            Some(step) => call.env("REDIRECT_FAULT", step),
            None => call,
        }
    }

    /// ADD, which must succeed and pass the result on.
    #[track_caller]
    pub(crate) fn add(&self) {
        assert_eq!(self.call("ADD").run().success(), PREV_RESULT);
    }

    /// DEL, which must succeed in silence.
    #[track_caller]
    pub(crate) fn del(&self) {
        assert_eq!(self.call("DEL").run().success(), "");
    }

    /// CHECK.
    pub(crate) fn check(&self) -> Reply {
        self.call("CHECK").run()
    }
}

/// A cgroup's path as a kubelet tells the runtime: below the mount.
pub(crate) fn runtime_path(cgroup: &Path) -> PathBuf {
    let relative = cgroup.strip_prefix(Cgroup::mount_point()).expect("below the mount of cgroup2");
    Path::new("/").join(relative)
}

/// An application in the pod reaches the sidecar, in both families, for every address that it dials.
#[track_caller]
pub(crate) fn assert_redirected(app: &Process) {
    for far_away in ["192.0.2.10:80", "[2001:db8::10]:80"] {
        let to = far_away.parse().expect("an address");
        let socket = app.connect(to).unwrap_or_else(|error| panic!("connect to {to}: {error}"));
        let seen = socket.seen();
        assert_eq!((seen.listener, seen.original_dst), (15001, Ok(to)));
    }
}

/// The pins of this version on a node.
pub(crate) fn pins(node: &Node) -> Generation {
    pins::current(&redirect_user::node::Node::new(node.bpffs(), node.state_dir()))
}

/// Nothing of ours is attached any more: no record, no entry in a map.
#[track_caller]
pub(crate) fn assert_nothing_attached(node: &Node) {
    assert_eq!(node.attached(), Vec::<String>::new());
    let pins = pins(node);
    // An ADD that is refused early has installed nothing.
    let entries = if pins.maps().exists() { node.map_entries() } else { Vec::new() };
    let left: Vec<_> = entries.into_iter().filter(|(_, entries)| *entries > 0).collect();
    assert_eq!(left, []);
    let pods = pins.pods();
    let pins = std::fs::read_dir(&pods).map_or(0, Iterator::count);
    assert_eq!(pins, 0, "pins are left in {}", pods.display());
}

/// A process with the sidecar's ids and one of an application, in the cgroup of `pod` and the namespace of
/// `other`.
pub(crate) fn processes_in(pod: &Pod, other: &Pod) -> (Process, Process) {
    let start =
        |container: &str, user| Process::start(container, other.netns(), &pod.container(container), user);
    (start("istio-proxy", User::PROXY), start("app", User::APP))
}

/// A port of every address, in both families.
pub(crate) fn any(port: u16) -> [SocketAddr; 2] {
    [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()]
}

/// A server at the address that the application dials: what arrives there came past the sidecar.
pub(crate) struct Trap<'a> {
    _server: Process,
    _pod: Pod,
    node: std::marker::PhantomData<&'a Node>,
    address: SocketAddr,
}

impl<'a> Trap<'a> {
    pub(crate) fn new(node: &'a Node) -> Trap<'a> {
        let pod = node.pod("trap");
        let server = pod.process("server", harness::User::APP);
        let address = pod.at(Family::V4, 8080);
        server.serve(&[address], Service::Tell).unwrap();
        // It works: somebody who is not enrolled gets there.
        let stranger = node.pod("stranger");
        assert_eq!(stranger.app().connect(address).unwrap().seen().listener, 8080);
        Trap { _server: server, _pod: pod, node: std::marker::PhantomData, address }
    }

    /// The application is refused or gets its sidecar.
    #[track_caller]
    pub(crate) fn assert_avoided_by(&self, app: &Process, step: &str) {
        if let Ok(socket) = app.connect(self.address) {
            assert_eq!(socket.seen().listener, 15001, "in clear after {step}");
        }
    }
}
