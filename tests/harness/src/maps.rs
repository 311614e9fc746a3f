//! The pinned maps of a node, read by their keys.

use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuHashMap};
use redirect_common::{
    AddrKey, Counters, Endpoint, HandoffKey, Ip, PodConfig, PortBlock, PortsKey, RangeKey, SetKey, SlotKey,
};

use crate::node::Node;

impl Node {
    /// The loopback handshakes that are under way, or stuck, on the node: the content of the map HANDOFF.
    #[must_use]
    pub fn handshakes(&self) -> Vec<(HandoffKey, Endpoint)> {
        let map: HashMap<_, HandoffKey, Endpoint> = self.pinned_map("HANDOFF");
        map.iter().collect::<Result<_, _>>().expect("read HANDOFF")
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
            ("DESTINATIONS", self.pinned_map::<HashMap<_, SlotKey, Endpoint>>("DESTINATIONS").keys().count()),
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

    fn pinned_map<T: TryFrom<Map, Error = MapError>>(&self, name: &str) -> T {
        let path = self.bpffs().join(format!("redirect-cni/v{}/maps/{name}", redirect_common::ABI_VERSION));
        let map = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(T::try_from);
        map.unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
    }
}
