//! Cgroups that cannot be used, each with an error of its own.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::Path;

use harness::cli::Outcome;
use harness::{kernel_test, neighbour};
use redirect_user::kernel::hook::Hook;
use redirect_user::kernel::sys;
use redirect_user::pod::cgroup;
use serde_json::json;

use crate::sandbox::{Sandbox, assert_nothing_attached, assert_redirected, pins, runtime_path};

/// `BPF_F_ALLOW_OVERRIDE` and `BPF_F_ALLOW_MULTI` of `linux/bpf.h`; exclusive is neither.
const EXCLUSIVE: u32 = 0;
const ALLOW_OVERRIDE: u32 = 1;
const ALLOW_MULTI: u32 = 2;

/// A program attached to a cgroup the old way, without a link. It is detached at the end.
struct Attached {
    cgroup: File,
    program: std::os::fd::OwnedFd,
    hook: Hook,
}

impl Attached {
    fn new(cgroup: &Path, node: &harness::Node, hook: Hook, flags: u32) -> Attached {
        let pin = pins(node).program(hook);
        let program = sys::obj_get(&pin).expect("the programs are installed");
        let attached = Attached { cgroup: File::open(cgroup).expect("a cgroup"), program, hook };
        attached.call(8, flags).expect("BPF_PROG_ATTACH");
        attached
    }

    /// `BPF_PROG_ATTACH` (8) or `BPF_PROG_DETACH` (9).
    fn call(&self, command: i64, flags: u32) -> std::io::Result<()> {
        let target = self.cgroup.as_raw_fd() as u32;
        let mut attr =
            [target, self.program.as_fd().as_raw_fd() as u32, self.hook.attach_type() as u32, flags, 0];
        // SAFETY: `attr` is the beginning of `union bpf_attr` for these two commands, and its size goes with
        // it.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(&attr)) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.call(9, 0).expect("BPF_PROG_DETACH");
    }
}

#[test]
fn an_ancestor_that_is_attached_exclusively_is_named() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        sandbox.add();
        sandbox.del();
        for hook in [Hook::Connect4, Hook::SockOps, Hook::OriginalDst] {
            let ancestor = node.cgroup().join("kubepods");
            let attached = Attached::new(&ancestor, node, hook, EXCLUSIVE);
            let details = sandbox.call("ADD").run().refused(104);
            for part in [hook.name(), &ancestor.display().to_string(), "exclusively"] {
                assert!(details.contains(part), "{part}: {details}");
            }
            assert_nothing_attached(node);
            drop(attached);
        }
        // The pod's own cgroup, too; and a programme that allows others, as far as the kernel lets links be
        // added.
        let attached = Attached::new(pod.cgroup(), node, Hook::Connect6, EXCLUSIVE);
        assert!(sandbox.call("ADD").run().refused(104).contains(&pod.cgroup().display().to_string()));
        drop(attached);
        for flags in [ALLOW_OVERRIDE, ALLOW_MULTI] {
            let _attached = Attached::new(node.cgroup(), node, Hook::Peername4, flags);
            sandbox.add();
            let _sidecar = pod.sidecar();
            assert_redirected(&pod.app());
            sandbox.del();
        }
        assert_nothing_attached(node);
    });
}

#[test]
fn an_exclusive_program_stops_only_pods_that_need_its_hook() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        let asking = sandbox.clone().with("dnsCapture", json!(true));
        let above = node.cgroup().join("kubepods");
        let theirs = neighbour::Attached::new(
            &above,
            neighbour::SENDMSG4,
            "jealous",
            &neighbour::answer(1),
            neighbour::EXCLUSIVE,
        );
        // Without DNS capture nothing is attached at sendmsg4.
        sandbox.add();
        let sidecar = pod.sidecar();
        assert_redirected(&pod.app());
        drop(sidecar);
        sandbox.del();
        let details = asking.call("ADD").run().refused(104);
        assert!(details.contains("sendmsg4") && details.contains("exclusively"), "{details}");
        drop(theirs);
        asking.add();
        asking.del();
        assert_nothing_attached(node);
    });
}

