//! A record in words.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use redirect_common::trace::kind;
use redirect_common::{InboundRule, Rule, TraceRecord};
use redirect_user::attach::record::Attachment;
use redirect_user::printable::printable;
use serde_json::{Map, Value, json};

use super::filter::{Filter, Verdict};
use crate::output::{self, Colour, Format};
use crate::seen::Flow;

/// Names the numbers in a record and prints it.
pub(super) struct Printer {
    format: Format,
    filter: Filter,
    colours: bool,
    pods: Mutex<HashMap<u64, String>>,
    /// Sums it up instead of printing it.
    sums: Option<Mutex<Sums>>,
}

/// What is summed up.
#[derive(Default)]
pub(super) struct Sums {
    /// Connections by what they have in common.
    pub(super) flows: BTreeMap<Flow, u64>,
    /// Records that no reader saw.
    pub(super) lost: u64,
    /// Pods by their addresses.
    names: HashMap<IpAddr, String>,
}

impl Sums {
    fn add(&mut self, record: &TraceRecord, pod: &str) {
        // The sidecar's own half of a connection is not one more of the application's.
        if record.kind != kind::INBOUND && OWN.contains(&rule(record)) {
            return;
        }
        let named = |at: SocketAddr| match self.names.get(&at.ip()) {
            Some(name) => format!("{name}:{}", at.port()),
            None => at.to_string(),
        };
        let (src, dst) = (SocketAddr::from(record.src), SocketAddr::from(record.dst));
        let (from, to) = match record.kind {
            kind::INBOUND => {
                let client = self.names.get(&src.ip()).cloned();
                (client.unwrap_or_else(|| src.ip().to_string()), format!("{pod}:{}", dst.port()))
            }
            _ => (pod.to_owned(), named(dst)),
        };
        let verdict = Verdict::of(record.verdict).map_or("-", Verdict::name);
        *self.flows.entry(Flow { from, to, verdict, rule: rule(record).unwrap_or("-") }).or_default() += 1;
    }
}

/// Rules of the sidecar's own connections.
const OWN: [Option<&str>; 3] =
    [Some(Rule::ProxyUid.label()), Some(Rule::ProxyGid.label()), Some(Rule::Passthrough.label())];

impl Printer {
    pub(super) fn new(format: Format, filter: Filter, pods: &[Attachment]) -> Printer {
        let printer =
            Printer { format, filter, colours: output::colours(), pods: Mutex::default(), sums: None };
        printer.learn(pods);
        printer
    }

    /// One that sums up.
    pub(super) fn summing(pods: &[Attachment]) -> Printer {
        let printer = Printer {
            format: Format::Text,
            filter: Filter::default(),
            colours: false,
            pods: Mutex::default(),
            sums: Some(Mutex::default()),
        };
        printer.learn(pods);
        printer
    }

    /// What was summed up.
    pub(super) fn take(&self) -> Sums {
        let sums =
            self.sums.as_ref().and_then(|sums| sums.lock().ok().map(|mut sums| std::mem::take(&mut *sums)));
        sums.unwrap_or_default()
    }

    /// Pods whose records are wanted.
    pub(super) fn learn(&self, pods: &[Attachment]) {
        let Ok(mut known) = self.pods.lock() else { return };
        let mut sums = self.sums.as_ref().and_then(|sums| sums.lock().ok());
        for pod in pods {
            let name = pod.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
            let name = name.unwrap_or_else(|| pod.id.container_id.clone());
            if let Some(sums) = &mut sums {
                sums.names.extend(pod.addresses.iter().map(|ip| (*ip, name.clone())));
            }
            known.insert(pod.cookie, name);
        }
    }

    /// Prints a record that is wanted. Records of pods that were not asked for have no names.
    pub(super) fn show(&self, hex: &str) {
        let Some(record) = TraceRecord::from_hex(hex) else { return };
        let Some(pod) = self.pods.lock().ok().and_then(|pods| pods.get(&record.cookie).cloned()) else {
            return;
        };
        let verdict = Verdict::of(record.verdict);
        if !self.filter.passes(verdict, SocketAddr::from(record.dst)) {
            return;
        }
        if let Some(sums) = &self.sums {
            if let Ok(mut sums) = sums.lock() {
                sums.add(&record, &pod);
            }
            return;
        }
        let fields = fields(&record, &pod, verdict);
        let line = match self.format {
            Format::Json => {
                let object: Map<_, _> =
                    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                Value::Object(object).to_string()
            }
            Format::Compact => self.compact(&record, &pod, verdict),
            _ => words(&fields),
        };
        print(&line);
    }

