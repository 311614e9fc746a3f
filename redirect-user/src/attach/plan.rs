//! What attach is going to do, found out before anything is changed.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::attach::error::Error;
use crate::attach::record::{self, Attachment, NetnsChanges};
use crate::ids::{AttachmentId, PodRef};
use crate::pod::netns::{Address, Netns};
use crate::pod::userns::IdMaps;
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

/// A pod that is about to be attached: its record, and what it is made of, open.
pub(crate) struct Planned {
    /// The record.
    pub(crate) attachment: Attachment,
    /// The pod's cgroup.
    pub(crate) cgroup: fs::File,
    /// The pod's network namespace.
    pub(crate) netns: Netns,
}

/// Opens the pod's cgroup and namespace, which are what the links are made on.
///
/// # Errors
/// One of them is not there, or is not what it must be.
pub(crate) fn open(request: &Request) -> Result<(fs::File, Netns), Error> {
    Ok((open_cgroup(&request.cgroup)?, Netns::open(&request.netns)?))
}

/// The plan for a pod that is open.
///
/// # Errors
/// The namespace does not answer, or the sidecar's ids do not exist in the pod.
pub(crate) fn plan(request: &Request, cgroup: fs::File, mut netns: Netns) -> Result<Planned, Error> {
    let attachment = describe(request, &cgroup, &mut netns)?;
    Ok(Planned { attachment, cgroup, netns })
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

/// What is known before anything is changed.
fn describe(request: &Request, cgroup: &fs::File, netns: &mut Netns) -> Result<Attachment, Error> {
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
    // No process in the pod can have a group that it does not know.
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

/// The pod's address of a family: the first that the runtime names and the namespace has, else the first it
/// has.
fn primary(preferred: &[IpAddr], addresses: &[Address], v6: bool) -> Option<IpAddr> {
    let usable = |ip: &IpAddr| {
        ip.is_ipv6() == v6 && addresses.iter().any(|address| address.global && address.net.addr() == *ip)
    };
    preferred.iter().copied().find(usable).or_else(|| addresses.iter().map(|a| a.net.addr()).find(usable))
}
