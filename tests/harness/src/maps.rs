//! The pinned maps of a node, read by their keys.

use std::path::Path;

use aya::Pod;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuHashMap};
use redirect_common::{
    AddrKey, Claims, Counters, Endpoint, Event, GuardedPod, HandoffKey, Ip, Kept, ListeningKey, PodConfig,
    PortBlock, PortsKey, RangeKey, SetKey, SlotKey,
};

use crate::node::Node;

impl Node {
    /// The loopback handshakes that are under way, or stuck, on the node: the content of the map HANDOFF.
    #[must_use]
    pub fn handshakes(&self) -> Vec<(HandoffKey, Endpoint)> {
        self.table_of_handshakes("HANDOFF")
    }

    /// The clients on their way to an application (TPROXY mode): the content of the map CLIENTS.
    #[must_use]
    pub fn clients(&self) -> Vec<(HandoffKey, Endpoint)> {
        self.table_of_handshakes("CLIENTS")
    }

    fn table_of_handshakes(&self, name: &str) -> Vec<(HandoffKey, Endpoint)> {
        let map: HashMap<_, HandoffKey, Kept<HandoffKey>> = self.pinned_map(name);
        let entries = map.iter().map(|entry| entry.map(|(key, kept)| (key, kept.dst)));
        entries.map(|entry| entry.unwrap_or_else(|error| panic!("read {name}: {error}"))).collect()
    }

    /// The pods that have an entry in the map GUARD, by the cookies of their namespaces.
    #[must_use]
    pub fn guarded_pods(&self) -> Vec<u64> {
        let map: Array<_, GuardedPod> = self.pinned_map("GUARD");
        map.iter().map(|entry| entry.expect("read GUARD").cookie).filter(|cookie| *cookie != 0).collect()
    }

