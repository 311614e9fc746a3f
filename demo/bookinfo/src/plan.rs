//! What Bookinfo consists of: services with an address each, pods that stand behind them, and who is in the
//! mesh.

use std::net::Ipv4Addr;

/// The port that every application serves on.
pub(crate) const PORT: u16 = 9080;
/// The port of the gateway.
pub(crate) const GATEWAY_PORT: u16 = 8080;
/// How many pods there are in the mesh, the gateway's aside.
pub(crate) const PODS: usize = 6;

/// A service: a name and an address that applications dial and that no network carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// Its name, by which applications ask for it.
    pub(crate) name: &'static str,
    /// The last number of its address.
    number: u8,
}

impl Service {
    /// Its address, from the range that clusters use for services. Nothing routes it: who dials it gets
    /// somewhere only if a sidecar takes the connection.
    pub(crate) fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96, 0, self.number)
    }

    /// The cluster that sidecars know it by.
    pub(crate) fn cluster(self) -> String {
        format!("outbound|{PORT}||{}.default.svc.cluster.local", self.name)
    }

    /// The workloads that stand behind it.
    pub(crate) fn workloads(self) -> impl Iterator<Item = Workload> {
        WORKLOADS.into_iter().filter(move |workload| workload.service == self)
    }

    /// The name in its certificates.
    pub(crate) fn identity(self) -> String {
        identity("default", &format!("bookinfo-{}", self.name))
    }
}

const PRODUCTPAGE: Service = Service { name: "productpage", number: 10 };
const DETAILS: Service = Service { name: "details", number: 11 };
const REVIEWS: Service = Service { name: "reviews", number: 12 };
const RATINGS: Service = Service { name: "ratings", number: 13 };
/// All services.
pub(crate) const SERVICES: [Service; 4] = [PRODUCTPAGE, DETAILS, REVIEWS, RATINGS];

/// A pod of the mesh: an application and its sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    /// The service that it stands behind.
    pub(crate) service: Service,
    /// Its version.
    pub(crate) version: &'static str,
}

/// All pods of the mesh.
pub(crate) const WORKLOADS: [Workload; PODS] = [
    Workload { service: PRODUCTPAGE, version: "v1" },
    Workload { service: DETAILS, version: "v1" },
    Workload { service: RATINGS, version: "v1" },
    Workload { service: REVIEWS, version: "v1" },
    Workload { service: REVIEWS, version: "v2" },
    Workload { service: REVIEWS, version: "v3" },
];

impl Workload {
    /// The pod's name.
    pub(crate) fn pod(self) -> String {
        format!("{}-{}", self.service.name, self.version)
    }

    /// Arguments of the application's binary.
    pub(crate) fn arguments(self) -> Vec<&'static str> {
        let mut arguments = vec![self.service.name];
        if self.service == REVIEWS {
            arguments.push(self.version);
        }
        arguments
    }
}

/// The workload of a pod.
pub(crate) fn workload(pod: &str) -> Option<Workload> {
    WORKLOADS.into_iter().find(|workload| workload.pod() == pod)
}

/// The gateway's pod: an Envoy alone, in a namespace of its own.
pub(crate) const GATEWAY: Outside = Outside { namespace: "istio-ingress", pod: "istio-ingressgateway" };
/// A pod that looks like one of the mesh, in a namespace whose pods are left alone.
pub(crate) const LEGACY: Outside = Outside { namespace: "kube-system", pod: "legacy" };
/// The namespace of the mesh's pods.
pub(crate) const NAMESPACE: &str = "default";
/// What the plugin is told to leave alone.
pub(crate) const EXCLUDED_NAMESPACES: [&str; 2] = ["istio-system", "kube-system"];

/// A pod that is not redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outside {
    /// Its namespace.
    pub(crate) namespace: &'static str,
    /// Its name.
    pub(crate) pod: &'static str,
}

/// A name in certificates, in the form that a mesh gives to a service account.
pub(crate) fn identity(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

/// The `/etc/hosts` of every pod: there is no name server on the node.
pub(crate) fn hosts() -> String {
    let services = SERVICES.map(|service| format!("{}\t{}\n", service.address(), service.name));
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{}", services.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_stands_behind_one_service_and_every_service_has_an_address_of_its_own() {
        let counts = SERVICES.map(|service| service.workloads().count());
        assert_eq!((counts, counts.iter().sum::<usize>()), ([1, 1, 3, 1], PODS));
        let mut addresses = SERVICES.map(Service::address).to_vec();
        addresses.dedup();
        assert_eq!(addresses.len(), SERVICES.len());
        assert!(hosts().contains("10.96.0.12\treviews\n"), "{}", hosts());
    }

    #[test]
    fn a_pod_is_found_by_its_name() {
        assert_eq!(workload("reviews-v3").unwrap().arguments(), ["reviews", "v3"]);
        assert_eq!(workload("details-v1").unwrap().arguments(), ["details"]);
        assert_eq!(workload("reviews-v4"), None);
    }
}
