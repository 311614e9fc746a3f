//! Requests from outside, followed through the mesh: which Envoy logged what about the requests made for
//! them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::Serialize;

use crate::check::Check;
use crate::log::Line;
use crate::plan::{self, GATEWAY, PORT, SERVICES};
use crate::proxy::{INBOUND, INGRESS, OUTBOUND};

/// Access logs by pod.
pub(crate) type Logs = BTreeMap<String, Vec<Line>>;

/// A page as who asked for it got it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Visit {
    /// The id that the gateway gave to the request.
    pub(crate) request_id: String,
    /// HTTP status.
    pub(crate) status: u16,
    /// How long it took.
    pub(crate) millis: u128,
    /// The page.
    #[serde(skip)]
    pub(crate) body: String,
}

/// A visit and every request that was made for it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Trip {
    /// What was got.
    pub(crate) visit: Visit,
    /// The requests, from the gateway's on.
    pub(crate) hops: Vec<Hop>,
}

/// One request between two pods as the Envoys at both ends logged it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hop {
    /// The pod that asked.
    pub(crate) from: String,
    /// The service that it asked, by the path.
    pub(crate) service: String,
    /// What the asking pod's Envoy logged.
    pub(crate) client: Line,
    /// The pod that answered; none where there was no answer.
    pub(crate) to: Option<String>,
    /// What its sidecar logged.
    pub(crate) server: Option<Line>,
}

/// The order in which hops are shown.
const ORDER: [&str; 4] = ["productpage", "details", "reviews", "ratings"];

impl Trip {
    /// Finds the requests that were made for `visit`.
    pub(crate) fn follow(visit: &Visit, logs: &Logs) -> Trip {
        let of = |listeners: &'static [&str]| {
            let lines = logs.iter().flat_map(|(pod, lines)| lines.iter().map(move |line| (pod, line)));
            lines.filter(move |(_, line)| {
                listeners.contains(&line.listener.as_str())
                    && line.request_id.as_ref() == Some(&visit.request_id)
            })
        };
        let hop = |(from, client): (&String, &Line)| {
            let answered = of(&[INBOUND]).find(|(_, server)| server.path == client.path);
            Hop {
                from: from.clone(),
                service: service_of(client),
                client: client.clone(),
                to: answered.map(|(pod, _)| pod.clone()),
                server: answered.map(|(_, line)| line.clone()),
            }
        };
        let mut hops: Vec<Hop> = of(&[INGRESS, OUTBOUND]).map(hop).collect();
        hops.sort_by_key(|hop| ORDER.iter().position(|name| *name == hop.service));
        Trip { visit: visit.clone(), hops }
    }

    /// The pod of `reviews` that took part.
    pub(crate) fn reviews(&self) -> Option<&str> {
        self.hops.iter().find(|hop| hop.service == "reviews")?.to.as_deref()
    }

    /// Whether all requests that a page causes are there, with what both Envoys say about each.
    pub(crate) fn is_complete(&self) -> bool {
        let expected = match self.reviews() {
            None => return false,
            Some("reviews-v1") => &ORDER[..3],
            Some(_) => &ORDER[..],
        };
        let found: Vec<_> = self.hops.iter().map(|hop| hop.service.as_str()).collect();
        found == expected && self.hops.iter().all(|hop| hop.server.is_some())
    }
}

/// `/reviews/0` is asked of `reviews`.
fn service_of(line: &Line) -> String {
    let path = line.path.as_deref().unwrap_or_default();
    path.trim_start_matches('/').split('/').next().unwrap_or_default().to_owned()
}

impl Hop {
    /// What must be true of every request that was answered, as one check each. `ip` knows the pods'
    /// addresses.
    pub(crate) fn checks(&self, ip: &BTreeMap<String, Ipv4Addr>) -> Vec<Check> {
        let (Some(to), Some(server)) = (&self.to, &self.server) else {
            return vec![self.check("is answered", "no pod's sidecar logged it".into(), false)];
        };
        let addresses = |pod: &str| ip.get(pod).copied().map(IpAddr::from);
        let mut checks = vec![
            self.check(
                "goes to a pod of the service",
                to.clone(),
                plan::workload(to).is_some_and(|workload| workload.service.name == self.service),
            ),
            self.same(
                "arrives where the client's sidecar sent it",
                server.original_dst,
                self.client.upstream,
            ),
            self.same(
                "arrives with the address that it was sent from",
                server.client,
                self.client.upstream_local,
            ),
            self.same("is sent to the pod's own address", server.original_dst, addresses(to).map(at_port)),
            self.check(
                "is under mutual TLS, from the peer that it says",
                server.peer.clone().unwrap_or_else(|| "no certificate".into()),
                server.peer == identity_of(&self.from) && server.tls.is_some(),
            ),
        ];
        if self.from != GATEWAY.pod {
            let service = SERVICES.into_iter().find(|service| service.name == self.service);
            let dialled = service.map(|service| at_port(service.address().into()));
            checks.push(self.same("was dialled at the service's address", self.client.original_dst, dialled));
            let client = self.client.client.ip();
            let ok = Some(client) == addresses(&self.from);
            checks.push(self.check("was dialled from the pod's address", client.to_string(), ok));
        }
        checks
    }

