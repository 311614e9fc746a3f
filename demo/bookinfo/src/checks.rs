//! What is promised besides the requests: no traffic gets past a sidecar, and what is left alone is left
//! alone.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::check::Check;
use crate::mesh::Mesh;
use crate::plan::{self, GATEWAY, LEGACY, PORT, SERVICES, Service, WORKLOADS};
use crate::report::PodRow;

/// Everything that can be looked at while all pods run.
pub(crate) fn all(mesh: &Mesh, pods: &[PodRow]) -> Result<Vec<Check>> {
    let mut checks = vec![containers(pods), enrolled(pods), reasons(mesh)?];
    checks.extend(from_outside(mesh)?);
    checks.extend(from_inside(mesh)?);
    checks.push(left_alone(mesh)?);
    checks.push(guard_idle(mesh)?);
    Ok(checks)
}

/// The article's point: a pod has its application and the sidecar, and nothing has run before them.
fn containers(pods: &[PodRow]) -> Check {
    let mesh = pods.iter().filter(|pod| plan::workload(&pod.name).is_some());
    let (good, all) = mesh.fold((0, 0), |(good, all), pod| {
        let as_promised =
            pod.containers == ["app", "istio-proxy"] && pod.ready == 2 && pod.init_containers.is_empty();
        (good + usize::from(as_promised), all + 1)
    });
    let promise = "every pod of the mesh has two containers that run, and no init container";
    Check::new(promise, format!("{good} of {all}"), good == plan::PODS && all == plan::PODS)
}

fn enrolled(pods: &[PodRow]) -> Check {
    let redirected: Vec<_> = pods.iter().filter(|pod| pod.redirected).map(|pod| pod.name.as_str()).collect();
    let ok = redirected.len() == plan::PODS && redirected.iter().all(|pod| plan::workload(pod).is_some());
    Check::new("the pods of the mesh are redirected, and no others", redirected.join(", "), ok)
}

/// Why the others are not.
fn reasons(mesh: &Mesh) -> Result<Check> {
    let outcomes = mesh.redirect_json(&["outcomes"])?;
    let count = |outcome: &str| outcomes[outcome].as_u64().unwrap_or_default();
    let found = format!(
        "enrolled {}, excluded_namespace {}, not_a_sidecar {}",
        count("enrolled"),
        count("excluded_namespace"),
        count("not_a_sidecar")
    );
    let ok = count("enrolled") == plan::PODS as u64
        && count("excluded_namespace") == 1
        && count("not_a_sidecar") == 1;
    let promise =
        format!("{} is left alone as a router, {} for its namespace", GATEWAY.pod, LEGACY.namespace);
    Ok(Check::new(promise, found, ok))
}

/// The second line, which would be there if the first had let something past a sidecar.
fn guard_idle(mesh: &Mesh) -> Result<Check> {
    let stats = mesh.redirect_json(&["stats"])?;
    let pods = stats.as_array().context("`redirect stats` prints a list")?;
    let counters = pods.iter().filter_map(|pod| pod["counters"].as_object()).flatten();
    let (names, counts): (Vec<_>, Vec<_>) = counters.filter(|(name, _)| name.starts_with("guard_")).unzip();
    let caught: u64 = counts.into_iter().filter_map(Value::as_u64).sum();
    let ok = caught == 0 && pods.len() == plan::PODS && !names.is_empty();
    Ok(Check::new("the guard had nothing to catch", format!("{caught} in {} pods", pods.len()), ok))
}

/// A pod that is not in the mesh speaks to the applications' ports in clear, as anybody could.
fn from_outside(mesh: &Mesh) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for workload in WORKLOADS {
        let pod = workload.pod();
        let url = format!("http://{}:{PORT}/health", mesh.ip(&pod)?);
        let got = mesh.get(LEGACY.pod, "app", &[&url])?;
        let promise = format!("{pod}:{PORT} does not answer in clear to a pod outside the mesh");
        checks.push(Check::new(promise, got.summary(), got.is_failure()));
    }
    let [_, details, ..] = SERVICES;
    let got = mesh.get(LEGACY.pod, "app", &["--timeout", "2", &health(details)])?;
    let promise =
        format!("the address of a service, {}, leads nowhere from outside the mesh", details.address());
    checks.push(Check::new(promise, got.summary(), got.is_failure()));
    Ok(checks)
}

/// An application of the mesh makes the requests that fail from outside.
fn from_inside(mesh: &Mesh) -> Result<Vec<Check>> {
    let [productpage, details, ..] = SERVICES;
    let from = productpage.workloads().next().context("productpage has a pod")?.pod();
    let by_name = format!("http://{}:{PORT}/health", details.name);
    let pod = details.workloads().next().context("details has a pod")?.pod();
    let by_pod = format!("http://{}:{PORT}/health", mesh.ip(&pod)?);
    let requests = [
        ("by the service's name", vec![by_name]),
        ("by the service's address", vec![health(details)]),
        ("by the pod's address", vec![by_pod, "--host".into(), details.name.into()]),
    ];
    let check = |(how, arguments): (&str, Vec<String>)| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let got = mesh.get(&from, "app", &arguments)?;
        let ok = got.status() == Some(200) && got.body().contains("Details is healthy");
        Ok(Check::new(format!("the application of {from} reaches details {how}"), got.summary(), ok))
    };
    requests.into_iter().map(check).collect()
}

fn health(service: Service) -> String {
    format!("http://{}:{PORT}/health", service.address())
}

/// The pod in the excluded namespace has the annotations of an injected pod and no sidecar: if it were
/// redirected, no client would get an answer from it, and it would get none.
fn left_alone(mesh: &Mesh) -> Result<Check> {
    let url = format!("http://{}:{PORT}/ratings/0", mesh.ip(LEGACY.pod)?);
    let got = mesh.get_from_node(&url)?;
    let promise = format!("{}/{} answers in clear", LEGACY.namespace, LEGACY.pod);
    let ratings: Value = serde_json::from_str(got.body()).unwrap_or_default();
    let ok = got.status() == Some(200) && ratings["ratings"]["Reviewer1"] == 5;
    Ok(Check::new(promise, got.summary(), ok))
}
