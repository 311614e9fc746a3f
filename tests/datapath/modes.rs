//! A pod that is attached again while it runs: in another mode, with other hooks, or because it lost a link.
//! What is linked, says the kernel.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::cli::Outcome;
use harness::{Errno, Family, Node, Pod, kernel_test};
use redirect_user::ids::AttachmentId;
use redirect_user::kernel::hook::Hook;
use redirect_user::kernel::{pins, sys};

use crate::pretend::{deferring, of_one_family, pretender};
use crate::tproxy::{ask, client, tproxy};
use crate::{any, enrolled, passthrough};

const TPROXY: &[&str] = &["--interception-mode", "TPROXY"];

/// How many programs run at a hook of the pod's cgroup.
fn programs_on(pod: &Pod, hook: Hook) -> usize {
    sys::programs_on(File::open(pod.cgroup()).unwrap(), hook).unwrap().0.len()
}

/// How many programs run at the places of both hooks of TPROXY mode. `sock_ops` has one of them in common
/// with `handover`.
fn of_tproxy(pod: &Pod) -> (usize, usize) {
    (programs_on(pod, Hook::Handover), programs_on(pod, Hook::Transparent))
}

/// The pin of a link of the pod.
fn pin(node: &Node, pod: &Pod, hook: Hook) -> PathBuf {
    let here = redirect_user::node::Node::new(node.bpffs(), node.state_dir());
    let id = AttachmentId { container_id: pod.name().into(), ifname: "eth0".into() };
    pins::current(&here).attachment(&id).link(hook)
}

