//! Who else is on the node: programs above the pods, other networks' settings, the kubelet and its runtime,
//! an injector of another mode.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::checks::{CALICO_CTLB, CILIUM_SOCKET_LB, DRIVER, EXCLUSIVE, ISTIO_INIT, PREORDER};
use super::finding::{Finding, Options, Says};
use crate::attach::record::{self, Attachment};
use crate::enrol::Reason;
use crate::kernel::hook::Hook;
use crate::kernel::pins;
use crate::kernel::sys;
use crate::node::{Node, outcomes};
use crate::pod::cgroup;

pub(super) fn examine(node: &Node, options: &Options) -> Vec<Finding> {
    let root = cgroup::root(options.cgroup_root.as_deref());
    let root = root.as_deref().map_err(|error| Says::Untried(error.to_string()));
    let ask = |check: fn(&Path) -> Says| match &root {
        Ok(root) => check(root),
        Err(why) => why.clone(),
    };
    vec![
        EXCLUSIVE.says(ask(exclusive)),
        PREORDER.says(preorder(node)),
        CILIUM_SOCKET_LB.says(match &root {
            Ok(root) => cilium_socket_lb(root, &options.host_root),
            Err(why) => why.clone(),
        }),
        CALICO_CTLB.says(ask(calico)),
        DRIVER.says(driver(&options.host_root)),
        ISTIO_INIT.says(istio_init(node)),
    ]
}

/// The root and the folders of pods: what the kubelet makes.
fn above_pods(root: &Path) -> Vec<PathBuf> {
    let usual = ["", "kubepods", "kubepods.slice", "kubelet", "kubelet.slice"];
    usual.iter().map(|name| root.join(name)).filter(|path| path.is_dir()).collect()
}

fn on_cgroup() -> impl Iterator<Item = Hook> {
    Hook::ALL.iter().copied().filter(|hook| hook.on_cgroup())
}

fn exclusive(root: &Path) -> Says {
    for path in above_pods(root) {
        let Ok(cgroup) = File::open(&path) else { continue };
        for hook in on_cgroup() {
            match sys::programs_on(cgroup.as_fd(), hook) {
                // Attached with neither flag (`BPF_F_ALLOW_OVERRIDE`, `BPF_F_ALLOW_MULTI`).
                Ok((programs, 0)) if !programs.is_empty() => {
                    let names = names(&programs);
                    return Says::Missing(format!("{names} on {} at {hook} allows no other", path.display()));
                }
                Ok(_) => {}
                Err(error) => return Says::Untried(format!("the kernel does not tell: {error}")),
            }
        }
    }
    Says::Found("none".into())
}

