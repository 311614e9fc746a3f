//! What the demonstration found: tables for people, JSON for tests.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use crate::check::Check;
use crate::log::Line;
use crate::trips::Trip;

/// Everything that one run found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// The version of the sidecars.
    pub(crate) envoy: String,
    /// The container runtime, as it calls itself.
    pub(crate) runtime: String,
    /// Where the page is.
    pub(crate) page: String,
    /// The pods, as the container runtime has them.
    pub(crate) pods: Vec<PodRow>,
    /// What `redirect list` prints.
    pub(crate) list: String,
    /// The same as JSON.
    pub(crate) attachments: Value,
    /// What `redirect outcomes` counts.
    pub(crate) outcomes: Value,
    /// Requests from outside and what they caused.
    pub(crate) trips: Vec<Trip>,
    /// The same requests by who counted them.
    pub(crate) counts: Vec<Count>,
    /// Everything that was promised.
    pub(crate) checks: Vec<Check>,
    /// From the start to the page, in seconds.
    pub(crate) seconds: f64,
}

/// One pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodRow {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Containers that run.
    pub(crate) ready: usize,
    /// Containers that have ever been in the pod, less init containers.
    pub(crate) containers: Vec<String>,
    /// Containers that ran before those.
    pub(crate) init_containers: Vec<String>,
    pub(crate) ip: String,
    /// Whether `redirect list` has it.
    pub(crate) redirected: bool,
}

/// How many requests a pod had, by who asked, by its Envoy, and by the kernel.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Count {
    pub(crate) pod: String,
    /// `inbound` or `outbound`.
    pub(crate) direction: &'static str,
    /// As the requests that were made, and their pages, have it.
    pub(crate) asked: u64,
    /// As the statistics of the Envoy have it.
    pub(crate) envoy: u64,
    /// As the programs have it.
    pub(crate) kernel: u64,
}

impl Count {
    /// Each request comes on a connection of its own, and Envoy may open one more that it finds it does not
    /// need: the kernel counts connections, so it must not have counted fewer. Fewer would be a way past the
    /// sidecar.
    fn agree(&self) -> bool {
        let connections = if self.asked == 0 { self.kernel == 0 } else { self.kernel >= self.asked };
        self.asked == self.envoy && connections
    }

    /// That all three agree.
    pub(crate) fn check(&self) -> Check {
        let found = format!("asked {}, Envoy {}, kernel {}", self.asked, self.envoy, self.kernel);
        Check::new(
            format!("{} {}: a connection for each request", self.pod, self.direction),
            found,
            self.agree(),
        )
    }
}

impl Report {
    /// The promises that were not kept.
    pub(crate) fn broken(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.ok)
    }

    /// The tables.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("\nBookinfo on {}, sidecars are Envoy {}\n\n", self.runtime, self.envoy);
        text += &self.pods();
        text += &format!("\n$ redirect list\n{}", self.list);
        for (number, trip) in (1..).zip(&self.trips) {
            text += &trip_table(number, trip);
        }
        text += &self.counts();
        text += "\nPromises\n";
        let (hops, others): (Vec<_>, Vec<_>) =
            self.checks.iter().partition(|check| check.promise.contains(" -> /"));
        let kept = hops.iter().filter(|check| check.ok).count();
        let _ = writeln!(text, "  {kept} of {} about single requests are kept", hops.len());
        let others = others.into_iter().chain(hops.into_iter().filter(|check| !check.ok));
        for check in others {
            let _ = writeln!(
                text,
                "  {}  {}: {}",
                if check.ok { "ok" } else { "NO" },
                check.promise,
                check.found
            );
        }
        let _ = writeln!(text, "\nThe page, {:.0} s after the start: {}", self.seconds, self.page);
        text
    }

    fn pods(&self) -> String {
        let head = ["NAMESPACE", "NAME", "READY", "CONTAINERS", "INIT CONTAINERS", "IP", "REDIRECTED"];
        let rows = self.pods.iter().map(|pod| {
            [
                pod.namespace.clone(),
                pod.name.clone(),
                format!("{}/{}", pod.ready, pod.containers.len()),
                list(&pod.containers),
                list(&pod.init_containers),
                pod.ip.clone(),
                if pod.redirected { "yes".into() } else { "no".into() },
            ]
        });
        table(head, rows)
    }

    fn counts(&self) -> String {
        let rows = self.counts.iter().map(|count| {
            let Count { pod, direction, asked, envoy, kernel } = count;
            [pod.clone(), (*direction).into(), asked.to_string(), envoy.to_string(), kernel.to_string()]
        });
        format!("\n{}", table(["POD", "REQUESTS", "MADE", "ENVOY", "KERNEL"], rows))
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "<none>".into() } else { names.join(",") }
}

/// What the Envoys on the way logged.
fn trip_table(number: usize, trip: &Trip) -> String {
    let reviews = trip.reviews().unwrap_or("no pod");
    let head = [
        "POD",
        "LISTENER",
        "PATH",
        "CLIENT",
        "ORIGINAL DST",
        "SENT ON TO",
        "CERTIFICATE OF CLIENT",
        "STATUS",
    ];
    let lines = trip.hops.iter().flat_map(|hop| {
        let server = hop.server.as_ref().map(|line| (hop.to.as_deref().unwrap_or("-"), line));
        [(hop.from.as_str(), &hop.client)].into_iter().chain(server)
    });
    let visit = &trip.visit;
    let title = format!("request {number}: {} after {} ms, reviews by {reviews}", visit.status, visit.millis);
    format!("\n{title}\n{}", table(head, lines.map(|(pod, line)| log_row(pod, line))))
}

fn log_row(pod: &str, line: &Line) -> [String; 8] {
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    [
        pod.into(),
        line.listener.clone(),
        or_none(line.path.clone()),
        line.client.to_string(),
        line.original_dst.to_string(),
        or_none(line.upstream.map(|address| address.to_string())),
        or_none(line.peer.as_deref().map(short_identity)),
        or_none(line.status.map(|status| status.to_string())) + line.flags.as_deref().unwrap_or_default(),
    ]
}

/// `spiffe://cluster.local/ns/default/sa/one` as `default/one`.
fn short_identity(identity: &str) -> String {
    identity.rsplit_once("/ns/").map_or(identity, |(_, rest)| rest).replace("/sa/", "/")
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_blanks_at_the_end() {
        let rows = [["one".to_owned(), "2".to_owned()], ["a".to_owned(), "long".to_owned()]];
        assert_eq!(table(["A", "B"], rows.into_iter()), "A    B\none  2\na    long\n");
    }

    #[test]
    fn who_counts_differently_is_told_apart() {
        let count =
            |kernel| Count { pod: "details-v1".into(), direction: "inbound", asked: 3, envoy: 3, kernel };
        assert!(count(3).check().ok && count(4).check().ok && !count(2).check().ok);
        let idle = |kernel| Count { asked: 0, envoy: 0, ..count(kernel) };
        assert!(idle(0).check().ok && !idle(1).check().ok);
        assert!(!Count { envoy: 4, ..count(4) }.check().ok, "a request that was not made");
        assert_eq!(count(2).check().found, "asked 3, Envoy 3, kernel 2");
    }

    #[test]
    fn no_init_container_is_printed_as_the_article_does() {
        assert_eq!((list(&[]).as_str(), list(&["a".into(), "b".into()]).as_str()), ("<none>", "a,b"));
        assert_eq!(
            short_identity("spiffe://cluster.local/ns/default/sa/bookinfo-details"),
            "default/bookinfo-details"
        );
    }
}
