//! The legend: what is kept where. `redirect_common`'s first page has the same list with keys and values. Two
//! more maps are in [`crate::lookups`]: what one program leaves for another in the same moment.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::bindings::{BPF_EXIST, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::Key as Prefix;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuHashMap, ProgramArray, SockHash};
use redirect_common::dns::proxy;
use redirect_common::{
    AddrKey, CLIENTS_PER_POD, Claims, Counters, DnsAsked, DnsClient, DnsProxy, Endpoint, Family,
    GUARDED_PODS, GuardedPod, HANDSHAKES_PER_POD, HandoffKey, Ip, Kept, Key, LISTENER_PLACES,
    LISTENING_PER_POD, ListenerKey, ListeningKey, Origin, PodConfig, PortBlock, PortsKey, RangeKey,
    SLOTS_PER_POD, SetKey, SlotKey,
};

use crate::claims::{Count, take_turn};

/// Enrolled pods. Written by attach and detach, read by every program. Full: attach fails and says so.
#[map]
static PODS: HashMap<u64, PodConfig> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Ranges of the pods' policies. Written by attach and detach, read on connect. Full: attach fails and says
/// so.
#[map]
static RANGES: LpmTrie<RangeKey, u8> = LpmTrie::with_max_entries(4_194_304, 0);

/// Ports of the pods' policies, 2048 in one entry, so at most 128 entries for a pod. Written by attach and
/// detach, read on connect and inbound. Full: attach fails and says so.
#[map]
static PORTS: HashMap<PortsKey, PortBlock> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

/// Groups and interfaces of the pods' policies. Written by attach and detach, read on connect and inbound.
/// Full: attach fails and says so.
#[map]
static SETS: HashMap<SetKey, u8> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

/// The pods' own addresses. Written by attach and detach, read on connect. Full: attach fails and says so.
#[map]
static OWN: HashMap<AddrKey, u8> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// What the addresses of the pods' private prefixes stand for: one entry for each true destination that a pod
/// has dialled, at most [`SLOTS_PER_POD`] per pod. Written on connect, never changed, removed by detach.
/// Full, or all slots that were tried taken by other destinations: the connection takes the detour by ORIGIN
/// and HANDOFF.
#[map]
static DESTINATIONS: HashMap<SlotKey, Kept<SlotKey>> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);

/// How many entries of DESTINATIONS, HANDOFF, CLIENTS and LISTENING each pod has, so that one pod cannot fill
/// them. The entry is made and removed by attach and detach, counted up and down by the programs that write
/// those maps.
#[map]
static CLAIMS: HashMap<u64, Claims> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Handshakes under way, by both ends.
type Handshakes = HashMap<HandoffKey, Kept<HandoffKey>>;

/// The destinations of handshakes on the detour: written at the client's ACTIVE_ESTABLISHED, taken and
/// deleted at the server's PASSIVE_ESTABLISHED, which on loopback comes later, or deleted when the client
/// closes before that. Full, or the pod has [`HANDSHAKES_PER_POD`] of them: the sidecar does not learn the
/// destination, sends the connection to its black hole, and `handoff_full` counts it.
#[map]
static HANDOFF: Handshakes = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// The clients of handshakes of the sidecar with the application, in TPROXY mode: written before the SYN is
/// sent, taken and deleted at the application's PASSIVE_ESTABLISHED, or deleted when the sidecar's socket
/// closes before that. An entry lasts as long as the application's backlog is full. So when the pod has
/// [`CLIENTS_PER_POD`] of them `connect` refuses, and `client_refused` counts it. Full all the same: the
/// application sees 127.0.0.6, and `handoff_full` counts it.
#[map]
static CLIENTS: Handshakes = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

/// Listening sockets of the sidecars. Written at TCP_LISTEN_CB, emptied by the kernel when a socket closes.
/// Full: the listener is counted as rejected, and inbound connections are refused.
#[map]
static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(16_384, 0);

