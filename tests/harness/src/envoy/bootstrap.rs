//! An Envoy bootstrap in the shape that istiod gives a sidecar: the two virtual listeners that captured
//! traffic arrives at, passthrough clusters, admin and health.
//!
//! | listener | port | what it does |
//! |---|---|---|
//! | virtualOutbound | 15001 | reads `SO_ORIGINAL_DST`, hands over to a listener of that port or passes through |
//! | 0.0.0.0_PORT | not bound | outbound HTTP to PORT, reached by that hand-over |
//! | virtualInbound | 15006 | reads `SO_ORIGINAL_DST`, passes to the application from 127.0.0.6 or ::6 |
//! | health | 15021 | answers `/healthz/ready` |
//!
//! A connection to 15001 or 15006 itself, which has no original destination, ends in `BlackHoleCluster`.

use serde_json::{Value, json};

use super::access;
use super::extension::typed;

/// Envoy's admin interface; on 127.0.0.1 only.
pub const ADMIN_PORT: u16 = 15000;
/// Where captured outbound connections arrive.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where captured inbound connections arrive.
pub const INBOUND_PORT: u16 = 15006;
/// The readiness port, never captured.
pub const HEALTH_PORT: u16 = 15021;

/// Which addresses the listeners are bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// `0.0.0.0` only, as in a cluster without IPv6.
    V4,
    /// `0.0.0.0` and, as a second socket for IPv6 only, `::`; Istio's dual-stack shape.
    Dual,
    /// One socket on `::` that takes IPv4 too: IPv4 clients appear as `::ffff:a.b.c.d`.
    Compat,
}

/// The listener filter `original_src` on a transparent listener, as istiod configures it for TPROXY mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginalSrc {
    /// The client's address (`bind_port: false`, which is istiod's way).
    Address,
    /// The client's address and port (`bind_port: true`).
    AddressAndPort,
}

/// What may differ between the sidecars of the tests.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// Addresses of the listeners.
    pub families: Families,
    /// Whether every connection leaves a line in the access log; benchmarks go without.
    pub access_log: bool,
    /// Destination ports whose outbound traffic is handled as HTTP, each by a listener that is not bound.
    pub http_ports: Vec<u16>,
    /// Whether it goes on to the application in its client's name, and with the client's port as well.
    pub original_src: Option<OriginalSrc>,
    /// Ports of the application whose inbound traffic is handled as HTTP.
    pub inbound_http_ports: Vec<u16>,
    /// Further listeners, for example those of named services.
    pub listeners: Vec<Value>,
    /// Further clusters.
    pub clusters: Vec<Value>,
}

impl Default for Bootstrap {
    fn default() -> Bootstrap {
        Bootstrap {
            families: Families::Dual,
            access_log: true,
            http_ports: Vec::new(),
            original_src: None,
            inbound_http_ports: Vec::new(),
            listeners: Vec::new(),
            clusters: Vec::new(),
        }
    }
}

