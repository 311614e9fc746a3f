//! What cannot be looked at is not gone: a verb that the kernel does not let look at one of our paths changes
//! nothing by mistake. strace makes the system calls on the path fail.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use harness::{Family, Node, kernel_test};
use redirect_user::kernel::hook::Hook;
use redirect_user::kernel::pins;

use crate::sandbox::{Sandbox, assert_nothing_attached, assert_redirected};

/// Words that make every look at a path fail.
fn blind(path: &Path) -> Vec<OsString> {
    let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-P"].map(OsString::from);
    let calls = "statx,newfstatat,readlink,readlinkat";
    let inject = ["-e".into(), format!("inject={calls}:error=EIO").into()];
    words.into_iter().chain([path.into()]).chain(inject).collect()
}

fn paths(node: &Node) -> Vec<PathBuf> {
    let pins = pins::current(&redirect_user::node::Node::new(node.bpffs(), node.state_dir()));
    let links = pins.container("c0ffee").join("eth0");
    let maps = ["OWN", "LISTENERS"].map(|map| pins.map(map));
    let hooks = [Hook::Connect4, Hook::Inbound];
    let mut paths = vec![pins.stamp(), pins.maps(), pins.programs(), links.clone(), node.bpffs().to_owned()];
    paths.extend(maps);
    paths.extend(hooks.map(|hook| pins.program(hook)));
    paths.extend(hooks.map(|hook| links.join(hook.name())));
    paths.push(pins.container("c0ffee"));
    paths
}

#[test]
fn an_add_that_cannot_look_at_a_pin_does_not_make_the_node_again() {
    kernel_test(|node| {
        let (pod, peer) = (node.pod("web"), node.pod("peer"));
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        let id = |node: &Node| {
            let maps = pins::current(&redirect_user::node::Node::new(node.bpffs(), node.state_dir()));
            redirect_user::kernel::sys::obj_get(&maps.map("PODS"))
                .and_then(redirect_user::kernel::sys::map_id)
        };
        let before = id(node).unwrap();
        for path in paths(node) {
            let reply = sandbox.call("ADD").wrapped(&blind(&path)).run();
            assert_eq!(id(node).unwrap(), before, "the maps are new after {}: {reply:?}", path.display());
            assert_redirected(&app);
            assert_eq!(peer.app().connect(pod.at(Family::V4, 80)).unwrap().seen().listener, 15006);
            sandbox.add();
        }
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn a_del_that_cannot_look_at_a_pin_does_not_say_that_it_is_gone() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let paths = paths(node);
        // No record either: the pins are all that is left.
        for path in paths {
            fs::remove_dir_all(node.state_dir().join("attachments")).unwrap();
            let reply = sandbox.call("DEL").wrapped(&blind(&path)).run();
            if reply.code == Some(0) {
                assert_nothing_attached(node);
            }
            sandbox.del();
            assert_nothing_attached(node);
            sandbox.add();
        }
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn a_new_installation_knows_the_listeners_of_pods_that_run() {
    kernel_test(|node| {
        let (pod, other, peer) = (node.pod("web"), node.pod("other"), node.pod("peer"));
        let (first, second) = (Sandbox::new(node, &pod, "one"), Sandbox::new(node, &other, "two"));
        first.add();
        second.add();
        let _sidecars = (pod.sidecar(), other.sidecar());
        let pins = pins::current(&redirect_user::node::Node::new(node.bpffs(), node.state_dir()));
        fs::remove_file(pins.map("OWN")).unwrap();
        first.add();
        for pod in [&pod, &other] {
            assert_redirected(&pod.app());
            assert_eq!(peer.app().connect(pod.at(Family::V4, 80)).unwrap().seen().listener, 15006);
        }
        for sandbox in [first, second] {
            assert_eq!(sandbox.check().success(), "");
            sandbox.del();
        }
        assert_nothing_attached(node);
    });
}
