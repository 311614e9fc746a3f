//! Pods that come and go leave nothing behind.

use harness::{Pod, kernel_test};

use super::World;
use crate::driver::until;
use crate::pods::{open_files, resident};

#[test]
fn pods_that_come_and_go_leave_memory_files_and_maps_as_they_were() {
    kernel_test(|node| {
        let world = World::new(node);
        let pods: Vec<Pod> = (0..4).map(|number| node.pod(&format!("web-{number}"))).collect();
        let agent = world.agent(&["--repair-pods", "--live-policy"]);
        let round = |number: u32| {
            for pod in &pods {
                world.tell(pod, |_| {});
                node.attach(pod, &["--exclude-outbound-ports", &(9000 + number).to_string()]);
            }
            if number.is_multiple_of(5) {
                world.api.cut();
            }
            for pod in &pods {
                node.detach(pod);
                world.api.store().remove(apiserver::Kind::PODS, "shop", pod.name());
            }
        };
        (0..5).for_each(round);
        let (memory, files) = (resident(agent.pid()), open_files(agent.pid()));
        (5..35).for_each(round);
        until("nothing is attached", || node.attached().is_empty());
        until("connections and sockets are closed", || open_files(agent.pid()) <= files + 2);
        for (map, entries) in node.map_entries() {
            assert_eq!(entries, 0, "{map}");
        }
        let grown = resident(agent.pid()).saturating_sub(memory);
        assert!(grown < 3072, "120 pods later the agent has {grown} kB more than {memory} kB");
        println!("120 pods: {grown} kB more than {memory} kB");
    });
}