    /// How many entries each map has that detach empties.
    #[must_use]
    pub fn map_entries(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("PODS", self.pinned_map::<HashMap<_, u64, PodConfig>>("PODS").keys().count()),
            ("RANGES", self.pinned_map::<LpmTrie<_, RangeKey, u8>>("RANGES").keys().count()),
            ("PORTS", self.pinned_map::<HashMap<_, PortsKey, PortBlock>>("PORTS").keys().count()),
            ("SETS", self.pinned_map::<HashMap<_, SetKey, u8>>("SETS").keys().count()),
            ("OWN", self.pinned_map::<HashMap<_, AddrKey, u8>>("OWN").keys().count()),
            (
                "DESTINATIONS",
                self.pinned_map::<HashMap<_, SlotKey, Kept<SlotKey>>>("DESTINATIONS").keys().count(),
            ),
            ("CLAIMS", self.pinned_map::<HashMap<_, u64, Claims>>("CLAIMS").keys().count()),
            ("HANDOFF", self.handshakes().len()),
            ("CLIENTS", self.clients().len()),
            ("LISTENING", self.pinned_map::<HashMap<_, ListeningKey, u64>>("LISTENING").keys().count()),
            ("TRACES", self.pinned_map::<HashMap<_, u64, u64>>("TRACES").keys().count()),
            ("STATS", self.pinned_map::<PerCpuHashMap<_, u64, Counters>>("STATS").keys().count()),
        ]
    }

    /// How many entries one of [`Node::map_entries`] has.
    ///
    /// # Panics
    /// It is not among them.
    #[must_use]
    pub fn entries_of(&self, name: &str) -> usize {
        let found = self.map_entries().into_iter().find(|(map, _)| *map == name);
        found.unwrap_or_else(|| panic!("{name} is not counted")).1
    }

    /// How many pods have an entry in the map GUARD.
    #[must_use]
    pub fn guarded(&self) -> usize {
        let map: Array<_, GuardedPod> = self.pinned_map("GUARD");
        map.iter().filter(|entry| entry.as_ref().is_ok_and(|pod| pod.cookie != 0)).count()
    }

    /// Fills the map OWN to the last entry with addresses of a pod, which the cookie of its namespace names.
    pub fn fill_own_addresses(&self, cookie: u64) {
        let mut map: HashMap<_, AddrKey, u8> = self.pinned_map("OWN");
        let mut number = 0xc000_0000_u32;
        while map.insert(AddrKey { cookie, ip: Ip::v4(number) }, 1, 0).is_ok() {
            number += 1;
        }
    }

    /// How much an attached pod has of the tables that programs fill.
    #[must_use]
    pub fn claims(&self, pod: &crate::Pod) -> Claims {
        let map: HashMap<_, u64, Claims> = self.pinned_map("CLAIMS");
        map.get(&self.cookie(pod), 0).expect("an attached pod has an entry in CLAIMS")
    }

    /// Makes the programs believe that a pod has that much of their tables.
    pub fn set_claims(&self, pod: &crate::Pod, claims: Claims) {
        let mut map: HashMap<_, u64, Claims> = self.pinned_map("CLAIMS");
        map.insert(self.cookie(pod), claims, 0).expect("change CLAIMS");
    }

    /// The cookie of an attached pod's namespace.
    #[must_use]
    pub fn cookie(&self, pod: &crate::Pod) -> u64 {
        let list = self.list();
        let all = list.as_array().expect("list prints an array of attachments");
        let one = all.iter().find(|entry| entry["containerId"] == pod.name()).expect("the pod is attached");
        one["cookie"].as_u64().expect("a cookie is a number")
    }

    /// Takes everything out of the map OWN.
    pub fn empty_own_addresses(&self) {
        let mut map: HashMap<_, AddrKey, u8> = self.pinned_map("OWN");
        let keys: Vec<_> = map.keys().collect::<Result<_, _>>().expect("read OWN");
        for key in keys {
            map.remove(&key).expect("empty OWN");
        }
    }

    /// Fills a map to its limit with entries of no pod, which go when the answer does: PODS, SETS, OWN,
    /// CLAIMS, LISTENING or GUARD.
    #[must_use]
    pub fn fill_map(&self, name: &'static str) -> FilledMap {
        let entries: Box<dyn FnMut(u64, bool) -> bool> = match name {
            "PODS" => self.filler::<u64, PodConfig>(name, |number| number),
            "SETS" => self.filler::<SetKey, u8>(name, |number| SetKey { cookie: number, set: 0, value: 0 }),
            "OWN" => self.filler::<AddrKey, u8>(name, |number| AddrKey { cookie: number, ip: Ip::v4(0) }),
            "CLAIMS" => self.filler::<u64, Claims>(name, |number| number),
            "LISTENING" => self.filler::<ListeningKey, u64>(name, |number| ListeningKey {
                cookie: number,
                port: 0,
                place: 0,
            }),
            "GUARD" => self.guard_filler(),
            _ => panic!("{name} cannot be filled"),
        };
        FilledMap::fill(entries)
    }

    /// As [`Node::filler`], for an array, in which each free entry is taken.
    fn guard_filler(&self) -> Box<dyn FnMut(u64, bool) -> bool> {
        let mut map: Array<MapData, GuardedPod> = self.pinned_map("GUARD");
        let mut taken: Vec<u32> = Vec::new();
        Box::new(move |number, put| {
            let is_free = |index: &u32| map.get(index, 0).is_ok_and(|entry| entry.cookie == 0);
            let index = if put {
                let from = taken.last().map_or(1, |last| last + 1);
                (from..map.len()).find(is_free)
            } else {
                taken.pop()
            };
            let Some(index) = index else { return false };
            let cookie = if put { number } else { 0 };
            if put {
                taken.push(index);
            }
            map.set(index, GuardedPod { cookie, ..GuardedPod::FREE }, 0).is_ok()
        })
    }

    /// Puts an entry with such a number in, or takes it out; whether that could be done.
    fn filler<K: Pod + 'static, V: Pod + 'static>(
        &self,
        name: &str,
        key: fn(u64) -> K,
    ) -> Box<dyn FnMut(u64, bool) -> bool> {
        let mut map: HashMap<MapData, K, V> = self.pinned_map(name);
        // SAFETY: a `Pod` is plain data, for which any bytes will do.
        let value: V = unsafe { std::mem::zeroed() };
        Box::new(move |number, put| match put {
            true => map.insert(key(number), value, 0).is_ok(),
            false => map.remove(&key(number)).is_ok(),
        })
    }

    fn pinned_map<T: TryFrom<Map, Error = MapError>>(&self, name: &str) -> T {
        let path = self.bpffs().join(format!("redirect-cni/v{}/maps/{name}", redirect_common::ABI_VERSION));
        let map = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(T::try_from);
        map.unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
    }
}

/// How often the guards of all pods have caught something, on the node with this bpffs; 0 where nothing of
/// ours is installed.
///
/// # Errors
/// The counters cannot be read.
pub fn guarded(bpffs: &Path) -> Result<u64, MapError> {
    let path = bpffs.join(format!("redirect-cni/v{}/maps/STATS", redirect_common::ABI_VERSION));
    if !path.exists() {
        return Ok(0);
    }
    let stats = PerCpuHashMap::<_, u64, Counters>::try_from(Map::from_map_data(MapData::from_pin(path)?)?)?;
    let mut sum = 0;
    for entry in stats.iter() {
        for cpu in entry?.1.iter() {
            let events = Event::ALL.iter().filter(|event| event.of_guard());
            sum += events.map(|event| cpu.counts[*event as usize]).sum::<u64>();
        }
    }
    Ok(sum)
}

/// No namespace has a cookie from here on.
const NO_COOKIE: u64 = u64::MAX / 2;

/// A map without room; it has room again when this goes out of scope.
pub struct FilledMap {
    entries: Box<dyn FnMut(u64, bool) -> bool>,
    count: u64,
}

impl FilledMap {
    fn fill(mut entries: Box<dyn FnMut(u64, bool) -> bool>) -> FilledMap {
        let mut count = 0;
        while entries(NO_COOKIE + count, true) {
            count += 1;
        }
        FilledMap { entries, count }
    }
}

impl Drop for FilledMap {
    fn drop(&mut self) {
        for number in 0..self.count {
            (self.entries)(NO_COOKIE + number, false);
        }
    }
}
