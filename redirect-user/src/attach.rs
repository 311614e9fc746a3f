//! The heart of ADD and DEL.
//!
//! Attach writes down what it is going to do before it does it, so whatever happens in between, detach can undo it; and
//! undoing after an error is the same code as DEL. Order: record, namespace, map entries, links. Until the last link is
//! there the pod has no process of its own, and until the configuration is in PODS the programs leave it alone.

pub(crate) mod links;
pub mod record;
pub mod tables;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use redirect_common::PodConfig;

use crate::attach::record::{Attachment, AttachmentId, NetnsChanges, PodRef};
use crate::attach::tables::{Entries, Surroundings, Tables};
use crate::kernel::hook::Hook;
use crate::kernel::install;
use crate::kernel::pins;
use crate::kernel::sys::SyscallError;
use crate::node::Node;
use crate::node::fault;
use crate::node::lock::NodeLock;
use crate::pod::netns::{self, Address, Netns};
use crate::pod::userns::{self, IdMaps};
use crate::policy::Policy;

/// What to attach.
#[derive(Clone, Debug)]
pub struct Request {
    /// Container and interface.
    pub id: AttachmentId,
    /// The pod-level cgroup.
    pub cgroup: PathBuf,
    /// The network namespace.
    pub netns: PathBuf,
    /// What to capture.
    pub policy: Policy,
    /// The pod, where it is known.
    pub pod: Option<PodRef>,
    /// The CNI network that the runtime attached the pod to; none for `redirect attach`.
    pub network: Option<String>,
    /// Addresses that the plugins before us gave to the pod, the preferred ones first.
    pub addresses: Vec<IpAddr>,
}

