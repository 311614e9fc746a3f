//! DEL: remove what this container and interface have, and nothing of anybody else's.
//!
//! It is called twice, without a namespace, for a container that was never enrolled, and for an old sandbox
//! whose pod has a new one already. What is gone is gone: only something that is still there and cannot be
//! removed is an error.

use redirect_user::attach;
use redirect_user::attach::record;
use redirect_user::ids::AttachmentId;
use redirect_user::kernel::pins;
use redirect_user::node::Node;
use redirect_user::node::lock::NodeLock;

use crate::error::Error;

/// Runs the verb.
pub(crate) fn run(id: &AttachmentId, node: &Node) -> Result<String, Error> {
    if nothing_there(node, &id.container_id) {
        tracing::debug!("nothing to remove");
        return Ok(String::new());
    }
    let lock = NodeLock::acquire(node)?;
    let removed = attach::detach(node, &lock, &id.container_id, Some(&id.ifname))?;
    tracing::info!(removed, "removed");
    Ok(String::new())
}

/// A container that was never enrolled has neither record nor pins: no lock is needed to see that, and no
/// privilege.
fn nothing_there(node: &Node, container_id: &str) -> bool {
    let recorded = record::of_container(node, container_id).map_or(true, |found| !found.is_empty());
    !recorded && !pins::current(node).container(container_id).exists()
}
