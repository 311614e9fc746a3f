//! The kernel programs. Reading order: `maps` is the legend; a `connect()` goes through `connect`, `sockops` and
//! `getsockopt`; `peername` keeps up appearances; `dns` is UDP; `inbound` is the other direction. `ctx` is the only file that
//! reads or writes a kernel context.
//!
//! House rule for every hook: a pod that has no entry in PODS is left alone; a pod that has one is never let
//! through in clear because something of ours failed.
#![no_std]
#![no_main]

mod connect;
mod ctx;
mod dns;
mod getsockopt;
mod inbound;
mod maps;
mod peername;
mod sockops;
mod stats;
mod trace;

/// The kernel allows GPL-only helpers (trace, socket storage) to programs under a compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no program reaches this.
    loop {}
}
