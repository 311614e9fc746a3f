//! The harness of the integration tests: pods made of a network namespace and a cgroup, processes inside them
//! that make sockets on a test's behalf, a sidecar that tells what it sees, and a check that nothing is left
//! behind.
//!
//! Table of contents, in reading order: [`kernel_test`] runs one test on a [`Node`]; a [`Pod`] is made on its
//! [`Wire`]; a [`Process`] runs in a pod and makes [`Socket`]s; [`Sidecar`] is a process that listens as
//! Envoy does; [`envoy`] is a real one; applications and a DNS proxy ask and answer in [`dns`];
//! `redirect` is driven by [`cli`], chained CNI plugins by [`chain`];
//! [`Residue`] is what must be gone afterwards. [`istio`] writes the rules that redirection is compared with.
//! Demonstrations run on a [`stage`] and show their [`progress`]; those with containers have a [`runtime`]. A
//! [`Tap`] records what goes over a wire; a [`neighbour`] has hooks of its own; [`any`] and [`localhost`] are
//! in every pod. Below them: [`netns`], [`cgroup`], [`unprivileged`] programs, and the [`protocol`] between a
//! test and its [`agent`].

mod addresses;
pub mod agent;
mod binaries;
pub mod browser;
pub mod cgroup;
pub mod chain;
pub mod cli;
mod crowded;
pub mod dns;
pub mod envoy;
pub mod istio;
mod keep;
mod maps;
pub mod neighbour;
pub mod netns;
mod node;
mod pod;
mod process;
pub mod progress;
pub mod protocol;
mod residue;
#[cfg(feature = "runtime")]
pub mod runtime;
pub mod sidecar;
mod sockets;
pub mod stage;
mod tap;
pub mod unprivileged;
mod version;
mod wire;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

pub use addresses::{any, localhost};
pub use binaries::binary;
pub use crowded::crowded;
pub use dns::DnsProxy;
pub use maps::guarded;
pub use nix::errno::Errno;
pub use node::{MachineLock, Node};
pub use pod::Pod;
pub use process::{Capabilities, Process, User};
pub use protocol::{Seen, Service};
pub use redirect_common::Event;
pub use redirect_common::addr::Family;
pub use residue::Residue;
pub use sidecar::Sidecar;
pub use sockets::{Level, Socket};
pub use tap::{Captured, Tap};
pub use version::kernel_version;
pub use wire::Wire;

/// Runs a test on a node of its own and fails it if anything is left behind.
///
/// With `KEEP=1` in the environment a failed test's node and pods stay, and the way into each is printed.
pub fn kernel_test(body: impl FnOnce(&Node)) {
    leaving_nothing(|lock| on_a_node(lock, body));
}

/// The same on several nodes at once, each with a thread of its own. What the bodies return is returned.
pub fn kernel_test_on_nodes<T: Send>(number: usize, body: impl Fn(&Node) -> T + Sync) -> Vec<T> {
    leaving_nothing(|lock| {
        std::thread::scope(|scope| {
            let nodes: Vec<_> = (0..number).map(|_| scope.spawn(|| on_a_node(lock, &body))).collect();
            nodes.into_iter().map(|node| node.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        })
    })
}

fn leaving_nothing<T>(body: impl FnOnce(&MachineLock) -> T) -> T {
    let lock = MachineLock::take();
    let before = Residue::now();
    let answer = body(&lock);
    let left = before.left_over();
    assert!(left.is_empty(), "the test left behind:\n  {}", left.join("\n  "));
    answer
}

fn on_a_node<T>(lock: &MachineLock, body: impl FnOnce(&Node) -> T) -> T {
    let node = Node::new(lock);
    let outcome = catch_unwind(AssertUnwindSafe(|| body(&node)));
    if outcome.is_err() && keep::keep() {
        eprintln!("kept: {}", node.how_to_look());
        std::mem::forget(node);
    } else {
        drop(node);
    }
    outcome.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Waits until the kernel has ended every link of ours: it does so a little after the last pin is gone.
pub fn await_no_links() {
    residue::await_no_links();
}

/// Removes these pins of links of `inbound` and waits until the kernel has detached it from the pods.
pub fn end_inbound(pins: &[std::path::PathBuf]) {
    residue::end_inbound(pins);
}
