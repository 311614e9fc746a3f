//! What is tried: twelve things, over each family. Those without the sidecar come last.

use std::io;
use std::net::SocketAddr;

use redirect_common::addr::Family;

use super::actor::{Actor, Order};
use super::ports;
use super::scratch::Scratch;
use super::talk::{self, Got, Seen};
use super::wire::{EXCLUDED, POD, WORLD};

/// One thing to try over one family.
pub(super) struct Trial {
    /// Its name.
    pub(super) name: &'static str,
    /// What should happen.
    pub(super) expected: &'static str,
    /// Tries it; an error says what happened instead.
    pub(super) attempt: fn(&mut Scratch, Family) -> Result<(), String>,
}

/// The first trial for which the sidecar is stopped.
pub(super) const SIDECAR_AWAY: &str = "outbound, sidecar away";

/// All of them, in order.
pub(super) static TRIALS: [Trial; 12] = [
    Trial {
        name: "outbound",
        expected: "the sidecar gets it, knows where it was meant to go, and sees the pod's address",
        attempt: outbound,
    },
    Trial {
        name: "outbound, excluded port",
        expected: "it goes directly to where it was dialled",
        attempt: |scratch, family| {
            from_application(scratch, WORLD.of(family), ports::EXCLUDED_OUTBOUND, "world", ORIGINAL_UNASKED)
        },
    },
    Trial {
        name: "outbound, excluded range",
        expected: "it goes directly to where it was dialled",
        attempt: |scratch, family| {
            from_application(scratch, EXCLUDED.of(family), ports::CAPTURED, "world", ORIGINAL_UNASKED)
        },
    },
    Trial {
        name: "outbound, from the sidecar",
        expected: "it goes directly to where it was dialled",
        attempt: |scratch, family| {
            let to = SocketAddr::new(WORLD.of(family), ports::CAPTURED);
            let got = order(scratch.sidecar(), &Order::Dial(to))?;
            served_by(&got, "world", ORIGINAL_UNASKED).map(drop)
        },
    },
    Trial {
        name: "to the pod itself",
        expected: "the application's own server gets it",
        attempt: |scratch, family| {
            from_application(scratch, POD.of(family), ports::CAPTURED, "application", ORIGINAL_UNASKED)
        },
    },
    Trial {
        name: "to the pod itself, from the sidecar",
        expected: "the sidecar's inbound listener gets it",
        attempt: |scratch, family| {
            let to = SocketAddr::new(POD.of(family), ports::CAPTURED);
            let got = order(scratch.sidecar(), &Order::Dial(to))?;
            served_by(&got, "inbound", Some(to)).map(drop)
        },
    },
    Trial {
        name: "inbound",
        expected: "the sidecar gets it, knows which port was meant, and sees the client's address",
        attempt: inbound,
    },
    Trial {
        name: "inbound, excluded port",
        expected: "the application gets it",
        attempt: |scratch, family| {
            let got = from_world(scratch, SocketAddr::new(POD.of(family), ports::EXCLUDED_INBOUND))?;
            served_by(&got, "application", ORIGINAL_UNASKED).map(drop)
        },
    },
    Trial {
        name: "DNS",
        expected: "the DNS proxy answers, in the name of the server that was asked",
        attempt: dns,
    },
    Trial {
        name: "around the hooks",
        expected: "the guard refuses a connection that no hook saw",
        attempt: |scratch, family| {
            let to = SocketAddr::new(WORLD.of(family), ports::CAPTURED);
            refused(&scratch.beside_pod(|| talk::dial(to)).map_err(|error| error.to_string())?)
        },
    },
    Trial {
        name: SIDECAR_AWAY,
        expected: "it is refused, and a DNS question gets no answer",
        attempt: |scratch, family| {
            let to = SocketAddr::new(WORLD.of(family), ports::CAPTURED);
            refused(&order(scratch.application(), &Order::Dial(to))?)?;
            let server = SocketAddr::new(WORLD.of(family), ports::DNS);
            let got = order(scratch.application(), &Order::Ask(server, SILENCE))?;
            got.seen.map_or(Ok(()), |seen| Err(format!("{} answered a DNS question", called(&seen.who))))
        },
    },
    Trial {
        name: "inbound, sidecar away",
        expected: "it is refused",
        attempt: |scratch, family| {
            refused(&from_world(scratch, SocketAddr::new(POD.of(family), ports::CAPTURED))?)
        },
    },
];

