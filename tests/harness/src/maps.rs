//! The pinned maps of a node, read by their keys.

use aya::Pod;
use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuHashMap};
use redirect_common::{
    AddrKey, Counters, Endpoint, HandoffKey, Ip, Kept, ListeningKey, PodConfig, PortBlock, PortsKey,
    RangeKey, SetKey, SlotKey,
};

use crate::node::Node;

impl Node {
    /// The loopback handshakes that are under way, or stuck, on the node: the content of the map HANDOFF.
    #[must_use]
    pub fn handshakes(&self) -> Vec<(HandoffKey, Endpoint)> {
        let map: HashMap<_, HandoffKey, Kept<HandoffKey>> = self.pinned_map("HANDOFF");
        map.iter().map(|entry| entry.map(|(key, kept)| (key, kept.dst)).expect("read HANDOFF")).collect()
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
            ("CLAIMS", self.pinned_map::<HashMap<_, u64, u64>>("CLAIMS").keys().count()),
            ("HANDOFF", self.handshakes().len()),
            ("LISTENING", self.pinned_map::<HashMap<_, ListeningKey, u64>>("LISTENING").keys().count()),
            ("TRACES", self.pinned_map::<HashMap<_, u64, u64>>("TRACES").keys().count()),
            ("STATS", self.pinned_map::<PerCpuHashMap<_, u64, Counters>>("STATS").keys().count()),
        ]
    }

    /// Fills the map OWN to the last entry with addresses of a pod, which the cookie of its namespace names.
    pub fn fill_own_addresses(&self, cookie: u64) {
        let mut map: HashMap<_, AddrKey, u8> = self.pinned_map("OWN");
        let mut number = 0xc000_0000_u32;
        while map.insert(AddrKey { cookie, ip: Ip::v4(number) }, 1, 0).is_ok() {
            number += 1;
        }
    }

    /// Takes everything out of the map OWN.
    pub fn empty_own_addresses(&self) {
        let mut map: HashMap<_, AddrKey, u8> = self.pinned_map("OWN");
        let keys: Vec<_> = map.keys().collect::<Result<_, _>>().expect("read OWN");
        for key in keys {
            map.remove(&key).expect("empty OWN");
        }
    }

    /// Fills a map to its limit with entries of no pod, which go when the answer does: PODS, SETS or OWN.
    #[must_use]
    pub fn fill_map(&self, name: &'static str) -> FilledMap {
        let entries: Box<dyn FnMut(u64, bool) -> bool> = match name {
            "PODS" => self.filler::<u64, PodConfig>(name, |number| number),
            "SETS" => self.filler::<SetKey, u8>(name, |number| SetKey { cookie: number, set: 0, value: 0 }),
            "OWN" => self.filler::<AddrKey, u8>(name, |number| AddrKey { cookie: number, ip: Ip::v4(0) }),
            _ => panic!("{name} cannot be filled"),
        };
        FilledMap::fill(entries)
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
