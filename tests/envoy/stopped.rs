//! An Envoy that stops and starts: nothing passes in between, and everything afterwards.

use harness::envoy::Bootstrap;
use harness::{Errno, Family, Service, kernel_test};

use crate::{APP_PORT, start_envoy, with_envoy};

#[test]
fn refused_while_it_is_away_and_captured_when_it_is_back() {
    kernel_test(|node| {
        let bootstrap = Bootstrap::default();
        let (pod, envoy) = with_envoy(node, "pod", &bootstrap);
        let outside = node.pod("outside");
        let (app, other) = (pod.app(), outside.app());
        for family in Family::ALL {
            app.serve(&[pod.at(family, APP_PORT)], Service::Echo).unwrap();
            other.serve(&[outside.at(family, APP_PORT)], Service::Echo).unwrap();
        }
        envoy.stop().unwrap();
        for family in Family::ALL {
            assert_eq!(app.connect(outside.at(family, APP_PORT)).map(drop), Err(Errno::ECONNREFUSED));
            assert_eq!(other.connect(pod.at(family, APP_PORT)).map(drop), Err(Errno::ECONNREFUSED));
        }
        assert_eq!((app.take_seen(), other.take_seen()), (vec![], vec![]));

        let mut envoy = start_envoy(node, &pod, &bootstrap);
        for family in Family::ALL {
            for (from, to) in [(&app, outside.at(family, APP_PORT)), (&other, pod.at(family, APP_PORT))] {
                from.connect(to).unwrap().expect_echo(b"hello");
                assert_eq!(envoy.wait_for_entries(1).unwrap().remove(0).original_dst, to);
            }
        }
    });
}
