//! The decision that ADD and CHECK share: whether this pod is ours, from the configuration and the pod's
//! source.

use redirect_user::enrol::{self, Enrolment, Reason};
use redirect_user::ids::PodRef;

use crate::conf::Conf;
use crate::error::Error;

/// Decides about a sandbox's pod. What only an enrolled pod needs is not looked at for the others.
pub(crate) fn enrol(pod: Option<&PodRef>, conf: &Conf) -> Result<Enrolment, Error> {
    let handed_over = conf.handed_over_annotations()?;
    let exclude_namespaces = conf.exclude_namespaces()?;
    let Some(pod) = pod else { return Ok(Enrolment::NotEnrolled(Reason::NotKubernetes)) };
    if let Some(reason) = enrol::at_a_glance(pod, handed_over.as_ref(), &exclude_namespaces) {
        return Ok(Enrolment::NotEnrolled(reason));
    }
    let (rules, source) = (conf.rules()?, conf.pod_source()?);
    Ok(enrol::enrol(pod, handed_over.as_ref(), &rules, &*source)?)
}
