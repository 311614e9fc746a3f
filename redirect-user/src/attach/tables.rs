//! A pod's entries in the maps: what a policy becomes, and how it is written and taken out again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use ipnet::IpNet;
use redirect_common::{
    AddrKey, Counters, Endpoint, Event, Ip, PodConfig, RangeKey, SetKey, SlotKey, flags, list, set,
};

use crate::kernel::pins;
use crate::kernel::sys::{self, SyscallError};
use crate::node::Node;
use crate::policy::{OwnerGroups, Policy, Ports, Ranges};

/// Why a map could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The map is not there or not ours.
    #[error("cannot open map {path}: {source}; is redirect-cni installed on this node?")]
    Open {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: Box<MapError>,
    },
    /// An entry could not be changed.
    #[error("cannot {what} map {map}: {source}")]
    Change {
        /// What was tried.
        what: &'static str,
        /// Which map.
        map: &'static str,
        /// Why.
        source: Box<MapError>,
    },
    /// The keys of a map could not be listed or removed.
    #[error("cannot empty map {map}: {source}")]
    Scan {
        /// Which map.
        map: &'static str,
        /// Why.
        source: SyscallError,
    },
    /// The number of CPUs is needed for per-CPU values.
    #[error("cannot read {path}: {source}")]
    Cpus {
        /// The file.
        path: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// What one pod has in the maps besides its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    ranges: Vec<(u32, IpNet)>,
    sets: Vec<(u32, u32)>,
    own: Vec<IpAddr>,
}

/// What attach found in the pod that the policy's map entries depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The pod's addresses.
    pub own: Vec<IpAddr>,
    /// Indices of the interfaces that the policy excludes.
    pub excluded_interfaces: Vec<u32>,
    /// Subnets behind them.
    pub excluded_subnets: Vec<IpNet>,
    /// `lo` itself is excluded.
    pub lo_excluded: bool,
    /// The pod's IPv4 address, to which its local route belongs.
    pub source4: Option<IpAddr>,
    /// The pod's IPv6 address, to which its local route belongs.
    pub source6: Option<IpAddr>,
    /// The proxy's ids in the initial user namespace.
    pub proxy_ids: (u32, u32),
    /// The owner groups in the initial user namespace.
    pub groups: BTreeSet<u32>,
}

/// The policy as configuration and map entries.
#[must_use]
pub fn compile(policy: &Policy, around: &Surroundings, cgroup_id: u64) -> (PodConfig, Entries) {
    let mut entries = Entries { own: around.own.clone(), ..Entries::default() };
    let mut bits = 0;
    let mut add_ranges = |flag: u32, list: u32, ranges: &[IpNet]| {
        entries.ranges.extend(ranges.iter().map(|range| (list, *range)));
        if ranges.is_empty() { 0 } else { flag }
    };
    match &policy.include_outbound_ip_ranges {
        Ranges::All => bits |= flags::INCLUDE_ALL,
        Ranges::List(ranges) => {
            bits |= add_ranges(flags::INCLUDED_RANGES, list::INCLUDED, ranges);
            if ranges.iter().any(|range| range.network().is_loopback()) {
                bits |= flags::LOOPBACK_INCLUDED;
            }
        }
    }
    bits |= add_ranges(flags::EXCLUDED_RANGES, list::EXCLUDED, &policy.exclude_outbound_ip_ranges);
    bits |= add_ranges(flags::EXCLUDED_INTERFACES, list::INTERFACE, &around.excluded_subnets);
    bits |= ports_and_groups(policy, around, &mut entries);
    for (flag, on) in [(flags::DNS, policy.dns_capture), (flags::LO_EXCLUDED, around.lo_excluded)] {
        bits |= if on { flag } else { 0 };
    }
    let config = PodConfig {
        flags: bits,
        proxy_uid: around.proxy_ids.0,
        proxy_gid: around.proxy_ids.1,
        outbound_port: policy.proxy.outbound_port.into(),
        inbound_port: policy.proxy.inbound_port.into(),
        dns_port: policy.proxy.dns_port.into(),
        trace_until: 0,
        cgroup_id,
        source4: around.source4.map_or(Ip::NONE, Ip::from),
        source6: around.source6.map_or(Ip::NONE, Ip::from),
    };
    (config, entries)
}

