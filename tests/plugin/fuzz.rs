//! Random input, for a time each: configurations, `CNI_ARGS`, annotations and previous results go through the
//! real binary, and annotations also through the library, where a second, literal reading of the grammar must
//! agree.
//!
//! `REDIRECT_FUZZ_SECONDS` says how long each test goes on (60 unless it is set). A failure prints the
//! smallest input that shows it. Every run begins from another seed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::collection::{btree_map, vec};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::strategy::BoxedStrategy;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use redirect_user::policy::annotations::{Capture, capture};
use serde_json::{Value, json};

use crate::call::{Call, Place, Reply, STATUS, hand_over, with_prev_result};

/// Runs a property on random values until the time is up.
fn fuzz<S: Strategy>(strategy: &S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let seconds =
        std::env::var("REDIRECT_FUZZ_SECONDS").ok().map_or(60.0, |text| text.parse().expect("a number"));
    let deadline = Instant::now() + Duration::from_secs_f64(seconds);
    let mut cases = 0_u64;
    while cases == 0 || Instant::now() < deadline {
        let config = Config { cases: 50, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new(config);
        runner.run(strategy, &property).unwrap_or_else(|error| panic!("after {cases} cases: {error}"));
        cases += 50;
    }
    eprintln!("{cases} cases");
}

/// What holds for every input: an answer, one JSON at most, no panic, no signal.
fn sane(reply: &Reply) -> Result<(), TestCaseError> {
    let fail = |why: &str| Err(TestCaseError::fail(format!("{why}: {reply:?}")));
    if reply.stderr.contains("panicked") {
        return fail("it panicked");
    }
    match reply.code {
        Some(0) => Ok(()),
        Some(1) => {
            let Ok(error) = serde_json::from_str::<Value>(&reply.stdout) else {
                return fail("no error JSON");
            };
            let code = error["code"].as_u64().unwrap_or(0);
            if code == 0 || code == 100 || error["msg"].as_str().is_none_or(str::is_empty) {
                return fail("not an error of the table");
            }
            Ok(())
        }
        _ => fail("neither success nor failure"),
    }
}

/// Any JSON, a few levels deep, with the kinds of numbers and strings that break parsers.
fn any_json() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no NaN", |x| x.is_finite()).prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        "[a-z./*,0-9-]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            btree_map("[a-zA-Z.]{0,12}", inner, 0..5).prop_map(|map| map.into_iter().collect::<Value>()),
        ]
    })
    .boxed()
}

fn verb() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("ADD"), Just("DEL"), Just("CHECK"), Just("GC"), Just("STATUS"), Just("VERSION")]
}

#[test]
fn configurations() {
    let place = Place::new();
    let keys = [
        "cniVersion",
        "name",
        "type",
        "podSource",
        "excludeNamespaces",
        "proxy",
        "dnsCapture",
        "cgroupRoot",
        "logLevel",
        "runtimeConfig",
        "prevResult",
        "cni.dev/valid-attachments",
        "capabilities",
        "agentTimeoutSeconds",
    ];
    // One key of a good configuration is replaced, and sometimes the text is damaged.
    let damage = prop_oneof![Just(None), (any::<proptest::sample::Index>(), any::<u8>()).prop_map(Some)];
    let strategy = (verb(), proptest::sample::select(keys.to_vec()), any_json(), damage);
    fuzz(&strategy, |(verb, key, value, damage)| {
        let mut conf = place.conf();
        // No folder can be made there, nor where one damaged byte leads from there.
        for path in ["stateDir", "bpffsRoot", "agentSocket"] {
            conf[path] = json!("/proc/redirect-cni");
        }
        conf[key] = value;
        let mut text = conf.to_string().into_bytes();
        let mut call = Call::new(verb).pod("shop", "web-0", "1");
        if let Some((at, byte)) = damage {
            let at = at.index(text.len());
            text[at] = byte;
            // A damaged key leaves the machine's own paths in force.
            call = call.unprivileged();
        }
        sane(&call.stdin(text).run())
    });
}

#[test]
fn arguments() {
    let place = Place::new();
    let mut conf = place.conf();
    hand_over(&mut conf, &[]);
    let pair = prop_oneof![
        "K8S_POD_(NAME|NAMESPACE|UID|INFRA_CONTAINER_ID)=[a-z0-9-]{0,10}",
        "IgnoreUnknown=(1|0|true|x|)",
        "[A-Z_]{0,8}[=]{0,2}[^;\u{0}]{0,8}",
    ];
    let any_bytes = vec(1..=255_u8, 0..60);
    let strategy = prop_oneof![vec(pair, 0..6).prop_map(|pairs| pairs.join(";").into_bytes()), any_bytes];
    fuzz(&strategy, |args| {
        let reply = Call::new("ADD").env("CNI_ARGS", &args).stdin(conf.to_string()).run();
        sane(&reply)?;
        if reply.code == Some(1) {
            assert!(reply.stdout.contains("CNI_ARGS"), "{reply:?}");
        }
        Ok(())
    });
}

#[test]
fn previous_results() {
    let place = Place::new();
    let mut conf = place.conf();
    hand_over(&mut conf, &[]);
    let ip = prop_oneof![
        "(10|300)\\.[0-9]{1,3}\\.0\\.1/[0-9]{1,2}".prop_map(|address| json!({ "address": address })),
        any_json(),
    ];
    let ips = prop_oneof![vec(ip, 0..4).prop_map(Value::from), any_json()];
    let strategy = (btree_map("[a-z]{1,8}", any_json(), 0..4), ips);
    fuzz(&strategy, |(other, ips)| {
        let mut prev: serde_json::Map<String, Value> = other.into_iter().collect();
        prev.insert("ips".to_owned(), ips);
        let text = Value::from(prev).to_string();
        let reply = Call::new("ADD").pod("shop", "web-0", "1").stdin(with_prev_result(&conf, &text)).run();
        sane(&reply)?;
        if reply.code == Some(0) && reply.stdout.trim_end_matches('\n') != text {
            return Err(TestCaseError::fail(format!("changed on its way: {text} {reply:?}")));
        }
        Ok(())
    });
}

/// Values near the grammar of each annotation, and some far from it.
fn annotation() -> impl Strategy<Value = (&'static str, String)> {
    let ports = "((\\*|[0-9]{1,6}| ?[0-9]{1,5} ?|[a-z+-]{1,2}),?){0,4}";
    let ranges = "((\\*|[0-9]{1,3}\\.[0-9]{1,3}\\.0\\.0/[0-9]{1,2}|fd00::[0-9a-f]{0,4}/[0-9]{1,3}| ),?){0,4}";
    let interfaces = "([a-z][a-z0-9._-]{0,16} ?,?){0,3}";
    let near = |name: &'static str, grammar: &'static str| grammar.prop_map(move |value| (name, value));
    prop_oneof![
        near("traffic.sidecar.istio.io/includeOutboundIPRanges", ranges),
        near("traffic.sidecar.istio.io/excludeOutboundIPRanges", ranges),
        near("traffic.sidecar.istio.io/includeOutboundPorts", ports),
        near("traffic.sidecar.istio.io/excludeOutboundPorts", ports),
        near("traffic.sidecar.istio.io/includeInboundPorts", ports),
        near("traffic.sidecar.istio.io/excludeInboundPorts", ports),
        near("traffic.sidecar.istio.io/excludeInterfaces", interfaces),
        near("sidecar.istio.io/interceptionMode", "(REDIRECT|NONE|TPROXY|[A-Z]{0,8})"),
        near("traffic.sidecar.istio.io/excludeOutboundPorts", ".{0,12}"),
        near("traffic.sidecar.istio.io/includeOutboundIPRanges", ".{0,12}"),
        near("sidecar.istio.io/status", "(\\{\\}|\\{\"containers\":\\[\"istio-proxy\"\\]\\}|.{0,12})"),
    ]
}

#[test]
fn annotations() {
    let place = Place::new();
    fuzz(&vec(annotation(), 0..4), |pairs| {
        let mut all = BTreeMap::from([(STATUS.0, STATUS.1.to_owned())]);
        all.extend(pairs);
        let borrowed: Vec<_> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut conf = place.conf();
        hand_over(&mut conf, &borrowed);
        sane(&Call::new("ADD").pod("shop", "web-0", "1").stdin(conf.to_string()).run())
    });
}

#[test]
fn annotations_by_a_second_reading() {
    fuzz(&annotation(), |(name, value)| {
        let Some(expected) = literal(name, &value) else { return Ok(()) };
        let read = capture(
            &BTreeMap::from([(name.to_owned(), value.clone())]),
            &redirect_user::policy::Policy::default(),
        );
        match (&read, expected) {
            (Ok(Capture::On(_)), true) => Ok(()),
            (Err(error), false) if error.to_string().contains(name) => Ok(()),
            _ => Err(TestCaseError::fail(format!("{name}={value:?}: {read:?}, expected {expected}"))),
        }
    });
}

/// Whether a value is right, by the words of the grammar and nothing cleverer; `None` for other annotations.
fn literal(name: &str, value: &str) -> Option<bool> {
    let (_, key) = name.split_once("istio.io/")?;
    let star = matches!(key, "includeOutboundIPRanges" | "includeInboundPorts") && value == "*";
    let item: fn(&str) -> bool = match key {
        "includeOutboundIPRanges" | "excludeOutboundIPRanges" => is_range,
        "includeOutboundPorts" | "excludeOutboundPorts" | "includeInboundPorts" | "excludeInboundPorts" => {
            is_port
        }
        "excludeInterfaces" => is_interface,
        _ => return None,
    };
    Some(star || value.is_empty() || value.split(',').all(item))
}

fn is_port(item: &str) -> bool {
    let digits: Vec<u32> =
        match item.trim().chars().map(|c| if c.is_ascii() { c.to_digit(10) } else { None }).collect() {
            Some(digits) => digits,
            None => return false,
        };
    let value =
        digits.iter().fold(0_u64, |value, digit| value.saturating_mul(10).saturating_add(u64::from(*digit)));
    !digits.is_empty() && value <= 65_535
}

fn is_range(item: &str) -> bool {
    let Some((address, length)) = item.split_once('/') else { return false };
    let max = match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    (0..=max).any(|bits| bits.to_string() == length)
}

fn is_interface(item: &str) -> bool {
    let name: Vec<char> = item.trim().chars().collect();
    let inner = |c: &char| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '.' | '-');
    (1..=15).contains(&name.len()) && name[0].is_ascii_alphabetic() && name.iter().all(inner)
}
