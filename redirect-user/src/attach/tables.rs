//! A pod's entries in the maps: written, compared and taken out again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use ipnet::IpNet;
use redirect_common::{
    AddrKey, Claims, Counters, DnsAsked, DnsClient, Event, HandoffKey, Ip, Kept, LISTENING_PER_POD,
    ListeningKey, PodConfig, PortBlock, PortsKey, RangeKey, SetKey, SlotKey,
};

use crate::attach::entries::{self, Entries};
use crate::attach::full;
use crate::attach::map::{self, Error, change, change_optional, errno_of, open, raw, scan};
use crate::attach::record::Attachment;
use crate::kernel::folders;
use crate::kernel::pins::Generation;
use crate::kernel::sys::{self, RawMap};
use crate::node::Node;

/// Makes the maps hold what this attachment says, and nothing that an earlier one of the same pod said.
///
/// # Errors
/// A map is full or not writable.
pub(super) fn write(node: &Node, attachment: &Attachment) -> Result<(), Error> {
    let (config, entries) = entries::of(attachment);
    Tables::open(node)?.replace(attachment.cookie, &config, &entries)
}

/// The pinned maps of the node, opened for writing a pod's entries.
pub struct Tables {
    node: Node,
    pods: HashMap<MapData, u64, PodConfig>,
    ranges: LpmTrie<MapData, RangeKey, u8>,
    ports: HashMap<MapData, PortsKey, PortBlock>,
    sets: HashMap<MapData, SetKey, u8>,
    own: HashMap<MapData, AddrKey, u8>,
    stats: PerCpuHashMap<MapData, u64, Counters>,
    claims: HashMap<MapData, u64, Claims>,
    listening: HashMap<MapData, ListeningKey, u64>,
    traced: Array<MapData, u64>,
    traces: HashMap<MapData, u64, u64>,
    destinations: OwnedFd,
    dns_proxies: OwnedFd,
    dns_asked: OwnedFd,
}

impl Tables {
    /// Opens the maps of an installed node.
    ///
    /// # Errors
    /// A map is not pinned.
    pub fn open(node: &Node) -> Result<Tables, Error> {
        let raw = |name| raw(node, name);
        Ok(Tables {
            node: node.clone(),
            pods: open(node, "PODS")?,
            ranges: open(node, "RANGES")?,
            ports: open(node, "PORTS")?,
            sets: open(node, "SETS")?,
            own: open(node, "OWN")?,
            stats: open(node, "STATS")?,
            claims: open(node, "CLAIMS")?,
            listening: open(node, "LISTENING")?,
            traced: open(node, "TRACED")?,
            traces: open(node, "TRACES")?,
            destinations: raw("DESTINATIONS")?,
            dns_proxies: raw("DNS_PROXIES")?,
            dns_asked: raw("DNS_ASKED")?,
        })
    }

    /// Makes the maps hold this for a pod, and nothing that they held for it before.
    ///
    /// # Errors
    /// A map is full or not writable.
    pub(crate) fn replace(
        &mut self,
        cookie: u64,
        config: &PodConfig,
        entries: &Entries,
    ) -> Result<(), Error> {
        if self.config(cookie)?.is_none() {
            return self.write(cookie, config, entries);
        }
        // A running pod's entries are left alone where they are right: the kernel would hand the replaced
        // element to the next insertion, and a program may be reading it.
        let found = self.entries(cookie)?;
        self.write(cookie, config, &entries.besides(&found))?;
        self.remove_entries(cookie, &found.without_keys_of(entries))
    }

