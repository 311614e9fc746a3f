//! `decide()` and `decide_inbound()` against a second, literal model: the list of rules that Istio gives to
//! iptables, evaluated one after the other as the kernel does it.
//!
//! The two are written from opposite ends on purpose: [`rules`] knows matches, actions and nothing of short
//! cuts, and [`world`] makes the policies and packets; only here do they meet.

mod rules;
mod world;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use redirect_common::{Family, Inbound, Outbound, Target, decide, decide_inbound};

use rules::{Action, IpRule, inbound_rules, output_rules, verdict};
use world::{Packet, Policy, arrival, packet, policy};

/// Policies tried, and packets tried on each: 131,072 cases.
const POLICIES: u32 = 4096;
const PACKETS: usize = 32;

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(POLICIES) }
}

fn check_outbound(policy: &Policy, rules: &[IpRule], packet: &Packet) -> Result<(), TestCaseError> {
    let (action, rule) = verdict(rules, packet);
    let (expected, decided) = match decide(&packet.flow(), policy) {
        Outbound::Direct(decided) => (Action::Return, decided),
        Outbound::Redirect(Target::Outbound, decided) => (Action::Redirect(15001), decided),
        Outbound::Redirect(Target::Inbound, decided) => (Action::Redirect(15006), decided),
        Outbound::Redirect(Target::Dns, decided) => (Action::Redirect(15053), decided),
    };
    prop_assert_eq!(
        action,
        expected,
        "iptables stops at {:?}, decide() at {:?}: {:?}",
        rule,
        decided,
        packet
    );
    // Datagrams that are not captured DNS are waved through before any question is asked.
    if packet.tcp || (policy.dns && packet.port == 53) {
        prop_assert_eq!(rule, decided, "{:?}", packet);
    }
    Ok(())
}

/// Shrinking prints a whole batch; the one packet that matters is in the message.
struct Batch<T>(Vec<T>);

impl<T> std::fmt::Debug for Batch<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a batch of {}", self.0.len())
    }
}

fn batch<T: std::fmt::Debug>(one: impl Strategy<Value = T>) -> impl Strategy<Value = Batch<T>> {
    prop::collection::vec(one, PACKETS).prop_map(Batch)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn outbound_is_what_the_rules_say(policy in policy(), packets in batch(packet())) {
        let tables = Family::ALL.map(|family| output_rules(&policy, family));
        for packet in &packets.0 {
            check_outbound(&policy, &tables[usize::from(packet.dst.is_ipv6())], packet)?;
        }
    }

    #[test]
    fn inbound_is_what_the_rules_say(policy in policy(), arrivals in batch(arrival())) {
        let rules = inbound_rules(&policy);
        for arrival in &arrivals.0 {
            let (action, _) = verdict(&rules, &arrival.packet());
            let decided = match decide_inbound(arrival.port.into(), &arrival.facts(&policy)) {
                Inbound::Direct(_) => Action::Return,
                Inbound::Redirect(_) => Action::Redirect(15006),
            };
            prop_assert_eq!(action, decided, "{:?}", arrival);
        }
    }
}

/// The generators must reach every rule, or the properties above say nothing about it.
#[test]
fn every_rule_is_reached() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut reached = std::collections::BTreeSet::new();
    for _ in 0..POLICIES {
        let policy = policy().new_tree(&mut runner).unwrap().current();
        let packet = packet().new_tree(&mut runner).unwrap().current();
        reached.insert(verdict(&output_rules(&policy, Family::of(&packet.dst)), &packet).1 as u32);
    }
    // Rule 7 stands behind rule 4 with the same conditions, and rule 5 takes what rule 4 leaves: nothing gets
    // there.
    let all: Vec<u32> = (0..=15).filter(|number| *number != 7).collect();
    assert_eq!(reached.into_iter().collect::<Vec<_>>(), all);
}
