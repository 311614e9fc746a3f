//! The decision that ADD and CHECK share: whether this pod is ours, from the configuration and the pod's
//! source.

use redirect_user::enrol::{self, Enrolment, Reason};
use redirect_user::ids::PodRef;

use crate::conf::Conf;
use crate::error::Error;

/// Decides about a sandbox's pod. What only an enrolled pod needs is not looked at for the others.
pub(crate) fn enrol(pod: Option<&PodRef>, conf: &Conf) -> Result<Enrolment, Error> {
    let (rules, source) = (conf.rules()?, conf.pod_source()?);
    let handed_over = conf.handed_over_annotations()?;
    match pod {
        None => Ok(Enrolment::NotEnrolled(Reason::NotKubernetes)),
        Some(pod) => Ok(enrol::enrol(pod, handed_over.as_ref(), &rules, &*source)?),
    }
}
