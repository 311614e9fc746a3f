//! What the verbs ask the kernel, counted by strace: nothing that no annotation asks for, and no call for
//! each entry of a table.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use harness::cli::Outcome;
use harness::{Node, kernel_test};
use serde_json::json;

use crate::sandbox::{Sandbox, assert_nothing_attached};

/// Words that trace system calls into a file.
fn traced(calls: &str, into: &Path) -> Vec<OsString> {
    let words = ["strace", "-f", "-qq", "-s", "4096", "-o"].map(OsString::from);
    words.into_iter().chain([into.into(), "-e".into(), format!("trace={calls}").into()]).collect()
}

/// How often each request for a list goes to the kernel's routing tables in an ADD, which succeeds.
fn requests(node: &Node, sandbox: &Sandbox) -> [(&'static str, usize); 4] {
    let file = node.dir().join("trace");
    let reply = sandbox.call("ADD").wrapped(&traced("sendto,sendmsg,write", &file)).run();
    reply.success();
    let text = fs::read_to_string(&file).expect("strace has written");
    sandbox.del();
    // strace does not always know what kind of socket it is in another namespace, and shows a number then.
    let count = |name: &str, number: &str| {
        let kinds = text.split("nlmsg_type=").skip(1);
        kinds.filter(|kind| kind.starts_with(name) || kind.starts_with(number)).count()
    };
    let counts =
        [("RTM_GETADDR", "0x16"), ("RTM_GETLINK", "0x12"), ("RTM_GETROUTE", "0x1a"), ("RTM_GETRULE", "0x22")]
            .map(|(name, number)| (name, count(name, number)));
    assert!(counts[0].1 > 0, "strace shows no request:\n{}", &text[..text.len().min(3000)]);
    counts
}

#[test]
fn interfaces_routes_and_rules_are_listed_only_where_something_asks_for_them() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let guarded = Sandbox::new(node, &pod, "c0ffee");
        let plain = guarded.clone().with("guard", json!("off"));
        let named = plain.clone().annotated(&[("traffic.sidecar.istio.io/excludeInterfaces", "net1")]);
        let counts = [&plain, &named, &guarded].map(|sandbox| requests(node, sandbox));
        println!(
            "without the guard {:?}\nwith excludeInterfaces {:?}\nwith the guard {:?}",
            counts[0], counts[1], counts[2]
        );
        assert_eq!(counts[0][1..], [("RTM_GETLINK", 0), ("RTM_GETROUTE", 0), ("RTM_GETRULE", 0)]);
        assert!(counts[1][1].1 > 0 && counts[1][3].1 > 0, "{counts:?}");
        // The guard has to know where it stands: one list, and no routes.
        assert_eq!(counts[2][1..], [("RTM_GETLINK", 1), ("RTM_GETROUTE", 0), ("RTM_GETRULE", 0)]);
        assert_nothing_attached(node);
    });
}

#[test]
fn a_collection_makes_no_call_for_each_entry_of_a_table() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let ranges: Vec<_> = (0..2000).map(|n| format!("10.{}.{}.0/24", n / 250, n % 250)).collect();
        let annotation = ("traffic.sidecar.istio.io/excludeOutboundIPRanges", &*ranges.join(","));
        let sandbox = Sandbox::new(node, &pod, "c0ffee").annotated(&[annotation]);
        sandbox.add();
        let file = node.dir().join("trace");
        for verb in ["gc", "list", "doctor"] {
            let words = traced("bpf", &file);
            let mut command = std::process::Command::new(&words[0]);
            command.args(&words[1..]).arg(harness::binary("redirect"));
            command.args(node.redirect().get_args()).arg(verb);
            let outcome = Outcome::of(&mut command);
            assert_eq!(outcome.code, Some(0), "{verb}: {outcome:?}");
            let calls = fs::read_to_string(&file).expect("strace has written").lines().count();
            println!("{verb}: {calls} calls of bpf(2)");
            assert!((20..400).contains(&calls), "{verb} makes {calls} calls of bpf(2)");
        }
        sandbox.del();
        assert_nothing_attached(node);
    });
}
