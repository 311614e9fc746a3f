//! Both worlds side by side: every connection is tried in both, and what is not meant to differ must not.

use std::collections::{BTreeMap, BTreeSet};

use harness::Node;

use crate::differences::{Case, explain};
use crate::enforce::Enforcer;
use crate::foretold::Record;
use crate::outcome::{Field, Outcome};
use crate::scenario::{Connection, Families, Setup};
use crate::world::World;

/// A pair of worlds for each kind of pod, made when it is needed.
pub(crate) struct Pairs<'n> {
    node: &'n Node,
    pairs: BTreeMap<Families, Pair<'n>>,
}

impl<'n> Pairs<'n> {
    pub(crate) fn new(node: &'n Node) -> Pairs<'n> {
        Pairs { node, pairs: BTreeMap::new() }
    }

    /// The guards had nothing to do since the last setups.
    pub(crate) fn assert_guard_idle(&self) {
        self.pairs.values().for_each(Pair::assert_guard_idle);
    }

    /// Tries one connection in pods that are set up like this.
    pub(crate) fn compare(&mut self, setup: &Setup, connection: &Connection) -> Comparison {
        let pair = self.pairs.entry(setup.families);
        pair.or_insert_with(|| Pair::new(self.node, setup.families)).compare(setup, connection)
    }
}

/// The two worlds, set up in the same way.
struct Pair<'n> {
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
    fn new(node: &'n Node, families: Families) -> Pair<'n> {
        let iptables = World::new(node, Enforcer::Iptables, families);
        Pair { iptables, ours: World::new(node, Enforcer::Ours, families), now: None }
    }

    /// The guard had nothing to do since the last setup.
    fn assert_guard_idle(&self) {
        if self.now.is_some() {
            self.ours.assert_guard_idle();
        }
    }

    fn compare(&mut self, setup: &Setup, connection: &Connection) -> Comparison {
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
