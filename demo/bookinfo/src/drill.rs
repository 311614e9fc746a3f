//! What happens when something goes away: a sidecar that is killed, a sandbox that is made again.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::check::Check;
use crate::mesh::Mesh;
use crate::plan::{LEGACY, PORT, SERVICES};
use crate::trips::Visit;
use crate::visit::visit;

/// How long the mesh may take to notice that something is back.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills the sidecar of ratings and looks at the page and at the pod; then starts it again.
pub(crate) fn sidecar(mesh: &mut Mesh, page: &str) -> Result<Vec<Check>> {
    let [_, _, reviews, ratings] = SERVICES;
    let pod = ratings.workloads().next().context("ratings has a pod")?.pod();
    mesh.kill_sidecar(&pod)?;
    let mut checks = Vec::new();
    let visits = three(page)?;
    for workload in reviews.workloads() {
        checks.push(without_ratings(&workload.pod(), &visits));
    }
    let url = format!("http://{}:{PORT}/ratings/0", mesh.ip(&pod)?);
    for (who, got) in
        [("a pod", mesh.get(LEGACY.pod, "app", &[&url])?), ("the node", mesh.get_from_node(&url)?)]
    {
        let promise = format!("{pod} without its sidecar refuses {who}");
        checks.push(Check::new(promise, got.summary(), got.is_refusal()));
    }
    mesh.start_sidecar(&pod)?;
    let promise = "with the sidecar back, all three versions of the page are whole";
    checks.push(whole_again(page, promise)?);
    Ok(checks)
}

/// The page of one version while ratings is cut off: everything but the stars.
fn without_ratings(pod: &str, visits: &[Visit]) -> Check {
    let promise =
        format!("without the sidecar of ratings, a page with reviews by {pod} lacks the ratings only");
    let Some(visit) = visits.iter().find(|visit| visit.served_by() == Some(pod)) else {
        return Check::new(promise, "no such page was seen", false);
    };
    let misses = pod != "reviews-v1";
    let ok =
        visit.status == 200 && visit.has_details() && !visit.has_stars() && visit.misses_ratings() == misses;
    Check::new(promise, visit.summary(), ok)
}

/// Makes the sandbox of details again, as a kubelet does when it finds it dead.
pub(crate) fn sandbox(mesh: &mut Mesh, page: &str) -> Result<Vec<Check>> {
    let [_, details, ..] = SERVICES;
    let pod = details.workloads().next().context("details has a pod")?.pod();
    let (old, old_ip) = (mesh.sandbox(&pod)?.to_owned(), mesh.ip(&pod)?);
    mesh.recreate(&pod)?;
    let (new, ip) = (mesh.sandbox(&pod)?.to_owned(), mesh.ip(&pod)?);
    let list = mesh.redirect_json(&["list"])?;
    let attached = |id: &str| list.as_array().into_iter().flatten().any(|entry| entry["containerId"] == id);
    let promise = format!("the new sandbox of {pod} is redirected, the old one is not");
    let found = format!("{} at {ip} instead of {} at {old_ip}", &new[..13], &old[..13]);
    let mut checks = vec![Check::new(promise, found, attached(&new) && !attached(&old))];
    checks
        .push(whole_again(page, "with details in a new sandbox, all three versions of the page are whole")?);
    let url = format!("http://{ip}:{PORT}/details/0");
    let got = mesh.get(LEGACY.pod, "app", &[&url])?;
    let promise = format!("the new sandbox of {pod} does not answer in clear");
    checks.push(Check::new(promise, got.summary(), got.is_failure()));
    Ok(checks)
}

/// Opens the page until three pages in a row, and so one of each version, are whole.
fn whole_again(page: &str, promise: &str) -> Result<Check> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let visits = three(page)?;
        let mut versions: Vec<_> = visits.iter().filter_map(Visit::served_by).collect();
        versions.sort_unstable();
        let ok = versions == ["reviews-v1", "reviews-v2", "reviews-v3"] && visits.iter().all(Visit::is_whole);
        if ok || Instant::now() > deadline {
            let found = visits.iter().map(Visit::summary).collect::<Vec<_>>().join("; ");
            return Ok(Check::new(promise, found, ok));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// One page of each version: the pods behind reviews are taken in turn.
pub(crate) fn three(page: &str) -> Result<Vec<Visit>> {
    (0..3).map(|_| visit(page)).collect()
}
