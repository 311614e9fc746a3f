//! Bookinfo as a process: everything is as promised, a browser gets the page from all three versions,
//! everybody counts the same requests, and nothing stays behind, however it ends.

mod browser;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use harness::{MachineLock, Residue, binary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// What the demonstration may take from its start to its end.
const LIMIT: Duration = Duration::from_secs(60);

/// A demonstration that runs.
struct Bookinfo {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    start: Instant,
}

impl Bookinfo {
    /// Starts it; it must not wait for the lock that the test holds.
    fn start(arguments: &[&str]) -> Bookinfo {
        let mut command = Command::new(binary("bookinfo"));
        command.args(["--json", "--locked"]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start the demonstration");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("a pipe"));
        Bookinfo { child, stdin, stdout: BufReader::new(stdout), start: Instant::now() }
    }

    /// The next document that it prints.
    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read what it prints");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().try_into().expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("signal the demonstration");
    }

    /// Waits for its end.
    fn exit_code(mut self) -> Option<i32> {
        drop(self.stdin.take());
        self.child.wait().expect("wait for the demonstration").code()
    }
}

fn assert_nothing_left(before: &Residue) {
    let left = before.left_over();
    assert!(left.is_empty(), "the demonstration left behind:\n  {}", left.join("\n  "));
}

/// A part of the report that has to be a list.
fn list<'a>(report: &'a Value, key: &str) -> &'a Vec<Value> {
    report[key].as_array().unwrap_or_else(|| panic!("{key} is no list: {report:#}"))
}

#[test]
fn the_page_is_whole_in_a_browser_and_everybody_counts_the_same() {
    let _lock = MachineLock::take();
    let before = Residue::now();
    let mut bookinfo = Bookinfo::start(&["--once"]);
    let report = bookinfo.read();
    assert_pods(&report);
    assert_promises(&report);
    assert_trips(&report);
    let open = bookinfo.start.elapsed();
    let served = browse(report["page"].as_str().unwrap());
    let browsed = bookinfo.start.elapsed() - open;
    drop(bookinfo.stdin.take());
    assert_counts(&bookinfo.read(), &served);
    let start = bookinfo.start;
    assert_eq!(bookinfo.exit_code(), Some(0));
    let took = start.elapsed();
    eprintln!("page open after {open:.1?}, browsed for {browsed:.1?}, over after {took:.1?}");
    assert!(took < LIMIT, "it took {took:?}");
    assert_nothing_left(&before);
}

/// What the article printed: two containers, both running, no init container; and who is redirected.
fn assert_pods(report: &Value) {
    let pods = list(report, "pods");
    let mut redirected: Vec<_> = pods.iter().filter(|pod| pod["redirected"] == true).collect();
    redirected.sort_by_key(|pod| pod["name"].as_str().unwrap());
    let names: Vec<_> = redirected.iter().map(|pod| pod["name"].as_str().unwrap()).collect();
    let mesh = ["details-v1", "productpage-v1", "ratings-v1", "reviews-v1", "reviews-v2", "reviews-v3"];
    assert_eq!(names, mesh, "{report:#}");
    for pod in redirected {
        assert_eq!(list(pod, "containers"), &["app", "istio-proxy"], "{pod}");
        assert_eq!((&pod["ready"], list(pod, "initContainers").len()), (&Value::from(2), 0), "{pod}");
    }
    let others =
        pods.iter().filter(|pod| pod["redirected"] == false).map(|pod| pod["namespace"].as_str().unwrap());
    let mut others: Vec<_> = others.collect();
    others.sort_unstable();
    assert_eq!(others, ["istio-ingress", "kube-system"], "{report:#}");
    assert_eq!(list(report, "attachments").len(), mesh.len());
}