/// The sockets that listen on the ephemeral ports of a pod, by their cookies. Written in sock_ops when a
/// socket begins to listen, removed when it ends to; attach puts in what listened before, detach removes all
/// of a pod. Full, or the pod has [`LISTENING_PER_POD`]: the port counts as not listened on, and what comes
/// in for it is refused.
#[map]
static LISTENING: HashMap<ListeningKey, u64> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// The guarded pods, by the `classid` of their interfaces' filters; entry 0 is not used. Written by attach
/// and detach, read by the guard. Full: attach fails and says so.
#[map]
static GUARD: Array<GuardedPod> = Array::with_max_entries(GUARDED_PODS, 0);

/// Where the programs in the pods' namespaces go on: `inbound`. Written at installation and upgrade.
#[map]
static INBOUND: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Counters. The entry is made by attach; a program only adds to it.
#[map]
static STATS: PerCpuHashMap<u64, Counters> = PerCpuHashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Until when trace records of any pod are wanted, in `CLOCK_MONOTONIC` nanoseconds; 0 for never. Written by
/// `redirect trace`.
#[map]
static TRACED: Array<u64> = Array::with_max_entries(1, 0);

/// Until when trace records of a pod are wanted. Written by `redirect trace`, removed by it or by detach.
#[map]
static TRACES: HashMap<u64, u64> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Each socket's origin, which dies with the socket. Written on bind, on connect and in sock_ops. No memory:
/// the call is refused.
#[btf_map]
static ORIGIN: SkStorage<Origin> = SkStorage::new();

/// The pods' DNS proxies. Written at their bind() and when they answer, read by `inbound`, removed by detach.
/// Full: the proxy stays on localhost, questions are refused, and `dns_proxy_rejected` counts it.
#[map]
static DNS_PROXIES: HashMap<u64, DnsProxy> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Who asked where, for proxies that do not answer from where they were asked. Written by `inbound`, read and
/// written when such a proxy answers. The one map that forgets: full, the client longest silent loses its
/// answer, as if on the wire.
#[map]
static DNS_ASKED: LruHashMap<DnsClient, DnsAsked> = LruHashMap::with_max_entries(4096, 0);

/// The map of the sockets' origins, as the helpers want it.
#[inline(always)]
pub(crate) fn origin() -> *mut core::ffi::c_void {
    (&raw const ORIGIN).cast_mut().cast()
}

/// The pod's configuration; `None` means: not enrolled, leave alone. What was read of it holds only if
/// [`still`] says so afterwards.
#[inline(always)]
pub(crate) fn pod(cookie: u64) -> Option<&'static PodConfig> {
    // SAFETY: the memory stays a PodConfig while the program runs, but another pod's once detach or attach
    // has replaced the entry and the kernel has handed the element to the next insertion. A mixture has no
    // invalid bytes.
    unsafe { PODS.get(cookie) }
}

/// Whether the configuration is still this pod's. Asked last, when everything has been read.
#[inline(always)]
pub(crate) fn still(pod: &'static PodConfig, cookie: u64) -> bool {
    compiler_fence(Ordering::SeqCst);
    // SAFETY: a read of valid memory; volatile, so that it is made here and not with the first one.
    unsafe { core::ptr::read_volatile(&raw const pod.cookie) == cookie }
}

/// A copy of a destination, if the element was its key's all the time. For the kernel's reuse of elements see
/// [`Kept`].
#[inline(always)]
fn copied<K: Key>(found: Option<&'static Kept<K>>, key: &K) -> Option<Endpoint> {
    let found = found?;
    // SAFETY: reads of valid memory; volatile, so that the key is compared after the destination was copied.
    let (dst, of) = unsafe {
        (core::ptr::read_volatile(&raw const found.dst), core::ptr::read_volatile(&raw const found.key))
    };
    of.same(key).then_some(dst)
}

/// What becomes of a try to have a slot stand for a destination.
pub(crate) enum Claim {
    /// The slot's address stands for it.
    Done,
    /// The slot is another destination's.
    Taken,
    /// No slot is available: the pod has its share, or the table is full.
    Full,
}

