//! DEL: remove what this container and interface have, and nothing of anybody else's.
//!
//! It is called twice, without a namespace, for a container that was never enrolled, and for an old sandbox
//! whose pod has a new one already. What is gone is gone: only something that is still there and cannot be
//! removed is an error.

use redirect_user::attach;
use redirect_user::ids::AttachmentId;
use redirect_user::node::Node;
use redirect_user::node::lock::NodeLock;
use redirect_user::node::timings::Clock;

use crate::error::Error;

/// Runs the verb.
pub(crate) fn run(id: &AttachmentId, node: &Node) -> Result<String, Error> {
    // A container that was never enrolled needs no lock and no privilege.
    if !attach::has_anything(node, &id.container_id) {
        tracing::debug!("nothing to remove");
        return Ok(String::new());
    }
    let mut clock = Clock::start();
    let lock = NodeLock::acquire(node)?;
    clock.lap("lock");
    let removed = attach::detach(node, &lock, &id.container_id, Some(&id.ifname));
    clock.lap("detach");
    clock.stop(node, "DEL", if removed.is_ok() { "done" } else { "failed_105" });
    let removed = removed?;
    tracing::info!(removed, "removed");
    Ok(String::new())
}
