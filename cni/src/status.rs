//! STATUS: would an ADD of a pod with a sidecar work?
//!
//! An agent that is away is no reason to say no: pods without a sidecar start without it, the agent's own
//! among them, and the others wait for it in ADD.

use redirect_user::attach::record;
use redirect_user::inspect;
use redirect_user::node::Node;

use crate::conf::Conf;
use crate::error::Error;

/// Runs the verb.
pub(crate) fn run(conf: &Conf, node: &Node) -> Result<String, Error> {
    conf.rules()?;
    conf.pod_source()?;
    inspect::ready(node, conf.cgroup_root()?.as_deref()).map_err(|source| {
        // Links live in bpffs: without it, pods that were attached since the boot have lost theirs.
        let all = record::all(node).unwrap_or_default();
        Error::NotReady {
            source,
            attached: all.iter().filter(|attachment| attachment.of_this_boot()).count(),
        }
    })?;
    Ok(String::new())
}
