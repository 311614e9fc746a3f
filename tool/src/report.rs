//! `redirect report`: one archive for a bug report, without secrets.
//!
//! Nothing is read that may hold one where it can be helped: no environment, no kubeconfig, no annotation
//! that is not ours. What is text of others, configuration and logs, goes through [`redact`].

mod redact;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use redirect_agent::conflist::{files, places};
use redirect_user::node::{Node, outcomes};
use redirect_user::{connections, doctor, inspect};
use serde_json::{Value, json};

use crate::output::{self, Output};
use crate::show;

/// `redirect report`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to write; else redirect-report-TIME.tar.gz in this folder.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The node's root directory, as this process sees it.
    #[arg(long, value_name = "PATH", default_value = "/")]
    host_root: PathBuf,
    /// The address at which the agent serves metrics.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15014")]
    metrics: SocketAddr,
}

/// How many lines of a log are taken.
const LINES: usize = 2000;

/// Writes the archive and says where it is.
pub(crate) fn run(node: &Node, output: Output, args: &Args) -> Result<ExitCode> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let path = args.file.clone().unwrap_or_else(|| format!("redirect-report-{now}.tar.gz").into());
    let file = File::options()
        .create_new(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    let mut archive = Archive {
        tar: tar::Builder::new(GzEncoder::new(file, Compression::default())),
        names: Vec::new(),
        now,
    };
    let written = fill(&mut archive, node, args).and_then(|()| archive.finish());
    let names = match written {
        Ok(names) => names,
        Err(error) => {
            let _ = fs::remove_file(&path);
            return Err(error.context(format!("cannot write {}", path.display())));
        }
    };
    match output {
        Output::Json => output::json(&json!({ "file": path, "entries": names }))?,
        Output::Text => {
            println!("{} has {} files; look into it before you publish it", path.display(), names.len());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The archive while it is written.
struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    names: Vec<String>,
    now: u64,
}

impl Archive {
    fn text(&mut self, name: &str, text: &str) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.now);
        self.tar.append_data(&mut header, format!("redirect-report/{name}"), text.as_bytes())?;
        self.names.push(name.to_owned());
        Ok(())
    }

    fn json(&mut self, name: &str, value: &Value) -> Result<()> {
        self.text(name, &serde_json::to_string_pretty(value)?)
    }

    fn finish(self) -> Result<Vec<String>> {
        self.tar.into_inner()?.finish()?.sync_all()?;
        Ok(self.names)
    }
}

fn fill(archive: &mut Archive, node: &Node, args: &Args) -> Result<()> {
    archive.text("README", README)?;
    archive.text("versions", &versions())?;
    let options = doctor::Options { host_root: args.host_root.clone(), ..doctor::Options::default() };
    archive.json("doctor.json", &json!(doctor::examine(node, &options)))?;
    archive.json("outcomes.json", &or_error(outcomes::counts(node)))?;
    archive.json("attachments.json", &attachments(node))?;
    archive.text("pins", &tree(&node.bpffs.join("redirect-cni")))?;
    network(archive, &args.host_root)?;
    archive
        .text("metrics", &metrics(args.metrics).unwrap_or_else(|error| format!("not served: {error}\n")))?;
    archive.text("agent.log", &journal())
}

const README: &str = "\
Written by `redirect report`. Values that look like secrets are replaced by [redacted].

versions          tool, programs, kernel
doctor.json       what `redirect doctor` found
outcomes.json     how the plugin decided about pods since the boot
attachments.json  each attached pod: record, links, filters, drift, counters, captured connections
pins              what is pinned
cni/              the runtime's network configuration
plugin.log        the end of the plugin's log, where it has a file
metrics           what the agent serves
agent.log         the end of the agent's journal, where there is one
";