fn ports_and_groups(policy: &Policy, around: &Surroundings, entries: &mut Entries) -> u32 {
    let mut add = |flag: u32, set: u32, values: &mut dyn Iterator<Item = u32>| {
        let before = entries.sets.len();
        entries.sets.extend(values.map(|value| (set, value)));
        if entries.sets.len() == before { 0 } else { flag }
    };
    let ports =
        |ports: &std::collections::BTreeSet<u16>| ports.iter().copied().map(u32::from).collect::<Vec<_>>();
    let mut bits = add(
        flags::OUTBOUND_EXCLUDED_PORTS,
        set::OUTBOUND_EXCLUDED,
        &mut ports(&policy.exclude_outbound_ports).into_iter(),
    );
    bits |= add(
        flags::OUTBOUND_INCLUDED_PORTS,
        set::OUTBOUND_INCLUDED,
        &mut ports(&policy.include_outbound_ports).into_iter(),
    );
    match &policy.include_inbound_ports {
        Ports::All => {
            bits |= flags::INBOUND_ALL;
            add(0, set::INBOUND_EXCLUDED, &mut ports(&policy.exclude_inbound_ports).into_iter());
        }
        Ports::List(listed) => {
            bits |= add(flags::INBOUND_LIST, set::INBOUND_INCLUDED, &mut ports(listed).into_iter());
        }
    }
    let mut groups = around.groups.iter().copied();
    match &policy.owner_groups {
        OwnerGroups::AllBut(_) => bits |= add(flags::GROUPS_EXCLUDED, set::GROUP, &mut groups),
        OwnerGroups::Only(_) => {
            add(0, set::GROUP, &mut groups);
            bits |= flags::GROUPS_INCLUDED;
        }
    }
    bits | add(flags::INBOUND_INTERFACES, set::INTERFACE, &mut around.excluded_interfaces.iter().copied())
}

/// The pinned maps of the node, opened for writing a pod's entries.
pub struct Tables {
    pods: HashMap<MapData, u64, PodConfig>,
    ranges: LpmTrie<MapData, RangeKey, u8>,
    sets: HashMap<MapData, SetKey, u8>,
    own: HashMap<MapData, AddrKey, u8>,
    stats: PerCpuHashMap<MapData, u64, Counters>,
    destinations: OwnedFd,
}

impl Tables {
    /// Opens the maps of an installed node.
    ///
    /// # Errors
    /// A map is not pinned.
    pub fn open(node: &Node) -> Result<Tables, Error> {
        Ok(Tables {
            pods: open(node, "PODS")?,
            ranges: open(node, "RANGES")?,
            sets: open(node, "SETS")?,
            own: open(node, "OWN")?,
            stats: open(node, "STATS")?,
            destinations: sys::obj_get(&pins::map(node, "DESTINATIONS")).map_err(scan)?,
        })
    }

    /// Writes a pod's entries, the configuration last: only with it does the pod count as enrolled.
    ///
    /// # Errors
    /// A map is full or not writable; what was written so far stays, for [`Tables::remove`].
    pub fn write(&mut self, cookie: u64, config: &PodConfig, entries: &Entries) -> Result<(), Error> {
        for (list, range) in &entries.ranges {
            let key = range_key(cookie, *list, range);
            change("add to", "RANGES", self.ranges.insert(&key, 1, 0))?;
        }
        for (set, value) in &entries.sets {
            change("add to", "SETS", self.sets.insert(SetKey { cookie, set: *set, value: *value }, 1, 0))?;
        }
        for ip in &entries.own {
            change("add to", "OWN", self.own.insert(AddrKey { cookie, ip: (*ip).into() }, 1, 0))?;
        }
        if change_optional("read", "STATS", self.stats.get(&cookie, 0))?.is_none() {
            let cpus = nr_cpus().map_err(|(path, source)| Error::Cpus { path, source })?;
            let zero = PerCpuValues::try_from(vec![Counters::ZERO; cpus])
                .map_err(|source| Error::Cpus { path: "/sys/devices/system/cpu/possible", source })?;
            change("add to", "STATS", self.stats.insert(cookie, zero, 0))?;
        }
        change("add to", "PODS", self.pods.insert(cookie, config, 0))
    }

    /// Takes a pod's entries out, the configuration first. What is not there is fine.
    ///
    /// # Errors
    /// A map is not writable.
    pub fn remove(&mut self, cookie: u64, entries: &Entries) -> Result<(), Error> {
        change_optional("remove from", "PODS", self.pods.remove(&cookie))?;
        self.remove_entries(cookie, entries)?;
        self.remove_destinations(cookie)?;
        change_optional("remove from", "STATS", self.stats.remove(&cookie)).map(drop)
    }

    fn remove_entries(&mut self, cookie: u64, entries: &Entries) -> Result<(), Error> {
        for (list, range) in &entries.ranges {
            change_optional("remove from", "RANGES", self.ranges.remove(&range_key(cookie, *list, range)))?;
        }
        for (set, value) in &entries.sets {
            let key = SetKey { cookie, set: *set, value: *value };
            change_optional("remove from", "SETS", self.sets.remove(&key))?;
        }
        for ip in &entries.own {
            change_optional("remove from", "OWN", self.own.remove(&AddrKey { cookie, ip: (*ip).into() }))?;
        }
        Ok(())
    }

    /// What the programs have written for a pod is found by looking at every key; not if they never redirected.
    fn remove_destinations(&mut self, cookie: u64) -> Result<(), Error> {
        let redirected = [Event::OutboundRedirected, Event::SelfCallRedirected];
        if self.counters(cookie)?.iter().all(|(event, count)| *count == 0 || !redirected.contains(event)) {
            return Ok(());
        }
        let keys = sys::map_keys::<SlotKey, Endpoint>(&self.destinations).map_err(scan)?;
        for key in keys.iter().filter(|key| key.cookie == cookie) {
            sys::map_delete(&self.destinations, key).map_err(scan)?;
        }
        Ok(())
    }

