//! The slots of a pod that comes from another map layout. What their addresses stand for is taken along: a
//! connection that is on its way to the sidecar when the programs change, and the names of those that are
//! open, stay right.

use aya::maps::{HashMap, MapData};
use redirect_common::{Claims, Kept, SlotKey};

use crate::attach::map::{Error, open, scan};
use crate::attach::record::Attachment;
use crate::attach::tables::Tables;
use crate::kernel::folders;
use crate::kernel::pins;
use crate::kernel::sys;
use crate::node::Node;

/// `BPF_NOEXIST` of `linux/bpf.h`
const NOEXIST: u64 = 1;

/// Copies the pod's entries of DESTINATIONS from the versions that have pins of it, and counts them in
/// CLAIMS. A slot that stands for something already keeps it. A version in which entries have another size is
/// left out.
///
/// # Errors
/// A map cannot be read or written.
pub(crate) fn take_along(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    let mut taken = 0;
    let others = folders::generations(node)?;
    for generation in others.iter().filter(|other| other.abi() != pins::abi() && other.has(&attachment.id)) {
        let failed = scan("DESTINATIONS");
        let old = sys::obj_get(&generation.map("DESTINATIONS")).map_err(&failed)?;
        let sizes = (size_of::<SlotKey>(), size_of::<Kept<SlotKey>>());
        if sys::map_sizes(&old).map_err(&failed)? != sizes {
            continue;
        }
        let entries = sys::map_entries::<SlotKey, Kept<SlotKey>>(&old).map_err(&failed)?;
        let mut new: HashMap<MapData, SlotKey, Kept<SlotKey>> = open(node, "DESTINATIONS")?;
        let of_pod = entries.into_iter().filter(|(key, _)| key.cookie == attachment.cookie);
        taken += of_pod.filter(|(key, kept)| new.insert(key, kept, NOEXIST).is_ok()).count() as u64;
    }
    if taken == 0 {
        return Ok(());
    }
    let more = |claims: Claims| Claims { destinations: claims.destinations + taken, ..claims };
    Tables::open(node)?.change_claims(attachment.cookie, more)
}
