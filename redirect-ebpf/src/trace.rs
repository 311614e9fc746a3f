//! One record per decision, for `redirect trace`. Off, it costs one branch; it is on for a pod while a reader
//! keeps moving the pod's deadline, so a reader that dies leaves nothing switched on.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_log_common::{ArgumentKind, DisplayHint, Level, RecordFieldKind};
use aya_log_ebpf::macro_support::AYA_LOGS;
use redirect_common::trace::{RECORD_BYTES, kind, verdict};
use redirect_common::{Endpoint, Event, GuardedPod, Inbound, Protocol, Rule, TraceRecord};

use crate::call::{Decision, Request};
use crate::ctx::Opening;
use crate::maps;
use crate::stats::count;

#[inline(always)]
fn wanted(cookie: u64) -> bool {
    let until = maps::traced();
    if until == 0 {
        return false;
    }
    // SAFETY: the helper has no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    now < until && now < maps::traced_pod(cookie)
}

/// A record as a line of aya-log, `info!("{:x}", record)`, laid out beforehand.
///
/// The macro itself finds the size of its buffer at run time, in a loop, and copies byte by byte; the
/// verifier walks all of that for every way that leads there: half a million instructions for `connect6`.
#[repr(C)]
struct Line {
    head: [u8; HEAD],
    record: TraceRecord,
}

/// What is in front of the record; a multiple of 8, so that the record is aligned.
const HEAD: usize = 40;
/// Makes the head as long as it has to be.
const TARGET: &[u8; 4] = b"flow";

/// The head: the length of the line, the fields that each line has (kind, length, value), and the hint
/// `{:x}`.
const fn head() -> [u8; HEAD] {
    const NONE: &[u8] = &[];
    let line = size_of::<Line>() as u16;
    let fields: [(u8, u16, &[u8]); 8] = [
        (RecordFieldKind::Target as u8, TARGET.len() as u16, TARGET),
        (RecordFieldKind::Level as u8, 1, &[Level::Info as u8]),
        (RecordFieldKind::Module as u8, 0, NONE),
        (RecordFieldKind::File as u8, 0, NONE),
        (RecordFieldKind::Line as u8, 4, &0_u32.to_ne_bytes()),
        (RecordFieldKind::NumArgs as u8, 4, &2_u32.to_ne_bytes()),
        (ArgumentKind::DisplayHint as u8, 1, &[DisplayHint::LowerHex as u8]),
        (ArgumentKind::Bytes as u8, RECORD_BYTES as u16, NONE),
    ];
    let mut head = [0; HEAD];
    let mut at = put(&mut head, 0, &line.to_ne_bytes());
    let mut field = 0;
    while field < fields.len() {
        let (kind, len, value) = fields[field];
        at = put(&mut head, at, &[kind]);
        at = put(&mut head, at, &len.to_ne_bytes());
        at = put(&mut head, at, value);
        field += 1;
    }
    assert!(at == HEAD, "the record must follow its own length at once");
    head
}

const fn put(head: &mut [u8; HEAD], at: usize, bytes: &[u8]) -> usize {
    let mut i = 0;
    while i < bytes.len() {
        head[at + i] = bytes[i];
        i += 1;
    }
    at + bytes.len()
}

/// Sends a record to the reader; when the buffer is full it is lost, and counted.
#[inline(always)]
fn send(record: TraceRecord) {
    const HEAD_BYTES: [u8; HEAD] = head();
    let cookie = record.cookie;
    if AYA_LOGS.output::<Line>(&Line { head: HEAD_BYTES, record }, 0).is_err() {
        count(cookie, Event::TraceLost);
    }
}

/// An outbound decision, see [`outbound`]. A function with global linkage, so that its line is not on the
/// hook's stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn trace_call(request: *const Request, decision: u64) -> u64 {
    // SAFETY: the caller passes a reference.
    if let Some(request) = unsafe { request.as_ref() } {
        outbound(request, Decision(decision));
    }
    0
}

/// An outbound decision. Called last, when nothing else is left to do: otherwise the verifier walks the rest
/// of the hook twice.
#[inline(always)]
fn outbound(request: &Request, decision: Decision) {
    let (flow, cookie) = (&request.flow, request.cookie);
    if !wanted(cookie) {
        return;
    }
    send(TraceRecord {
        cookie,
        // SAFETY: the helper has no argument; connect and sendmsg run in the caller's context.
        pid: (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32,
        uid: flow.caller.uid,
        gid: flow.caller.gid,
        kind: match flow.protocol {
            Protocol::Tcp => kind::CONNECT,
            Protocol::Udp => kind::DATAGRAM,
        },
        verdict: decision.verdict(),
        rule: decision.rule(),
        src: Endpoint { ip: flow.src, port: 0 },
        dst: flow.dst,
    });
}

/// An inbound decision; `steered` says whether the sidecar took the connection.
#[inline(always)]
pub(crate) fn inbound(cookie: u64, ends: (Endpoint, Endpoint), decision: Inbound, steered: bool) {
    if !wanted(cookie) {
        return;
    }
    let (verdict, rule) = match decision {
        Inbound::Direct(rule) => (verdict::DIRECT, rule),
        Inbound::Redirect(rule) if steered => (verdict::INBOUND, rule),
        Inbound::Redirect(rule) => (verdict::REFUSED, rule),
    };
    send(TraceRecord {
        cookie,
        pid: 0,
        uid: 0,
        gid: 0,
        kind: kind::INBOUND,
        verdict,
        rule: rule as u32,
        src: ends.0,
        dst: ends.1,
    });
}

/// What the guard found on its way out of the pod.
#[inline(always)]
pub(crate) fn leaving(guarded: &GuardedPod, opening: &Opening, rule: Rule, uid: u32) {
    if !wanted(guarded.cookie) {
        return;
    }
    send(TraceRecord {
        cookie: guarded.cookie,
        pid: 0,
        uid,
        gid: 0,
        kind: kind::LEAVING,
        verdict: if guarded.audit != 0 { verdict::AUDITED } else { verdict::DROPPED },
        rule: rule as u32,
        src: opening.src,
        dst: opening.dst,
    });
}

/// What the guard did with an arriving SYN that is the sidecar's.
#[inline(always)]
pub(crate) fn arriving(guarded: &GuardedPod, opening: &Opening, decision: Inbound, steered: bool) {
    if !wanted(guarded.cookie) {
        return;
    }
    let (Inbound::Direct(rule) | Inbound::Redirect(rule)) = decision;
    let verdict = if guarded.audit != 0 {
        verdict::AUDITED
    } else if steered {
        verdict::INBOUND
    } else {
        verdict::REFUSED
    };
    send(TraceRecord {
        cookie: guarded.cookie,
        pid: 0,
        uid: 0,
        gid: 0,
        kind: kind::INBOUND,
        verdict,
        rule: rule as u32,
        src: opening.src,
        dst: opening.dst,
    });
}
