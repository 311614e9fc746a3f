//! The watch: every pod of this node is known, also when the API server or the way there fails.

use std::time::{Duration, Instant};

use apiserver::Kind;
use serde_json::json;

use crate::driver::{Cluster, until};
use crate::shown::{free_port, value};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(15);

#[test]
fn pods_of_this_node_are_known_before_they_are_asked_for() {
    let cluster = Cluster::start();
    cluster.pod("before", |_| {});
    let agent = cluster.agent(&[]);
    let before = agent.knows("before");
    assert_eq!(before["containers"][1]["name"], "istio-proxy");
    assert_eq!(before["containers"][2]["env"], json!({}), "no secret travels");
    cluster.pod("after", |pod| pod["metadata"]["labels"]["app"] = json!("cart"));
    assert_eq!(agent.knows("after")["labels"]["app"], "cart");
    // Neither was fetched: the watch brought them.
    let fetched = |request: &String| request.starts_with("GET /api/v1/namespaces/shop/pods/");
    until("the watch has both", || agent.ask("after", None, SHORT)["pod"].is_object());
    let _ = cluster.api.requests();
    let _ = (agent.knows("before"), agent.knows("after"));
    let requests = cluster.api.requests();
    assert!(!requests.iter().any(fetched), "{requests:?}");
}

#[test]
fn only_pods_of_this_node_are_asked_for() {
    let cluster = Cluster::start();
    cluster.pod("here", |_| {});
    let agent = cluster.agent(&[]);
    agent.knows("here");
    let mut lists: Vec<String> = Vec::new();
    until("a list and a watch", || {
        lists.extend(cluster.api.requests().into_iter().filter(|request| request.contains("/api/v1/pods?")));
        lists.len() >= 2
    });
    for list in lists {
        assert!(list.contains("fieldSelector=spec.nodeName%3Dnode-1"), "{list}");
    }
}

#[test]
fn a_pod_that_the_watch_does_not_show_is_fetched_once() {
    let cluster = Cluster::start();
    let agent = cluster.agent(&[]);
    // The API says that it is not bound to a node yet, so that the watch leaves it out.
    cluster.pod("early", |pod| pod["spec"]["nodeName"] = json!(null));
    let _ = cluster.api.requests();
    let asked = Instant::now();
    agent.knows("early");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    let gets = |request: &&String| request.contains("/pods/early");
    let requests = cluster.api.requests();
    assert_eq!(requests.iter().filter(gets).count(), 1, "{requests:?}");
}

#[test]
fn a_pod_that_was_deleted_is_answered_at_once() {
    let cluster = Cluster::start();
    cluster.pod("web-0", |_| {});
    let agent = cluster.agent(&[]);
    agent.knows("web-0");
    let old = cluster.api.store().remove(Kind::PODS, "shop", "web-0").unwrap();
    let new = cluster.pod("web-0", |_| {});
    until("the new pod is known", || {
        agent.ask("web-0", new["metadata"]["uid"].as_str(), SHORT)["pod"].is_object()
    });
    let asked = Instant::now();
    let answer = agent.ask("web-0", old["metadata"]["uid"].as_str(), LONG);
    assert_eq!(answer["error"]["kind"], "notFound", "{answer}");
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "a new pod of that name is another: {:?}",
        asked.elapsed()
    );
    agent.knows("web-0");
}

#[test]
fn a_static_pod_is_known_by_its_hash_and_waited_for() {
    let cluster = Cluster::start();
    let agent = cluster.agent(&[]);
    let hash = "5f2c0b9d8e7a6f5e4d3c2b1a09f8e7d6";
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| agent.ask("etcd-node-1", Some(hash), LONG));
        std::thread::sleep(Duration::from_secs(1));
        cluster.pod("etcd-node-1", |pod| {
            pod["metadata"]["annotations"]["kubernetes.io/config.hash"] = json!(hash);
        });
        asked.join().unwrap()
    });
    assert_eq!(answer["pod"]["uid"], hash, "{answer}");
}

#[test]
fn history_that_is_gone_is_listed_anew() {
    let cluster = Cluster::start();
    cluster.pod("a", |_| {});
    let agent = cluster.agent(&[]);
    agent.knows("a");
    let gone = || agent.ask("a", None, SHORT)["error"].is_object();
    for round in 0..3 {
        cluster.api.away();
        cluster.api.store().remove(Kind::PODS, "shop", "a");
        cluster.pod(&format!("b-{round}"), |_| {});
        cluster.api.store().compact();
        cluster.api.back();
        until("the list has the new pod", || {
            agent.ask(&format!("b-{round}"), None, SHORT)["pod"].is_object()
        });
        until("what was deleted while no agent watched is forgotten", gone);
        cluster.pod("a", |_| {});
        agent.knows("a");
    }
}

