//! A running pod is opened by nothing but its own end: not by `gc` in a container that cannot see it, not by
//! the end of another attachment of its cgroup, not by the runtime's GC, not by an operator who did not mean
//! it.

use std::process::Command;

use harness::cgroup::Cgroup;
use harness::cli::Outcome;
use harness::{Errno, Family, Node, Pod, Service, binary, kernel_test};

use crate::collect::{gc, gc_elsewhere};
use crate::crash::{add_steps, kill_at, sandbox};
use crate::sandbox::{Sandbox, Trap, any, assert_nothing_attached, assert_redirected, processes_in};

/// `redirect gc` in a mount namespace in which neither cgroup v2 nor the pods' namespaces can be seen.
fn gc_blindfolded(node: &Node) -> Outcome {
    let script = format!(
        "umount -l {} && mount -t tmpfs none {} && exec {} --bpffs {} --state-dir {} gc",
        Cgroup::mount_point().display(),
        node.dir().join("netns").display(),
        binary("redirect").display(),
        node.bpffs().display(),
        node.state_dir().display(),
    );
    Outcome::of(Command::new("unshare").args(["--mount", "--propagation", "private", "sh", "-c", &script]))
}

#[test]
fn gc_that_cannot_see_a_pod_leaves_it_alone() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        let outcome = gc_blindfolded(node);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), "nothing to collect\n"), "{outcome:?}");
        assert_redirected(&app);
        assert_eq!(sandbox.check().success(), "");
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn a_pod_whose_cgroup_is_gone_is_collected_although_its_namespace_was_leaked() {
    kernel_test(|node| {
        let pod = node.pod("web");
        Sandbox::new(node, &pod, "c0ffee").add();
        Cgroup::remove(pod.cgroup()).unwrap();
        let outcome = Outcome::of(node.redirect().arg("gc"));
        assert!(outcome.stdout.contains("c0ffee") && outcome.stdout.contains("shop/web-0"), "{outcome:?}");
        assert!(outcome.stdout.contains("its cgroup is gone"), "{outcome:?}");
        assert_nothing_attached(node);
    });
}

#[test]
fn an_old_sandbox_stays_redirected_when_the_new_ones_add_died_and_was_deleted() {
    kernel_test(|node| {
        let (pod, new_netns) = (node.pod("old"), node.pod("new"));
        let old = sandbox(node, &pod, "old");
        let new = old.again("new", new_netns.netns().path());
        old.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        let trap = Trap::new(node);
        for step in add_steps() {
            kill_at(&new, "ADD", &step);
            trap.assert_avoided_by(&app, &step);
            new.del();
            trap.assert_avoided_by(&app, &step);
            assert_eq!(old.check().success(), "", "after {step}");
        }
        old.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn of_two_attachments_to_one_cgroup_the_last_one_ends_its_links() {
    kernel_test(|node| {
        for first_out in ["one", "two"] {
            let (pod, other) = (node.pod("one"), node.pod("two"));
            let one = Sandbox::new(node, &pod, "one");
            let two = one.again("two", other.netns().path());
            one.add();
            two.add();
            let (proxy, app_of_two) = processes_in(&pod, &other);
            proxy.serve(&any(15001), Service::Tell).unwrap();
            let (_sidecar, app) = (pod.sidecar(), pod.app());
            let (gone, stays) = if first_out == "one" { (&one, &two) } else { (&two, &one) };
            gone.del();
            assert_redirected(if first_out == "one" { &app_of_two } else { &app });
            assert_eq!(stays.check().success(), "");
            stays.del();
            assert_nothing_attached(node);
        }
    });
}

/// A `cgroupPath` that names a cgroup above other pods' by mistake.
#[test]
fn an_attachment_above_a_pod_does_not_open_the_pod_when_it_ends() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("web"), node.pod("other"));
        let web = Sandbox::new(node, &pod, "web");
        web.add();
        let ancestor = pod.cgroup().parent().expect("a pod's cgroup is below others");
        let above = web.again("above", other.netns().path()).in_cgroup(ancestor);
        above.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        assert_redirected(&app);
        let listed = Outcome::of(node.redirect().arg("list"));
        assert!(listed.code == Some(0) && listed.stdout.matches(" ok").count() == 2, "{listed:?}");
        assert_eq!(web.check().success(), "");
        above.del();
        assert_redirected(&app);
        assert_eq!(web.check().success(), "");
        web.del();
        assert_nothing_attached(node);
    });
}