    /// Records that no reader gets.
    pub(super) fn lost(&self, count: u64) {
        if count == 0 {
            return;
        }
        if let Some(sums) = &self.sums {
            if let Ok(mut sums) = sums.lock() {
                sums.lost += count;
            }
            return;
        }
        match self.format {
            Format::Json => print(&json!({ "lost": count }).to_string()),
            _ => print(&format!("lost     {count} records: they came faster than they could be read")),
        }
    }

    /// `→ to-outbound  shop/web  curl(1234)  10.0.0.7:80  included-range`
    fn compact(&self, record: &TraceRecord, pod: &str, verdict: Option<Verdict>) -> String {
        let (glyph, colour) = match verdict {
            Some(Verdict::ToOutbound | Verdict::ToDns) => ("→", Colour::Green),
            Some(Verdict::ToInbound) => ("←", Colour::Green),
            Some(Verdict::Direct) => ("·", Colour::Grey),
            Some(Verdict::WouldDrop) => ("!", Colour::Yellow),
            Some(Verdict::Refused | Verdict::Dropped) | None => ("×", Colour::Red),
        };
        let name = format!("{glyph} {:<11}", verdict.map_or("?", Verdict::name));
        let who = match record.kind {
            kind::INBOUND => format!("from {}", SocketAddr::from(record.src)),
            kind::LEAVING => "a packet".into(),
            _ => {
                format!("{}({})", process(record.pid).map_or("-".into(), |name| printable(&name)), record.pid)
            }
        };
        let name = output::painted(&name, colour, self.colours);
        let dst = SocketAddr::from(record.dst).to_string();
        format!("{name}  {pod:<24}  {who:<24}  {dst:<24}  {}", rule(record).unwrap_or("-"))
    }
}

fn print(line: &str) {
    let mut out = io::stdout().lock();
    // A closed pipe ends the reader at the next tick at the latest; a record has no other reader.
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

fn rule(record: &TraceRecord) -> Option<&'static str> {
    if record.kind == kind::INBOUND {
        InboundRule::from_number(record.rule).map(InboundRule::label)
    } else {
        Rule::from_number(record.rule).map(Rule::label)
    }
}

/// The name of a process, if it still runs. It is the process's own choice, any fifteen bytes.
fn process(pid: u32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name = name.strip_suffix(b"\n").unwrap_or(&name);
    Some(String::from_utf8_lossy(name).into_owned())
}

fn fields(record: &TraceRecord, pod: &str, verdict: Option<Verdict>) -> Vec<(&'static str, Value)> {
    let mut fields = Vec::new();
    let mut add = |name, value| fields.push((name, value));
    add("hook", json!(["connect", "sendmsg", "inbound", "guard"].get(record.kind as usize)));
    add("pod", json!(pod));
    if record.kind == kind::INBOUND {
        add("client", json!(SocketAddr::from(record.src)));
    } else {
        if record.kind != kind::LEAVING {
            add("pid", json!(record.pid));
            add("process", json!(process(record.pid)));
            add("gid", json!(record.gid));
        }
        // A forwarded packet has no user.
        if record.uid != u32::MAX {
            add("uid", json!(record.uid));
        }
        if !record.src.ip.is_unspecified() {
            add("src", json!(IpAddr::from(record.src.ip)));
        }
    }
    add("dst", json!(SocketAddr::from(record.dst)));
    add("verdict", json!(verdict.map(Verdict::name)));
    add("rule", json!(rule(record)));
    fields
}

fn words(fields: &[(&'static str, Value)]) -> String {
    let words: Vec<_> = fields
        .iter()
        .map(|(name, value)| match value {
            Value::String(text) if *name == "hook" => format!("{text:<8}"),
            // A process may be called `x verdict=direct`.
            Value::String(text) if text.contains([' ', '=', '"']) || *text != printable(text) => {
                format!("{name}={text:?}")
            }
            Value::String(text) => format!("{name}={text}"),
            Value::Null => format!("{name}=-"),
            other => format!("{name}={other}"),
        })
        .collect();
    words.join(" ")
}