/// Makes the slot's address stand for a destination.
#[inline(always)]
pub(crate) fn claim_slot(key: &SlotKey, dst: &Endpoint) -> Claim {
    if let Some(owner) = destination(key) {
        return if owner.same(dst) { Claim::Done } else { Claim::Taken };
    }
    let Some(claims) = claims(key.cookie) else { return Claim::Full };
    // SAFETY: the entry is there until detach, and then its memory another pod's count. Two connections at
    // the same moment may count as one: the limit need not be exact.
    if unsafe { (*claims).destinations } >= u64::from(SLOTS_PER_POD) {
        return Claim::Full;
    }
    // Another connection may claim it at the same moment; the one that comes second finds it taken the next
    // time.
    if DESTINATIONS.insert(key, Kept::new(*key, *dst), BPF_NOEXIST.into()).is_err() {
        return Claim::Full;
    }
    // SAFETY: as above.
    unsafe { (*claims).destinations += 1 };
    Claim::Done
}

/// What a slot's address stands for.
#[inline(always)]
pub(crate) fn destination(key: &SlotKey) -> Option<Endpoint> {
    // SAFETY: the memory stays a Kept<SlotKey> while the program runs; `copied` makes sure whose.
    copied(unsafe { DESTINATIONS.get(key) }, key)
}

/// Notes that a pod's DNS proxy has opened a socket, which is a new one: how it answers is to be seen, and
/// the bits of `closed` do not hold any more. False when the table is full.
#[inline(always)]
pub(crate) fn dns_proxy_opened(cookie: u64, port: u32, opened: u32, closed: u32) -> bool {
    let Some(known) = DNS_PROXIES.get_ptr_mut(cookie) else {
        return DNS_PROXIES.insert(cookie, DnsProxy { port, state: opened }, 0).is_ok();
    };
    // SAFETY: the entry is the pod's until detach, and written in place; what two writers may lose is seen
    // again.
    unsafe { *known = DnsProxy { port, state: opened | ((*known).state & proxy::OPEN & !closed) } };
    true
}

/// A pod's DNS proxy, if it has opened a socket.
#[inline(always)]
pub(crate) fn dns_proxy(cookie: u64) -> Option<DnsProxy> {
    // SAFETY: two words are copied; the entry is the pod's until detach and never replaced.
    unsafe { DNS_PROXIES.get(cookie) }.copied()
}

/// Notes what a pod's DNS proxy was seen to do. What it once did elsewhere stays until it binds again.
#[inline(always)]
pub(crate) fn note_dns_proxy(cookie: u64, seen: u32) {
    let Some(known) = DNS_PROXIES.get_ptr_mut(cookie) else { return };
    // SAFETY: as above.
    unsafe {
        if (*known).state & seen == 0 {
            (*known).state |= seen;
        }
    }
}

/// Remembers where a client of a DNS proxy asked.
#[inline(always)]
pub(crate) fn note_question(client: &DnsClient, at: Ip) {
    if let Some(asked) = dns_asked(client) {
        asked.asked(at);
    } else {
        let _ = DNS_ASKED.insert(client, DnsAsked::once(at), 0);
    }
}

/// Where a client's unanswered questions came in.
#[inline(always)]
pub(crate) fn dns_asked(client: &DnsClient) -> Option<&'static mut DnsAsked> {
    // SAFETY: the value lives for a grace period. Two who write it at once can at worst exchange two answers
    // of a proxy whose answers are attributed by their order anyway.
    DNS_ASKED.get_ptr_mut(client).map(|asked| unsafe { &mut *asked })
}

/// What a pod has of the tables that programs fill.
#[inline(always)]
fn claims(cookie: u64) -> Option<*mut Claims> {
    CLAIMS.get_ptr_mut(cookie)
}