    /// Takes out everything that belongs to a pod whose entries are not known any more, by looking at every key.
    ///
    /// # Errors
    /// A map is not readable or writable.
    pub fn sweep(&mut self, cookie: u64) -> Result<(), Error> {
        let entries = self.entries(cookie)?;
        self.remove(cookie, &entries)
    }

    /// Takes out what a pod has besides `wanted`: entries of a policy that it had before. Looks at every key.
    ///
    /// # Errors
    /// A map is not readable or writable.
    pub fn prune(&mut self, cookie: u64, wanted: &Entries) -> Result<(), Error> {
        let mut stale = self.entries(cookie)?;
        let ranges: BTreeSet<_> = wanted.ranges.iter().collect();
        stale.ranges.retain(|entry| !ranges.contains(entry));
        let sets: BTreeSet<_> = wanted.sets.iter().collect();
        stale.sets.retain(|entry| !sets.contains(entry));
        stale.own.retain(|entry| !wanted.own.contains(entry));
        self.remove_entries(cookie, &stale)
    }

    /// What the maps hold for a pod.
    fn entries(&self, cookie: u64) -> Result<Entries, Error> {
        let mut entries = Entries::default();
        for key in self.ranges.keys() {
            let key = change("read", "RANGES", key)?;
            let (prefix, data) = (key.prefix_len(), key.data());
            let (pod, list) = data.pod_and_list();
            if pod == cookie {
                entries.ranges.push((list, range_net(data.ip, prefix - RangeKey::HEAD_BITS)));
            }
        }
        for key in self.sets.keys() {
            let key = change("read", "SETS", key)?;
            if key.cookie == cookie {
                entries.sets.push((key.set, key.value));
            }
        }
        for key in self.own.keys() {
            let key = change("read", "OWN", key)?;
            if key.cookie == cookie {
                entries.own.push(key.ip.into());
            }
        }
        Ok(entries)
    }

    /// The pod's configuration, if it is enrolled.
    ///
    /// # Errors
    /// The map is not readable.
    pub fn config(&self, cookie: u64) -> Result<Option<PodConfig>, Error> {
        change_optional("read", "PODS", self.pods.get(&cookie, 0))
    }

    /// All enrolled pods.
    ///
    /// # Errors
    /// The map is not readable.
    pub fn cookies(&self) -> Result<Vec<u64>, Error> {
        self.pods.keys().map(|key| change("read", "PODS", key)).collect()
    }

    /// Sets until when a reader wants trace records of a pod (`CLOCK_MONOTONIC`, nanoseconds; 0 for off).
    ///
    /// # Errors
    /// The map is not writable.
    pub fn set_trace(&mut self, cookie: u64, until: u64) -> Result<(), Error> {
        let Some(config) = self.config(cookie)? else { return Ok(()) };
        change("change", "PODS", self.pods.insert(cookie, PodConfig { trace_until: until, ..config }, 0))
    }

    /// A pod's counters, summed over all CPUs, in the order of [`Event::ALL`].
    ///
    /// # Errors
    /// The map is not readable.
    pub fn counters(&self, cookie: u64) -> Result<Vec<(Event, u64)>, Error> {
        let values = change_optional("read", "STATS", self.stats.get(&cookie, 0))?;
        let sum = |event: Event| {
            values.iter().flat_map(|cpus| cpus.iter()).map(|cpu| cpu.counts[event as usize]).sum::<u64>()
        };
        Ok(Event::ALL.iter().map(|event| (*event, sum(*event))).collect())
    }
}

fn open<T>(node: &Node, name: &str) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    let path = pins::map(node, name);
    let map = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(T::try_from);
    map.map_err(|source| Error::Open { path, source: Box::new(source) })
}

fn scan(source: SyscallError) -> Error {
    Error::Scan { map: "DESTINATIONS", source }
}

fn change<T>(what: &'static str, map: &'static str, result: Result<T, MapError>) -> Result<T, Error> {
    result.map_err(|source| Error::Change { what, map, source: Box::new(source) })
}

/// As [`change`], for a key that may be missing.
fn change_optional<T>(
    what: &'static str,
    map: &'static str,
    result: Result<T, MapError>,
) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(source) => Err(Error::Change { what, map, source: Box::new(source) }),
    }
}

fn range_key(cookie: u64, list: u32, range: &IpNet) -> Key<RangeKey> {
    let prefix = match range {
        IpNet::V4(net) => 96 + u32::from(net.prefix_len()),
        IpNet::V6(net) => u32::from(net.prefix_len()),
    };
    Key::new(RangeKey::HEAD_BITS + prefix, RangeKey::new(cookie, list, range.network().into()))
}

fn range_net(ip: Ip, prefix: u32) -> IpNet {
    let address = IpAddr::from(ip);
    let length = if ip.is_v4() && prefix >= 96 { prefix - 96 } else { prefix };
    // Both lengths came out of a key that `range_key` made.
    IpNet::new(address, length as u8).unwrap_or_else(|_| IpNet::from(address))
}