/// Takes `handover` away, and waits for the kernel, which ends a link a little later.
fn lose_handover(node: &Node, pod: &Pod) {
    fs::remove_file(pin(node, pod, Hook::Handover)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while programs_on(pod, Hook::Handover) > 1 {
        assert!(Instant::now() < deadline, "the link is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Another interface of the pod is attached.
fn attach_second(node: &Node, pod: &Pod, flags: &[&str]) {
    let outcome = Outcome::of(node.attach_command(pod).args(["--ifname", "net1"]).args(flags));
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

#[test]
fn the_mode_of_a_pod_can_change() {
    kernel_test(|node| {
        let pod = node.pod("server");
        node.attach(&pod, &[]);
        let (app, proxy) = (pod.app(), pod.proxy());
        let listeners = Family::ALL.map(|family| {
            let socket = of_one_family(&app, family);
            socket.bind(any(family, 8080)).unwrap();
            socket.listen().unwrap();
            socket
        });
        for _ in 0..2 {
            assert_eq!(of_tproxy(&pod), (1, 0));
            node.attach(&pod, TPROXY);
            assert_eq!(of_tproxy(&pod), (2, 1));
            for family in Family::ALL {
                let _socket = pretender(&proxy, &pod, client(family)).unwrap();
                let accepted = listeners[usize::from(family == Family::V6)].accept().unwrap();
                assert_eq!(accepted.peername(), Ok(client(family)));
            }
            node.attach(&pod, &[]);
            for family in Family::ALL {
                assert_eq!(ask(&proxy.tcp(family), family), Err(Errno::EPERM));
            }
        }
        assert_eq!(of_tproxy(&pod), (1, 0));
        node.detach(&pod);
        let _plain = enrolled(node, "again");
    });
}

#[test]
fn hooks_that_a_policy_does_not_need_any_more_end() {
    kernel_test(|node| {
        let pod = node.pod("server");
        let datagrams = [Hook::Sendmsg4, Hook::Sendmsg6, Hook::Recvmsg4, Hook::Recvmsg6];
        node.attach(&pod, &["--dns-capture"]);
        assert_eq!(datagrams.map(|hook| programs_on(&pod, hook)), [1; 4]);
        node.attach(&pod, &[]);
        assert_eq!(datagrams.map(|hook| programs_on(&pod, hook)), [0; 4]);
        // One whose pins are lost, too.
        node.attach(&pod, TPROXY);
        let lost = pin(node, &pod, Hook::Transparent);
        let link = sys::obj_get(&lost).unwrap();
        fs::remove_file(&lost).unwrap();
        node.attach(&pod, &[]);
        assert_eq!(of_tproxy(&pod), (1, 0));
        drop(link);
        // What another interface of the pod needs stays, until that does not need it either.
        node.attach(&pod, TPROXY);
        attach_second(node, &pod, TPROXY);
        node.attach(&pod, &[]);
        assert_eq!(of_tproxy(&pod), (2, 1));
        attach_second(node, &pod, &[]);
        assert_eq!(of_tproxy(&pod), (1, 0));
    });
}

#[test]
fn a_link_that_is_left_of_an_earlier_policy_is_told_and_repaired() {
    kernel_test(|node| {
        let pod = enrolled(node, "server");
        // As if the attach had been interrupted that took the pod out of TPROXY mode.
        let here = redirect_user::node::Node::new(node.bpffs(), node.state_dir());
        let program = sys::obj_get(&pins::current(&here).program(Hook::Transparent)).unwrap();
        let cgroup = File::open(pod.cgroup()).unwrap();
        let link = sys::link_create(program, &cgroup, Hook::Transparent).unwrap();
        sys::obj_pin(&link, &pin(node, &pod, Hook::Transparent)).unwrap();
        assert_eq!(of_tproxy(&pod), (1, 1));
        let listed = Outcome::of(node.redirect().arg("list"));
        assert!(listed.stdout.contains("the link of transparent is there"), "{listed:?}");
        assert_eq!(Outcome::of(node.redirect().arg("repair")).code, Some(0));
        assert_eq!(of_tproxy(&pod), (1, 0));
        assert_eq!(Outcome::of(node.redirect().arg("repair")).stdout, "nothing to repair\n");
    });
}

#[test]
fn a_client_of_the_time_before_a_repair_is_not_shown() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        let repairs: [&dyn Fn(); 3] = [
            &|| assert_eq!(Outcome::of(node.redirect().arg("repair")).code, Some(0)),
            &|| node.attach(&pod, TPROXY),
            // Not in the other mode, and not afterwards.
            &|| {
                node.attach(&pod, &[]);
                node.attach(&pod, TPROXY);
            },
        ];
        for again in repairs {
            for family in Family::ALL {
                let waiting = deferring(&app, family, 8080);
                let socket = pretender(&proxy, &pod, client(family)).unwrap();
                let own = socket.sockname();
                lose_handover(node, &pod);
                // No program sees that the sidecar gives up. The application's kernel has no socket, and
                // answers with a reset: so the port is free again.
                drop(waiting);
                drop(socket);
                assert_eq!((node.clients().len(), node.claims(&pod).clients), (1, 1));
                again();
                assert_eq!((node.clients().len(), node.claims(&pod).clients), (0, 0));
                let listener = app.listen(any(family, 8080)).unwrap();
                let dialer = app.tcp(family);
                let from = SocketAddr::new(passthrough(family).ip(), own.port());
                dialer.bind(from).unwrap();
                dialer.connect(pod.at(family, 8080)).unwrap();
                assert_eq!(listener.accept().unwrap().peername(), Ok(from));
            }
        }
    });
}

#[test]
fn clients_that_wait_while_the_mode_changes_are_forgotten() {
    kernel_test(|node| {
        let pod = tproxy(node, "server");
        let (app, proxy) = (pod.app(), pod.proxy());
        for family in Family::ALL {
            let _listener = deferring(&app, family, 8080);
            let _waiting = pretender(&proxy, &pod, client(family)).unwrap();
            // Nothing is lost: those that wait go on waiting.
            node.attach(&pod, TPROXY);
            assert_eq!((node.clients().len(), node.claims(&pod).clients), (1, 1));
            node.attach(&pod, &[]);
            assert_eq!((node.clients().len(), node.claims(&pod).clients), (0, 0));
            node.attach(&pod, TPROXY);
        }
    });
}
