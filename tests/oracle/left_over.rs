//! Istio's rules are still in a pod that is ours: istio-init ran in it, or Istio's CNI plugin was there
//! before.

use harness::{Family, Service, any, kernel_test};
use redirect_user::policy::Policy;

use crate::enforce::{Enforcer, load_rules};

/// What our programs have taken goes over `lo` to an address of the pod, which Istio's rules leave alone.
/// What arrives gets the sidecar's port from the rules, and the kernel knows the port that it had.
#[test]
fn a_connection_is_captured_once_where_both_are_in_the_pod() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("pod"), node.pod("other"));
        Enforcer::Ours.enforce(node, &pod, &Policy::default());
        for family in Family::ALL {
            load_rules(node, &pod, &Policy::default(), family);
        }
        let (sidecar, app, client, proxy) = (pod.sidecar(), pod.app(), other.app(), pod.proxy());
        for process in [&app, &client] {
            process.serve(&Family::ALL.map(|family| any(family, 8080)), Service::Tell).expect("serve");
        }
        for family in Family::ALL {
            let outbound = app.connect(other.at(family, 8080)).unwrap().seen();
            assert_eq!((outbound.listener, outbound.original_dst), (15001, Ok(other.at(family, 8080))));
            let inbound = client.connect(pod.at(family, 8080)).unwrap().seen();
            assert_eq!((inbound.listener, inbound.original_dst), (15006, Ok(pod.at(family, 8080))));
            // The sidecar's own two ways on.
            assert_eq!(proxy.connect(other.at(family, 8080)).unwrap().seen().listener, 8080);
            let passthrough = if family == Family::V6 { "[::6]:0" } else { "127.0.0.6:0" };
            let onward = proxy.tcp(family);
            onward.bind(passthrough.parse().expect("an address")).unwrap();
            onward.connect(pod.at(family, 8080)).unwrap();
            assert_eq!(onward.seen().listener, 8080);
        }
        assert_eq!(sidecar.take_seen().len(), 4, "each connection came to the sidecar once");
    });
}