/// Keeps the true destination for the time of one loopback handshake; false when the table is full, or the
/// pod has its share of it.
#[inline(always)]
pub(crate) fn handoff_put(key: &HandoffKey, dst: &Endpoint) -> bool {
    let Some(count) = claims(key.cookie).map(Count::handshakes) else { return false };
    put(&HANDOFF, key, dst, count, HANDSHAKES_PER_POD)
}

/// Takes a true destination out of the handshake table.
#[inline(always)]
pub(crate) fn handoff_take(key: &HandoffKey) -> Option<Endpoint> {
    take(&HANDOFF, key, Count::handshakes)
}

/// Forgets a handshake that the sidecar did not finish.
#[inline(always)]
pub(crate) fn handoff_remove(key: &HandoffKey) {
    remove(&HANDOFF, key, Count::handshakes);
}

/// Whether the pod may have one more entry in CLIENTS.
#[inline(always)]
pub(crate) fn has_room_for_client(cookie: u64) -> bool {
    claims(cookie).map(Count::clients).is_some_and(|count| count.is_below(CLIENTS_PER_POD))
}

/// Keeps a client for the time of the sidecar's handshake with the application; false when the table is full,
/// or the pod has twice its share of it. (`connect` has asked for room before, but a SYN with data comes
/// later than its `connect()`, and others may come in between.)
#[inline(always)]
pub(crate) fn client_put(key: &HandoffKey, client: &Endpoint) -> bool {
    let Some(count) = claims(key.cookie).map(Count::clients) else { return false };
    put(&CLIENTS, key, client, count, 2 * CLIENTS_PER_POD)
}

/// Takes a client out of the table.
#[inline(always)]
pub(crate) fn client_take(key: &HandoffKey) -> Option<Endpoint> {
    take(&CLIENTS, key, Count::clients)
}

/// Forgets a client whose connection the application did not take.
#[inline(always)]
pub(crate) fn client_remove(key: &HandoffKey) {
    remove(&CLIENTS, key, Count::clients);
}

/// Puts what is handed over into one of the two tables, if the pod's number of entries is below a limit.
#[inline(always)]
fn put(table: &Handshakes, key: &HandoffKey, what: &Endpoint, count: Count, limit: u64) -> bool {
    if count.is_below(limit) && table.insert(key, Kept::new(*key, *what), BPF_NOEXIST.into()).is_ok() {
        count.up();
        return true;
    }
    // The same two ends again, before what the first handshake left was taken.
    table.insert(key, Kept::new(*key, *what), BPF_EXIST.into()).is_ok()
}

/// Takes what is handed over out of one of the two tables.
#[inline(always)]
fn take(table: &'static Handshakes, key: &HandoffKey, count: fn(*mut Claims) -> Count) -> Option<Endpoint> {
    // SAFETY: as in `destination`; who dials may close, and thereby remove the entry, in the same moment.
    let what = copied(unsafe { table.get(key) }, key)?;
    remove(table, key, count);
    Some(what)
}

/// Takes an entry out of one of the two tables, if it is there.
#[inline(always)]
fn remove(table: &Handshakes, key: &HandoffKey, count: fn(*mut Claims) -> Count) {
    if table.remove(key).is_ok()
        && let Some(claims) = claims(key.cookie)
    {
        count(claims).down();
    }
}

/// Notes a socket that begins to listen on an ephemeral port, in the place of another one when all are taken;
/// false when there is no room, or the pod has its share of it.
#[inline(always)]
pub(crate) fn listening(cookie: u64, port: u32, socket: u64) -> bool {
    let Some(count) = claims(cookie).map(Count::listening) else { return false };
    if count.is_below(LISTENING_PER_POD) {
        for place in 0..LISTENER_PLACES {
            if LISTENING.insert(ListeningKey { cookie, port, place }, socket, BPF_NOEXIST.into()).is_ok() {
                count.up();
                return true;
            }
        }
    }
    LISTENING.insert(ListeningKey { cookie, port, place: 0 }, socket, BPF_EXIST.into()).is_ok()
}

