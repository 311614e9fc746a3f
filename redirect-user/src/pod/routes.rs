//! Through which interface a connection would leave, as longest-prefix verdicts.
//!
//! `excludeInterfaces` means: what leaves by that interface is not captured. At `connect()` the kernel has
//! not looked up a route yet, and a program there cannot. So the routes of the namespace become prefixes with
//! a verdict each, the default route among them, and the longest prefix of a destination decides, as it does
//! in the routing table.
//!
//! What a prefix cannot say is refused: policy rules, routes for one source or type of service, and one route
//! over several interfaces of which some are excluded.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// `RT_TABLE_LOCAL`
pub const TABLE_LOCAL: u32 = 255;
/// `RT_TABLE_MAIN`
pub const TABLE_MAIN: u32 = 254;
/// `RT_TABLE_DEFAULT`, which is looked at where the main table has no route.
pub const TABLE_DEFAULT: u32 = 253;

/// How many prefixes of one pod may go into the map. A pod with more has a whole routing feed in it.
pub const MOST_PREFIXES: usize = 16_384;

/// A route of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub net: IpNet,
    /// Its table.
    pub table: u32,
    /// Its metric; the lowest of several routes to one prefix is used.
    pub metric: u32,
    /// Indices of the interfaces that it leads through; none where it leads nowhere.
    pub hops: Vec<u32>,
    /// It holds for one source or one type of service only.
    pub selective: bool,
}

/// A policy rule (`ip rule`) of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// The kernel's order of rules.
    pub priority: u32,
    /// The table that it leads to.
    pub table: u32,
    /// It has no condition.
    pub plain: bool,
}

/// A prefix, and whether what goes there leaves by an excluded interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefixVerdict {
    /// The prefix.
    pub net: IpNet,
    /// Leaves by an excluded interface: not captured.
    pub excluded: bool,
}

/// What prefixes cannot say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inexpressible {
    /// A rule other than the kernel's own three.
    #[error(
        "the pod's network namespace has the policy rule {priority} (table {table}; see `ip rule`), so more than the \
         destination decides through which interface a connection leaves"
    )]
    PolicyRule {
        /// Its priority.
        priority: u32,
        /// Its table.
        table: u32,
    },
    /// A route for one source or type of service.
    #[error(
        "the route to {net} of the pod's network namespace holds for one source address or type of service only, so \
         more than the destination decides through which interface a connection leaves"
    )]
    Selective {
        /// Where to.
        net: IpNet,
    },
    /// One route over excluded and other interfaces.
    #[error("the route to {net} leads through excluded interfaces and through others at once")]
    Mixed {
        /// Where to.
        net: IpNet,
    },
    /// More prefixes than the maps are to hold for one pod.
    #[error(
        "the pod's network namespace has {count} prefixes that differ; at most {MOST_PREFIXES} are kept for a pod"
    )]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// The verdicts for a namespace with these routes and rules, where `excluded` are the indices of the
/// interfaces that the policy names. No verdict for an address means: not excluded.
///
/// # Errors
/// The namespace routes by more than the destination.
pub fn verdicts(
    routes: &[Route],
    rules: &[PolicyRule],
    excluded: &BTreeSet<u32>,
) -> Result<Vec<PrefixVerdict>, Inexpressible> {
    if let Some(rule) = rules.iter().find(|rule| !is_kernels_own(rule)) {
        return Err(Inexpressible::PolicyRule { priority: rule.priority, table: rule.table });
    }
    if excluded.is_empty() {
        return Ok(Vec::new());
    }
    let main = chosen(routes, TABLE_MAIN)?;
    let mut decided = BTreeMap::new();
    for (net, hops) in &main {
        decided.insert(*net, verdict(*net, hops, excluded)?);
    }
    // The default table is asked only about what no route of the main table takes.
    for (net, hops) in chosen(routes, TABLE_DEFAULT)? {
        if !has_covering(&main, net) {
            decided.insert(net, verdict(net, &hops, excluded)?);
        }
    }
    let kept = without_repetition(&decided);
    if kept.len() > MOST_PREFIXES {
        return Err(Inexpressible::TooMany { count: kept.len() });
    }
    Ok(kept)
}

