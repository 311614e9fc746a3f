//! STATUS: would an ADD of a pod with a sidecar work?
//!
//! An agent that is away is told in the log and is no reason to say no: pods without a sidecar start without
//! it, the agent's own among them, and the others wait for it in ADD. A node that is not ready loses its pods
//! after a while. The same goes for programs of another build, which the next ADD replaces.

use redirect_user::attach::record;
use redirect_user::node::Node;
use redirect_user::ready;

use crate::conf::Conf;
use crate::error::Error;

/// Runs the verb.
pub(crate) fn run(conf: &Conf, node: &Node) -> Result<String, Error> {
    conf.rules()?;
    let source = conf.pod_source()?;
    ready::ready(node, conf.cgroup_root()?.as_deref()).map_err(|source| {
        // Links live in bpffs: without it, pods that were attached since the boot have lost theirs.
        let all = if source.endangers_pods() { record::all(node).unwrap_or_default() } else { Vec::new() };
        Error::NotReady {
            source,
            attached: all.iter().filter(|attachment| attachment.of_this_boot()).count(),
        }
    })?;
    if let Err(problem) = source.answers() {
        tracing::warn!("pods with a sidecar cannot start now: {problem}");
    }
    if let Some(stamp) = ready::other_build(node) {
        tracing::warn!(
            "the programs on the node are of another build ({stamp}); the next ADD replaces older ones"
        );
    }
    Ok(String::new())
}
