//! What attach is going to do, found out before anything is changed.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::attach::error::Error;
use crate::attach::guard;
use crate::attach::record::{self, Attachment, NetnsChanges};
use crate::attach::replan::Remark;
use crate::attach::survey::{MOST_ADDRESSES, Survey, survey};
use crate::ids::{AttachmentId, PodRef};
use crate::pod::netns::{Ipv6, Netns};
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
    /// Directories of the cgroup that were made for it, the outer ones first: the undo removes them.
    pub made_cgroups: Vec<PathBuf>,
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
    let found = survey(netns, &request.policy, &request.addresses)?;
    tell(&found);
    let interface_routes = found.interface_routes.map_err(|source| Error::Interfaces {
        pod: request.pod.as_ref().map_or_else(|| request.id.container_id.clone(), ToString::to_string),
        interfaces: request.policy.exclude_interfaces.join(","),
        source,
    })?;
    if found.addresses.len() > MOST_ADDRESSES {
        return Err(Error::TooManyAddresses { count: found.addresses.len(), path: request.netns.clone() });
    }
    let ids = IdMaps::of(netns.file())?;
    let (host_uid, host_gid) = (ids.uid(request.policy.proxy.uid)?, ids.gid(request.policy.proxy.gid)?);
    // No process in the pod can have a group that it does not know.
    let host_groups = request.policy.owner_groups.ids().filter_map(|gid| ids.gid(gid).ok()).collect();
    let guard = guard::plan(netns, request.policy.guard, &found.excluded_interfaces)?;
    let metadata =
        cgroup.metadata().map_err(|source| Error::Cgroup { path: request.cgroup.clone(), source })?;
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
        addresses: found.addresses,
        excluded_interfaces: found.excluded_interfaces,
        interface_routes,
        lo_excluded: found.lo_excluded,
        guard,
        host_uid,
        host_gid,
        host_groups,
        ephemeral_ports: found.ephemeral_ports,
        orphaned: false,
        made_cgroups: request.made_cgroups.clone(),
        changes: NetnsChanges {
            passthrough6: found.passthrough6,
            local_routes: found.local_routes,
            dns: found.dns,
        },
    })
}

/// What the operator should know about a pod that is attached all the same.
fn tell(found: &Survey) {
    if found.ipv6 == Ipv6::NotOnLo {
        tracing::warn!("{}", Remark::NoIpv6OnLo);
    }
    for name in &found.absent_interfaces {
        tracing::info!("{}", Remark::InterfaceAbsent { name: name.clone() });
    }
}
