//! Pods with users of their own (`hostUsers: false`): what the pod calls uid 1337 is another uid to the
//! kernel's hooks.

use std::fs;

use harness::cli::Outcome;
use harness::netns::NetNs;
use harness::{Errno, Node, Process, Service, User, kernel_test};
use redirect_user::attach::{Request, attach};
use redirect_user::ids::AttachmentId;
use redirect_user::node::lock::NodeLock;
use redirect_user::policy::{OwnerGroups, Policy};
use serde_json::Value;

use crate::output;

/// Where the pod's ids begin on the machine.
const FIRST: u32 = 200_000;
const FAR: &str = "192.0.2.10:80";

/// A user of the pod, as the machine sees him.
fn of_pod(uid: u32, gid: u32) -> User {
    User { uid: FIRST + uid, gid: FIRST + gid }
}

/// A namespace and a cgroup for a pod with users of its own. It has an address and no route to anywhere else:
/// what is not captured has no way.
fn pod(node: &Node) -> (NetNs, std::path::PathBuf) {
    let cgroup = node.cgroup().join("users");
    fs::create_dir(&cgroup).expect("make a cgroup");
    let netns = NetNs::create_for_users(node.dir().join("users"), FIRST);
    netns.ip("link add eth0 type veth peer name other");
    netns.ip("addr add 10.77.0.2/24 dev eth0");
    netns.ip("link set eth0 up");
    (netns, cgroup)
}

/// Whether a connection is captured; if not, it has no way.
fn captured(process: &Process) -> bool {
    match process.connect(FAR.parse().unwrap()) {
        Ok(socket) => {
            let seen = socket.seen();
            assert_eq!((seen.listener, seen.original_dst), (15001, Ok(FAR.parse().unwrap())));
            true
        }
        Err(error) => {
            assert_eq!(error, Errno::ENETUNREACH);
            false
        }
    }
}

#[test]
fn the_sidecar_is_known_by_its_uid_in_the_pod() {
    kernel_test(|node| {
        let (netns, cgroup) = pod(node);
        let attach = |extra: &[&str]| {
            let mut command = node.redirect();
            command.args(["--output", "json", "attach", "--id", "users", "--cgroup"]).arg(&cgroup);
            command.arg("--netns").arg(netns.path()).args(extra);
            command
        };
        let refused = Outcome::of(&mut attach(&["--proxy-uid", "70000"]));
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(
            refused.stderr.contains("uid 70000 does not exist in the pod's user namespace"),
            "{refused:?}"
        );

        let attached: Value = serde_json::from_str(&output(&mut attach(&[]))).unwrap();
        assert_eq!(
            (&attached["hostUid"], &attached["hostGid"]),
            (&(FIRST + 1337).into(), &(FIRST + 1337).into())
        );
        assert_eq!(attached["policy"]["proxy"]["uid"], 1337, "the pod's ids are what people are shown");

        let start = |user| Process::start("process", &netns, &cgroup, user);
        let sidecar = start(of_pod(1337, 1337));
        sidecar.serve(&["127.0.0.1:15001".parse().unwrap()], Service::Tell).unwrap();
        assert!(captured(&start(of_pod(1000, 1000))), "an application of the pod");
        assert!(
            captured(&start(User { uid: 1337, gid: 1337 })),
            "the machine's uid 1337 has no id in the pod"
        );
        assert!(!captured(&start(of_pod(1337, 1000))), "the sidecar by its uid");
        assert!(!captured(&start(of_pod(1000, 1337))), "the sidecar by its gid");
        output(node.redirect().args(["detach", "--force", "--id", "users"]));
    });
}

#[test]
fn owner_groups_are_the_pods() {
    kernel_test(|node| {
        let (netns, cgroup) = pod(node);
        let ours = redirect_user::node::Node::new(node.bpffs(), node.state_dir());
        let request = Request {
            id: AttachmentId { container_id: "users".into(), ifname: "eth0".into() },
            cgroup: cgroup.clone(),
            netns: netns.path().into(),
            // The last one does not exist in the pod, so no process has it.
            policy: Policy { owner_groups: OwnerGroups::AllBut([2000, 70_000].into()), ..Policy::default() },
            pod: None,
            network: None,
            addresses: Vec::new(),
            made_cgroups: Vec::new(),
        };
        attach(&ours, &NodeLock::acquire(&ours).unwrap(), &request).unwrap();
        let start = |user| Process::start("process", &netns, &cgroup, user);
        let sidecar = start(of_pod(1337, 1337));
        sidecar.serve(&["127.0.0.1:15001".parse().unwrap()], Service::Tell).unwrap();
        assert!(!captured(&start(of_pod(1000, 2000))), "a group that is left out");
        assert!(captured(&start(of_pod(1000, 1000))), "any other group");
        assert!(captured(&start(User { uid: 1000, gid: 2000 })), "the machine's group of that number");
        output(node.redirect().args(["detach", "--force", "--id", "users"]));
    });
}
