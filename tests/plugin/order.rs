//! Calls in the orders in which runtimes really make them: twice, late, after a reboot, for a second
//! interface.

use harness::{Sidecar, kernel_test};
use serde_json::{Value, json};

use crate::sandbox::{Sandbox, assert_nothing_attached, assert_redirected, processes_in};

#[test]
fn add_twice_is_add_once() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let links = links(node, "c0ffee");
        sandbox.add();
        assert_eq!(self::links(node, "c0ffee"), links, "the links were made again");
        assert_eq!(node.attached(), ["c0ffee"]);
        let _sidecar = pod.sidecar();
        assert_redirected(&pod.app());
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn add_again_with_another_policy_changes_the_policy() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        let excluded = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
        sandbox.clone().annotated(&[(excluded, "0.0.0.0/0,::/0")]).add();
        sandbox.add();
        let _sidecar = pod.sidecar();
        assert_redirected(&pod.app());
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn del_twice_without_a_namespace_and_for_nobody() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.del();
        sandbox.add();
        let late = Sandbox { netns: None, ..sandbox.clone() };
        late.del();
        assert_nothing_attached(node);
        late.del();
        sandbox.del();
        Sandbox { id: "stranger".to_owned(), ..sandbox }.del();
    });
}

#[test]
fn del_after_the_pod_is_gone() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        drop(pod);
        sandbox.del();
        assert_nothing_attached(node);
    });
}

/// The namespace is about to vanish, and with it what ADD added to it: that nothing can be changed there any
/// more keeps no pod.
#[test]
fn del_gets_by_where_the_namespace_takes_no_changes() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        let refused = "sendto,sendmsg:error=ENODEV";
        assert_eq!(sandbox.call("DEL").injecting(refused).run().success(), "");
        assert_nothing_attached(node);
    });
}

#[test]
fn a_new_sandbox_takes_over_and_the_late_del_of_the_old_one_harms_nobody() {
    kernel_test(|node| {
        let (pod, new_netns) = (node.pod("old"), node.pod("new"));
        let old = Sandbox::new(node, &pod, "old");
        old.add();
        let new = old.again("new", new_netns.netns().path());
        new.add();
        let (proxy, app) = processes_in(&pod, &new_netns);
        let sidecar = [any_v4(15001), any_v6(15001)];
        proxy.serve(&sidecar, harness::Service::Tell).unwrap();
        assert_redirected(&app);
        // containerd sends the old sandbox's last DEL without a namespace, with the same pod uid.
        old.del();
        Sandbox { netns: None, ..old }.del();
        assert_eq!(node.attached(), ["new"]);
        assert_redirected(&app);
        assert_eq!(new.check().success(), "");
        new.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn del_after_a_reboot() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        // bpffs is empty after a boot, and the record, had it been on a disk, would be of another boot.
        sandbox.del();
        sandbox.add();
        std::fs::remove_dir_all(node.bpffs().join("redirect-cni")).unwrap();
        change_record(node, |record| record["bootId"] = json!("00000000-0000-0000-0000-000000000000"));
        sandbox.del();
        assert_eq!(node.attached(), Vec::<String>::new());
        // The next pod finds a fresh node.
        let sandbox = Sandbox { id: "next".to_owned(), ..sandbox };
        sandbox.add();
        let _sidecar = pod.sidecar();
        assert_redirected(&pod.app());
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn del_after_the_records_were_lost() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        std::fs::remove_dir_all(node.state_dir()).unwrap();
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn add_after_the_records_were_lost() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        std::fs::remove_dir_all(node.state_dir()).unwrap();
        sandbox.add();
        let _sidecar = pod.sidecar();
        assert_redirected(&pod.app());
        sandbox.del();
        assert_nothing_attached(node);
    });
}

#[test]
fn a_second_interface_shares_the_pods_redirection_in_any_order_of_del() {
    kernel_test(|node| {
        for first_out in ["eth0", "net1"] {
            let pod = node.pod("web");
            let eth0 = Sandbox::new(node, &pod, "c0ffee");
            let net1 = eth0.clone().ifname("net1");
            eth0.add();
            net1.add();
            let _sidecar: Sidecar = pod.sidecar();
            let app = pod.app();
            assert_redirected(&app);
            let (first, second) = if first_out == "eth0" { (&eth0, &net1) } else { (&net1, &eth0) };
            first.del();
            assert_redirected(&app);
            assert_eq!(second.check().success(), "");
            second.del();
            assert_nothing_attached(node);
        }
    });
}

fn any_v4(port: u16) -> std::net::SocketAddr {
    (std::net::Ipv4Addr::UNSPECIFIED, port).into()
}

fn any_v6(port: u16) -> std::net::SocketAddr {
    (std::net::Ipv6Addr::UNSPECIFIED, port).into()
}

/// The kernel's ids of an attachment's links.
fn links(node: &harness::Node, id: &str) -> Vec<u64> {
    let shown = node.json(&["show", id]);
    let text = shown.to_string();
    let links = shown.pointer("/0/links").or_else(|| shown.get("links")).and_then(Value::as_array);
    links.expect(&text).iter().map(|link| link["linkId"].as_u64().expect(&text)).collect()
}

/// Changes the only record.
fn change_record(node: &harness::Node, change: impl Fn(&mut Value)) {
    let entries = std::fs::read_dir(node.state_dir().join("attachments")).unwrap();
    let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    let mut record: Value = serde_json::from_slice(&std::fs::read(&files[0]).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(&files[0], record.to_string()).unwrap();
}
