//! The legend: what is kept where. `redirect_common`'s first page has the same list with keys and values.

use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE;
use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{
    Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, SockHash,
};
use redirect_common::dns::proxy;
use redirect_common::{
    AddrKey, Counters, DnsAsked, DnsClient, DnsProxy, Endpoint, GUARDED_PODS, GuardedPod, HandoffKey, Ip,
    ListenerKey, Origin, PodConfig, PortBlock, PortsKey, RangeKey, SetKey, SlotKey,
};

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
/// has dialled, at most [`redirect_common::SLOTS`] per pod and family. Written on connect, never changed,
/// removed by detach. Full, or the slot taken by another destination: the connection takes the detour by
/// ORIGIN and HANDOFF.
#[map]
static DESTINATIONS: HashMap<SlotKey, Endpoint> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Handshakes under way of connections that take the detour: written at the client's ACTIVE_ESTABLISHED,
/// taken and deleted at the server's PASSIVE_ESTABLISHED, which on loopback comes later, or deleted when the
/// client closes before that. Full: the sidecar does not learn the destination, sends the connection to its
/// black hole, and `handoff_full` counts it.
#[map]
static HANDOFF: HashMap<HandoffKey, Endpoint> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Listening sockets of the sidecars. Written at TCP_LISTEN_CB, emptied by the kernel when a socket closes.
/// Full: the listener is counted as rejected, and inbound connections are refused.
#[map]
static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(16_384, 0);

/// The pod whose packet this CPU is looking at. Written by the program in the pod's namespace, read by
/// `inbound` right after it on the same CPU: look-ups run with bottom halves disabled, so nothing comes in
/// between.
#[map]
static ENTERED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Whether the guard is asking the kernel on this CPU who would get a packet: then `inbound` answers and
/// counts nothing. Written by the guard around its question, which runs with bottom halves disabled.
#[map]
static ASKING: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

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

/// Each socket's origin, which dies with the socket. Written on connect and in sock_ops. No memory: the
/// connection is refused.
///
/// A socket storage map needs BTF for key and value and, so that accepted sockets inherit their listener's
/// origin, BPF_F_CLONE; aya's own wrapper fixes the flags, hence this definition.
#[unsafe(link_section = ".maps")]
#[unsafe(export_name = "ORIGIN")]
static ORIGIN: SocketStorage<Origin> = SocketStorage::new();

/// The pods' DNS proxies. Written at their bind() and when they answer, read by `inbound`, removed by detach.
/// Full: the proxy stays on localhost, questions are refused, and `dns_proxy_rejected` counts it.
#[map]
static DNS_PROXIES: HashMap<u64, DnsProxy> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Who asked where, for proxies that do not answer from where they were asked. Written by `inbound`, read and
/// written when such a proxy answers. The one map that forgets: full, the client longest silent loses its
/// answer, as if on the wire.
#[map]
static DNS_ASKED: LruHashMap<DnsClient, DnsAsked> = LruHashMap::with_max_entries(4096, 0);

/// The shape in BTF that tells the loader to make a socket storage map with inheritance.
#[repr(C)]
pub(crate) struct SocketStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the pointers are placeholders that only the loader looks at, through BTF; no code follows them.
unsafe impl<T> Sync for SocketStorage<T> {}

impl<T> SocketStorage<T> {
    const fn new() -> Self {
        use core::ptr::null;
        Self { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() }
    }
}

/// The map of the sockets' origins, as the helpers want it.
#[inline(always)]
pub(crate) fn origin() -> *mut core::ffi::c_void {
    (&raw const ORIGIN).cast_mut().cast()
}

/// The pod's configuration; `None` means: not enrolled, leave alone.
#[inline(always)]
pub(crate) fn pod(cookie: u64) -> Option<&'static PodConfig> {
    // SAFETY: entries are replaced as a whole by attach, and freed no earlier than a grace period after their
    // removal.
    unsafe { PODS.get(cookie) }
}

/// The slot's address stands for this destination; false when it stands for another one, or there is no room.
#[inline(always)]
pub(crate) fn claim_slot(key: &SlotKey, dst: &Endpoint) -> bool {
    if let Some(owner) = destination(key) {
        return owner.port == dst.port && owner.ip.same(&dst.ip);
    }
    // Another connection may claim it at the same moment; who comes second finds it taken the next time.
    DESTINATIONS.insert(key, dst, BPF_NOEXIST.into()).is_ok()
}

/// What a slot's address stands for.
#[inline(always)]
pub(crate) fn destination(key: &SlotKey) -> Option<&'static Endpoint> {
    // SAFETY: an entry is written once and freed no earlier than a grace period after detach removed it.
    unsafe { DESTINATIONS.get(key) }
}

/// Notes that a pod's DNS proxy has opened a socket, which is a new one: how it answers is to be seen. False
/// when the table is full.
#[inline(always)]
pub(crate) fn dns_proxy_opened(cookie: u64, port: u32, opened: u32) -> bool {
    let Some(known) = DNS_PROXIES.get_ptr_mut(cookie) else {
        return DNS_PROXIES.insert(cookie, DnsProxy { port, state: opened }, 0).is_ok();
    };
    // SAFETY: the entry is the pod's until detach, and written in place; what two writers may lose is seen
    // again.
    unsafe {
        *known = DnsProxy { port, state: opened | ((*known).state & (proxy::OPENED4 | proxy::OPENED6)) }
    };
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

/// Remembers the true destination for the time of one loopback handshake; false when the table is full.
#[inline(always)]
pub(crate) fn handoff_put(key: &HandoffKey, dst: &Endpoint) -> bool {
    HANDOFF.insert(key, dst, 0).is_ok()
}

/// Takes a true destination out of the handshake table.
#[inline(always)]
pub(crate) fn handoff_take(key: &HandoffKey) -> Option<Endpoint> {
    // SAFETY: this key belongs to one handshake, whose only consumer is this call.
    let dst = unsafe { HANDOFF.get(key) }.copied()?;
    let _ = HANDOFF.remove(key);
    Some(dst)
}

/// Forgets a handshake that the sidecar did not finish.
#[inline(always)]
pub(crate) fn handoff_remove(key: &HandoffKey) {
    let _ = HANDOFF.remove(key);
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

/// The cookie of the pod whose packet is looked at.
#[inline(always)]
pub(crate) fn entered() -> u64 {
    ENTERED.get(0).copied().unwrap_or(0)
}

/// The pod that a filter's `classid` stands for; `None`: it is guarded no more. A copy: attach may give the
/// entry to another pod.
#[inline(always)]
pub(crate) fn guarded(index: u32) -> Option<GuardedPod> {
    GUARD.get(index).copied().filter(|guarded| guarded.cookie != 0)
}

/// The guard begins or ends to ask on this CPU.
#[inline(always)]
pub(crate) fn asking(now: bool) {
    if let Some(asking) = ASKING.get_ptr_mut(0) {
        // SAFETY: the entry is this CPU's own, and nothing else runs on it meanwhile.
        unsafe { *asking = u32::from(now) };
    }
}

/// Whether the guard is asking on this CPU.
#[inline(always)]
pub(crate) fn asked() -> bool {
    ASKING.get(0).is_some_and(|asking| *asking != 0)
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
pub(crate) fn in_ranges(cookie: u64, list: u32, ip: &Ip) -> bool {
    matches!(RANGES.get(Key::new(RangeKey::BITS, RangeKey::new(cookie, list, *ip))), Some(1))
}