    fn same(&self, promise: &str, found: SocketAddr, promised: Option<SocketAddr>) -> Check {
        let shown = match promised {
            Some(address) if address == found => found.to_string(),
            Some(address) => format!("{found}, not {address}"),
            None => format!("{found}, not compared with anything"),
        };
        self.check(promise, shown, promised == Some(found))
    }

    fn check(&self, promise: &str, found: String, ok: bool) -> Check {
        let path = self.client.path.as_deref().unwrap_or("?");
        Check { promise: format!("{} -> {path} {promise}", self.from), found, ok }
    }
}

fn at_port(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, PORT)
}

/// The name in the certificate of a pod's Envoy.
pub(crate) fn identity_of(pod: &str) -> Option<String> {
    if pod == GATEWAY.pod {
        return Some(plan::identity(GATEWAY.namespace, GATEWAY.pod));
    }
    plan::workload(pod).map(|workload| workload.service.identity())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(listener: &str, path: &str, client: &str, original_dst: &str) -> Line {
        Line {
            listener: listener.into(),
            request_id: Some("7".into()),
            method: Some("GET".into()),
            path: Some(path.into()),
            status: Some(200),
            flags: None,
            client: client.parse().unwrap(),
            original_dst: original_dst.parse().unwrap(),
            peer: None,
            tls: None,
            upstream: None,
            upstream_local: None,
        }
    }

    /// A page whose reviews came from `reviews-v1`, as the logs have it.
    fn logs() -> Logs {
        let mut outbound = line(OUTBOUND, "/details/0", "10.0.0.1:40", "10.96.0.11:9080");
        (outbound.upstream, outbound.upstream_local) =
            ("10.0.0.2:9080".parse().ok(), "10.0.0.1:41".parse().ok());
        let mut inbound = line(INBOUND, "/details/0", "10.0.0.1:41", "10.0.0.2:9080");
        (inbound.peer, inbound.tls) = (identity_of("productpage-v1"), Some("TLSv1.3".into()));
        let reviews = line(OUTBOUND, "/reviews/0", "10.0.0.1:50", "10.96.0.12:9080");
        Logs::from([
            (GATEWAY.pod.to_owned(), vec![line(INGRESS, "/productpage", "10.0.0.254:9", "10.0.0.9:8080")]),
            (
                "productpage-v1".to_owned(),
                vec![reviews, outbound, line(INBOUND, "/productpage", "10.0.0.9:1", "10.0.0.1:9080")],
            ),
            ("details-v1".to_owned(), vec![inbound]),
            ("reviews-v1".to_owned(), vec![line(INBOUND, "/reviews/0", "10.0.0.1:51", "10.0.0.3:9080")]),
        ])
    }

    fn visit() -> Visit {
        Visit { request_id: "7".into(), status: 200, millis: 9, body: String::new() }
    }

    #[test]
    fn a_trip_is_put_together_from_all_logs_in_the_order_of_the_page() {
        let trip = Trip::follow(&visit(), &logs());
        let found: Vec<_> =
            trip.hops.iter().map(|hop| (hop.from.as_str(), hop.to.as_deref().unwrap())).collect();
        let expected = [
            (GATEWAY.pod, "productpage-v1"),
            ("productpage-v1", "details-v1"),
            ("productpage-v1", "reviews-v1"),
        ];
        assert_eq!(found, expected);
        assert!(trip.is_complete());
        let other = Visit { request_id: "8".into(), ..visit() };
        assert!(Trip::follow(&other, &logs()).hops.is_empty());
    }

    #[test]
    fn each_thing_that_two_envoys_disagree_about_is_found() {
        let ip = BTreeMap::from([
            ("productpage-v1".to_owned(), Ipv4Addr::new(10, 0, 0, 1)),
            ("details-v1".to_owned(), Ipv4Addr::new(10, 0, 0, 2)),
        ]);
        let good = Trip::follow(&visit(), &logs()).hops.swap_remove(1);
        assert!(good.checks(&ip).iter().all(|check| check.ok), "{:#?}", good.checks(&ip));
        let broken = |change: fn(&mut Hop)| {
            let mut hop = good.clone();
            change(&mut hop);
            hop.checks(&ip).iter().filter(|check| !check.ok).count()
        };
        let elsewhere = || "10.0.0.7:9080".parse().unwrap();
        assert_eq!(broken(|hop| hop.server = None), 1);
        assert_eq!(broken(|hop| hop.server.as_mut().unwrap().client = "127.0.0.1:41".parse().unwrap()), 1);
        assert_eq!(broken(|hop| hop.server.as_mut().unwrap().peer = None), 1);
        assert_eq!(broken(|hop| hop.to = Some("ratings-v1".into())), 2);
        assert_eq!(broken(|hop| hop.client.client = "127.0.0.1:40".parse().unwrap()), 1);
        let mut hop = good.clone();
        hop.client.original_dst = elsewhere();
        assert_eq!(hop.checks(&ip).iter().filter(|check| !check.ok).count(), 1);
        hop.client.upstream = Some(elsewhere());
        assert_eq!(hop.checks(&ip).iter().filter(|check| !check.ok).count(), 2);
    }

    #[test]
    fn a_page_with_stars_is_complete_only_with_the_ratings() {
        let mut logs = logs();
        let reviews = logs.remove("reviews-v1").unwrap();
        logs.insert("reviews-v2".into(), reviews);
        assert!(!Trip::follow(&visit(), &logs).is_complete());
    }
}