    /// Writes a pod's entries, the configuration last: only with it does the pod count as enrolled.
    ///
    /// # Errors
    /// A map is full or not writable; what was written so far stays, for [`Tables::remove`].
    fn write(&mut self, cookie: u64, config: &PodConfig, entries: &Entries) -> Result<(), Error> {
        for (list, range, holds) in &entries.ranges {
            let key = range_key(cookie, *list, range);
            let added = self.ranges.insert(&key, u8::from(*holds), 0);
            self.added("RANGES", added)?;
        }
        for (set, block, ports) in &entries.ports {
            let key = PortsKey { cookie, set: *set, block: *block };
            let added = self.ports.insert(key, ports, 0);
            self.added("PORTS", added)?;
        }
        for (set, value) in &entries.sets {
            let added = self.sets.insert(SetKey { cookie, set: *set, value: *value }, 1, 0);
            self.added("SETS", added)?;
        }
        for ip in &entries.own {
            let added = self.own.insert(AddrKey { cookie, ip: (*ip).into() }, 1, 0);
            self.added("OWN", added)?;
        }
        if change_optional("read", "STATS", self.stats.get(&cookie, 0))?.is_none() {
            let cpus = nr_cpus().map_err(|(path, source)| Error::Cpus { path, source })?;
            let zero = PerCpuValues::try_from(vec![Counters::ZERO; cpus])
                .map_err(|source| Error::Cpus { path: "/sys/devices/system/cpu/possible", source })?;
            let added = self.stats.insert(cookie, zero, 0);
            self.added("STATS", added)?;
        }
        if self.claims(cookie)?.is_none() {
            let added = self.claims.insert(cookie, Claims::NONE, 0);
            self.added("CLAIMS", added)?;
        }
        // A program may be looking at a configuration that is there already: it is replaced only by another
        // one.
        if self.config(cookie)?.as_ref() == Some(config) {
            return Ok(());
        }
        let added = self.pods.insert(cookie, config, 0);
        self.added("PODS", added)
    }

    /// The result of adding to a map; where that is full, with whose entries it holds.
    fn added(&self, map: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
        match result {
            Err(error) if map::is_full(&error) => {
                Err(Box::new(full::of(&self.node, map, errno_of(&error))).into())
            }
            other => change("add to", map, other),
        }
    }