/// Names and ids of programs, for people.
fn names(ids: &[u32]) -> String {
    let name = |id: &u32| {
        let info = sys::program_by_id(*id).and_then(sys::program_info);
        info.map_or(format!("program {id}"), |info| format!("program {id} ({})", info.name))
    };
    ids.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// The kernel runs the programs of a cgroup before those of the ones above it, but for those with
/// `BPF_F_PREORDER` (Linux 6.15). Only the order of one cgroup's effective programs shows it.
fn preorder(node: &Node) -> Says {
    let pods = record::all(node).unwrap_or_default();
    let mut looked = 0;
    for pod in &pods {
        let Ok(cgroup) = File::open(&pod.cgroup) else { continue };
        for hook in Hook::needed(&pod.policy).filter(|hook| hook.on_cgroup()) {
            let Some(first) = first_before_ours(node, pod, &cgroup, hook) else { continue };
            looked += 1;
            if let Some(other) = first {
                let pod = pod.id.container_id.as_str();
                return Says::Warning(format!("{} runs before ours at {hook} of {pod}", names(&[other])));
            }
        }
    }
    match looked {
        0 => Says::Untried("no pod is attached: only a pod shows the order".into()),
        _ => Says::Found("ours come first".into()),
    }
}

/// The first effective program, if it is not ours; `None` where the kernel does not tell.
fn first_before_ours(node: &Node, pod: &Attachment, cgroup: &File, hook: Hook) -> Option<Option<u32>> {
    let link = pins::current(node).attachment(&pod.id).link(hook);
    let ours = sys::obj_get(&link).and_then(sys::link_info).ok()?.program_id;
    let effective = sys::effective_on(cgroup.as_fd(), hook).ok()?;
    let place = effective.iter().position(|id| *id == ours)?;
    let (own, _) = sys::programs_on(cgroup.as_fd(), hook).ok()?;
    // Others on the same cgroup may well be before ours; what comes from above may not.
    Some(effective[..place].iter().find(|id| !own.contains(id)).copied())
}

/// Programs on the root whose name begins so (the kernel keeps 15 bytes).
fn on_root(root: &Path, prefix: &str) -> Result<Option<String>, String> {
    let cgroup = File::open(root).map_err(|error| format!("{}: {error}", root.display()))?;
    for hook in [Hook::Connect4, Hook::Connect6] {
        let (ids, _) = sys::programs_on(cgroup.as_fd(), hook).map_err(|error| error.to_string())?;
        for id in ids {
            let info = sys::program_by_id(id).and_then(sys::program_info);
            if let Some(info) = info.ok().filter(|info| info.name.starts_with(prefix)) {
                return Ok(Some(info.name));
            }
        }
    }
    Ok(None)
}

fn cilium_socket_lb(root: &Path, host_root: &Path) -> Says {
    let found = match on_root(root, "cil_sock") {
        Err(why) => return Says::Untried(why),
        Ok(None) => return Says::Found("not on this node".into()),
        Ok(Some(name)) => name,
    };
    // Cilium's agent writes the settings of its programs there.
    let config = host_root.join("var/run/cilium/state/globals/node_config.h");
    match fs::read_to_string(&config) {
        Ok(text) if text.contains("ENABLE_SOCKET_LB_HOST_ONLY") => {
            Says::Found(format!("{found} is for the node's own namespace only"))
        }
        Ok(_) => Says::Warning(format!("{found} rewrites the addresses of services for pods, too")),
        Err(error) => Says::Untried(format!(
            "{found} is on the node; whether for pods, too, {} does not say: {error}",
            config.display()
        )),
    }
}

fn calico(root: &Path) -> Says {
    match on_root(root, "cali_conn")
        .and_then(|found| found.map_or_else(|| on_root(root, "calico_conn"), |it| Ok(Some(it))))
    {
        Err(why) => Says::Untried(why),
        Ok(None) => Says::Found("not on this node".into()),
        Ok(Some(name)) => {
            Says::Warning(format!("{name} rewrites the addresses of services before the sidecar sees them"))
        }
    }
}

fn driver(root: &Path) -> Says {
    let kubelet = read(root, &["var/lib/kubelet/config.yaml"]);
    let runtime = read(
        root,
        &[
            "etc/containerd/config.toml",
            "var/lib/rancher/k3s/agent/etc/containerd/config.toml",
            "etc/crio/crio.conf",
        ],
    );
    let (Ok(Some((_, kubelet))), Ok(Some((file, runtime)))) = (&kubelet, &runtime) else {
        let missing = if matches!(kubelet, Ok(Some(_))) { "the runtime's" } else { "the kubelet's" };
        return Says::Untried(format!("{missing} configuration is not where it usually is"));
    };
    let kubelet = value(kubelet, "cgroupDriver").unwrap_or_else(|| "cgroupfs".into());
    let systemd = value(runtime, "SystemdCgroup").map(|on| on == "true");
    let manager = value(runtime, "cgroup_manager");
    let runtime = match (systemd, manager) {
        (Some(true), _) => "systemd".to_owned(),
        (_, Some(manager)) => manager,
        _ => "cgroupfs".to_owned(),
    };
    if kubelet == runtime {
        return Says::Found(format!("{kubelet}, for kubelet and runtime"));
    }
    Says::Missing(format!("the kubelet's is {kubelet}, the runtime's is {runtime} ({})", file.display()))
}

/// The first of these files that is there.
fn read(root: &Path, files: &[&str]) -> io::Result<Option<(PathBuf, String)>> {
    for file in files {
        let path = root.join(file);
        match fs::read_to_string(&path) {
            Ok(text) => return Ok(Some((path, text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The value of a key in YAML or TOML, where both are on one line.
fn value(text: &str, key: &str) -> Option<String> {
    let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(key))?;
    let value = line.trim_start().strip_prefix([':', '='])?;
    Some(value.trim().trim_matches('"').to_owned())
}

fn istio_init(node: &Node) -> Says {
    match outcomes::counts(node) {
        Err(error) => Says::Untried(error.to_string()),
        Ok(counts) => match counts.get(Reason::IstioInit.label()) {
            None | Some(0) => Says::Found("no pod with istio-init since the boot".into()),
            Some(count) => Says::Warning(format!(
                "{count} pods since the boot had a container istio-init, which redirects by iptables itself"
            )),
        },
    }
}
