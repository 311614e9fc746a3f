//! What happens, in order: a node, the pods, requests and who saw what of them, promises, mishaps, and the
//! page.

use std::io::{self, IsTerminal as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use harness::progress::step;

use crate::check::Check;
use crate::counts;
use crate::door::Door;
use crate::mesh::Mesh;
use crate::node::{ADDRESS, GATEWAY_HOST_PORT};
use crate::report::{Count, Report};
use crate::trips::{Logs, Trip, Visit};
use crate::visit::visit;
use crate::{checks, drill};

/// How many pages are asked for: each version of reviews comes twice.
const VISITS: usize = 6;
/// How long Envoys may take to write their logs.
const PATIENCE: Duration = Duration::from_secs(5);

/// How what is found is shown.
#[derive(Clone, Copy)]
pub(crate) struct Shown {
    /// End with standard input, at once on a terminal, instead of at Ctrl-C.
    pub(crate) once: bool,
    /// As JSON.
    pub(crate) json: bool,
}

/// Plays it all; the exit code says whether everything was as promised.
pub(crate) fn play(shown: Shown, dir: &Path, cgroup: &Path, door: TcpListener) -> Result<ExitCode> {
    let start = Instant::now();
    let mut mesh =
        step("a node: containerd, CNI plugins with redirect-cni as the last", || Mesh::start(dir, cgroup))?;
    step("eight pods: cgroup, sandbox, CNI ADD", || mesh.add_sandboxes())?;
    step("their containers: applications and Envoys", || mesh.start_containers())?;
    // In by the node's port, which the plugin portmap leads to the gateway: from the machine through the
    // door, and from here, where the machine's own 127.0.0.1 is out of reach, directly.
    let gateway = SocketAddr::from((ADDRESS, GATEWAY_HOST_PORT));
    let door = Door::open(door, mesh.netns()?, gateway)?;
    let page = format!("http://{gateway}/productpage");
    let (trips, counts) = step(format!("{VISITS} requests for {page}"), || requests(&mesh, &page))?;
    let mut found: Vec<Check> = trips.iter().map(|trip| whole(&trip.visit)).collect();
    found.extend(trips.iter().flat_map(|trip| &trip.hops).flat_map(|hop| hop.checks(&mesh.ips())));
    found.extend(counts.iter().map(Count::check));
    found.extend(step("past the sidecars, and where there are none", || checks::all(&mesh, &mesh.pods()?))?);
    found.extend(step("without the sidecar of ratings", || drill::sidecar(&mut mesh, &page))?);
    found.extend(step("a new sandbox for details", || drill::sandbox(&mut mesh, &page))?);
    let report = Report {
        envoy: mesh.envoy()?,
        runtime: mesh.runtime()?,
        page: door.url("/productpage"),
        pods: mesh.pods()?,
        list: mesh.redirect(&["list"])?,
        attachments: mesh.redirect_json(&["list"])?,
        outcomes: mesh.redirect_json(&["outcomes"])?,
        trips,
        counts,
        checks: found,
        seconds: start.elapsed().as_secs_f64(),
    };
    let before = mesh.counters()?;
    print(shown, &report)?;
    stay_open(shown)?;
    if shown.json {
        let since = counts::compare(&before, &mesh.counters()?, &[]);
        println!("{}", serde_json::to_string(&since)?);
    }
    step("everything is taken down", || mesh.stop())?;
    let broken =
        report.broken().inspect(|check| eprintln!("bookinfo: {}: {}", check.promise, check.found)).count();
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks for the page a few times and finds out what that caused.
fn requests(mesh: &Mesh, page: &str) -> Result<(Vec<Trip>, Vec<Count>)> {
    let before = mesh.counters()?;
    let visits = (0..VISITS).map(|_| visit(page)).collect::<Result<Vec<_>>>()?;
    let trips = follow(mesh, &visits)?;
    let counts = counts::compare(&before, &mesh.counters()?, &visits);
    Ok((trips, counts))
}

/// Waits until the logs have everything about the visits.
fn follow(mesh: &Mesh, visits: &[Visit]) -> Result<Vec<Trip>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let logs: Logs = mesh.logs()?;
        let trips: Vec<_> = visits.iter().map(|visit| Trip::follow(visit, &logs)).collect();
        if trips.iter().all(Trip::is_complete) || Instant::now() > deadline {
            return Ok(trips);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn whole(visit: &Visit) -> Check {
    Check::new(
        format!("the page of request {} is whole", visit.request_id),
        visit.summary(),
        visit.is_whole(),
    )
}

fn print(shown: Shown, report: &Report) -> Result<()> {
    match shown.json {
        // On one line: what comes after it is another document.
        true => println!("{}", serde_json::to_string(report)?),
        false => print!("{}", report.to_text()),
    }
    Ok(())
}

/// Leaves the page open until Ctrl-C, which ends the process that waits for us, and so us.
fn stay_open(shown: Shown) -> Result<()> {
    if !shown.once {
        eprintln!("  The page stays until Ctrl-C.");
        loop {
            thread::park();
        }
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        io::copy(&mut stdin.lock(), &mut io::sink())?;
    }
    Ok(())
}