/// Every promise was kept, and those that this demonstration exists for were looked at.
fn assert_promises(report: &Value) {
    let checks = list(report, "checks");
    let broken: Vec<_> = checks.iter().filter(|check| check["ok"] != true).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    let about =
        |part: &str| checks.iter().filter(|check| check["promise"].as_str().unwrap().contains(part)).count();
    let promises = [
        ("no init container", 1),
        ("does not answer in clear", 7),
        ("leads nowhere from outside", 1),
        ("reaches details by", 3),
        ("kube-system/legacy answers in clear", 1),
        ("lacks the ratings only", 3),
        ("without its sidecar refuses", 2),
        ("all three versions of the page are whole", 2),
        ("is redirected, the old one is not", 1),
        ("a connection for each request", 12),
        ("is under mutual TLS", 22),
    ];
    for (part, count) in promises {
        assert_eq!(about(part), count, "promises about `{part}` in {checks:#?}");
    }
}

/// Six pages, two of each version: three requests each in the mesh, and one to ratings for four of them.
fn assert_trips(report: &Value) {
    let trips = list(report, "trips");
    let mut hops: BTreeMap<&str, usize> = BTreeMap::new();
    for hop in trips.iter().flat_map(|trip| list(trip, "hops")) {
        *hops.entry(hop["to"].as_str().unwrap()).or_default() += 1;
    }
    let expected = [
        ("details-v1", 6),
        ("productpage-v1", 6),
        ("ratings-v1", 4),
        ("reviews-v1", 2),
        ("reviews-v2", 2),
        ("reviews-v3", 2),
    ];
    assert_eq!((trips.len(), hops), (6, expected.into()), "{trips:#?}");
}

/// Opens the page until each version has served it, and returns how often each did.
fn browse(url: &str) -> BTreeMap<String, u64> {
    let mut served: BTreeMap<String, u64> = BTreeMap::new();
    while served.len() < 3 {
        assert!(served.values().sum::<u64>() < 6, "after six pages only these had served: {served:?}");
        let page = browser::open(url);
        page.assert_whole();
        *served.entry(page.served_by().to_owned()).or_default() += 1;
    }
    served
}

/// What the browser asked for is what the Envoys and the kernel have counted since the page was open.
fn assert_counts(since: &Value, served: &BTreeMap<String, u64>) {
    let count = |pod: &str, direction: &str| {
        let rows = since.as_array().expect("counters are a list");
        let row = rows.iter().find(|row| row["pod"] == pod && row["direction"] == direction).expect("a row");
        (row["envoy"].as_u64().unwrap(), row["kernel"].as_u64().unwrap())
    };
    let of = |pod: &str| served[pod];
    let pages: u64 = served.values().sum();
    let stars = of("reviews-v2") + of("reviews-v3");
    let expected = [
        ("productpage-v1", pages, 2 * pages),
        ("details-v1", pages, 0),
        ("reviews-v1", of("reviews-v1"), 0),
        ("reviews-v2", of("reviews-v2"), of("reviews-v2")),
        ("reviews-v3", of("reviews-v3"), of("reviews-v3")),
        ("ratings-v1", stars, 0),
    ];
    for (pod, inbound, outbound) in expected {
        for (direction, requests) in [("inbound", inbound), ("outbound", outbound)] {
            let (envoy, kernel) = count(pod, direction);
            assert_eq!(envoy, requests, "{pod} {direction}: {since:#}");
            // Connections: one for each request, and perhaps one that Envoy found it did not need.
            let connections = if requests == 0 { kernel == 0 } else { kernel >= requests };
            assert!(connections, "{pod} {direction}: {since:#}");
        }
    }
}

#[test]
fn ctrl_c_takes_everything_down() {
    let _lock = MachineLock::take();
    let before = Residue::now();
    let mut bookinfo = Bookinfo::start(&[]);
    let report = bookinfo.read();
    assert!(report["page"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{report}");
    bookinfo.signal(Signal::SIGINT);
    assert_eq!(bookinfo.exit_code(), Some(130));
    assert_nothing_left(&before);
}

#[test]
fn ctrl_c_while_pods_are_made_takes_everything_down() {
    let _lock = MachineLock::take();
    let before = Residue::now();
    let mut command = Command::new(binary("bookinfo"));
    command.args(["--locked"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.by_ref().map_while(Result::ok).any(|line| line.contains("their containers")));
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let rest: Vec<_> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert_nothing_left(&before);
}
