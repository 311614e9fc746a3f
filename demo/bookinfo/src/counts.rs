//! Who counted how many requests: what was asked, what the Envoys counted, what the programs in the kernel
//! counted.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use harness::envoy::ADMIN_PORT;
use serde_json::Value;

use crate::plan::{WORKLOADS, Workload};
use crate::proxy::{INBOUND, OUTBOUND};
use crate::report::Count;
use crate::trips::Visit;

/// The two directions, each with the name of its listener in Envoy and of its counter in the kernel.
const DIRECTIONS: [(&str, &str); 2] = [(INBOUND, "inbound_redirected"), (OUTBOUND, "outbound_redirected")];

/// Counters by pod and direction at one time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    envoy: BTreeMap<(String, &'static str), u64>,
    kernel: BTreeMap<(String, &'static str), u64>,
}

impl Counters {
    /// Where an Envoy tells its pod what it has counted.
    pub(crate) fn url() -> String {
        format!("http://127.0.0.1:{ADMIN_PORT}/stats?filter=bound.downstream_rq_total")
    }

    /// Takes in what a pod's Envoy says: lines of `http.inbound.downstream_rq_total: 3`.
    pub(crate) fn add_envoy(&mut self, pod: &str, stats: &str) -> Result<()> {
        for (direction, _) in DIRECTIONS {
            let name = format!("http.{direction}.downstream_rq_total: ");
            let line = stats.lines().find_map(|line| line.strip_prefix(&name));
            let count =
                line.with_context(|| format!("the Envoy of {pod} has no counter {name}in: {stats}"))?;
            let count = count.trim().parse().with_context(|| format!("{pod}: {name}{count} is no number"))?;
            self.envoy.insert((pod.to_owned(), direction), count);
        }
        Ok(())
    }

    /// Takes in what `redirect stats --output json` printed: entries with `pod` and `counters`.
    pub(crate) fn add_kernel(&mut self, stats: &Value) -> Result<()> {
        for entry in stats.as_array().context("`redirect stats` prints an array")? {
            let pod = entry["pod"]["name"].as_str();
            let pod = pod.with_context(|| format!("an entry of `redirect stats` has no pod: {entry}"))?;
            for (direction, counter) in DIRECTIONS {
                let count = entry["counters"][counter].as_u64();
                let count =
                    count.with_context(|| format!("`redirect stats` has no {counter} for {pod}: {entry}"))?;
                self.kernel.insert((pod.to_owned(), direction), count);
            }
        }
        Ok(())
    }
}

/// How many requests each pod had between two looks at the counters, beside what `visits` must have caused.
pub(crate) fn compare(before: &Counters, after: &Counters, visits: &[Visit]) -> Vec<Count> {
    let grown = |map: fn(&Counters) -> &BTreeMap<(String, &'static str), u64>,
                 key: &(String, &'static str)| {
        let count = |counters| map(counters).get(key).copied().unwrap_or_default();
        count(after).saturating_sub(count(before))
    };
    let row = |workload: Workload, direction: &'static str| {
        let key = (workload.pod(), direction);
        Count {
            asked: visits.iter().map(|visit| caused(visit, workload, direction)).sum(),
            envoy: grown(|counters| &counters.envoy, &key),
            kernel: grown(|counters| &counters.kernel, &key),
            pod: key.0,
            direction,
        }
    };
    WORKLOADS
        .into_iter()
        .flat_map(|workload| DIRECTIONS.map(|(direction, _)| row(workload, direction)))
        .collect()
}

/// How many requests one page causes for a pod, by what the page says about who served the reviews.
fn caused(visit: &Visit, workload: Workload, direction: &str) -> u64 {
    let served = visit.served_by();
    let stars = matches!(served, Some("reviews-v2" | "reviews-v3"));
    match (workload.service.name, direction == INBOUND) {
        ("productpage", true) | ("details", true) => 1,
        ("productpage", false) => 2,
        ("reviews", inbound) => u64::from(served == Some(workload.pod().as_str()) && (inbound || stars)),
        ("ratings", true) => u64::from(stars),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn visit(pod: &str) -> Visit {
        let body = format!("<code id=\"served-by\">{pod}</code>");
        Visit { request_id: "1".into(), status: 200, millis: 1, body }
    }

    fn counters(pod: &str, inbound: u64, outbound: u64) -> Counters {
        let mut counters = Counters::default();
        let stats = format!(
            "http.inbound.downstream_rq_total: {inbound}\nhttp.outbound.downstream_rq_total: {outbound}\n"
        );
        counters.add_envoy(pod, &stats).unwrap();
        let stats = json!({ "inbound_redirected": inbound, "outbound_redirected": outbound });
        counters.add_kernel(&json!([{ "pod": { "name": pod }, "counters": stats }])).unwrap();
        counters
    }

    #[test]
    fn a_page_with_stars_causes_one_request_to_ratings() {
        let visits = [visit("reviews-v1"), visit("reviews-v2"), visit("reviews-v3"), visit("reviews-v3")];
        let counts = compare(&Counters::default(), &Counters::default(), &visits);
        let asked = |pod: &str, direction: &str| {
            counts.iter().find(|count| count.pod == pod && count.direction == direction).unwrap().asked
        };
        assert_eq!((asked("productpage-v1", INBOUND), asked("productpage-v1", OUTBOUND)), (4, 8));
        assert_eq!((asked("details-v1", INBOUND), asked("details-v1", OUTBOUND)), (4, 0));
        assert_eq!((asked("reviews-v1", INBOUND), asked("reviews-v1", OUTBOUND)), (1, 0));
        assert_eq!((asked("reviews-v3", INBOUND), asked("reviews-v3", OUTBOUND)), (2, 2));
        assert_eq!((asked("ratings-v1", INBOUND), asked("ratings-v1", OUTBOUND)), (3, 0));
    }

    #[test]
    fn only_what_was_counted_in_between_counts() {
        let counts =
            compare(&counters("details-v1", 5, 1), &counters("details-v1", 7, 1), &[visit("reviews-v1")]);
        let inbound =
            counts.iter().find(|count| count.pod == "details-v1" && count.direction == INBOUND).unwrap();
        assert_eq!((inbound.asked, inbound.envoy, inbound.kernel), (1, 2, 2));
        assert!(!inbound.check().ok);
    }

    #[test]
    fn counters_that_are_not_there_are_an_error() {
        assert!(Counters::default().add_envoy("x", "http.inbound.downstream_rq_total: 3\n").is_err());
        assert!(
            Counters::default().add_kernel(&json!([{ "pod": { "name": "x" }, "counters": {} }])).is_err()
        );
    }
}