/// The lock is on what is protected, bpffs, and a folder of pins claims a pod's map entries before they are
/// made. Each bpf(2) of the ADD takes its time, so that the collections come in between.
#[test]
fn an_add_beside_collections_for_another_state_directory_redirects_the_pod() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        sandbox.del();
        let call = sandbox.call("ADD").injecting("bpf:delay_exit=4000");
        let adding = std::thread::spawn(move || call.run());
        let mut collections = 0;
        while !adding.is_finished() {
            let outcome = Outcome::of(&mut gc_elsewhere(node));
            assert_eq!(outcome.code, Some(0), "{outcome:?}");
            collections += 1;
        }
        adding.join().expect("ADD is a process").success();
        assert!(collections > 1, "nothing came in between");
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        assert_redirected(&app);
        assert_eq!(sandbox.check().success(), "");
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn two_containers_in_one_namespace_do_not_open_each_other() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let one = Sandbox::new(node, &pod, "one");
        let two = one.again("two", pod.netns().path());
        one.add();
        two.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        two.del();
        assert_redirected(&app);
        assert_eq!(one.check().success(), "");
        one.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn a_running_pod_that_the_runtime_does_not_list_stays_redirected_until_it_ends() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let (sidecar, app) = (pod.sidecar(), pod.app());
        let reply = gc(&sandbox, &[]).run();
        assert_eq!(reply.success(), "");
        assert!(reply.stderr.contains("its pod runs"), "{reply:?}");
        assert_redirected(&app);
        let listed = Outcome::of(node.redirect().arg("list"));
        assert!(listed.stdout.contains("orphaned"), "{listed:?}");
        // Listed again, it is an orphan no more.
        gc(&sandbox, &[("c0ffee", "eth0")]).run().success();
        let listed = Outcome::of(node.redirect().arg("list"));
        assert!(!listed.stdout.contains("orphaned"), "{listed:?}");
        gc(&sandbox, &[]).run().success();
        drop((sidecar, app));
        assert_eq!(Outcome::of(node.redirect().arg("gc")).code, Some(0));
        assert_nothing_attached(node);
    });
}

#[test]
fn an_operator_opens_no_running_pod_by_mistake() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        for command in [&["uninstall"][..], &["detach", "--id", "c0ffee"], &["detach", "--id", "shop/web-0"]]
        {
            let outcome = Outcome::of(node.redirect().args(command));
            assert_eq!(outcome.code, Some(1), "{outcome:?}");
            for part in ["shop/web-0", "in clear", "--force"] {
                assert!(outcome.stderr.contains(part), "{part}: {outcome:?}");
            }
            // How many there are, and the order for a node: its configuration, its pods, its programs.
            if command == ["uninstall"] {
                let order = ["1 running pods", "CNI configuration", "drain the node", "then uninstall"];
                let places = order.map(|part| outcome.stderr.find(part).unwrap_or_else(|| panic!("{part}")));
                assert!(places.is_sorted(), "{outcome:?}");
            }
            assert_redirected(&app);
        }
        assert_eq!(Outcome::of(node.redirect().args(["uninstall", "--force"])).code, Some(0));
        assert_eq!(node.attached(), Vec::<String>::new());
        assert!(!node.bpffs().join("redirect-cni").exists(), "the programs are left");
        check_in_clear(node, &pod);
    });
}

#[test]
fn an_operator_opens_no_running_pod_whose_record_is_not_readable() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let (_sidecar, app) = (pod.sidecar(), pod.app());
        let record = node.state_dir().join("attachments/c0ffee.eth0.json");
        assert!(record.exists(), "the record");
        for text in ["", "not a record\n"] {
            std::fs::write(&record, text).unwrap();
            for command in [&["uninstall"][..], &["detach", "--id", "c0ffee"]] {
                let outcome = Outcome::of(node.redirect().args(command));
                assert_eq!(outcome.code, Some(1), "{outcome:?}");
                for part in ["c0ffee", "record", "in clear", "--force"] {
                    assert!(outcome.stderr.contains(part), "{part}: {outcome:?}");
                }
                assert_redirected(&app);
            }
        }
        assert_eq!(Outcome::of(node.redirect().args(["uninstall", "--force"])).code, Some(0));
        // Where its guard stands only the record could say: it stays closed until it is started again.
        let server = node.pod("server");
        let peer = server.app();
        peer.serve(&any(8080), Service::Tell).unwrap();
        assert_eq!(app.connect(server.at(Family::V4, 8080)).map(drop), Err(Errno::ECONNREFUSED));
    });
}

/// What was forced has its effect.
fn check_in_clear(node: &Node, pod: &Pod) {
    let server = node.pod("server");
    let peer = server.app();
    peer.serve(&any(8080), Service::Tell).unwrap();
    assert_eq!(pod.app().connect(server.at(Family::V4, 8080)).unwrap().seen().listener, 8080);
}