/// Why attach or detach failed. Nothing is left half-done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The programs could not be put on the node.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// The cgroup cannot be opened.
    #[error("cannot open the cgroup {path}: {source}; it must be the pod's directory in cgroup v2")]
    Cgroup {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory is not in a cgroup v2 hierarchy.
    #[error("{path} is not in a cgroup v2 file system; programs cannot be attached to cgroup v1")]
    NotCgroup2 {
        /// Which.
        path: PathBuf,
    },
    /// The pod's network namespace.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The pod's user namespace.
    #[error(transparent)]
    Userns(#[from] userns::Error),
    /// A map.
    #[error(transparent)]
    Tables(#[from] tables::Error),
    /// The record of the attachment.
    #[error(transparent)]
    Attachment(#[from] record::Error),
    /// A program could not be linked.
    #[error("cannot link {hook} to {target}: {source}{hint}", hint = link_hint(source))]
    Link {
        /// The hook.
        hook: Hook,
        /// Cgroup or namespace.
        target: PathBuf,
        /// Why.
        source: SyscallError,
    },
    /// A pin could not be changed.
    #[error("cannot {what} {path}: {source}")]
    Pin {
        /// What was tried.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The boot id is needed to know whether a record is current.
    #[error("cannot read the boot id: {source}; is /proc mounted?")]
    BootId {
        /// Why.
        source: io::Error,
    },
}

/// What the operator can do about the two refusals that are not obvious.
fn link_hint(source: &SyscallError) -> &'static str {
    match source.errno() {
        Some(libc::EPERM) => {
            "; either CAP_BPF/CAP_NET_ADMIN is missing or a parent cgroup has a program attached exclusively \
             (see `bpftool cgroup tree`)"
        }
        Some(libc::EBUSY) => "; this program is linked there already: run `redirect gc`",
        Some(libc::ENOENT | libc::ENODEV) => "; the cgroup is being removed",
        _ => "",
    }
}

/// Redirects a pod: all or nothing. Only a repeated call that fails leaves what the first one did, for [`detach`].
///
/// A repeated call for the same container and interface converges to the same state. Links that a previous sandbox of
/// the same pod left on the cgroup are taken over, without a moment in which the cgroup has none.
///
/// # Errors
/// See [`Error`].
pub fn attach(node: &Node, lock: &NodeLock, request: &Request) -> Result<Attachment, Error> {
    let cgroup = open_cgroup(&request.cgroup)?;
    let mut netns = Netns::open(&request.netns)?;
    install::ensure(node, lock)?;
    let mut attachment = plan(request, &cgroup, &mut netns)?;
    let repeated = keep_known_changes(node, &mut attachment)?;
    fault::point("attach-record");
    attachment.store(node)?;
    let done = carry_out(node, &mut attachment, &cgroup, &mut netns);
    if let Err(error) = done {
        // The undo of everything above is what DEL does; its own failure must not hide the reason. But a pod that was
        // attached before may be running, and without its links it would send in clear: it is left to DEL.
        if !repeated {
            let _ = undo(node, &attachment);
        }
        return Err(error);
    }
    Ok(attachment)
}

/// Ends the redirection of a container, or of one of its interfaces. `false` when there was nothing.
///
/// What is gone already is fine: pins, map entries, the namespace, the record itself.
///
/// # Errors
/// Something of ours is still there and cannot be removed.
pub fn detach(
    node: &Node,
    _lock: &NodeLock,
    container_id: &str,
    ifname: Option<&str>,
) -> Result<bool, Error> {
    let mut found = false;
    for attachment in record::of_container(node, container_id)? {
        if ifname.is_none_or(|name| name == attachment.id.ifname) {
            undo(node, &attachment)?;
            found = true;
        }
    }
    Ok(remove_unrecorded(node, container_id, ifname)? || found)
}

fn open_cgroup(path: &Path) -> Result<fs::File, Error> {
    let failed = |source| Error::Cgroup { path: path.into(), source };
    let cgroup = fs::File::open(path).map_err(failed)?;
    let kind = nix::sys::statfs::fstatfs(&cgroup).map_err(|error| failed(error.into()))?.filesystem_type();
    if kind != nix::sys::statfs::CGROUP2_SUPER_MAGIC {
        return Err(Error::NotCgroup2 { path: path.into() });
    }
    Ok(cgroup)
}

/// Everything that is known before anything is changed.
fn plan(request: &Request, cgroup: &fs::File, netns: &mut Netns) -> Result<Attachment, Error> {
    let addresses = netns.addresses()?;
    let interfaces = netns.interfaces()?;
    let excluded = |name: &str| request.policy.exclude_interfaces.iter().any(|excluded| excluded == name);
    let excluded_interfaces: Vec<u32> =
        interfaces.iter().filter(|i| i.name != "lo" && excluded(&i.name)).map(|i| i.index).collect();
    let mut excluded_subnets = Vec::new();
    for index in &excluded_interfaces {
        excluded_subnets.extend(netns.subnets_behind(*index)?);
    }
    let ids = IdMaps::of(netns.file())?;
    let (host_uid, host_gid) = (ids.uid(request.policy.proxy.uid)?, ids.gid(request.policy.proxy.gid)?);
    // Nobody in the pod can have a group that it does not know.
    let host_groups = request.policy.owner_groups.ids().filter_map(|gid| ids.gid(gid).ok()).collect();
    let metadata =
        cgroup.metadata().map_err(|source| Error::Cgroup { path: request.cgroup.clone(), source })?;
    let mut own: Vec<IpAddr> = request.addresses.clone();
    own.extend(addresses.iter().map(|address| address.net.addr()));
    own.retain(|ip| !ip.is_loopback());
    own.sort_unstable();
    own.dedup();
    Ok(Attachment {
        id: request.id.clone(),
        pod: request.pod.clone(),
        network: request.network.clone(),
        cgroup: request.cgroup.clone(),
        cgroup_id: metadata.ino(),
        netns: request.netns.clone(),
        cookie: netns.cookie(),
        boot_id: record::boot_id().map_err(|source| Error::BootId { source })?,
        policy: request.policy.clone(),
        addresses: own,
        excluded_interfaces,
        excluded_subnets,
        lo_excluded: excluded("lo"),
        host_uid,
        host_gid,
        host_groups,
        changes: NetnsChanges {
            mptcp_disabled: netns.mptcp()?,
            passthrough6: addresses.iter().any(|a| a.global && a.net.addr().is_ipv6()),
            spread_routes: [false, true]
                .into_iter()
                .filter_map(|v6| primary(&request.addresses, &addresses, v6))
                .collect(),
        },
    })
}

/// The pod's address of a family: the first that the runtime names and the namespace has, else the first it has.
fn primary(preferred: &[IpAddr], addresses: &[Address], v6: bool) -> Option<IpAddr> {
    let usable = |ip: &IpAddr| {
        ip.is_ipv6() == v6 && addresses.iter().any(|address| address.global && address.net.addr() == *ip)
    };
    preferred.iter().copied().find(usable).or_else(|| addresses.iter().map(|a| a.net.addr()).find(usable))
}

/// A repeated attach finds its own routes in place; they stay its own. Whether it is one.
fn keep_known_changes(node: &Node, attachment: &mut Attachment) -> Result<bool, Error> {
    let mut repeated = false;
    for other in record::of_container(node, &attachment.id.container_id)? {
        if other.id == attachment.id && other.cookie == attachment.cookie {
            repeated = true;
            attachment.changes.passthrough6 |= other.changes.passthrough6;
            attachment.changes.mptcp_disabled |= other.changes.mptcp_disabled;
            for route in other.changes.spread_routes {
                if !attachment.changes.spread_routes.contains(&route) {
                    attachment.changes.spread_routes.push(route);
                }
            }
        } else if other.id == attachment.id {
            // The runtime reused the id for another namespace: the old attachment ends here.
            undo(node, &other)?;
        }
    }
    Ok(repeated)
}

fn carry_out(
    node: &Node,
    attachment: &mut Attachment,
    cgroup: &fs::File,
    netns: &mut Netns,
) -> Result<(), Error> {
    if attachment.changes.passthrough6 {
        netns.add_passthrough6()?;
    }
    if attachment.changes.mptcp_disabled {
        netns.set_mptcp(false)?;
    }
    for source in &attachment.changes.spread_routes {
        netns.add_spread_routes(*source)?;
    }
    fault::point("attach-netns");
    write_tables(node, attachment)?;
    fault::point("attach-tables");
    links::make_folder(node, attachment)?;
    fault::point("attach-folder");
    for hook in Hook::needed(&attachment.policy) {
        links::link(node, attachment, hook, cgroup, netns)?;
        fault::point(&format!("attach-{hook}"));
    }
    Ok(())
}

/// Makes the maps hold what this attachment says, and nothing that an earlier one of the same pod said.
fn write_tables(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    let (config, entries) = compiled(attachment);
    let mut maps = Tables::open(node)?;
    let repeated = maps.config(attachment.cookie)?.is_some();
    maps.write(attachment.cookie, &config, &entries)?;
    if repeated {
        maps.prune(attachment.cookie, &entries)?;
    }
    Ok(())
}

/// What the maps hold for an attachment.
pub(crate) fn compiled(attachment: &Attachment) -> (PodConfig, Entries) {
    tables::compile(&attachment.policy, &surroundings(attachment), attachment.cgroup_id)
}

/// The part of the plan that the map entries depend on.
fn surroundings(attachment: &Attachment) -> Surroundings {
    let routed = |v6: bool| attachment.changes.spread_routes.iter().copied().find(|ip| ip.is_ipv6() == v6);
    Surroundings {
        own: attachment.addresses.clone(),
        excluded_interfaces: attachment.excluded_interfaces.clone(),
        excluded_subnets: attachment.excluded_subnets.clone(),
        lo_excluded: attachment.lo_excluded,
        source4: routed(false),
        source6: routed(true),
        proxy_ids: (attachment.host_uid, attachment.host_gid),
        groups: attachment.host_groups.clone(),
    }
}

/// Takes back what attach did, in reverse, whatever of it is there.
fn undo(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    let id = &attachment.id;
    let siblings: Vec<_> = record::of_container(node, &id.container_id)?
        .into_iter()
        .filter(|other| other.id != *id && other.cookie == attachment.cookie)
        .collect();
    let folder = pins::attachment(node, &id.container_id, &id.ifname);
    if let Some(sibling) = siblings.first() {
        // Another interface of the same pod stays attached: the links are its links now.
        links::hand_over(node, &folder, sibling)?;
        if attachment.of_this_boot() && install::installed(node) {
            write_tables(node, sibling)?;
        }
    } else {
        links::remove_links(&folder)?;
        fault::point("detach-links");
        if attachment.of_this_boot() {
            forget_pod(node, attachment)?;
        }
    }
    fault::point("detach-tables");
    remove_empty(&pins::container(node, &id.container_id));
    attachment.forget(node)?;
    Ok(())
}

fn remove_empty(folder: &Path) {
    // Not empty when another interface of the container is attached.
    let _ = fs::remove_dir(folder);
}

/// Removes the pod's map entries and what was added to its namespace, if that is still the same namespace.
fn forget_pod(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    if install::installed(node) {
        let (_, entries) = compiled(attachment);
        Tables::open(node)?.remove(attachment.cookie, &entries)?;
    }
    if let Ok(mut netns) = Netns::open(&attachment.netns)
        && netns.cookie() == attachment.cookie
    {
        if attachment.changes.passthrough6 {
            netns.remove_passthrough6()?;
        }
        if attachment.changes.mptcp_disabled {
            netns.set_mptcp(true)?;
        }
        for source in &attachment.changes.spread_routes {
            netns.remove_spread_routes(*source)?;
        }
    }
    Ok(())
}

/// Pins of a container without a record: the state directory was lost. The folder's name says which entries are its.
fn remove_unrecorded(node: &Node, container_id: &str, ifname: Option<&str>) -> Result<bool, Error> {
    let container = pins::container(node, container_id);
    let mut found = false;
    for folder in links::list(&container)? {
        if ifname
            .is_some_and(|name| folder.file_name().is_none_or(|file| file != pins::encode(name).as_str()))
        {
            continue;
        }
        let recorded = record::of_container(node, container_id)?
            .iter()
            .any(|a| folder == pins::attachment(node, &a.id.container_id, &a.id.ifname));
        if recorded {
            continue;
        }
        let cookies: Vec<u64> = links::list(&folder)?
            .iter()
            .filter_map(|path| pins::parse_cookie_name(path.file_name()?.to_str()?))
            .collect();
        links::remove_links(&folder)?;
        for cookie in cookies {
            Tables::open(node)?.sweep(cookie)?;
        }
        found = true;
    }
    remove_empty(&container);
    Ok(found)
}