/// Forgets a socket that ends to listen.
#[inline(always)]
pub(crate) fn listened(cookie: u64, port: u32, socket: u64) {
    for place in 0..LISTENER_PLACES {
        let key = ListeningKey { cookie, port, place };
        // SAFETY: 8 bytes, read at once. Another port's socket, read in its place, is not this one.
        if unsafe { LISTENING.get(key) }.is_some_and(|noted| *noted == socket) {
            if LISTENING.remove(key).is_ok()
                && let Some(count) = claims(cookie).map(Count::listening)
            {
                count.down();
            }
            return;
        }
    }
}

/// The place in LISTENERS that the next listener of this number takes over when all are taken: one after the
/// other, so that the newest ones are all known.
#[inline(always)]
pub(crate) fn next_place(cookie: u64, number: u32) -> u32 {
    claims(cookie).map_or(0, |claims| take_turn(claims, number) % LISTENER_PLACES)
}

/// Whether a socket listens on an ephemeral port.
#[inline(always)]
pub(crate) fn is_listening(cookie: u64, port: u32) -> bool {
    for place in 0..LISTENER_PLACES {
        // SAFETY: the value is not read, only whether there is one.
        if unsafe { LISTENING.get(ListeningKey { cookie, port, place }) }.is_some() {
            return true;
        }
    }
    false
}

/// Until when trace records of any pod are wanted.
#[inline(always)]
pub(crate) fn traced() -> u64 {
    TRACED.get(0).copied().unwrap_or(0)
}

/// Until when trace records of a pod are wanted.
#[inline(always)]
pub(crate) fn traced_pod(cookie: u64) -> u64 {
    // SAFETY: 8 bytes, read at once; another pod's deadline, read in its place, does no harm.
    unsafe { TRACES.get(cookie) }.copied().unwrap_or(0)
}

/// The sidecar's listeners.
#[inline(always)]
pub(crate) fn listeners() -> &'static SockHash<ListenerKey> {
    &LISTENERS
}

/// A listener of the sidecar, for [`crate::ctx`] to look at and release.
#[inline(always)]
pub(crate) fn listeners_ptr() -> *mut core::ffi::c_void {
    (&raw const LISTENERS).cast_mut().cast()
}

/// The pod that a filter's `classid` stands for; `None` without one. A copy: attach may give the entry to
/// another pod. A free entry is no pod's, so that nothing is known of it: filters go before their entry does.
#[inline(always)]
pub(crate) fn guarded(index: u32) -> Option<GuardedPod> {
    if index == 0 { None } else { GUARD.get(index).copied() }
}

/// This CPU's counters of a pod.
#[inline(always)]
pub(crate) fn counters(cookie: u64) -> Option<*mut Counters> {
    STATS.get_ptr_mut(cookie)
}

/// Whether a value is in one of a pod's sets.
#[inline(always)]
pub(crate) fn in_set(cookie: u64, set: u32, value: u32) -> bool {
    // SAFETY: the value is never read, only whether there is one.
    unsafe { SETS.get(SetKey { cookie, set, value }) }.is_some()
}

/// Whether a port is in one of a pod's sets of ports.
#[inline(always)]
pub(crate) fn in_ports(cookie: u64, set: u32, port: u32) -> bool {
    // SAFETY: an entry is written once and removed only after the pod's links are gone.
    unsafe { PORTS.get(PortsKey::of(cookie, set, port)) }.is_some_and(|block| block.contains(port))
}

/// Whether an address is one of the pod's own.
#[inline(always)]
pub(crate) fn own_address(cookie: u64, ip: &Ip) -> bool {
    // SAFETY: the value is never read, only whether there is one.
    unsafe { OWN.get(AddrKey { cookie, ip: *ip }) }.is_some()
}

/// Whether an address is in one of a pod's lists of ranges: whether the longest prefix that contains it says
/// so.
#[inline(always)]
pub(crate) fn in_ranges(cookie: u64, list: u32, ip: &Ip, family: Family) -> bool {
    matches!(RANGES.get(Prefix::new(RangeKey::BITS, RangeKey::of(cookie, list, *ip, family))), Some(1))
}
