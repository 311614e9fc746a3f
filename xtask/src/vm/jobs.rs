//! What is run in a guest: commands of the tool, and tests of this workspace's tiers one by one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::kernels::Kernel;
use crate::workspace::Workspace;
use crate::{cmd, soak};

/// Something that the guest runs.
pub(crate) struct Job {
    /// `TIER::TEST`, without blanks.
    pub(crate) label: String,
    pub(crate) limit: Duration,
    /// A line for a shell.
    command: String,
}

impl Job {
    fn new(label: &str, seconds: u64, command: String) -> Job {
        Job { label: label.to_owned(), limit: Duration::from_secs(seconds), command }
    }

    /// The line of the guest's list.
    pub(crate) fn line(&self) -> String {
        format!("{} {} {}\n", self.label, self.limit.as_secs(), self.command)
    }
}

/// How much is run.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Extent<'a> {
    /// What a plain `cargo xtask test` has time for.
    Least,
    /// `--short`, and all whose name, tier in front, begins with one of these.
    Few(&'a [String]),
    All,
}

/// Tests of one target.
struct Selection {
    target: &'static str,
    /// What a short run takes: whole names.
    few: &'static [&'static str],
    /// How many of these a plain run takes, from the first.
    least: usize,
    /// What `--all` leaves out, by the beginning of the name: it counts in thousands, or compares documents,
    /// and a guest is ten times slower.
    not: &'static [&'static str],
    /// How many seconds a test may take.
    seconds: u64,
}

const SELECTIONS: &[Selection] = &[
    Selection {
        target: "features",
        few: &["each_feature_is_there_since_its_version"],
        least: 1,
        not: &[],
        seconds: 600,
    },
    Selection {
        target: "datapath",
        few: &["outbound::ipv4", "inbound::ipv4", "outbound::ipv6", "outbound::with_syn_cookies"],
        least: 2,
        not: &[
            "load::",
            "cycles::",
            "field::a_scan",
            "field::five_thousand",
            "field::many_workers",
            "outbound::a_destination_without",
        ],
        seconds: 600,
    },
    Selection {
        target: "capture",
        few: &["dns::dig_resolves_over_udp_and_tcp_in_both_families"],
        least: 0,
        not: &["large::", "shown::"],
        seconds: 600,
    },
    Selection { target: "guard", few: &["faults::all_pins_removed"], least: 1, not: &[], seconds: 600 },
    Selection { target: "oracle", few: &[], least: 0, not: &["random_", "differences::"], seconds: 600 },
    // containerd, runc and the CNI plugins are this machine's; the later containerd asks the kernel the same.
    Selection { target: "containerd", few: &[], least: 0, not: &["later::"], seconds: 1200 },
];

/// The jobs for a kernel.
pub(crate) fn plan(
    workspace: &Workspace,
    kernel: &Kernel,
    binaries: &Path,
    extent: Extent<'_>,
) -> Result<Vec<Job>> {
    let tool = format!("{} --state-dir /tmp/state", binaries.join("redirect").display());
    if !kernel.works {
        // Refused by name: what is missing, and since when it is there; and nothing is left.
        let refused = format!(
            "! {tool} install 2>/tmp/error && cat /tmp/error && grep -q 'Linux 6.1 or newer' /tmp/error && \
             grep -Eq 'unknown func|cannot use helper|invalid bpf_context' /tmp/error && \
             [ $(wc -l </tmp/error) = 1 ] && [ -z \"$(ls /sys/fs/bpf)\" ] && ! {tool} doctor"
        );
        let mut jobs = vec![Job::new("tool::refused", 300, refused)];
        jobs.extend(tests(workspace, &SELECTIONS[0], binaries, Extent::Least)?);
        return Ok(jobs);
    }
    let installed = format!("{tool} install && {tool} doctor && {tool} uninstall");
    let mut jobs = Vec::new();
    if extent != Extent::Least {
        jobs.push(Job::new("tool::install_and_doctor", 300, installed));
    }
    for selection in SELECTIONS {
        jobs.extend(tests(workspace, selection, binaries, extent)?);
    }
    Ok(jobs)
}

