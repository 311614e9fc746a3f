//! The chart in Helm's own engine, which is a library of Python (`helm.py` beside this package's manifest).

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// The namespace that the chart is installed to.
pub const NAMESPACE: &str = "istio-system";

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the repository is above this package")
}

/// The chart's folder.
pub fn chart() -> PathBuf {
    root().join("deploy/helm/redirect-cni")
}

/// A running engine.
#[derive(Debug)]
pub struct Helm {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// What a chart became.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// Its objects.
    pub objects: Vec<Value>,
    /// What Helm prints after an installation.
    pub notes: String,
}

impl Helm {
    /// Starts it. `cargo xtask setup deploy` has put the two packages into the cache.
    pub fn start() -> Helm {
        Helm::of(&chart())
    }

    /// Starts it for a chart: a folder or an archive.
    pub fn of(chart: &Path) -> Helm {
        let cache = harness::envoy::cache().expect("a cache for tools: set HOME");
        let mut child = Command::new("/usr/bin/python3")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("helm.py"))
            .arg(chart)
            .env("PYTHONPATH", cache.join("helm"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start Python");
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        Helm { child, requests, answers }
    }

    fn ask(&mut self, request: &Value) -> Value {
        let requests = self.requests.as_mut().expect("it runs");
        writeln!(requests, "{request}").expect("ask Helm (cargo xtask setup deploy)");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("Helm answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("Helm says {line:?}: {error}"))
    }

    /// Renders and validates it, or says what is wrong.
    pub fn try_render(&mut self, values: &Value) -> Result<Rendered, String> {
        let answer = self.ask(&json!({ "values": values, "namespace": NAMESPACE }));
        if let Some(error) = answer["error"].as_str() {
            return Err(error.to_owned());
        }
        let objects = answer["objects"].as_array().expect("objects").clone();
        Ok(Rendered { objects, notes: answer["notes"].as_str().unwrap_or_default().to_owned() })
    }

    /// Renders and validates it.
    #[track_caller]
    pub fn render(&mut self, values: &Value) -> Rendered {
        self.try_render(values).unwrap_or_else(|error| panic!("{values}: {error}"))
    }

    /// What `helm lint --strict` says.
    pub fn lint(&mut self, values: &Value) -> Value {
        self.ask(&json!({ "lint": values }))
    }

    /// What the chart's schema says about values, if it refuses them.
    pub fn refusal(&mut self, values: &Value) -> Option<String> {
        self.ask(&json!({ "schema": values }))["error"].as_str().map(str::to_owned)
    }
}

impl Drop for Helm {
    fn drop(&mut self) {
        self.requests.take();
        let _ = self.child.wait();
    }
}

impl Rendered {
    /// The kinds, sorted.
    pub fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<_> = self.objects.iter().filter_map(|object| object["kind"].as_str()).collect();
        kinds.sort_unstable();
        kinds
    }

    /// The only object of a kind.
    #[track_caller]
    pub fn one(&self, kind: &str) -> &Value {
        let mut found = self.objects.iter().filter(|object| object["kind"] == kind);
        match (found.next(), found.next()) {
            (Some(one), None) => one,
            (first, _) => panic!("there is {} {kind}", if first.is_some() { "more than one" } else { "no" }),
        }
    }

    /// Whether there is one.
    pub fn has(&self, kind: &str) -> bool {
        self.objects.iter().any(|object| object["kind"] == kind)
    }

    /// The agent's pod.
    pub fn pod(&self) -> &Value {
        &self.one("DaemonSet")["spec"]["template"]["spec"]
    }

    /// The agent's container.
    pub fn container(&self) -> &Value {
        &self.pod()["containers"][0]
    }

    /// The container's arguments.
    pub fn arguments(&self) -> Vec<&str> {
        strings(&self.container()["args"])
    }

    /// The plugin's entry.
    pub fn entry(&self) -> Value {
        let map = self.objects.iter().find(|object| object["data"]["entry.json"].is_string());
        let text = map.and_then(|map| map["data"]["entry.json"].as_str()).expect("the entry");
        serde_json::from_str(text).expect("the entry is JSON")
    }
}

/// The strings of a list.
pub fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
