//! Many calls at once: a node that starts all its pods after a boot, and drains them.

use harness::kernel_test;

use crate::sandbox::{Sandbox, assert_nothing_attached, assert_redirected};

const PODS: usize = 50;

#[test]
fn fifty_pods_come_and_go_at_once() {
    kernel_test(|node| {
        let pods: Vec<_> = (0..PODS).map(|number| node.pod(&format!("pod{number}"))).collect();
        let sandboxes: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(number, pod)| Sandbox::new(node, pod, &format!("c{number}")))
            .collect();
        // The first of them installs the programs, the others wait for it.
        at_once(&sandboxes, Sandbox::add);
        assert_eq!(node.attached().len(), PODS);
        for pod in [&pods[0], &pods[PODS / 2], &pods[PODS - 1]] {
            let _sidecar = pod.sidecar();
            assert_redirected(&pod.app());
        }
        at_once(&sandboxes, Sandbox::del);
        assert_nothing_attached(node);
    });
}

#[test]
fn adds_and_dels_of_the_same_pods_at_once_end_in_one_state() {
    kernel_test(|node| {
        let pods: Vec<_> = (0..10).map(|number| node.pod(&format!("pod{number}"))).collect();
        let sandboxes: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(number, pod)| Sandbox::new(node, pod, &format!("c{number}")))
            .collect();
        std::thread::scope(|scope| {
            for sandbox in &sandboxes {
                for round in 0..3 {
                    scope.spawn(move || if round == 1 { sandbox.del() } else { sandbox.add() });
                }
            }
        });
        // Whoever came last: each pod is attached as a whole or not at all.
        for (sandbox, pod) in sandboxes.iter().zip(&pods) {
            if node.attached().contains(&sandbox.id) {
                assert_eq!(sandbox.check().success(), "");
                let _sidecar = pod.sidecar();
                assert_redirected(&pod.app());
            }
            sandbox.del();
        }
        assert_nothing_attached(node);
    });
}

fn at_once(sandboxes: &[Sandbox], call: impl Fn(&Sandbox) + Sync) {
    std::thread::scope(|scope| {
        for sandbox in sandboxes {
            scope.spawn(|| call(sandbox));
        }
    });
}