/// How long to wait for an answer that must not come, in milliseconds.
const SILENCE: u64 = 100;

/// Only the sidecar has a use for `SO_ORIGINAL_DST`; what others are told is not tried.
const ORIGINAL_UNASKED: Option<SocketAddr> = None;

fn outbound(scratch: &mut Scratch, family: Family) -> Result<(), String> {
    let to = SocketAddr::new(WORLD.of(family), ports::CAPTURED);
    let got = order(scratch.application(), &Order::Dial(to))?;
    let seen = served_by(&got, "outbound", Some(to))?;
    if seen.client.ip() != POD.of(family) {
        return Err(format!("the sidecar saw the client {}, not the pod's address", seen.client));
    }
    same_peer(&got, to)
}

fn inbound(scratch: &mut Scratch, family: Family) -> Result<(), String> {
    let to = SocketAddr::new(POD.of(family), ports::CAPTURED);
    let got = from_world(scratch, to)?;
    let seen = served_by(&got, "inbound", Some(to))?;
    if Some(seen.client) != got.own {
        return Err(format!("the sidecar saw the client {}, which was {:?}", seen.client, got.own));
    }
    same_peer(&got, to)
}

fn dns(scratch: &mut Scratch, family: Family) -> Result<(), String> {
    let server = SocketAddr::new(WORLD.of(family), ports::DNS);
    let got = order(scratch.application(), &Order::Ask(server, talk::PATIENCE.as_millis() as u64))?;
    served_by(&got, "dns", ORIGINAL_UNASKED)?;
    same_peer(&got, server)
}

fn from_application(
    scratch: &mut Scratch,
    ip: std::net::IpAddr,
    port: u16,
    who: &str,
    original: Option<SocketAddr>,
) -> Result<(), String> {
    let got = order(scratch.application(), &Order::Dial(SocketAddr::new(ip, port)))?;
    served_by(&got, who, original).map(drop)
}

fn from_world(scratch: &Scratch, to: SocketAddr) -> Result<Got, String> {
    scratch.in_world(|| talk::dial(to)).map_err(|error| error.to_string())
}

fn order(actor: Option<&mut Actor>, order: &Order) -> Result<Got, String> {
    let actor = actor.ok_or("its process has ended")?;
    actor.order(order).map_err(|error: io::Error| error.to_string())
}

/// The right server answered, and knew the original destination where that is asked for.
fn served_by<'a>(got: &'a Got, who: &str, original: Option<SocketAddr>) -> Result<&'a Seen, String> {
    let Some(seen) = &got.seen else {
        return Err(match &got.error {
            Some(error) => format!("no connection: {error}"),
            None => "connected, and nothing was answered".into(),
        });
    };
    if seen.who != who {
        return Err(format!("it reached {}, not {}", called(&seen.who), called(who)));
    }
    if original.is_some() && seen.original != original {
        let told = seen.original.map_or("none".into(), |original| original.to_string());
        return Err(format!("the sidecar was told the original destination {told}"));
    }
    Ok(seen)
}

fn called(who: &str) -> &str {
    match who {
        "world" => "the server outside the pod",
        "application" => "the application's server",
        "outbound" => "the sidecar's outbound listener",
        "inbound" => "the sidecar's inbound listener",
        "dns" => "the DNS proxy",
        _ => "an unknown server",
    }
}

/// The application sees the address that it dialled.
fn same_peer(got: &Got, dialled: SocketAddr) -> Result<(), String> {
    match got.peer {
        Some(peer) if peer == dialled => Ok(()),
        peer => Err(format!("the client sees the peer {peer:?} instead of {dialled}")),
    }
}

/// Refused at once: neither an answer nor silence.
fn refused(got: &Got) -> Result<(), String> {
    match (&got.seen, got.errno) {
        (Some(seen), _) => Err(format!("it reached {}", called(&seen.who))),
        (None, Some(libc::ECONNREFUSED)) => Ok(()),
        (None, _) => {
            let error = got.error.as_deref().unwrap_or("it connected and nothing was answered");
            Err(format!("it was not refused at once: {error}"))
        }
    }
}
