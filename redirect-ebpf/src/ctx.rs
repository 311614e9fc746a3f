//! Typed views of the kernel's contexts: the only place where a program reads or writes one, and where
//! `unsafe` lives.
//!
//! Verifier facts behind the shape of this file (seen on Linux 6.18): every context field is read once, by a
//! volatile read of its own, because LLVM otherwise merges neighbouring fields into one wider access or
//! computes a pointer into the context, and the verifier refuses both.

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_get_current_uid_gid, bpf_map_lookup_elem, bpf_set_retval, bpf_sk_release, bpf_sk_storage_get,
};
use redirect_common::{Caller, Ip, ListenerKey, Origin, role};

use crate::maps;

macro_rules! field {
    ($ptr:expr, $($path:tt)+) => {
        // SAFETY: the kernel hands every program a valid context, and the verifier checks offset and width.
        unsafe { core::ptr::read_volatile(&raw const (*$ptr).$($path)+) }
    };
}

macro_rules! set_field {
    ($ptr:expr, $field:ident, $value:expr) => {
        // SAFETY: as for reading; the verifier also checks that this program type may write the field.
        unsafe { core::ptr::write_volatile(&raw mut (*$ptr).$field, $value) }
    };
}

/// Makes the call fail with this error, an errno. The verifier of newer kernels wants to see that it is one
/// (7.3: "should have been in [-4095, 0]"); a number that another function returned may be any.
#[inline(always)]
fn fail_with(errno: i32) {
    const MAX_ERRNO: i32 = 4095;
    // SAFETY: the helper takes a number. Programs of sockets' addresses have it since Linux 6.1, those of
    // options since 5.18.
    let _ = unsafe { bpf_set_retval(-(errno & MAX_ERRNO)) };
}

/// Four consecutive words of a context, one access each.
macro_rules! words {
    ($ptr:expr, $field:ident) => {
        redirect_common::Ip {
            words: [
                field!($ptr, $field[0]),
                field!($ptr, $field[1]),
                field!($ptr, $field[2]),
                field!($ptr, $field[3]),
            ],
        }
    };
}

/// The address of either family. Both are read before the choice: LLVM merges the tails of two branches that
/// read different fields into one access at a computed offset, which the verifier refuses.
macro_rules! address {
    ($ptr:expr, $family:ident, $v4:ident, $v6:ident) => {{
        let (v4, v6) = (field!($ptr, $v4), words!($ptr, $v6));
        if field!($ptr, $family) == $crate::ctx::AF_INET { redirect_common::Ip::v4_word(v4) } else { v6 }
    }};
}

mod choice;
mod lookup;
mod packet;
mod reset;
mod sock_addr;
mod sock_ops;
mod sockopt;

pub(crate) use choice::Choice;
pub(crate) use lookup::Lookup;
pub(crate) use packet::{Kind, Opening, Packet, Way, inside_only};
pub(crate) use sock_addr::SockAddr;
pub(crate) use sock_ops::SockOps;
pub(crate) use sockopt::Sockopt;

/// `IPPROTO_TCP`, `IPPROTO_UDP` and `IPPROTO_MPTCP` of `linux/in.h`.
const TCP: u32 = 6;
const UDP: u32 = 17;
const MPTCP: u32 = 262;
/// `AF_INET` and `AF_INET6` of `linux/socket.h`.
pub(crate) const AF_INET: u32 = 2;
pub(crate) const AF_INET6: u32 = 10;

/// `struct sockaddr_in`
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SockaddrIn {
    pub(crate) family: u16,
    pub(crate) port: u16,
    pub(crate) address: u32,
    pub(crate) zero: u64,
}

/// `struct sockaddr_in6`
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SockaddrIn6 {
    pub(crate) family: u16,
    pub(crate) port: u16,
    pub(crate) flowinfo: u32,
    pub(crate) address: [u32; 4],
    pub(crate) scope_id: u32,
}

/// A socket's origin, made when there is none and `initial` says so. `None`: there is none, or no memory for
/// one.
///
/// It belongs to one socket, and the hooks that write it run under that socket's lock.
#[inline(always)]
fn origin(sk: *mut c_void, initial: Option<&mut Origin>) -> Option<&'static mut Origin> {
    if sk.is_null() {
        return None;
    }
    let (value, flags) = match initial {
        Some(value) => (core::ptr::from_mut(value).cast(), u64::from(BPF_SK_STORAGE_GET_F_CREATE)),
        None => (core::ptr::null_mut(), 0),
    };
    // SAFETY: the map is a socket storage map of Origin and sk is a socket pointer of the context.
    unsafe { bpf_sk_storage_get(maps::origin(), sk, value, flags).cast::<Origin>().as_mut() }
}

/// Whether a socket on one of the proxy's ports is not the proxy's.
#[inline(always)]
fn is_foreign(sk: *mut c_void) -> bool {
    origin(sk, None).is_some_and(|origin| origin.role == role::FOREIGN)
}

/// Who calls, as the initial user namespace sees it. For hooks that run in the caller's context.
#[inline(always)]
fn caller() -> Caller {
    // SAFETY: the helper has no argument.
    let ids = unsafe { bpf_get_current_uid_gid() };
    Caller { uid: ids as u32, gid: (ids >> 32) as u32 }
}

/// The address that a registered listener is bound to; `None` when the place is empty.
#[inline(always)]
pub(crate) fn listener_address(key: &ListenerKey) -> Option<Ip> {
    // SAFETY: a sockhash look-up returns a referenced socket or null; it is released below on the one path.
    let sk: *mut bpf_sock =
        unsafe { bpf_map_lookup_elem(maps::listeners_ptr(), core::ptr::from_ref(key).cast()) }.cast();
    if sk.is_null() {
        return None;
    }
    let ip = address!(sk, family, src_ip4, src_ip6);
    // SAFETY: the reference taken by the look-up above.
    unsafe { bpf_sk_release(sk.cast()) };
    Some(ip)
}