/// The soak for so many minutes, whose figures come on the console while it goes on. It has copies of the
/// binaries, so that a build meanwhile does not change what the guest runs.
pub(super) fn soak(workspace: &Workspace, minutes: u32) -> Result<Job> {
    let copies = workspace.target.join("soak");
    std::fs::create_dir_all(&copies).with_context(|| format!("cannot create {}", copies.display()))?;
    let built = ["redirect", "redirect-cni", "pod-agent", "pod-dns"]
        .map(|name| workspace.target.join("debug").join(name));
    let test = executable(workspace, "agent")?;
    for from in built.iter().chain([&test]) {
        let to = copies.join(from.file_name().context("a binary has a name")?);
        std::fs::copy(from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    let command = format!(
        "set -o pipefail; REDIRECT_BIN_DIR={} {}={minutes} {} --exact --nocapture {} 2>&1 | \
         awk '{{ sub(/^.*figures:/, \"@= figures:\"); print; fflush() }} /^@= /{{ print >\"/dev/console\"; fflush(\"/dev/console\") }}'",
        copies.display(),
        soak::MINUTES,
        copies.join(test.file_name().context("a test has a name")?).display(),
        soak::SOAK,
    );
    Ok(Job::new("agent::soak", u64::from(minutes) * 60 + 1200, command))
}

/// One job for each test of a selection.
fn tests(
    workspace: &Workspace,
    selection: &Selection,
    binaries: &Path,
    extent: Extent<'_>,
) -> Result<Vec<Job>> {
    let executable = executable(workspace, selection.target)?;
    let variable = format!("REDIRECT_BIN_DIR={}", binaries.display());
    let job = |test: &String| {
        let label = format!("{}::{test}", selection.target);
        let command =
            format!("{variable} {} --exact --test-threads=1 --nocapture {test}", executable.display());
        Job::new(&label, selection.seconds, command)
    };
    Ok(chosen(&executable, selection, extent)?.iter().map(job).collect())
}

/// The tests that are selected of those that there are.
fn chosen(executable: &Path, selection: &Selection, extent: Extent<'_>) -> Result<Vec<String>> {
    let list = cmd::output(std::process::Command::new(executable).arg("--list"))?;
    let there: Vec<&str> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    if let Some(gone) = selection.few.iter().find(|name| !there.contains(*name)) {
        anyhow::bail!(
            "there is no test {gone} in {}: see SELECTIONS in xtask/src/vm/jobs.rs",
            selection.target
        );
    }
    let wanted = |name: &&str| match extent {
        Extent::All => fits(selection, name),
        Extent::Few(also) => {
            let whole = format!("{}::{name}", selection.target);
            selection.few.contains(name)
                || fits(selection, name) && also.iter().any(|begin| whole.starts_with(begin.as_str()))
        }
        Extent::Least => selection.few[..selection.least].contains(name),
    };
    Ok(there.into_iter().filter(wanted).map(str::to_owned).collect())
}

fn fits(selection: &Selection, name: &str) -> bool {
    !selection.not.iter().any(|begin| name.starts_with(begin))
}

/// The executable of a test target, from cargo's own account.
fn executable(workspace: &Workspace, target: &str) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--no-run", "--quiet", "--message-format=json", "--test", target]);
    let account = cmd::output(&mut cargo)?;
    let name = format!("\"name\":\"{target}\"");
    let line = account.lines().find(|line| line.contains(&name) && line.contains("\"kind\":[\"test\"]"));
    let path = line.and_then(|line| line.split_once("\"executable\":\"")?.1.split('"').next());
    path.map(PathBuf::from).with_context(|| format!("cargo names no executable of the tests {target}"))
}