/// The kubelet's cgroup driver is one, the runtime's is the other: no process would be in what is made.
#[test]
fn a_path_of_the_other_drivers_shape_is_refused_and_not_made() {
    kernel_test(|node| {
        let pod = node.pod("web");
        // The harness has a tree of cgroupfs's shape.
        let slice = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        let named = node.cgroup().join(slice);
        let sandbox = Sandbox::new(node, &pod, "c0ffee").in_cgroup(&named);
        let details = sandbox.call("ADD").run().refused(104);
        for part in [slice, "kubepods", "cgroupDriver"] {
            assert!(details.contains(part), "{part}: {details}");
        }
        assert!(!node.cgroup().join("kubepods.slice").exists(), "it was made");
        assert_eq!(node.attached(), Vec::<String>::new());
    });
}

#[test]
fn a_running_pod_keeps_its_redirection_when_a_repeated_attach_fails() {
    kernel_test(|node| {
        let pod = node.pod("web");
        node.attach(&pod, &[]);
        let _sidecar = pod.sidecar();
        let app = pod.app();
        // The tool does not look at ancestors beforehand, so this one fails in the middle.
        let attached = Attached::new(node.cgroup(), node, Hook::Sendmsg4, EXCLUSIVE);
        let outcome = Outcome::of(node.attach_command(&pod).arg("--dns-capture"));
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains("sendmsg4") && outcome.stderr.contains("exclusively"), "{outcome:?}");
        assert_redirected(&app);
        drop(attached);
        node.detach(&pod);
        assert_nothing_attached(node);
    });
}

#[test]
fn a_root_that_is_not_cgroup_v2_is_named() {
    kernel_test(|node| {
        let pod = node.pod("web");
        let sandbox = Sandbox::new(node, &pod, "c0ffee");
        for root in ["/proc", "/tmp"] {
            let details = sandbox.clone().with("cgroupRoot", json!(root)).call("ADD").run().refused(104);
            assert!(details.contains(root) && details.contains("cgroup v2"), "{details}");
        }
        assert_eq!(node.attached(), Vec::<String>::new());
    });
}

#[test]
fn a_cgroup_that_is_being_removed_is_told_from_a_living_one() {
    kernel_test(|node| {
        let path = node.cgroup().join("dying");
        std::fs::create_dir(&path).unwrap();
        let open = File::open(&path).unwrap();
        cgroup::alive(&open, &path).unwrap();
        std::fs::remove_dir(&path).unwrap();
        let error = cgroup::alive(&open, &path).unwrap_err();
        assert!(matches!(error, cgroup::Error::Dying { .. }), "{error}");
        assert!(error.to_string().contains("dying"), "{error}");
    });
}

#[test]
fn both_drivers_names_are_found_below_a_nested_root() {
    kernel_test(|node| {
        let uid = "5a1f3c2e-0000-4000-8000-00000000abcd";
        let escaped = uid.replace('-', "_");
        for place in [
            format!("kubelet/kubepods/burstable/pod{uid}"),
            format!("kubelet/kubepods/pod{uid}"),
            format!("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort-pod{escaped}.slice"),
            format!("x/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice"),
        ] {
            let path = node.cgroup().join(&place);
            std::fs::create_dir_all(&path).unwrap();
            let clues = cgroup::Clues { uid: Some(uid), ..cgroup::Clues::default() };
            assert_eq!(cgroup::find(clues).unwrap().path, path);
            let runtime = runtime_path(&path);
            let clues = cgroup::Clues { runtime_path: runtime.to_str(), ..cgroup::Clues::default() };
            assert_eq!(cgroup::find(clues).unwrap().path, path);
            harness::cgroup::Cgroup::remove(&path).unwrap();
        }
    });
}
