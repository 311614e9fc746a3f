//! One record per decision, for `redirect trace`. Off, it costs one branch; it is on for a pod while a reader keeps
//! moving the pod's deadline, so a reader that dies leaves nothing switched on.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_ebpf::programs::{SkLookupContext, SockAddrContext};
use aya_log_ebpf::info;
use redirect_common::trace::{RECORD_BYTES, kind, verdict};
use redirect_common::{Endpoint, Inbound, Outbound, PodConfig, Protocol, Target, TraceRecord};

use crate::connect::Call;

#[inline(always)]
fn wanted(pod: &PodConfig) -> bool {
    // SAFETY: the helper has no argument.
    pod.trace_until != 0 && unsafe { bpf_ktime_get_ns() } < pod.trace_until
}

/// The record as the bytes that aya-log carries.
#[inline(always)]
fn bytes(record: &TraceRecord) -> &[u8] {
    // SAFETY: the record is RECORD_BYTES of plain data without padding.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(record).cast(), RECORD_BYTES) }
}

/// An outbound decision. Called last, when nothing else is left to do: otherwise the verifier walks the logging code once
/// for every way to get here.
#[inline(always)]
pub(crate) fn outbound(ctx: &SockAddrContext, call: &Call, decision: Outbound) {
    let (flow, cookie) = (&call.flow, call.facts.cookie);
    if !wanted(call.facts.pod) {
        return;
    }
    let (verdict, rule) = match decision {
        Outbound::Direct(rule) => (verdict::DIRECT, rule),
        Outbound::Redirect(Target::Outbound, rule) => (verdict::OUTBOUND, rule),
        Outbound::Redirect(Target::Inbound, rule) => (verdict::INBOUND, rule),
        Outbound::Redirect(Target::Dns, rule) => (verdict::DNS, rule),
    };
    let record = TraceRecord {
        cookie,
        // SAFETY: the helper has no argument; connect and sendmsg run in the caller's context.
        pid: (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32,
        uid: flow.caller.uid,
        gid: flow.caller.gid,
        kind: match flow.protocol {
            Protocol::Tcp => kind::CONNECT,
            Protocol::Udp => kind::DATAGRAM,
        },
        verdict,
        rule: rule as u32,
        src: Endpoint { ip: flow.src, port: 0 },
        dst: flow.dst,
    };
    info!(ctx, "{:x}", bytes(&record));
}

/// An inbound decision; `steered` says whether the sidecar took the connection.
#[inline(always)]
pub(crate) fn inbound(
    ctx: &SkLookupContext,
    pod: &PodConfig,
    cookie: u64,
    ends: (Endpoint, Endpoint),
    decision: Inbound,
    steered: bool,
) {
    if !wanted(pod) {
        return;
    }
    let (verdict, rule) = match decision {
        Inbound::Direct(rule) => (verdict::DIRECT, rule),
        Inbound::Redirect(rule) if steered => (verdict::INBOUND, rule),
        Inbound::Redirect(rule) => (verdict::REFUSED, rule),
    };
    let record = TraceRecord {
        cookie,
        pid: 0,
        uid: 0,
        gid: 0,
        kind: kind::INBOUND,
        verdict,
        rule: rule as u32,
        src: ends.0,
        dst: ends.1,
    };
    info!(ctx, "{:x}", bytes(&record));
}
