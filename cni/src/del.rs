//! DEL: remove what this container and interface have, and nothing of anybody else's.
//!
//! It is called twice, without a namespace, for a container that was never enrolled, and for an old sandbox
//! whose pod has a new one already. What is gone is gone: only something that is still there and cannot be
//! removed is an error.

use redirect_user::attach;
use redirect_user::ids::AttachmentId;
use redirect_user::node::Node;
use redirect_user::node::lock::NodeLock;

use crate::error::Error;

/// Runs the verb.
pub(crate) fn run(id: &AttachmentId, node: &Node) -> Result<String, Error> {
    // A container that was never enrolled needs no lock and no privilege.
    if !attach::has_anything(node, &id.container_id) {
        tracing::debug!("nothing to remove");
        return Ok(String::new());
    }
    let lock = NodeLock::acquire(node)?;
    let removed = attach::detach(node, &lock, &id.container_id, Some(&id.ifname))?;
    tracing::info!(removed, "removed");
    Ok(String::new())
}
