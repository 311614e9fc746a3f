//! The kernel programs. Reading order: `maps` is the legend. A `connect()` goes through `connect`, then by
//! the kernel's own route to the sidecar, which asks `original_dst`; `sock_ops` is the detour of the few
//! connections whose address cannot tell. `peername` hides the rewriting from `getpeername()`, `dns` is UDP,
//! for which `bind` opens the DNS proxy, `inbound` is the other direction, and `guard` stands behind all of
//! them. `transparent`, `bind` and `handover` are TPROXY mode. `call` and `facts` are what a decision depends
//! on; only `ctx` and its folder read or write a kernel context.
//!
//! House rule for every hook: a pod that has no entry in PODS is left alone (but for `inbound`, which may
//! have read another look-up's word, and drops); a pod that has one is never let through in clear because
//! something of ours failed.
#![no_std]
#![no_main]
// Instructions of `claims` and `lookups` that nothing comes in between.
#![feature(asm_experimental_arch)]

mod bind;
mod call;
mod claims;
mod connect;
mod ctx;
mod dns;
mod facts;
mod guard;
mod handover;
mod inbound;
mod listener;
mod lookups;
mod maps;
mod original_dst;
mod peername;
mod sock_ops;
mod stats;
mod trace;
mod transparent;

/// The kernel allows GPL-only helpers (trace, socket storage) to programs under a compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no program reaches this.
    loop {}
}
