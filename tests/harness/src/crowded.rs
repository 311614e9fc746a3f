//! Destinations that compete for the slots of a pod's private prefix.

use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use redirect_common::addr::Family;
use redirect_common::{TRIES, slot_of};

/// Destinations of which the last finds no slot when they are dialled in this order: the others have all the
/// slots of the pod's private prefix that are tried for it. Connections to it take the detour. None of them
/// has an owner.
#[must_use]
pub fn crowded(family: Family) -> Vec<SocketAddr> {
    static FOUND: [OnceLock<Vec<SocketAddr>>; 2] = [const { OnceLock::new() }; 2];
    FOUND[usize::from(family == Family::V6)].get_or_init(|| find(family)).clone()
}

/// The numbers of those that have the slots, for each family. A search among millions takes seconds without
/// optimisation, and minutes in a guest; it is made when another hash makes these wrong.
const KNOWN: [[u32; 3]; 2] = [[734_446, 3_687_143, 5_794_057], [560_440, 8_060_506, 842_381]];

fn find(family: Family) -> Vec<SocketAddr> {
    let last: SocketAddr = match family {
        Family::V4 => "192.0.2.10:8080",
        Family::V6 => "[2001:db8::10]:8080",
    }
    .parse()
    .expect("an address");
    let destination = |n: u32| {
        let ip = match family {
            Family::V4 => IpAddr::from((0x0b00_0000 + n).to_be_bytes()),
            Family::V6 => IpAddr::from((0x2001_0db8_u128 << 96 | u128::from(n)).to_be_bytes()),
        };
        SocketAddr::new(ip, 443)
    };
    let owner = |attempt: u32| {
        let wanted = slot_of(&last.into(), attempt);
        let known = KNOWN[usize::from(family == Family::V6)];
        let mut all = known.into_iter().chain(1..1 << 26).map(destination);
        all.find(|to| slot_of(&(*to).into(), 0) == wanted).expect("2 million slots, 64 million destinations")
    };
    (0..TRIES).map(owner).chain([last]).collect()
}
