//! What one pod does takes no room from the others: each pod has a share of every table that programs fill.

use std::net::SocketAddr;

use harness::cli::Outcome;
use harness::{Errno, Event, Family, kernel_test};
use redirect_common::{Claims, HANDSHAKES_PER_POD, LISTENING_PER_POD, SLOTS_PER_POD};

use crate::{any, crowded, enrolled};

#[test]
fn a_pod_with_its_share_of_handshakes_starts_no_more_and_another_pod_does() {
    kernel_test(|node| {
        let (greedy, other) = (enrolled(node, "greedy"), enrolled(node, "other"));
        let (_first, _second) = (greedy.sidecar(), other.sidecar());
        let all = crowded(Family::V4);
        let detour = all[all.len() - 1];
        let (app, neighbour) = (greedy.app(), other.app());
        for to in &all[..all.len() - 1] {
            drop(app.connect(*to).unwrap());
            drop(neighbour.connect(*to).unwrap());
        }
        let has = |handshakes| Claims { handshakes, ..node.claims(&greedy) };
        node.set_claims(&greedy, has(HANDSHAKES_PER_POD));
        let seen = app.connect(detour).unwrap().seen();
        assert!(seen.original_dst.is_err(), "{seen:?}");
        assert_eq!((node.count(&greedy, Event::HandoffFull), node.handshakes().len()), (1, 0));
        assert_eq!(neighbour.connect(detour).unwrap().seen().original_dst, Ok(detour));
        // One less, and there is room for one.
        node.set_claims(&greedy, has(HANDSHAKES_PER_POD - 1));
        assert_eq!(app.connect(detour).unwrap().seen().original_dst, Ok(detour));
        assert_eq!(node.claims(&greedy).handshakes, HANDSHAKES_PER_POD - 1);
        assert_eq!(node.claims(&other).handshakes, 0);
    });
}

#[test]
fn a_pod_with_its_share_of_destinations_has_no_more_noted_and_another_pod_has() {
    kernel_test(|node| {
        let (greedy, other) = (enrolled(node, "greedy"), enrolled(node, "other"));
        let (_first, _second) = (greedy.sidecar(), other.sidecar());
        let (app, neighbour) = (greedy.app(), other.app());
        let noted = || node.entries_of("DESTINATIONS");
        let to = |number: u8| SocketAddr::from(([192, 0, 2, number], 80));
        let has = |destinations| Claims { destinations, ..node.claims(&greedy) };
        node.set_claims(&greedy, has(SLOTS_PER_POD.into()));
        // Its connection takes the detour, and gets there all the same.
        assert_eq!(app.connect(to(1)).unwrap().seen().original_dst, Ok(to(1)));
        assert_eq!((noted(), node.count(&greedy, Event::HandoffTaken)), (0, 1));
        assert_eq!(neighbour.connect(to(1)).unwrap().seen().original_dst, Ok(to(1)));
        assert_eq!((noted(), node.count(&other, Event::HandoffTaken)), (1, 0));
        // One less, and there is room for one.
        node.set_claims(&greedy, has(u64::from(SLOTS_PER_POD) - 1));
        for number in [2, 3] {
            assert_eq!(app.connect(to(number)).unwrap().seen().original_dst, Ok(to(number)));
        }
        assert_eq!((noted(), node.claims(&greedy).destinations), (2, SLOTS_PER_POD.into()));
        assert_eq!(node.count(&greedy, Event::HandoffTaken), 2);
    });
}

#[test]
fn a_pod_with_its_share_of_listeners_has_no_more_noted_and_another_pod_has() {
    kernel_test(|node| {
        let (greedy, other, peer) = (enrolled(node, "greedy"), enrolled(node, "other"), node.pod("peer"));
        let (_first, _second) = (greedy.sidecar(), other.sidecar());
        let (app, neighbour, client) = (greedy.app(), other.app(), peer.app());
        let noted = app.listen(any(Family::V4, 40_001)).unwrap();
        assert_eq!(node.claims(&greedy).listening, 1);
        node.set_claims(&greedy, Claims { listening: LISTENING_PER_POD, ..node.claims(&greedy) });
        let _unknown = app.listen(any(Family::V4, 40_002)).unwrap();
        let _known = neighbour.listen(any(Family::V4, 40_002)).unwrap();
        assert_eq!(client.connect(greedy.at(Family::V4, 40_002)).map(drop), Err(Errno::ECONNREFUSED));
        assert_eq!(client.connect(other.at(Family::V4, 40_002)).unwrap().seen().listener, 15006);
        // The one that was noted before stays so, and gives its place back.
        assert_eq!(client.connect(greedy.at(Family::V4, 40_001)).unwrap().seen().listener, 15006);
        drop(noted);
        assert_eq!(node.claims(&greedy).listening, LISTENING_PER_POD - 1);
        let _again = app.listen(any(Family::V4, 40_003)).unwrap();
        assert_eq!(client.connect(greedy.at(Family::V4, 40_003)).unwrap().seen().listener, 15006);
        assert_eq!(node.claims(&greedy).listening, LISTENING_PER_POD);
    });
}

#[test]
fn a_pod_has_one_entry_in_guard_however_many_interfaces_and_calls_it_has() {
    kernel_test(|node| {
        let pod = enrolled(node, "pod");
        let guarded = || node.guarded();
        assert_eq!(guarded(), 1);
        for number in 1..=3 {
            pod.netns().ip(&format!(
                "link add net{number} type veth peer name far{number}\nlink set far{number} up\nlink set net{number} up"
            ));
            node.attach(&pod, &[]);
            assert_eq!(guarded(), 1);
        }
        let interfaces = node.list()[0]["guard"]["interfaces"].as_array().map_or(0, Vec::len);
        assert!(interfaces >= 4, "the guard stands on {interfaces}");
        node.detach(&pod);
        assert_eq!(guarded(), 0);
    });
}

/// A running pod's sockets are noted by attach. What a DEL goes by is right after each call, and after one
/// that found the table full.
#[test]
fn what_attach_notes_of_a_running_pod_is_counted_once_and_goes_with_it() {
    kernel_test(|node| {
        let (pod, other) = (node.pod("pod"), node.pod("other"));
        let (app, neighbour) = (pod.app(), other.app());
        let _two = [40_001, 40_002].map(|port| app.listen(any(Family::V4, port)).unwrap());
        let _one = neighbour.listen(any(Family::V4, 40_001)).unwrap();
        let noted = || node.entries_of("LISTENING");
        for _ in 0..2 {
            node.attach(&pod, &[]);
            assert_eq!((node.claims(&pod).listening, noted()), (2, 2));
        }
        node.detach(&pod);
        assert_eq!(noted(), 0);
        node.attach(&other, &[]);
        let full = node.fill_map("LISTENING");
        node.detach(&other);
        let refused = Outcome::of(&mut node.attach_command(&pod));
        assert!(refused.code != Some(0) && refused.stderr.contains("LISTENING"), "{refused:?}");
        drop(full);
        assert_eq!(noted(), 0, "one of the two was noted, and is gone");
    });
}