fn or_error<T: serde::Serialize, E: std::fmt::Display>(result: Result<T, E>) -> Value {
    match result {
        Ok(value) => json!(value),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

fn versions() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    format!(
        "redirect {}\n{}{}",
        env!("CARGO_PKG_VERSION"),
        read("/proc/version"),
        read("/etc/os-release").lines().filter(|line| line.starts_with("PRETTY_NAME")).collect::<String>()
            + "\n"
    )
}

fn attachments(node: &Node) -> Value {
    let pods = match inspect::list(node) {
        Ok(pods) => pods,
        Err(error) => return json!({ "error": error.to_string() }),
    };
    let about = |pod| {
        let drift = inspect::compare(node, pod).map(|drift| inspect::describe(&drift));
        let sockets = connections::of(node, pod).map(|all| {
            let one = |one: &connections::Connection| {
                json!({ "client": one.client, "destination": one.destination, "sidecar": one.sidecar, "state": one.state })
            };
            all.iter().map(one).collect::<Vec<_>>()
        });
        json!({
            "record": pod,
            "drift": or_error(drift),
            "links": or_error(inspect::links(node, pod)),
            "filters": or_error(inspect::filters(node, pod)),
            "counters": or_error(show::counters(node, pod)),
            "connections": or_error(sockets),
        })
    };
    Value::Array(pods.iter().map(about).collect())
}

/// The names below a folder, one a line.
fn tree(folder: &Path) -> String {
    let mut names = String::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        names.push_str(&format!("{}\n", next.display()));
        if next.is_dir() && !next.is_symlink() {
            let mut entries: Vec<_> =
                fs::read_dir(&next).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            entries.sort_by(|a, b| b.cmp(a));
            open.extend(entries);
        }
    }
    names
}

/// The files that a runtime would look at, and the plugin's log, if the entry names one. Other files of the
/// folder, as kubeconfigs, are not touched.
fn network(archive: &mut Archive, host_root: &Path) -> Result<()> {
    let places = places::find(host_root, None);
    archive.text("cni/places", &format!("{places:?}\n"))?;
    let files = files::files(&places.conf_dir).unwrap_or_default();
    let mut log = None;
    for file in &files {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let text = fs::read_to_string(file).unwrap_or_default();
        match serde_json::from_str::<Value>(&text) {
            Ok(mut value) => {
                log = log.or_else(|| log_file(&value));
                redact::json(&mut value);
                archive.json(&format!("cni/{name}"), &value)?;
            }
            Err(error) => archive.text(&format!("cni/{name}"), &format!("not JSON: {error}\n"))?,
        }
    }
    if let Some(path) = log {
        let path = host_root.join(path.strip_prefix("/").unwrap_or(&path));
        let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        archive
            .text("plugin.log", &redact::text(&end_of(&text.unwrap_or_else(|error| error.to_string()))))?;
    }
    Ok(())
}

fn log_file(conf: &Value) -> Option<PathBuf> {
    let entries = conf["plugins"].as_array()?;
    let ours = entries.iter().find(|entry| entry["type"] == "redirect-cni")?;
    ours["logFile"].as_str().map(PathBuf::from)
}

fn end_of(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n") + "\n"
}

/// What the agent serves. Our metrics have names of pods and no text of others.
fn metrics(address: SocketAddr) -> std::io::Result<String> {
    let wait = Duration::from_secs(1);
    let mut stream = std::net::TcpStream::connect_timeout(&address, wait)?;
    stream.set_read_timeout(Some(wait))?;
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut text = String::new();
    stream.take(8 << 20).read_to_string(&mut text)?;
    Ok(text.split_once("\r\n\r\n").map_or(text.clone(), |(_, body)| body.to_owned()))
}

fn journal() -> String {
    let lines = LINES.to_string();
    let asked =
        Command::new("journalctl").args(["--no-pager", "-u", "redirect-cni-agent", "-n", &lines]).output();
    match asked {
        Ok(output) => redact::text(&String::from_utf8_lossy(&output.stdout)),
        Err(error) => format!("no journal: {error}\n"),
    }
}
