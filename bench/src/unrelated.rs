//! Section 6: what others pay. A pod that is not enrolled, with and without enrolled pods on the node, and
//! sockets of an enrolled pod that are not redirected.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use harness::Node;

use crate::plugin;
use crate::results::{Measure, Results, Unit};
use crate::scale::Scale;
use crate::scene::{LOCAL_PORT, listening_worker};
use crate::worker::{Order, Timing, Worker};

/// The three situations.
pub(crate) const BARE: &str = "nothing attached on the node";
pub(crate) const OUTSIDE: &str = "pod not enrolled";
pub(crate) const INSIDE: &str = "enrolled pod, socket not ours";

/// Within every round the pod is enrolled and let go again, so that all three situations are measured side by
/// side.
pub(crate) fn run(node: &Node, scale: &Scale, results: &mut Results) -> Result<()> {
    let (outsider, insider) = (node.pod("outsider"), node.pod("insider"));
    let mut outside = listening_worker(&outsider)?;
    let mut inside = listening_worker(&insider)?;
    plugin::add(node, &insider, &[])?;
    plugin::del(node, &insider)?;
    let mut samples: [[Vec<f64>; 3]; 3] = Default::default();
    for round in 0..scale.rounds {
        let bare = measure(if round % 2 == 0 { &mut outside } else { &mut inside }, scale)?;
        plugin::add(node, &insider, &[])?;
        let others = [bare, measure(&mut outside, scale)?, measure(&mut inside, scale)?];
        plugin::del(node, &insider)?;
        for (call, series) in samples.iter_mut().enumerate() {
            for (values, measured) in series.iter_mut().zip(&others) {
                values.push(measured[call]);
            }
        }
    }
    for ((id, title, unit), series) in [
        ("unrelated-getsockopt", "getsockopt(SO_ERROR)", Unit::Nanos),
        ("unrelated-connect", "connect() of a UDP socket", Unit::Nanos),
        ("unrelated-tcp", "Whole TCP connection to 127.0.0.1", Unit::Nanos),
    ]
    .into_iter()
    .zip(samples)
    {
        results.add(Measure::new(id, title, unit, [BARE, OUTSIDE, INSIDE].into_iter().zip(series)));
    }
    Ok(())
}

/// Nanoseconds of the three calls.
fn measure(worker: &mut Worker, scale: &Scale) -> Result<[f64; 3]> {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, LOCAL_PORT));
    let count = scale.calls;
    let get = worker.run::<Timing>(&Order::GetOptions { listener: 0, count })?;
    let far = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9));
    let connect = worker.run::<Timing>(&Order::ConnectUdp { to: far, count })?;
    let order = Order::SetUp { to: vec![local], listener: 0, count: scale.connections, foreign: false };
    let whole = worker.run::<Timing>(&order)?;
    Ok([get.cpu, connect.cpu, whole.whole[0]])
}
