//! One record per decision, for `redirect trace`. Off, it costs one branch; it is on for a pod while a reader keeps
//! moving the pod's deadline, so a reader that dies leaves nothing switched on.
//!
//! A record is a line of `name=value` words; numbers that stand for names (verdict, rule) are named by the reader.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_ebpf::programs::{SkLookupContext, SockAddrContext};
use aya_log_ebpf::info;
use redirect_common::{Endpoint, Flow, Inbound, Ip, Outbound, PodConfig, Protocol, Target};

#[inline(always)]
fn wanted(pod: &PodConfig) -> bool {
    // SAFETY: the helper has no argument.
    pod.trace_until != 0 && unsafe { bpf_ktime_get_ns() } < pod.trace_until
}

/// The address as 16 bytes, which aya-log prints as an IPv6 address.
#[inline(always)]
fn bytes(ip: &Ip) -> [u8; 16] {
    // SAFETY: both are 16 bytes of plain data, and the words hold network byte order in memory.
    unsafe { core::mem::transmute(ip.words) }
}

/// An outbound decision.
#[inline(always)]
pub(crate) fn outbound(ctx: &SockAddrContext, pod: &PodConfig, cookie: u64, flow: &Flow, verdict: Outbound) {
    if wanted(pod) {
        write_outbound(ctx, cookie, flow, verdict);
    }
}

#[inline(always)]
fn write_outbound(ctx: &SockAddrContext, cookie: u64, flow: &Flow, verdict: Outbound) {
    // SAFETY: the helper has no argument; connect and sendmsg run in the caller's context.
    let pid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    let protocol: u32 = match flow.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    let (verdict, rule): (u32, u32) = match verdict {
        Outbound::Direct(rule) => (0, rule as u32),
        Outbound::Redirect(Target::Outbound, rule) => (1, rule as u32),
        Outbound::Redirect(Target::Inbound, rule) => (2, rule as u32),
        Outbound::Redirect(Target::Dns, rule) => (3, rule as u32),
    };
    info!(
        ctx,
        "out pod={} pid={} uid={} gid={} protocol={} dst={:i} port={} verdict={} rule={}",
        cookie,
        pid,
        flow.caller.uid,
        flow.caller.gid,
        protocol,
        bytes(&flow.dst.ip),
        flow.dst.port,
        verdict,
        rule
    );
}

/// An inbound decision; `steered` says whether the sidecar took the connection.
#[inline(always)]
pub(crate) fn inbound(
    ctx: &SkLookupContext,
    pod: &PodConfig,
    cookie: u64,
    client: &Endpoint,
    dst: &Endpoint,
    verdict: Inbound,
    steered: bool,
) {
    if !wanted(pod) {
        return;
    }
    let (verdict, rule): (u32, u32) = match verdict {
        Inbound::Direct(rule) => (0, rule as u32),
        Inbound::Redirect(rule) if steered => (2, rule as u32),
        Inbound::Redirect(rule) => (4, rule as u32),
    };
    info!(
        ctx,
        "in pod={} client={:i} clientport={} dst={:i} port={} verdict={} rule={}",
        cookie,
        bytes(&client.ip),
        client.port,
        bytes(&dst.ip),
        dst.port,
        verdict,
        rule
    );
}
