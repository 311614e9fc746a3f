//! Alert rules and the dashboard: they name only what the agent shows, and Prometheus takes both the rules
//! and the page.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use redirect_common::stats::Event;
use serde_json::Value;

use redirect_deploy_tests::helm::{chart, root};

const PREFIX: &str = "redirect_cni_";

fn rules() -> String {
    fs::read_to_string(chart().join("files/rules.yaml")).expect("the rules")
}

fn dashboard() -> Value {
    let text = fs::read_to_string(chart().join("files/dashboard.json")).expect("the dashboard");
    serde_json::from_str(&text).expect("the dashboard is JSON")
}

/// Names in docs/metrics.md, which a test of the agent compares with the code: with their kinds and labels.
fn documented() -> Vec<(String, String, Vec<String>)> {
    let text = fs::read_to_string(root().join("docs/metrics.md")).expect("docs/metrics.md");
    let code = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = text.lines().filter(|line| line.starts_with(&format!("| `{PREFIX}")));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        (code(cells[1]).remove(0), cells[2].to_owned(), code(cells[3]))
    })
    .collect()
}

/// Names that may stand in an expression: those of a histogram have endings.
fn series() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (name, kind, _) in documented() {
        match kind.as_str() {
            "histogram" => names.extend(["bucket", "sum", "count"].map(|end| format!("{name}_{end}"))),
            _ => drop(names.insert(name)),
        }
    }
    names
}

/// Every name of ours in a text.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with(PREFIX)).map(str::to_owned).collect()
}

#[test]
fn rules_and_dashboard_name_only_what_there_is() {
    let known = series();
    for (place, text) in [("rules", rules()), ("dashboard", dashboard().to_string())] {
        let named = names_in(&text);
        assert!(named.len() > 5, "{place}: {named:?}");
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{place} name what the agent does not show: {unknown:?}");
    }
    // A name that is shown and in neither picture nor rule is one that no operator sees.
    let seen: BTreeSet<_> = names_in(&rules()).union(&names_in(&dashboard().to_string())).cloned().collect();
    for (name, ..) in documented() {
        assert!(seen.iter().any(|one| one.starts_with(&name)), "{name} is in neither rules nor dashboard");
    }
}

#[test]
fn label_values_in_expressions_exist() {
    let text = rules() + &dashboard().to_string().replace("\\\"", "\"");
    let mut verdicts = BTreeSet::new();
    for part in text.split("verdict=~\"").skip(1) {
        verdicts.extend(part.split('"').next().expect("a value").split('|').map(str::to_owned));
    }
    assert!(!verdicts.is_empty());
    let known: BTreeSet<_> = Event::ALL.iter().map(|event| event.label().to_owned()).collect();
    assert!(verdicts.is_subset(&known), "{:?}", verdicts.difference(&known));
    let outcomes = fs::read_to_string(root().join("cni/README.md")).expect("the plugin's README");
    for part in text.split("outcome=\"").skip(1) {
        let outcome = part.split('"').next().expect("a value");
        assert!(outcomes.contains(&format!("| `{outcome}` |")), "there is no outcome {outcome}");
    }
    for (label, values) in [("verb", ["ADD", "DEL"].as_slice()), ("phase", &["total"])] {
        for part in text.split(&format!("{label}=\"")).skip(1) {
            let value = part.split('"').next().expect("a value");
            assert!(values.contains(&value), "{label}={value}");
        }
    }
    // Labels are those of the table.
    let labels: BTreeSet<String> = documented().into_iter().flat_map(|(_, _, labels)| labels).collect();
    for by in text.split(" by (").skip(1) {
        for label in by.split(')').next().expect("labels").split(',').map(str::trim) {
            assert!(
                labels.contains(label) || ["instance", "le"].contains(&label),
                "there is no label {label}"
            );
        }
    }
}

#[test]
fn every_panel_has_a_title_a_place_of_its_own_and_the_chosen_source() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut cells = BTreeSet::new();
    for panel in panels {
        let grid = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
        assert!(panel["title"].as_str().is_some_and(|title| !title.is_empty()));
        assert!(grid("x") + grid("w") <= 24, "{}", panel["title"]);
        for x in grid("x")..grid("x") + grid("w") {
            for y in grid("y")..grid("y") + grid("h") {
                assert!(cells.insert((x, y)), "{} covers another panel", panel["title"]);
            }
        }
        for target in panel["targets"].as_array().expect("targets") {
            assert_eq!(target["datasource"]["uid"], "${datasource}");
            assert!(target["expr"].as_str().is_some_and(|expr| expr.contains("$instance")), "{target}");
        }
    }
}

