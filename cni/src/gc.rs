//! GC: keep what the runtime lists in `cni.dev/valid-attachments`, remove the rest of this network's.

use std::collections::BTreeSet;

use redirect_user::gc::{self, Listed};
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
    let collected = gc::collect(node, &lock, |attachment| match attachment {
        Some(attachment) if attachment.network == network => {
            let id = (attachment.id.container_id.clone(), attachment.id.ifname.clone());
            if valid.contains(&id) { Listed::Yes } else { Listed::No }
        }
        // Another network's, or pins of a living pod without a record: they may be anybody's.
        _ => Listed::Unasked,
    })?;
    for orphan in &collected.orphans {
        tracing::warn!(
            container = orphan.container_id,
            ifname = orphan.ifname,
            "is not listed any more, but its pod runs: its redirection stays until the pod ends"
        );
    }
    let removed: Vec<_> = collected.removed.iter().map(|removed| &removed.container_id).collect();
    tracing::info!(?removed, pods = collected.cookies.len(), "collected");
    Ok(String::new())
}
