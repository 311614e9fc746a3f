//! The list of checks. An id is never given to another check; docs/doctor.md has a section for each.

use super::finding::{Finding, Says, Status};

/// One check.
#[derive(Debug)]
pub struct Check {
    /// `RC` and four digits: 01 requirements of an ADD, 02 the runtime's network configuration, 03
    /// neighbours, 04 what is attached, 05 one pod.
    pub id: &'static str,
    /// What is looked at.
    pub what: &'static str,
    /// What to do where it is not as it should be.
    pub remedy: &'static str,
}

impl Check {
    /// Puts what was found together with the id.
    #[must_use]
    pub fn says(&self, says: Says) -> Finding {
        let (status, detail) = match says {
            Says::Found(detail) => (Status::Found, detail),
            Says::Warning(detail) => (Status::Warning, detail),
            Says::Missing(detail) => (Status::Missing, detail),
            Says::Untried(detail) => (Status::Untried, detail),
        };
        let remedy = if status == Status::Found { String::new() } else { self.remedy.to_owned() };
        Finding { id: self.id, status, what: self.what, detail, remedy }
    }
}

macro_rules! checks {
    ($($name:ident = $id:literal, $what:literal, $remedy:literal;)+) => {
        $(
            #[doc = concat!($id, ": ", $what)]
            pub static $name: Check = Check { id: $id, what: $what, remedy: $remedy };
        )+

        /// All checks, by id.
        pub static CHECKS: &[&Check] = &[$(&$name,)+];
    };
}

checks! {
    PRIVILEGES = "RC0101", "privileges",
        "run as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN; the kernel needs CONFIG_BPF_SYSCALL";
    BPFFS = "RC0102", "bpf file system", "mount -t bpf bpf /sys/fs/bpf (systemd does it at boot)";
    CGROUP2 = "RC0103", "cgroup v2",
        "boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup/unified";
    COOKIE = "RC0104", "network namespace cookie", "Linux 6.1 or newer is needed";
    PROGRAMS = "RC0105", "kernel programs",
        "Linux 6.1 or newer is needed, with CONFIG_CGROUP_BPF, CONFIG_NET and CONFIG_BPF_JIT; the whole log with \
         --verifier-log";
    STATE = "RC0106", "state directory", "make it writable, or name another with --state-dir";
    VERSION = "RC0107", "version of the programs",
        "`redirect upgrade` replaces the programs of running pods in place";
    WHOLE = "RC0108", "installation", "run `redirect install`: it makes the installation whole and repairs the pods";
    ROOM = "RC0109", "room in the maps",
        "run `redirect gc` for pods that are gone, or give the pod with most of them fewer ranges, ports or addresses";

    ENTRY = "RC0201", "the plugin's entry",
        "`redirect node enable`, or the agent with --install, puts it last into what the runtime takes";
    LAST = "RC0202", "last in the chain",
        "`redirect node enable` puts the entry last: a plugin behind it may change what was planned for";
    CAPABILITIES = "RC0203", "capabilities of the entry",
        "add \"capabilities\": {\"io.kubernetes.cri.pod-annotations\": true, \"cgroupPath\": true} to the entry";
    ONE_LIST = "RC0204", "one network configuration",
        "a runtime takes the first file by name; remove what is left of other networks, or rename it";
    BINARY = "RC0205", "the plugin's binary", "put redirect-cni into the runtime's folder of plugins";
    ISTIO_CNI = "RC0206", "istio-cni in the chain",
        "uninstall Istio's CNI DaemonSet: with both, iptables rules redirect what the programs redirect already";

    EXCLUSIVE = "RC0301", "exclusive programs above the pods",
        "whoever attached them must allow others: BPF_F_ALLOW_MULTI, or a bpf_link";
    PREORDER = "RC0302", "programs that run before ours",
        "an ancestor's program with BPF_F_PREORDER rewrites addresses before we see them: attach it without";
    CILIUM_EXCLUSIVE = "RC0303", "Cilium's cni-exclusive",
        "set cni.exclusive=false in Cilium, or it takes other plugins' configuration away";
    CILIUM_SOCKET_LB = "RC0304", "Cilium's socket load balancer",
        "set socketLB.hostNamespaceOnly=true in Cilium: else it rewrites a service's address before the sidecar sees \
         it";
    CALICO_CTLB = "RC0305", "Calico's connect-time load balancer",
        "set bpfConnectTimeLoadBalancing to Disabled in Calico's FelixConfiguration";
    DRIVER = "RC0306", "cgroup driver",
        "give kubelet (cgroupDriver) and runtime (SystemdCgroup) the same driver, and drain the node";
    ISTIO_INIT = "RC0307", "injector without istio-init",
        "put Istio into CNI mode (pilot.cni.enabled=true), and start the pods again";

    HEALTH = "RC0401", "pods as they were attached", "`redirect repair` attaches them again";
    CAPTURES = "RC0402", "policies that capture something",
        "look at the annotation: a range that has every address excludes all";
    ISTIO_RULES = "RC0403", "Istio's rules in pods",
        "start the pod again in CNI mode: rules of istio-init redirect what the programs redirect already";

    POD_HEALTH = "RC0501", "as it was attached", "`redirect repair` attaches it again";
    POD_CAPTURES = "RC0502", "the policy captures something",
        "look at the annotation: a range that has every address excludes all";
    POD_SIDECAR = "RC0503", "the sidecar listens",
        "look at the sidecar's log: captured connections are refused until it listens";
    POD_RULES = "RC0504", "packet filter rules in the pod",
        "rules that rewrite addresses take traffic where no hook sees it; the guard refuses what is captured";
    POD_BRIDGE = "RC0505", "networks inside the pod",
        "what containers behind a bridge in the pod send is forwarded, not captured; the guard refuses it";
    POD_MOUNT = "RC0506", "network mounts",
        "the kernel's own connections (NFS, CIFS) have no process in the pod: exclude the server's address";
    POD_RAW = "RC0507", "NET_RAW", "drop NET_RAW: raw and packet sockets write their own packets";
    POD_ADMIN = "RC0508", "NET_ADMIN", "drop NET_ADMIN: it may take the guard's filters away";
}
