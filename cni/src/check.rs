//! CHECK: is the pod redirected as ADD left it?

use redirect_user::attach::record::{self, Attachment};
use redirect_user::attach::replan;
use redirect_user::enrol::Enrolment;
use redirect_user::inspect::{self, Drift};
use redirect_user::node::Node;
use redirect_user::node::lock::NodeLock;
use redirect_user::repair;

use crate::call::Sandbox;
use crate::conf::Conf;
use crate::enrol::enrol;
use crate::error::Error;
use crate::prev::PrevResult;

/// Runs the verb. No source is asked about a pod that has an attachment; for one that has none, the decision
/// is taken again, because a pod that is not ours has nothing to check.
pub(crate) fn run(sandbox: &Sandbox, conf: &Conf, node: &Node) -> Result<String, Error> {
    PrevResult::read(conf)?;
    let id = &sandbox.id;
    let attachments =
        record::of_container(node, &id.container_id).map_err(redirect_user::attach::Error::from)?;
    if let Some(attachment) = attachments.iter().find(|attachment| attachment.id == *id) {
        catch_up(node, attachment)?;
        let drift = inspect::check(node, id)?;
        return match drift.as_slice() {
            [] => Ok(String::new()),
            [Drift::PodGone] => Err(Error::Drift { drift, outcome: "there is nothing to repair".to_owned() }),
            _ => Err(repair(node, drift)),
        };
    }
    match enrol(sandbox.pod.as_ref(), conf)? {
        Enrolment::NotEnrolled(reason) => {
            tracing::info!(%reason, "not enrolled, nothing to check");
            Ok(String::new())
        }
        Enrolment::Enrolled { pod, .. } => Err(Error::UnknownContainer {
            container: id.container_id.clone(),
            ifname: id.ifname.clone(),
            pod: pod.to_string(),
        }),
    }
}

/// Mends what has changed in the pod since ADD: addresses, interfaces and routes that came or went. The lock
/// is taken only where there is something to mend.
fn catch_up(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    if replan::look(attachment)?.stale.is_empty() {
        return Ok(());
    }
    let lock = NodeLock::acquire(node)?;
    let coverage = replan::replan(node, &lock, attachment)?;
    for what in &coverage.stale {
        tracing::info!("brought up to date: {what}");
    }
    for remark in &coverage.remarks {
        tracing::warn!("{remark}");
    }
    Ok(())
}

/// Tells what was wrong, after the node's pods were attached again from their records: others may have lost
/// the same.
fn repair(node: &Node, drift: Vec<Drift>) -> Error {
    let repaired = NodeLock::acquire(node)
        .map_err(redirect_user::attach::Error::from)
        .and_then(|lock| repair::repair(node, &lock, None));
    let outcome = match repaired {
        Ok(pods) => match pods.iter().find_map(|pod| pod.error.as_ref()) {
            None => "repaired now".to_owned(),
            Some(error) => format!("a repair failed: {error}"),
        },
        Err(error) => format!("a repair failed: {error}"),
    };
    Error::Drift { drift, outcome }
}