/// The longest prefix that contains an address decides.
#[must_use]
pub fn leaves_excluded(verdicts: &[PrefixVerdict], ip: std::net::IpAddr) -> bool {
    let containing = verdicts.iter().filter(|verdict| verdict.net.contains(&ip));
    containing.max_by_key(|verdict| verdict.net.prefix_len()).is_some_and(|verdict| verdict.excluded)
}

/// `0: from all lookup local`, `32766: from all lookup main`, `32767: from all lookup default`.
fn is_kernels_own(rule: &PolicyRule) -> bool {
    let own = [(0, TABLE_LOCAL), (32766, TABLE_MAIN), (32767, TABLE_DEFAULT)];
    rule.plain && own.contains(&(rule.priority, rule.table))
}

/// The interfaces that each prefix of a table leads through: those of its routes with the lowest metric.
fn chosen(routes: &[Route], table: u32) -> Result<HashMap<IpNet, Vec<u32>>, Inexpressible> {
    let mut best: HashMap<IpNet, (u32, Vec<u32>)> = HashMap::new();
    for route in routes.iter().filter(|route| route.table == table) {
        if route.selective {
            return Err(Inexpressible::Selective { net: route.net });
        }
        let entry = best.entry(route.net).or_insert_with(|| (route.metric, Vec::new()));
        if route.metric < entry.0 {
            *entry = (route.metric, Vec::new());
        }
        if route.metric == entry.0 {
            entry.1.extend(&route.hops);
        }
    }
    Ok(best.into_iter().map(|(net, (_, hops))| (net, hops)).collect())
}

fn verdict(net: IpNet, hops: &[u32], excluded: &BTreeSet<u32>) -> Result<bool, Inexpressible> {
    let count = hops.iter().filter(|hop| excluded.contains(hop)).count();
    if count == 0 || count == hops.len() {
        return Ok(count != 0);
    }
    // Every interface has fe80::/64, and who dials there names the interface. What cannot be told apart is
    // captured.
    if is_link_local(&net) { Ok(false) } else { Err(Inexpressible::Mixed { net }) }
}

fn is_link_local(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.prefix_len() >= 10 && net.network().is_unicast_link_local())
}

/// Whether a route to this prefix or a shorter one that contains it exists.
fn has_covering(main: &HashMap<IpNet, Vec<u32>>, net: IpNet) -> bool {
    let mut next = Some(net);
    while let Some(candidate) = next {
        if main.contains_key(&candidate) {
            return true;
        }
        next = candidate.supernet();
    }
    false
}