#[test]
fn while_the_server_is_away_what_is_known_stays_known() {
    let cluster = Cluster::start();
    cluster.pod("known", |_| {});
    let agent = cluster.agent(&[]);
    agent.knows("known");
    cluster.api.away();
    std::thread::sleep(Duration::from_secs(1));
    let asked = Instant::now();
    agent.knows("known");
    assert!(asked.elapsed() < Duration::from_millis(500));
    // What is not known is an error that says why, and can be asked for again.
    let answer = agent.ask("unknown", None, Duration::from_secs(1));
    assert_eq!(answer["error"]["kind"], "failed", "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("API server"), "{answer}");
    // A question that waits is answered when the server is back.
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| agent.ask("late", None, LONG));
        std::thread::sleep(Duration::from_millis(500));
        cluster.pod("late", |_| {});
        cluster.api.back();
        asked.join().unwrap()
    });
    assert!(answer["pod"].is_object(), "{answer}");
}

/// A server that is away for minutes is like one that is away so long that rests have grown to the longest:
/// `REDIRECT_AWAY_SECONDS` says how long.
#[test]
fn a_server_that_was_away_for_long_is_noticed_within_the_longest_rest() {
    let seconds = std::env::var("REDIRECT_AWAY_SECONDS").ok().and_then(|text| text.parse().ok());
    let (away, address) = (Duration::from_secs(seconds.unwrap_or(15)), free_port());
    let cluster = Cluster::start();
    cluster.pod("known", |_| {});
    cluster.pod("gone", |_| {});
    let agent = cluster.agent(&["--listen", &address.to_string()]);
    agent.knows("known");
    let up = || value(address, "redirect_cni_watch_up") == Some(1.0);
    until("the watch is up", up);
    cluster.api.away();
    cluster.api.store().remove(Kind::PODS, "shop", "gone");
    cluster.pod("fresh", |_| {});
    let begun = Instant::now();
    while begun.elapsed() < away {
        agent.knows("known");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(!up(), "the watch cannot be up while the server is away");
    let _ = cluster.api.requests();
    cluster.api.back();
    let back = Instant::now();
    until("the watch is up again", up);
    assert!(back.elapsed() < Duration::from_secs(8), "noticed after {:?}", back.elapsed());
    agent.knows("fresh");
    assert_eq!(agent.ask("gone", None, SHORT)["error"]["kind"], "notFound");
    // No storm of requests from the rests that were too short: a list, a watch, and what was asked for here.
    let requests = cluster.api.requests();
    assert!(requests.len() < 10, "{requests:?}");
}

#[test]
fn throttling_is_waited_out() {
    let cluster = Cluster::start();
    cluster.pod("web-0", |_| {});
    cluster.api.throttle(4);
    let agent = cluster.agent(&[]);
    agent.knows("web-0");
    cluster.api.throttle(2);
    cluster.api.cut();
    cluster.pod("web-1", |_| {});
    agent.knows("web-1");
}

#[test]
fn a_token_that_was_replaced_is_read_again() {
    let cluster = Cluster::start();
    cluster.pod("web-0", |_| {});
    let agent = cluster.agent(&[]);
    agent.knows("web-0");
    cluster.api.let_in(&["second"]);
    cluster.api.cut();
    cluster.pod("web-1", |_| {});
    std::thread::sleep(Duration::from_secs(1));
    assert!(agent.ask("web-1", None, SHORT)["error"].is_object());
    std::fs::write(cluster.dir.path().join("token"), "second").unwrap();
    agent.knows("web-1");
}

#[test]
fn an_agent_that_starts_before_the_server_does_not_give_up() {
    let cluster = Cluster::start();
    cluster.api.away();
    cluster.pod("web-0", |_| {});
    let agent = cluster.agent(&[]);
    let answer = agent.ask("web-0", None, SHORT);
    assert_eq!(answer["error"]["kind"], "failed", "{answer}");
    cluster.api.back();
    agent.knows("web-0");
}

#[test]
fn five_hundred_pods_that_come_and_go_leave_nothing_behind() {
    let cluster = Cluster::start();
    let names: Vec<String> = (0..500).map(|number| format!("web-{number}")).collect();
    let agent = cluster.agent(&[]);
    let round = || {
        for name in &names {
            cluster.pod(name, |_| {});
        }
        agent.knows(&names[499]);
        for name in &names {
            cluster.api.store().remove(Kind::PODS, "shop", name);
        }
        until("the last one is forgotten", || agent.ask(&names[499], None, SHORT)["error"].is_object());
    };
    (0..3).for_each(|_| round());
    let (memory, files) = (resident(agent.pid()), open_files(agent.pid()));
    for number in 0..8 {
        round();
        if number % 2 == 0 {
            cluster.api.cut();
        }
    }
    until("connections are closed", || open_files(agent.pid()) <= files + 2);
    let grown = resident(agent.pid()).saturating_sub(memory);
    assert!(grown < 3072, "4,000 pods later the agent has {grown} kB more than {memory} kB");
}

/// Resident memory in kB.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

pub(crate) fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}
