//! GC: keep what the runtime lists in `cni.dev/valid-attachments`, remove the rest of this network's.

use std::collections::BTreeSet;

use redirect_user::gc;
use redirect_user::node::Node;
use redirect_user::node::lock::NodeLock;

use crate::conf::Conf;
use crate::error::Error;

/// Runs the verb. The runtime calls it once per network with that network's attachments, so those of other
/// networks, and those that `redirect attach` made, are not its business unless their pods are gone.
pub(crate) fn run(conf: &Conf, node: &Node) -> Result<String, Error> {
    let valid: BTreeSet<_> = conf.valid_attachments()?.into_iter().collect();
    let network = conf.network()?;
    if !node.state_dir.exists() && !redirect_user::kernel::pins::root(node).exists() {
        return Ok(String::new());
    }
    let lock = NodeLock::acquire(node)?;
    let collected = gc::collect(node, &lock, |attachment| {
        // Pins of a living pod without a record may be anybody's.
        let Some(attachment) = attachment else { return true };
        let id = (attachment.id.container_id.clone(), attachment.id.ifname.clone());
        attachment.network != network || valid.contains(&id)
    })?;
    tracing::info!(containers = ?collected.containers, pods = collected.cookies.len(), "collected");
    Ok(String::new())
}