    /// Notes ports of a pod on which sockets listened before its programs were there to see it, as many as a
    /// pod may have. A port that the programs know is left to them.
    ///
    /// # Errors
    /// The map is full or not writable.
    pub fn note_listening(&mut self, cookie: u64, ports: &BTreeSet<u16>) -> Result<(), Error> {
        const NOEXIST: u64 = 1;
        let mut new = Vec::new();
        for port in ports.iter().take(LISTENING_PER_POD as usize) {
            let key = ListeningKey { cookie, port: u32::from(*port), place: 0 };
            if change_optional("read", "LISTENING", self.listening.get(&key, 0))?.is_none() {
                new.push(key);
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        // Counted before: what a call that dies or fails has counted too much costs the DEL a look.
        let more = new.len() as u64;
        self.change_claims(cookie, |claims| Claims { listening: claims.listening + more, ..claims })?;
        for key in new {
            // 0 is no socket's cookie: the place is given back by detach only.
            match self.listening.insert(key, 0, NOEXIST) {
                Err(error) if errno_of(&error) == libc::EEXIST => {}
                added => self.added("LISTENING", added)?,
            }
        }
        Ok(())
    }

    /// Takes a pod's entries out, the configuration first. What is not there is fine.
    ///
    /// # Errors
    /// A map is not writable.
    pub(crate) fn remove(&mut self, cookie: u64, entries: &Entries) -> Result<(), Error> {
        change_optional("remove from", "PODS", self.pods.remove(&cookie))?;
        self.remove_entries(cookie, entries)?;
        // A table is looked through only where the pod's count says that it has something there: an empty one
        // of 131,072 entries takes a third of a millisecond.
        let claims = self.claims(cookie)?;
        if claims.is_none_or(|claims| claims.listening != 0) {
            self.remove_listening(cookie)?;
        }
        if claims.is_none_or(|claims| claims.clients != 0) {
            self.remove_handshakes("CLIENTS", cookie)?;
        }
        self.remove_destinations(cookie)?;
        self.remove_dns(cookie)?;
        change_optional("remove from", "TRACES", self.traces.remove(&cookie))?;
        change_optional("remove from", "CLAIMS", self.claims.remove(&cookie))?;
        change_optional("remove from", "STATS", self.stats.remove(&cookie)).map(drop)
    }

    /// Takes out the clients that wait for applications in a cgroup, in whichever network namespace, while no
    /// program of the cgroup puts any there.
    ///
    /// # Errors
    /// A map is not writable.
    pub(crate) fn forget_clients(&mut self, cgroup_id: u64) -> Result<(), Error> {
        for (cookie, config) in self.all::<u64, PodConfig>("PODS")? {
            if config.cgroup_id == cgroup_id && self.claims(cookie)?.is_some_and(|claims| claims.clients > 0)
            {
                self.remove_handshakes("CLIENTS", cookie)?;
                self.change_claims(cookie, |claims| Claims { clients: 0, ..claims })?;
            }
        }
        Ok(())
    }

    /// Changes what a pod's entry of CLAIMS says, if it has one. The other numbers change as long as the pod
    /// runs, so the entry is read right before.
    ///
    /// # Errors
    /// The map is not readable or writable.
    pub(super) fn change_claims(
        &mut self,
        cookie: u64,
        to: impl FnOnce(Claims) -> Claims,
    ) -> Result<(), Error> {
        let Some(claims) = self.claims(cookie)? else { return Ok(()) };
        change("change", "CLAIMS", self.claims.insert(cookie, to(claims), 0))
    }

    fn claims(&self, cookie: u64) -> Result<Option<Claims>, Error> {
        change_optional("read", "CLAIMS", self.claims.get(&cookie, 0))
    }

    fn remove_entries(&mut self, cookie: u64, entries: &Entries) -> Result<(), Error> {
        for (list, range, _) in &entries.ranges {
            change_optional("remove from", "RANGES", self.ranges.remove(&range_key(cookie, *list, range)))?;
        }
        for (set, block, _) in &entries.ports {
            let key = PortsKey { cookie, set: *set, block: *block };
            change_optional("remove from", "PORTS", self.ports.remove(&key))?;
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

    /// What the programs have written for a pod is found by looking at every key; not if they never
    /// redirected.
    fn remove_destinations(&mut self, cookie: u64) -> Result<(), Error> {
        if !self.has_counted(
            cookie,
            &[Event::OutboundRedirected, Event::SelfCallRedirected, Event::DnsRedirected],
        )? {
            return Ok(());
        }
        let failed = scan("DESTINATIONS");
        let keys = sys::map_keys::<SlotKey, Kept<SlotKey>>(&self.destinations).map_err(&failed)?;
        for key in keys.iter().filter(|key| key.cookie == cookie) {
            sys::map_delete(&self.destinations, key).map_err(&failed)?;
        }
        self.remove_handshakes("HANDOFF", cookie)
    }

    /// What programs have left in a table of handshakes: whose sockets closed when those were gone already.
    fn remove_handshakes(&self, map: &'static str, cookie: u64) -> Result<(), Error> {
        let (table, failed) = (raw(&self.node, map)?, scan(map));
        let keys = sys::map_keys::<HandoffKey, Kept<HandoffKey>>(&table).map_err(&failed)?;
        for key in keys.iter().filter(|key| key.cookie == cookie) {
            sys::map_delete(&table, key).map_err(&failed)?;
        }
        Ok(())
    }

    /// What sockets of the pod listened on.
    fn remove_listening(&mut self, cookie: u64) -> Result<(), Error> {
        for (key, _) in self.all::<ListeningKey, u64>("LISTENING")? {
            if key.cookie == cookie {
                change_optional("remove from", "LISTENING", self.listening.remove(&key))?;
            }
        }
        Ok(())
    }

    /// What the programs know about a pod's DNS proxy and its clients.
    fn remove_dns(&self, cookie: u64) -> Result<(), Error> {
        sys::map_delete(&self.dns_proxies, &cookie).map_err(scan("DNS_PROXIES"))?;
        if !self.has_counted(cookie, &[Event::DnsRedirected])? {
            return Ok(());
        }
        let failed = scan("DNS_ASKED");
        let keys = sys::map_keys::<DnsClient, DnsAsked>(&self.dns_asked).map_err(&failed)?;
        for key in keys.iter().filter(|key| key.cookie == cookie) {
            sys::map_delete(&self.dns_asked, key).map_err(&failed)?;
        }
        Ok(())
    }

    fn has_counted(&self, cookie: u64, events: &[Event]) -> Result<bool, Error> {
        Ok(self.counters(cookie)?.iter().any(|(event, count)| *count > 0 && events.contains(event)))
    }

    /// Whether the maps hold exactly these entries for a pod.
    ///
    /// # Errors
    /// A map is not readable.
    pub(crate) fn holds(&self, cookie: u64, expected: Entries) -> Result<bool, Error> {
        // As keys: a policy may name a range twice, or by an address inside it.
        let as_keys = |entries: Entries| {
            let ranges =
                entries.ranges.into_iter().map(|(list, range, holds)| ((list, range.trunc()), holds));
            let ports = entries.ports.into_iter().map(|(set, block, ports)| ((set, block), ports));
            let sets: BTreeSet<_> = entries.sets.into_iter().collect();
            let own: BTreeSet<_> = entries.own.into_iter().collect();
            (ranges.collect::<BTreeMap<_, _>>(), ports.collect::<BTreeMap<_, _>>(), sets, own)
        };
        Ok(as_keys(self.entries(cookie)?) == as_keys(expected))
    }

    /// What the maps hold for a pod.
    fn entries(&self, cookie: u64) -> Result<Entries, Error> {
        let mut entries = Entries::default();
        for (key, holds) in self.all::<Key<RangeKey>, u8>("RANGES")? {
            let (prefix, data) = (key.prefix_len(), key.data());
            let (pod, list) = data.pod_and_list();
            if pod == cookie {
                let range = range_net(data.ip, prefix - RangeKey::HEAD_BITS);
                entries.ranges.push((list, range, holds != 0));
            }
        }
        for (key, ports) in self.all::<PortsKey, PortBlock>("PORTS")? {
            if key.cookie == cookie {
                entries.ports.push((key.set, key.block, ports));
            }
        }
        for (key, _) in self.all::<SetKey, u8>("SETS")? {
            if key.cookie == cookie {
                entries.sets.push((key.set, key.value));
            }
        }
        for (key, _) in self.all::<AddrKey, u8>("OWN")? {
            if key.cookie == cookie {
                entries.own.push(key.ip.into());
            }
        }
        Ok(entries)
    }

    /// All entries of a map, of all pods, in few calls.
    fn all<K: aya::Pod, V: aya::Pod>(&self, map: &'static str) -> Result<Vec<(K, V)>, Error> {
        sys::map_entries(raw(&self.node, map)?).map_err(scan(map))
    }

    /// The pod's configuration, if it is enrolled.
    ///
    /// # Errors
    /// The map is not readable.
    pub fn config(&self, cookie: u64) -> Result<Option<PodConfig>, Error> {
        change_optional("read", "PODS", self.pods.get(&cookie, 0))
    }

    /// Sets until when a reader wants trace records of a pod (`CLOCK_MONOTONIC`, nanoseconds; 0 for off).
    ///
    /// # Errors
    /// The maps are not writable.
    pub fn set_trace(&mut self, cookie: u64, until: u64) -> Result<(), Error> {
        if until == 0 {
            change_optional("remove from", "TRACES", self.traces.remove(&cookie))?;
            if self.traces.keys().next().is_none() {
                change("change", "TRACED", self.traced.set(0, 0, 0))?;
            }
            return Ok(());
        }
        if self.config(cookie)?.is_none() {
            return Ok(());
        }
        change("add to", "TRACES", self.traces.insert(cookie, until, 0))?;
        let latest = change("read", "TRACED", self.traced.get(&0, 0))?.max(until);
        change("change", "TRACED", self.traced.set(0, latest, 0))
    }

    /// What the slots of a pod's private prefix stand for: the slot's address and the true destination.
    ///
    /// # Errors
    /// The map is not readable.
    pub fn destinations(&self, cookie: u64) -> Result<Vec<(IpAddr, SocketAddr)>, Error> {
        let entries =
            sys::map_entries::<SlotKey, Kept<SlotKey>>(&self.destinations).map_err(scan("DESTINATIONS"))?;
        let of_pod = entries.into_iter().filter(|(key, _)| key.cookie == cookie);
        Ok(of_pod.filter_map(|(key, kept)| Some((key.address()?.into(), kept.dst.into()))).collect())
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

/// Takes out of every map of a version what belongs to the pods for which `gone` is true, in
/// every layout; the configurations first. Returns whose entries these were. A map whose pin is lost is none.
///
/// # Errors
/// A map is not readable or writable.
pub(crate) fn sweep(generation: &Generation, gone: impl Fn(u64) -> bool) -> Result<BTreeSet<u64>, Error> {
    let mut paths = folders::list(&generation.maps())?;
    paths.sort_by_key(|path| (!path.ends_with("PODS"), path.clone()));
    let mut swept = BTreeSet::new();
    // In version 3 the keys of ENTERED are tasks, whose look-ups are under way.
    for path in paths.into_iter().filter(|path| !path.ends_with("ENTERED")) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let failed = |source| Error::Sweep { map: name.clone(), source };
        let Some(map) = RawMap::open(&path).map_err(failed)? else { continue };
        for key in map.keys().map_err(failed)? {
            let cookie = map.cookie(&key);
            if gone(cookie) {
                map.remove(&key).map_err(failed)?;
                swept.insert(cookie);
            }
        }
    }
    Ok(swept)
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
