//! The layouts that kernel programs and user space share, held against a checked-in file: pins of one
//! [`ABI_VERSION`] outlive the binary that made them, so a layout must never change under it.

use std::fmt::Write as _;
use std::fs;
use std::mem::{offset_of, size_of};
use std::path::PathBuf;

use redirect_common::{
    ABI_VERSION, AddrKey, Asking, Claims, Counters, DnsAsked, DnsClient, DnsProxy, Endpoint, Entered, Event,
    GuardedPod, HandoffKey, Ip, Kept, ListenerKey, ListeningKey, Origin, PodConfig, PortBlock, PortsKey,
    RangeKey, SetKey, SlotKey, TraceRecord,
};

type Destination = Kept<SlotKey>;
type Handoff = Kept<HandoffKey>;

/// One line per type and per public field: offset and size in bytes. The fields and the bytes of private ones
/// must be all that there is: the kernel hashes and compares every byte of a key, so padding would be chance.
macro_rules! layouts {
    ($($kind:ident { $($field:ident),* } $(+ $private:expr)?;)+) => {{
        let mut text = String::new();
        $(
            writeln!(text, "{} {}", stringify!($kind), size_of::<$kind>()).expect("a String takes everything");
            let mut covered = 0 $(+ $private)?;
            $(
                let size = size_of_field(|value: &$kind| &raw const value.$field);
                covered += size;
                let (name, offset) = (stringify!($field), offset_of!($kind, $field));
                writeln!(text, "  {name} at {offset}, {size}").expect("a String takes everything");
            )*
            assert_eq!(covered, size_of::<$kind>(), "{} has padding, or a field is missing here", stringify!($kind));
        )+
        text
    }};
}

fn size_of_field<T, F>(_: impl Fn(&T) -> *const F) -> usize {
    size_of::<F>()
}

fn layouts() -> String {
    let mut text = layouts! {
        Ip { words };
        Endpoint { ip, port };
        PodConfig {
            cookie, cgroup_id, flags, proxy_uid, proxy_gid, outbound_port, inbound_port, dns_port, ephemeral_first,
            ephemeral_last, source4, source6
        };
        SetKey { cookie, set, value };
        PortsKey { cookie, set, block };
        PortBlock { words };
        AddrKey { cookie, ip };
        Claims { destinations, handshakes, clients, listening, turns };
        RangeKey { cookie, list, ip };
        ListeningKey { cookie, port, place };
        SlotKey { cookie, slot, family };
        Destination { key, dst } + 4;
        HandoffKey { cookie } + 2 * size_of::<Endpoint>();
        Handoff { key, dst } + 4;
        ListenerKey { cookie, port, place };
        Origin { dst, role };
        DnsProxy { port, state };
        DnsClient { cookie, client } + 4;
        DnsAsked { first, next, at };
        Entered { last, below };
        Asking { task, port };
        GuardedPod { cookie, proxy_uid, audit };
        Counters { counts };
        TraceRecord { cookie, pid, uid, gid, kind, verdict, rule, src, dst };
    };
    for event in Event::ALL {
        writeln!(text, "Event::{event:?} {}", *event as u32).expect("a String takes everything");
    }
    text
}

#[test]
fn a_layout_changes_only_with_the_version() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/abi-v{ABI_VERSION}.txt"));
    let now = layouts();
    let recorded = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        recorded == now,
        "a layout differs from {}. Pins of version {ABI_VERSION} may be on nodes already: raise ABI_VERSION, and \
         put this into the file of the new version:\n{now}",
        path.display()
    );
}