/// An agent and a Prometheus that asks it, both on ports of localhost.
struct Scrape {
    children: Vec<Child>,
    agent: SocketAddr,
    prometheus: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Scrape {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it is bound")
}

fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\nAccept: application/openmetrics-text\r\n\r\n")
        .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

impl Scrape {
    fn start() -> Scrape {
        let dir = tempfile::tempdir().expect("a folder");
        let at = dir.path();
        let (agent, prometheus) = (free_port(), free_port());
        let mut redirect = Command::new(harness::binary("redirect"));
        redirect.arg("--bpffs").arg(at.join("bpf")).arg("--state-dir").arg(at.join("state"));
        redirect
            .args(["agent", "--no-pods", "--listen", &agent.to_string(), "--socket"])
            .arg(at.join("agent.sock"));
        // Two calls of the plugin, so that families have members.
        let conf = r#"{"cniVersion":"1.0.0","name":"mesh","type":"redirect-cni","podSource":"annotations",
            "runtimeConfig":{"io.kubernetes.cri.pod-annotations":null},"prevResult":{"ips":[]},"stateDir":"STATE"}"#;
        let conf = conf.replace("STATE", at.join("state").to_str().expect("text"));
        for _ in 0..2 {
            call_plugin(&conf);
        }
        let rules = at.join("rules.yaml");
        fs::write(&rules, crate::metrics::rules()).expect("the rules");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n\
             - job_name: redirect-cni\n  static_configs: [{{targets: ['{agent}']}}]\n",
            rules.display()
        );
        fs::write(at.join("prometheus.yml"), config).expect("the configuration");
        let mut server = Command::new("prometheus");
        server.arg(format!("--config.file={}", at.join("prometheus.yml").display()));
        server.arg(format!("--storage.tsdb.path={}", at.join("data").display()));
        server.arg(format!("--web.listen-address={prometheus}"));
        let quiet = |command: &mut Command| {
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts")
        };
        let children = vec![quiet(&mut redirect), quiet(&mut server)];
        Scrape { children, agent, prometheus, _dir: dir }
    }

    fn query(&self, path: &str) -> Value {
        let text = get(self.prometheus, path).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }
}

fn call_plugin(conf: &str) {
    let mut child = Command::new(harness::binary("redirect-cni"))
        .envs([
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c0ffee"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/x"),
        ])
        .env("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the plugin starts");
    child.stdin.take().expect("a pipe").write_all(conf.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn prometheus_scrapes_the_agent_and_takes_the_rules() {
    let scrape = Scrape::start();
    let deadline = Instant::now() + Duration::from_secs(60);
    let up = || scrape.query("/api/v1/query?query=up")["data"]["result"][0]["value"][1] == "1";
    while !up() {
        assert!(Instant::now() < deadline, "no scrape: {:?}", get(scrape.agent, "/metrics"));
        sleep(Duration::from_millis(200));
    }
    // What Prometheus keeps has the names of the document, and nothing is called otherwise.
    let kept = scrape.query("/api/v1/label/__name__/values");
    let kept: BTreeSet<String> = kept["data"]
        .as_array()
        .expect("names")
        .iter()
        .filter_map(Value::as_str)
        .filter(|name| name.starts_with(PREFIX))
        .map(str::to_owned)
        .collect();
    let known = series();
    let unknown: Vec<_> = kept.difference(&known).collect();
    assert!(kept.len() > 10 && unknown.is_empty(), "kept {kept:?}, not documented {unknown:?}");
    // Each rule was loaded, and each can be evaluated.
    while Instant::now() < deadline {
        let groups = scrape.query("/api/v1/rules");
        let rules = groups["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
        assert!(rules.iter().all(|rule| rule["health"] != "err"), "{rules:?}");
        if !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok") {
            assert_eq!(rules.len(), crate::metrics::rules().matches("- alert:").count());
            return;
        }
        sleep(Duration::from_millis(200));
    }
    panic!("the rules were not evaluated: {}", scrape.query("/api/v1/rules"));
}

#[test]
fn promtool_has_nothing_to_say_about_rules_and_expressions() {
    let dir = tempfile::tempdir().expect("a folder");
    // The dashboard's expressions as recording rules, with what Grafana puts in.
    let mut text = String::from("groups:\n- name: panels\n  rules:\n");
    for (number, expr) in expressions(&dashboard()).iter().enumerate() {
        let expr = expr.replace("$__rate_interval", "5m").replace("$instance", ".*");
        text += &format!("  - record: panel:{number}\n    expr: {}\n", Value::from(expr));
    }
    fs::write(dir.path().join("panels.yaml"), text).expect("a file");
    fs::write(dir.path().join("rules.yaml"), rules()).expect("a file");
    for file in ["panels.yaml", "rules.yaml"] {
        let output = Command::new("promtool").args(["check", "rules"]).arg(dir.path().join(file)).output();
        let output = output.expect("promtool (Debian package prometheus)");
        assert!(output.status.success(), "{file}: {output:?}");
    }
}

fn expressions(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => {
            let own = map.get("expr").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(map.values().flat_map(expressions)).collect()
        }
        Value::Array(list) => list.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}
