//! `redirect trace`: one record per decision, as the kernel makes it.
//!
//! The programs write records for a pod while its deadline lies in the future. The reader moves the deadline
//! once a second and clears it at the end; should it be killed, the deadline passes by itself.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use nix::time::{ClockId, clock_gettime};
use redirect_common::trace::{RECORD_BYTES, kind};
use redirect_common::{Endpoint, InboundRule, Ip, Rule, TraceRecord};
use redirect_user::attach::record::Attachment;
use redirect_user::attach::tables::Tables;
use redirect_user::kernel::hook::Hook;
use redirect_user::kernel::{pins, sys};
use redirect_user::node::Node;
use redirect_user::node::lock::NodeLock;
use serde_json::{Map, Value, json};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

use crate::output::{self, Output};

/// How far ahead the deadline is set.
const AHEAD: Duration = Duration::from_secs(3);

/// Runs until Ctrl-C or SIGTERM.
pub(crate) fn run(node: &Node, output: Output, id: Option<&str>) -> Result<ExitCode> {
    let pods = output::resolve_all(node, id)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(follow(node, output, id, &pods));
    set_deadline(node, &output::resolve_all(node, id).unwrap_or(pods), 0)?;
    done.map(|()| ExitCode::SUCCESS)
}

async fn follow(node: &Node, output: Output, id: Option<&str>, pods: &[Attachment]) -> Result<()> {
    let pin = pins::current(node).program(Hook::Connect4);
    let program = sys::obj_get(&pin)
        .and_then(sys::program_id)
        .with_context(|| format!("cannot open the program {}; is redirect-cni installed?", pin.display()))?;
    let printer = Arc::new(Printer::new(output, pods));
    let logger = EbpfLogger::init_from_id_with_logger(program, Arc::clone(&printer))
        .context("cannot open the programs' ring buffer")?;
    // SAFETY: the logger owns the ring buffer's descriptor, and nothing replaces it while `records` has it.
    let mut records = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE)? };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = tick.tick() => {
                // Pods that were attached meanwhile are followed too.
                let pods = output::resolve_all(node, id).unwrap_or_default();
                printer.learn(&pods);
                set_deadline(node, &pods, now()? + AHEAD.as_nanos() as u64)?;
            }
            ready = records.readable_mut() => {
                let mut ready = ready?;
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
    }
}

/// `CLOCK_MONOTONIC`, what `bpf_ktime_get_ns()` reads, in nanoseconds.
fn now() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

fn set_deadline(node: &Node, pods: &[Attachment], until: u64) -> Result<()> {
    let _lock = NodeLock::acquire(node)?;
    let mut tables = Tables::open(node)?;
    for pod in pods {
        tables.set_trace(pod.cookie, until)?;
    }
    Ok(())
}

/// Names the numbers in a record and prints it.
struct Printer {
    output: Output,
    pods: Mutex<HashMap<u64, String>>,
}

impl Printer {
    fn new(output: Output, pods: &[Attachment]) -> Printer {
        let printer = Printer { output, pods: Mutex::default() };
        printer.learn(pods);
        printer
    }

    fn learn(&self, pods: &[Attachment]) {
        let Ok(mut known) = self.pods.lock() else { return };
        for pod in pods {
            let name = pod.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
            known.insert(pod.cookie, name.unwrap_or_else(|| pod.id.container_id.clone()));
        }
    }

    /// Names the numbers. Records of pods that were not asked for stay without names.
    fn translate(&self, hex: &str) -> Option<Vec<(&'static str, Value)>> {
        let record = decode(hex)?;
        let pod = self.pods.lock().ok()?.get(&record.cookie)?.clone();
        let inbound = record.kind == kind::INBOUND;
        let rule = if inbound {
            InboundRule::from_number(record.rule).map(InboundRule::label)
        } else {
            Rule::from_number(record.rule).map(Rule::label)
        };
        let mut fields = Vec::new();
        let mut add = |name, value| fields.push((name, value));
        add("hook", json!(["connect", "sendmsg", "inbound", "guard"].get(record.kind as usize)));
        add("pod", json!(pod));
        if inbound {
            add("client", json!(SocketAddr::from(record.src)));
        } else {
            if record.kind != kind::LEAVING {
                add("pid", json!(record.pid));
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
        add("verdict", json!(VERDICTS.get(record.verdict as usize)));
        add("rule", json!(rule));
        Some(fields)
    }
}

/// In the order of `redirect_common::trace::verdict`.
const VERDICTS: [&str; 7] =
    ["direct", "to-outbound", "to-inbound", "to-dns", "refused", "dropped", "would-drop"];

/// A record from the hexadecimal digits that aya-log makes of its bytes.
fn decode(hex: &str) -> Option<TraceRecord> {
    let digits = hex.as_bytes();
    if digits.len() != 2 * RECORD_BYTES {
        return None;
    }
    let mut words = digits.chunks_exact(8).map(|chunk| {
        let word = u32::from_str_radix(std::str::from_utf8(chunk).ok()?, 16).ok()?;
        // The digits are the bytes in memory order.
        Some(u32::from_ne_bytes(word.to_be_bytes()))
    });
    let mut next = || words.next().flatten();
    let (low, high) = (next()?, next()?);
    let mut numbers = [0; 6];
    for number in &mut numbers {
        *number = next()?;
    }
    let mut endpoint =
        || Some(Endpoint { ip: Ip { words: [next()?, next()?, next()?, next()?] }, port: next()? });
    let (src, dst) = (endpoint()?, endpoint()?);
    let [pid, uid, gid, kind, verdict, rule] = numbers;
    let cookie = u64::from(low) | u64::from(high) << 32;
    Some(TraceRecord { cookie, pid, uid, gid, kind, verdict, rule, src, dst })
}

impl Log for Printer {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let Some(fields) = self.translate(&record.args().to_string()) else { return };
        let mut out = io::stdout().lock();
        // A closed pipe ends the reader at the next tick at the latest; a record has no other reader.
        let _ = match self.output {
            Output::Json => {
                let object: Map<_, _> =
                    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                writeln!(out, "{}", Value::Object(object))
            }
            Output::Text => {
                let words: Vec<_> = fields
                    .iter()
                    .map(|(name, value)| match value {
                        Value::String(text) if *name == "hook" => format!("{text:<8}"),
                        Value::String(text) => format!("{name}={text}"),
                        other => format!("{name}={other}"),
                    })
                    .collect();
                writeln!(out, "{}", words.join(" "))
            }
        };
        let _ = out.flush();
    }

    fn flush(&self) {}
}
