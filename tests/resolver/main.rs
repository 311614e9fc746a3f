//! `pod-dns`: both ends of DNS capture as programs in a pod. `pod-dns proxy` is the sidecar's DNS proxy,
//! `pod-dns ask` an application that asks in one of the ways in which resolvers do, and prints what it saw.
//!
//! The oracle runs the same way of asking beside Istio's iptables rules and beside ours and compares the
//! lines.

mod ask;
mod message;
mod proxy;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["proxy", ref addresses @ ..] => proxy::serve(addresses),
        ["ask", way, ref servers @ ..] => ask::ask(way, servers),
        _ => Err(anyhow::anyhow!("usage: pod-dns proxy [--plain] ADDRESS.. | pod-dns ask WAY SERVER..")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pod-dns: {error:#}");
            ExitCode::FAILURE
        }
    }
}
