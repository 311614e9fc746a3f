//! `redirect doctor`: each thing that this node needs, tried rather than guessed from version numbers.

mod chain;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use redirect_user::doctor::{self, CHECKS, Finding, Options, Status};
use redirect_user::node::Node;
use serde_json::json;

use crate::output::{self, Colour, Format};

/// `redirect doctor`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Before an installation: only what an ADD would need, and who else is on the node.
    #[arg(long, conflicts_with = "pod")]
    pre: bool,
    /// One attached pod: what in it goes where no hook sees it.
    #[arg(long, value_name = "NS/NAME")]
    pod: Option<String>,
    /// Look again each second until nothing is missing, for at most this long.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60")]
    wait: Option<u64>,
    /// Only list the checks.
    #[arg(long, conflicts_with_all = ["pre", "pod", "wait"])]
    list: bool,
    /// The whole of the verifier's log, where a program is refused.
    #[arg(long)]
    verifier_log: bool,
    /// The node's root directory, as this process sees it.
    #[arg(long, value_name = "PATH", default_value = "/")]
    host_root: PathBuf,
    /// Where cgroup v2 is, if the plugin's configuration has "cgroupRoot".
    #[arg(long, value_name = "PATH")]
    cgroup_root: Option<PathBuf>,
    /// Where the runtime reads network configuration; else the runtime's own configuration is asked.
    #[arg(long, value_name = "PATH")]
    cni_conf_dir: Option<PathBuf>,
    /// Where the runtime looks for plugins; else as with --cni-conf-dir.
    #[arg(long, value_name = "PATH")]
    cni_bin_dir: Option<PathBuf>,
}

/// Examines the node or a pod; fails when something is missing.
pub(crate) fn run(node: &Node, format: Format, args: &Args) -> Result<ExitCode> {
    if matches!(format, Format::Junit | Format::Compact) {
        bail!("`redirect doctor` prints text, json or short");
    }
    if args.list {
        return list(format);
    }
    let deadline = Instant::now() + Duration::from_secs(args.wait.unwrap_or(0));
    let findings = loop {
        let findings = examine(node, args)?;
        if args.wait.is_none() || count(&findings, Status::Missing) == 0 || Instant::now() >= deadline {
            break findings;
        }
        std::thread::sleep(Duration::from_secs(1));
    };
    match format {
        Format::Json => output::json(&findings)?,
        Format::Short => print(findings.iter().filter(|finding| finding.status != Status::Found)),
        _ => {
            print(findings.iter());
            summary(&findings);
        }
    }
    let missing = count(&findings, Status::Missing) > 0;
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn examine(node: &Node, args: &Args) -> Result<Vec<Finding>> {
    if let Some(id) = &args.pod {
        let pods = output::resolve(node, id)?;
        return Ok(pods.iter().flat_map(|pod| doctor::examine_pod(node, pod)).collect());
    }
    let options = Options {
        host_root: args.host_root.clone(),
        cgroup_root: args.cgroup_root.clone(),
        before: args.pre,
        verifier_log: args.verifier_log,
    };
    let mut findings = doctor::examine(node, &options);
    let (conf_dir, bin_dir) = args.places();
    findings.extend(chain::examine(&conf_dir, &bin_dir, args.pre));
    findings.sort_by_key(|finding| finding.id);
    Ok(findings)
}

fn list(format: Format) -> Result<ExitCode> {
    match format {
        Format::Json => {
            let list: Vec<_> = CHECKS
                .iter()
                .map(|check| json!({ "id": check.id, "what": check.what, "remedy": check.remedy }))
                .collect();
            output::json(&list)?;
        }
        _ => CHECKS.iter().for_each(|check| println!("{}  {}", check.id, check.what)),
    }
    Ok(ExitCode::SUCCESS)
}

fn count(findings: &[Finding], status: Status) -> usize {
    findings.iter().filter(|finding| finding.status == status).count()
}

fn print<'a>(findings: impl Iterator<Item = &'a Finding>) {
    let colours = output::colours();
    for finding in findings {
        let (word, colour) = match finding.status {
            Status::Found => ("found    ", Colour::Green),
            Status::Warning => ("warning  ", Colour::Yellow),
            Status::Missing => ("missing  ", Colour::Red),
            Status::Untried => ("not tried", Colour::Grey),
        };
        let word = output::painted(word, colour, colours);
        let mut lines = finding.detail.lines();
        println!("{}  {word}  {}: {}", finding.id, finding.what, lines.next().unwrap_or_default());
        lines.for_each(|line| println!("                   {line}"));
        if matches!(finding.status, Status::Warning | Status::Missing) {
            println!("                   do: {}", finding.remedy);
            println!("                   see docs/doctor.md#{}", finding.id.to_lowercase());
        }
    }
}

fn summary(findings: &[Finding]) {
    let count = |status| count(findings, status);
    println!(
        "\n{} found, {} warnings, {} missing, {} not tried",
        count(Status::Found),
        count(Status::Warning),
        count(Status::Missing),
        count(Status::Untried)
    );
}

impl Args {
    /// Where the runtime's network configuration and its plugins are.
    fn places(&self) -> (PathBuf, PathBuf) {
        let found = redirect_agent::conflist::places::find(&self.host_root, None);
        let conf = self.cni_conf_dir.clone().unwrap_or(found.conf_dir);
        (conf, self.cni_bin_dir.clone().unwrap_or(found.bin_dir))
    }
}