impl Bootstrap {
    /// The configuration as Envoy reads it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut listeners = vec![self.virtual_outbound()];
        listeners.extend(self.http_ports.iter().map(|port| self.outbound_http(*port)));
        listeners.extend([self.virtual_inbound(), self.health()]);
        listeners.extend(self.listeners.iter().cloned());
        let mut clusters = self.passthrough_clusters();
        clusters.extend(self.clusters.iter().cloned());
        json!({
            "node": { "id": "sidecar~redirect-tests", "cluster": "redirect-tests" },
            "admin": { "address": socket_address("127.0.0.1", ADMIN_PORT) },
            "static_resources": { "listeners": listeners, "clusters": clusters },
        })
    }

    /// A listener of the given name on `port` of every address of [`Bootstrap::families`].
    #[must_use]
    pub fn listener(&self, name: &str, port: u16, filter_chains: Value) -> Value {
        let mut listener = json!({ "name": name, "filter_chains": filter_chains });
        match self.families {
            Families::V4 => listener["address"] = socket_address("0.0.0.0", port),
            Families::Dual => {
                listener["address"] = socket_address("0.0.0.0", port);
                listener["additional_addresses"] = json!([{ "address": socket_address("::", port) }]);
            }
            Families::Compat => {
                listener["address"] = socket_address("::", port);
                listener["address"]["socket_address"]["ipv4_compat"] = json!(true);
            }
        }
        listener
    }

    /// A filter that copies bytes to a cluster and logs the connection as `listener`'s when it ends.
    #[must_use]
    pub fn tcp_proxy(&self, listener: &str, cluster: &str) -> Value {
        filter(
            "network.tcp_proxy.v3.TcpProxy",
            "envoy.filters.network.tcp_proxy",
            json!({
                "stat_prefix": cluster,
                "cluster": cluster,
                "access_log": self.log(listener),
            }),
        )
    }

    /// A filter that speaks HTTP, routes as told, and logs every request as `listener`'s.
    #[must_use]
    pub fn http_proxy(&self, listener: &str, routes: Value) -> Value {
        let router = filter("http.router.v3.Router", "envoy.filters.http.router", json!({}));
        let routes = json!({ "name": listener, "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] });
        filter(
            "network.http_connection_manager.v3.HttpConnectionManager",
            "envoy.filters.network.http_connection_manager",
            json!({
                "stat_prefix": listener,
                "codec_type": "AUTO",
                "access_log": self.log(listener),
                "route_config": routes,
                "http_filters": [router],
            }),
        )
    }

    fn log(&self, listener: &str) -> Value {
        if self.access_log { access::logger(listener) } else { json!([]) }
    }

    fn virtual_outbound(&self) -> Value {
        let chains = json!([
            self.blackhole("virtualOutbound-blackhole", OUTBOUND_PORT),
            { "name": "virtualOutbound", "filters": [self.tcp_proxy("virtualOutbound", "PassthroughCluster")] },
        ]);
        let mut listener = self.listener("virtualOutbound", OUTBOUND_PORT, chains);
        listener["use_original_dst"] = json!(true);
        listener["traffic_direction"] = json!("OUTBOUND");
        listener
    }

    fn outbound_http(&self, port: u16) -> Value {
        let name = format!("0.0.0.0_{port}");
        let routes = json!([{ "match": { "prefix": "/" }, "route": { "cluster": "PassthroughCluster" } }]);
        let chains = json!([{ "filters": [self.http_proxy(&name, routes)] }]);
        let mut listener = self.listener(&name, port, chains);
        listener["bind_to_port"] = json!(false);
        listener["traffic_direction"] = json!("OUTBOUND");
        listener
    }

    fn virtual_inbound(&self) -> Value {
        let mut chains = vec![
            self.blackhole("virtualInbound-blackhole", INBOUND_PORT),
            self.inbound_chain("virtualInbound", "0.0.0.0", "InboundPassthroughCluster"),
        ];
        chains.extend(self.inbound_http_ports.iter().map(|port| self.inbound_http(*port)));
        if self.families != Families::V4 {
            chains.push(self.inbound_chain("virtualInbound6", "::", "InboundPassthroughCluster6"));
        }
        let mut listener = self.listener("virtualInbound", INBOUND_PORT, json!(chains));
        listener["traffic_direction"] = json!("INBOUND");
        listener["listener_filters"] = json!([filter(
            "listener.original_dst.v3.OriginalDst",
            "envoy.filters.listener.original_dst",
            json!({})
        )]);
        if let Some(original_src) = self.original_src {
            listener["transparent"] = json!(true);
            let bind_port = original_src == OriginalSrc::AddressAndPort;
            let filters = listener["listener_filters"].as_array_mut();
            filters.expect("a list").push(filter(
                "listener.original_src.v3.OriginalSrc",
                "envoy.filters.listener.original_src",
                json!({ "mark": 1337, "bind_port": bind_port }),
            ));
        }
        listener
    }

    /// The inbound chain for a port of the application that speaks HTTP.
    fn inbound_http(&self, port: u16) -> Value {
        let name = format!("inbound_{port}");
        let routes =
            json!([{ "match": { "prefix": "/" }, "route": { "cluster": "InboundPassthroughCluster" } }]);
        json!({
            "name": name,
            "filter_chain_match": { "destination_port": port },
            "filters": [self.http_proxy(&name, routes)],
        })
    }

    /// The inbound chain for original destinations of one family, told apart by an all-matching prefix.
    fn inbound_chain(&self, name: &str, prefix: &str, cluster: &str) -> Value {
        json!({
            "name": name,
            "filter_chain_match": { "prefix_ranges": [{ "address_prefix": prefix, "prefix_len": 0 }] },
            "filters": [self.tcp_proxy(name, cluster)],
        })
    }

    fn blackhole(&self, name: &str, port: u16) -> Value {
        json!({
            "name": name,
            "filter_chain_match": { "destination_port": port },
            "filters": [self.tcp_proxy(name, "BlackHoleCluster")],
        })
    }

    fn health(&self) -> Value {
        let answer = json!({ "status": 200, "body": { "inline_string": "ready\n" } });
        let routes = json!([{ "match": { "path": "/healthz/ready" }, "direct_response": answer }]);
        let quiet = Bootstrap { access_log: false, ..self.clone() };
        self.listener("health", HEALTH_PORT, json!([{ "filters": [quiet.http_proxy("health", routes)] }]))
    }

    fn passthrough_clusters(&self) -> Vec<Value> {
        let mut clusters = vec![
            json!({ "name": "BlackHoleCluster", "type": "STATIC", "connect_timeout": "1s" }),
            original_dst_cluster("PassthroughCluster"),
            self.inbound_cluster("InboundPassthroughCluster", "127.0.0.6"),
        ];
        if self.families != Families::V4 {
            clusters.push(self.inbound_cluster("InboundPassthroughCluster6", "::6"));
        }
        clusters
    }
}

impl Bootstrap {
    /// The way to the application: from `source`, unless the client's address is the source.
    fn inbound_cluster(&self, name: &str, source: &str) -> Value {
        let cluster = original_dst_cluster(name);
        if self.original_src.is_some() { cluster } else { bound_to(cluster, source) }
    }
}

/// An address in Envoy's notation.
#[must_use]
pub fn socket_address(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}

/// A filter named `name` whose configuration is the message `kind` of Envoy's filter extensions.
fn filter(kind: &str, name: &str, config: Value) -> Value {
    typed(&format!("envoy.extensions.filters.{kind}"), name, config)
}

/// A cluster that connects to wherever the downstream connection was going.
fn original_dst_cluster(name: &str) -> Value {
    json!({ "name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s" })
}

/// `cluster` with the source address that marks connections as "already been through the inbound listener".
fn bound_to(mut cluster: Value, source: &str) -> Value {
    cluster["upstream_bind_config"] = json!({ "source_address": { "address": source, "port_value": 0 } });
    cluster
}
