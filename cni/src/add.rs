//! ADD: decide, and redirect the pod if it is ours. The result is always that of the plugins before.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use redirect_user::attach::{self, Request};
use redirect_user::enrol::Enrolment;
use redirect_user::ids::PodRef;
use redirect_user::kernel::hook::Hook;
use redirect_user::kernel::install::Ensured;
use redirect_user::node::Node;
use redirect_user::node::timings::Clock;
use redirect_user::node::{fault, outcomes};
use redirect_user::pod::cgroup::{self, Clues, PodCgroup};
use redirect_user::policy::Policy;
use redirect_user::{repair, upgrade};

use crate::call::Sandbox;
use crate::conf::Conf;
use crate::enrol::enrol;
use crate::error::Error;
use crate::prev::PrevResult;

/// Runs the verb, counts how it ended and keeps how long it took.
pub(crate) fn run(sandbox: &Sandbox, conf: &Conf, node: &Node) -> Result<String, Error> {
    let mut clock = Clock::start();
    let outcome = add(sandbox, conf, node, &mut clock);
    let label = match &outcome {
        Ok((label, _)) => (*label).to_owned(),
        Err(error) => format!("failed_{}", error.code().0),
    };
    outcomes::count(node, &label);
    clock.stop(node, "ADD", &label);
    outcome.map(|(_, result)| result)
}

/// The outcome's label and the result.
fn add(
    sandbox: &Sandbox,
    conf: &Conf,
    node: &Node,
    clock: &mut Clock,
) -> Result<(&'static str, String), Error> {
    let prev = PrevResult::read(conf)?;
    let enrolment = enrol(sandbox.pod.as_ref(), conf);
    clock.lap("enrol");
    let label = match enrolment? {
        Enrolment::NotEnrolled(reason) => {
            tracing::info!(%reason, "not enrolled");
            reason.label()
        }
        Enrolment::Enrolled { pod, policy } => {
            redirect(sandbox, conf, node, (pod, *policy), &prev, clock)?;
            tracing::info!("enrolled");
            "enrolled"
        }
    };
    Ok((label, prev.pass_on()))
}

fn redirect(
    sandbox: &Sandbox,
    conf: &Conf,
    node: &Node,
    (pod, policy): (PodRef, Policy),
    prev: &PrevResult<'_>,
    clock: &mut Clock,
) -> Result<(), Error> {
    check_netns(&sandbox.netns)?;
    let hooks: Vec<_> = Hook::needed(&policy).collect();
    let cgroup = pod_cgroup(conf, &pod, &hooks)?;
    clock.lap("cgroup");
    fault::point("add-cgroup");
    let request = Request {
        id: sandbox.id.clone(),
        cgroup: cgroup.path.clone(),
        netns: sandbox.netns.clone(),
        policy,
        pod: Some(pod),
        network: conf.network()?,
        addresses: prev.addresses.clone(),
        made_cgroups: cgroup.made.clone(),
    };
    attach(node, &request, clock).inspect_err(|_| cgroup.undo())?;
    fault::point("add-attached");
    Ok(())
}

/// The node first, then the pod.
fn attach(node: &Node, request: &Request, clock: &mut Clock) -> Result<(), Error> {
    let failed = upgrade::bring_up_to_date(node, &request.id)?;
    clock.lap("settle");
    let attached = attach::attach_locking(node, request);
    clock.lap("attach");
    let (attached, lock) =
        attached.map_err(|error| error.after_upgrade(failed.map(|error| error.to_string())))?;
    if attached.programs == Ensured::Fresh && repair::others_have_pins(node, &request.id) {
        // The pods that were attached before are in no map now.
        match repair::repair(node, &lock, None) {
            Ok(repaired) if repaired.is_empty() => {}
            Ok(repaired) => tracing::warn!(pods = repaired.len(), "other pods were attached again"),
            Err(error) => tracing::error!(%error, "other pods could not be attached again"),
        }
    }
    Ok(())
}

fn pod_cgroup(conf: &Conf, pod: &PodRef, hooks: &[Hook]) -> Result<PodCgroup, Error> {
    let (root, path) = (conf.cgroup_root()?, conf.cgroup_path()?);
    let clues = Clues {
        root: root.as_deref(),
        runtime_path: path.as_deref(),
        uid: pod.uid.as_deref(),
        hooks: Some(hooks),
    };
    Ok(cgroup::find(clues)?)
}

/// The namespace must be there and must not be the runtime's own: redirecting the node's traffic would cut it
/// off.
fn check_netns(path: &Path) -> Result<(), Error> {
    let failed = |problem: String| Error::Netns { path: path.to_owned(), problem };
    let identity = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let theirs = identity(path).map_err(|error| {
        failed(format!(
            "cannot look at CNI_NETNS: {error}; the runtime must make the namespace before it calls ADD"
        ))
    })?;
    let own = Path::new("/proc/self/ns/net");
    let ours =
        identity(own).map_err(|error| failed(format!("cannot compare with {}: {error}", own.display())))?;
    if theirs == ours {
        return Err(failed("CNI_NETNS is the namespace that the plugin itself runs in".to_owned()));
    }
    Ok(())
}