/// Leaves out each prefix whose next shorter one says the same, and those that say "not excluded" below none.
fn without_repetition(decided: &BTreeMap<IpNet, bool>) -> Vec<PrefixVerdict> {
    let inherited = |net: &IpNet| {
        let mut next = net.supernet();
        while let Some(candidate) = next {
            if let Some(excluded) = decided.get(&candidate) {
                return *excluded;
            }
            next = candidate.supernet();
        }
        false
    };
    let differs = |(net, excluded): &(&IpNet, &bool)| **excluded != inherited(net);
    decided
        .iter()
        .filter(differs)
        .map(|(net, excluded)| PrefixVerdict { net: *net, excluded: *excluded })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETH0: u32 = 2;
    const ETH1: u32 = 3;
    const OWN: [PolicyRule; 3] = [
        PolicyRule { priority: 0, table: TABLE_LOCAL, plain: true },
        PolicyRule { priority: 32766, table: TABLE_MAIN, plain: true },
        PolicyRule { priority: 32767, table: TABLE_DEFAULT, plain: true },
    ];

    fn route(net: &str, hop: u32) -> Route {
        Route { net: net.parse().unwrap(), table: TABLE_MAIN, metric: 0, hops: vec![hop], selective: false }
    }

    fn decide(routes: &[Route]) -> Result<Vec<PrefixVerdict>, Inexpressible> {
        verdicts(routes, &OWN, &BTreeSet::from([ETH1]))
    }

    fn excluded(routes: &[Route], ip: &str) -> bool {
        leaves_excluded(&decide(routes).unwrap(), ip.parse().unwrap())
    }

    #[test]
    fn the_longest_prefix_decides() {
        let routes = [route("10.0.0.0/8", ETH1), route("10.77.0.0/16", ETH0), route("0.0.0.0/0", ETH0)];
        assert!(excluded(&routes, "10.88.0.1"));
        assert!(!excluded(&routes, "10.77.0.3") && !excluded(&routes, "8.8.8.8"));
        let routes = [route("10.0.0.0/8", ETH0), route("10.77.0.0/16", ETH1)];
        assert!(excluded(&routes, "10.77.0.3") && !excluded(&routes, "10.88.0.1"));
    }

    #[test]
    fn the_default_route_counts_in_each_family_by_itself() {
        let routes = [route("0.0.0.0/0", ETH1), route("::/0", ETH0), route("10.77.0.0/16", ETH0)];
        assert!(excluded(&routes, "8.8.8.8"));
        assert!(!excluded(&routes, "10.77.0.3") && !excluded(&routes, "2001:db8::1"));
        assert!(excluded(&[route("::/0", ETH1)], "2001:db8::1"));
    }

    #[test]
    fn the_lowest_metric_decides_between_routes_to_one_prefix() {
        let with = |hop, metric| Route { metric, ..route("0.0.0.0/0", hop) };
        assert!(!excluded(&[with(ETH1, 200), with(ETH0, 100)], "8.8.8.8"));
        assert!(excluded(&[with(ETH1, 100), with(ETH0, 200)], "8.8.8.8"));
    }

    #[test]
    fn a_route_that_leads_nowhere_is_not_excluded() {
        let nowhere = Route { hops: Vec::new(), ..route("10.9.0.0/16", 0) };
        let routes = [route("10.0.0.0/8", ETH1), nowhere];
        assert!(!excluded(&routes, "10.9.0.1") && excluded(&routes, "10.8.0.1"));
    }

    #[test]
    fn the_default_table_is_asked_last() {
        let last = |net, hop| Route { table: TABLE_DEFAULT, ..route(net, hop) };
        let routes = [route("10.0.0.0/8", ETH0), last("10.9.0.0/16", ETH1), last("0.0.0.0/0", ETH1)];
        assert!(!excluded(&routes, "10.9.0.1") && excluded(&routes, "8.8.8.8"));
        // Tables that only a rule leads to are not asked at all.
        let other = Route { table: 100, ..route("0.0.0.0/0", ETH1) };
        assert!(!excluded(&[other], "8.8.8.8"));
    }

    #[test]
    fn what_a_prefix_cannot_say_is_refused_by_name() {
        let rule = PolicyRule { priority: 32000, table: 100, plain: false };
        let rules = [OWN[0].clone(), rule, OWN[1].clone()];
        let refused = verdicts(&[], &rules, &BTreeSet::new());
        assert_eq!(refused, Err(Inexpressible::PolicyRule { priority: 32000, table: 100 }));
        assert!(refused.unwrap_err().to_string().contains("policy rule 32000 (table 100"));
        let unconditional = PolicyRule { priority: 5, table: TABLE_MAIN, plain: true };
        assert!(verdicts(&[], &[unconditional], &BTreeSet::new()).is_err());
        let both = Route { hops: vec![ETH0, ETH1], ..route("0.0.0.0/0", 0) };
        assert!(matches!(decide(&[both]), Err(Inexpressible::Mixed { .. })));
        let siblings = [route("fd00::/8", ETH0), route("fd00::/8", ETH1)];
        assert!(matches!(decide(&siblings), Err(Inexpressible::Mixed { .. })));
        let everywhere = [route("fe80::/64", ETH0), route("fe80::/64", ETH1)];
        assert!(!excluded(&everywhere, "fe80::1"));
        let selective = Route { selective: true, ..route("10.0.0.0/8", ETH0) };
        assert!(matches!(decide(&[selective]), Err(Inexpressible::Selective { .. })));
    }

    #[test]
    fn a_whole_routing_feed_is_as_small_as_what_it_says() {
        let feed = |hop: u32, count: u32| {
            (0..count)
                .map(move |n| route(&format!("{}.{}.{}.0/24", 20 + (n >> 16), n >> 8 & 255, n & 255), hop))
        };
        let same: Vec<_> = feed(ETH0, 70_000).chain([route("0.0.0.0/0", ETH0)]).collect();
        assert_eq!(decide(&same), Ok(Vec::new()));
        let other: Vec<_> = feed(ETH1, 16_384).chain([route("0.0.0.0/0", ETH0)]).collect();
        assert_eq!(decide(&other).unwrap().len(), 16_384);
        let more: Vec<_> = feed(ETH1, 16_385).collect();
        assert_eq!(decide(&more), Err(Inexpressible::TooMany { count: 16_385 }));
    }
}
