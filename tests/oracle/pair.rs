//! Both worlds side by side: every connection is tried in both, and what is not meant to differ must not.

use std::collections::BTreeSet;

use harness::Node;

use crate::differences::{Case, explain};
use crate::enforce::Enforcer;
use crate::foretold::Record;
use crate::outcome::{Field, Outcome};
use crate::scenario::{Connection, Setup};
use crate::world::World;

/// The two worlds, set up in the same way.
pub(crate) struct Pair<'n> {
    iptables: World<'n>,
    ours: World<'n>,
    now: Option<(Setup, Record)>,
}

/// What a connection came to in both worlds.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) iptables: Outcome,
    pub(crate) ours: Outcome,
    /// The meant differences that were met, or a field whose difference is not meant.
    pub(crate) verdict: Result<BTreeSet<&'static str>, Field>,
}

impl<'n> Pair<'n> {
    pub(crate) fn new(node: &'n Node) -> Pair<'n> {
        let iptables = World::new(node, Enforcer::Iptables);
        Pair { iptables, ours: World::new(node, Enforcer::Ours), now: None }
    }

    /// Tries one connection in pods that are set up like this.
    pub(crate) fn compare(&mut self, setup: &Setup, connection: &Connection) -> Comparison {
        let (iptables, ours) = (&mut self.iptables, &mut self.ours);
        let (_, record) = match self.now.take() {
            Some(now) if now.0 == *setup => self.now.insert(now),
            _ => {
                iptables.set_up(setup);
                ours.set_up(setup);
                self.now.insert((setup.clone(), ours.record()))
            }
        };
        let (iptables, ours) = (iptables.attempt(connection), ours.attempt(connection));
        let met = explain(&Case { setup, connection, iptables: &iptables, ours: &ours });
        let foretold = record.foretold(connection, &ours);
        let verdict = met.and_then(|met| if foretold { Ok(met) } else { Err(Field::Foretold) });
        Comparison { verdict: verdict.map(BTreeSet::from_iter), iptables, ours }
    }
}
