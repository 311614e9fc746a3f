//! CHECK: is the pod redirected as ADD left it?

use redirect_user::attach::record;
use redirect_user::enrol::Decision;
use redirect_user::inspect;

use crate::conf::Conf;
use crate::decide::decide;
use crate::error::Error;
use crate::prev::PrevResult;
use crate::request::Sandbox;

/// Runs the verb. Nobody is asked about a pod that has an attachment; for one that has none, the decision is
/// taken again, because a pod that is not ours has nothing to check.
pub(crate) fn run(sandbox: &Sandbox, conf: &Conf) -> Result<String, Error> {
    PrevResult::read(conf)?;
    let (node, id) = (conf.node()?, &sandbox.id);
    let attachments =
        record::of_container(&node, &id.container_id).map_err(redirect_user::attach::Error::from)?;
    if attachments.iter().any(|attachment| attachment.id == *id) {
        let drift = inspect::check(&node, id)?;
        return if drift.is_empty() { Ok(String::new()) } else { Err(Error::Drift(drift)) };
    }
    match decide(sandbox.pod.as_ref(), conf)? {
        Decision::NotEnrolled(reason) => {
            tracing::info!(%reason, "not enrolled, nothing to check");
            Ok(String::new())
        }
        Decision::Enrolled { pod, .. } => Err(Error::UnknownContainer {
            container: id.container_id.clone(),
            ifname: id.ifname.clone(),
            pod: pod.to_string(),
        }),
    }
}
