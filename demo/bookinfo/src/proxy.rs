//! The configuration of the Envoys: services as clusters with mutual TLS, an inbound listener that takes
//! nothing else, and the gateway. The shape around it, with the two virtual listeners, is [`Bootstrap`]'s.

use std::net::Ipv4Addr;

use harness::envoy::{ADMIN_PORT, Bootstrap, INBOUND_PORT, socket_address};
use serde_json::{Value, json};

use crate::pki;
use crate::plan::{GATEWAY_PORT, PORT, SERVICES, Service};

/// Where an Envoy finds its certificates, in its container.
pub(crate) const CERTIFICATES: &str = "/etc/istio/proxy";
/// The file with its configuration there.
pub(crate) const CONFIG_FILE: &str = "envoy.json";
/// Where it finds the endpoints of the services; a directory, because the file in it is replaced, not
/// written.
pub(crate) const ENDPOINTS: &str = "/etc/istio/mesh";
/// What a readiness probe asks a gateway for.
pub(crate) const GATEWAY_HEALTH: &str = "/healthz/ready";
/// Names in access logs of the listeners that carry requests: applications' requests on their way out ..
pub(crate) const OUTBOUND: &str = "outbound";
/// .. requests to the application ..
pub(crate) const INBOUND: &str = "inbound";
/// .. and requests from outside.
pub(crate) const INGRESS: &str = "ingress";

/// A sidecar.
pub(crate) fn sidecar(pod: &str) -> Value {
    let base = Bootstrap::default();
    let mut outbound = base.listener(
        &format!("0.0.0.0_{PORT}"),
        PORT,
        json!([{ "filters": [http(OUTBOUND, outbound_routes())] }]),
    );
    // Reached from virtualOutbound, which hands over by the port that the application dialled.
    outbound["bind_to_port"] = json!(false);
    outbound["traffic_direction"] = json!("OUTBOUND");
    let clusters = SERVICES.into_iter().map(service_cluster).chain([application_cluster()]).collect();
    let mut config = Bootstrap { listeners: vec![outbound], clusters, ..base }.to_json();
    config["node"] = json!({ "id": format!("sidecar~{pod}"), "cluster": "bookinfo" });
    let listeners = config["static_resources"]["listeners"].as_array_mut();
    for listener in listeners.into_iter().flatten().filter(|listener| listener["name"] == "virtualInbound") {
        strict(listener);
    }
    config
}

/// The gateway: plain HTTP from outside, mutual TLS to the product page.
pub(crate) fn gateway(pod: &str) -> Value {
    let [productpage, ..] = SERVICES;
    let ready = json!({ "match": { "path": GATEWAY_HEALTH }, "direct_response": { "status": 200 } });
    let routes = json!([{ "name": "productpage", "domains": ["*"], "routes": [ready, route(&productpage.cluster())] }]);
    let mut http = http(INGRESS, routes);
    // Requests come from outside: they are given an id of ours, which is told to who asked.
    http["typed_config"]["use_remote_address"] = json!(true);
    http["typed_config"]["always_set_request_id_in_response"] = json!(true);
    json!({
        "node": { "id": format!("router~{pod}"), "cluster": "bookinfo" },
        "admin": { "address": socket_address("127.0.0.1", ADMIN_PORT) },
        "static_resources": {
            "listeners": [{
                "name": INGRESS,
                "address": socket_address("0.0.0.0", GATEWAY_PORT),
                "filter_chains": [{ "filters": [http] }],
            }],
            "clusters": [service_cluster(productpage)],
        },
    })
}

/// The answer of what plays the control plane: where the pods of a service are. `of` knows the address of a
/// pod that runs.
pub(crate) fn endpoints(service: Service, version: u32, of: impl Fn(&str) -> Option<Ipv4Addr>) -> Value {
    let addresses = service.workloads().filter_map(|workload| of(&workload.pod()));
    let endpoints: Vec<_> = addresses
        .map(|address| json!({ "endpoint": { "address": socket_address(&address.to_string(), PORT) } }))
        .collect();
    json!({
        "version_info": version.to_string(),
        "resources": [{
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": service.name,
            "endpoints": [{ "lb_endpoints": endpoints }],
        }],
    })
}

/// The file that has the endpoints of a service: Envoy reads one service from one file.
pub(crate) fn endpoints_file(service: Service) -> String {
    format!("{}.json", service.name)
}

/// Takes what an inbound listener lets through in clear away: mutual TLS on the application's port is all
/// there is.
fn strict(listener: &mut Value) {
    let chains = listener["filter_chains"].as_array().cloned().unwrap_or_default();
    // Connections to the port itself still end in the black hole.
    let kept =
        chains.into_iter().filter(|chain| chain["filter_chain_match"]["destination_port"] == INBOUND_PORT);
    let routes = json!([{ "name": INBOUND, "domains": ["*"], "routes": [route(&application())] }]);
    let application = json!({
        "name": "mutual-tls",
        "filter_chain_match": { "destination_port": PORT },
        "transport_socket": tls("DownstreamTlsContext", json!({ "require_client_certificate": true }), json!({})),
        "filters": [http(INBOUND, routes)],
    });
    listener["filter_chains"] = kept.chain([application]).collect();
}

fn outbound_routes() -> Value {
    let hosts = SERVICES.map(|service| {
        let domains = json!([
            service.name,
            format!("{}:{PORT}", service.name),
            service.address().to_string(),
            format!("{}:{PORT}", service.address()),
        ]);
        json!({ "name": service.name, "domains": domains, "routes": [route(&service.cluster())] })
    });
    let nowhere = json!({ "match": { "prefix": "/" }, "direct_response": { "status": 502 } });
    let block = json!({ "name": "block_all", "domains": ["*"], "routes": [nowhere] });
    hosts.into_iter().chain([block]).collect()
}

fn route(cluster: &str) -> Value {
    json!({ "match": { "prefix": "/" }, "route": { "cluster": cluster, "timeout": "5s" } })
}

/// A filter that speaks HTTP, routes to the virtual hosts, and logs every request under `name`.
fn http(name: &str, virtual_hosts: Value) -> Value {
    let router =
        typed("envoy.extensions.filters.http.router.v3.Router", "envoy.filters.http.router", json!({}));
    typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "envoy.filters.network.http_connection_manager",
        json!({
            "stat_prefix": name,
            "codec_type": "HTTP1",
            "access_log": [log(name)],
            "route_config": { "name": name, "virtual_hosts": virtual_hosts },
            "http_filters": [router],
        }),
    )
}

/// A logger to standard output; [`crate::log::Line`] reads its lines.
fn log(name: &str) -> Value {
    let fields = json!({
        "listener": name,
        "request_id": "%REQ(X-REQUEST-ID)%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "client": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
        "original_dst": "%DOWNSTREAM_LOCAL_ADDRESS%",
        "peer": "%DOWNSTREAM_PEER_URI_SAN%",
        "tls": "%DOWNSTREAM_TLS_VERSION%",
        "upstream": "%UPSTREAM_HOST%",
        "upstream_local": "%UPSTREAM_LOCAL_ADDRESS%",
    });
    let message = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";
    typed(message, "envoy.access_loggers.stdout", json!({ "log_format": { "json_format": fields } }))
}

/// The pods behind a service, taken in turn, each request in a connection of its own so that the kernel's
/// counters can be compared with what was asked. Only a peer with the service's identity is believed.
fn service_cluster(service: Service) -> Value {
    let identity = json!([{ "san_type": "URI", "matcher": { "exact": service.identity() } }]);
    let sni = json!({ "sni": format!("outbound_.{PORT}_._.{}.default.svc.cluster.local", service.name) });
    json!({
        "name": service.cluster(),
        "type": "EDS",
        "lb_policy": "ROUND_ROBIN",
        "connect_timeout": "1s",
        "eds_cluster_config": {
            "service_name": service.name,
            "eds_config": {
                "resource_api_version": "V3",
                "path_config_source": {
                    "path": format!("{ENDPOINTS}/{}", endpoints_file(service)),
                    "watched_directory": { "path": ENDPOINTS },
                },
            },
        },
        "typed_extension_protocol_options": one_request_per_connection(),
        "transport_socket": tls("UpstreamTlsContext", sni, json!({ "match_typed_subject_alt_names": identity })),
    })
}

/// The application, at the address that the request was sent to, from the address by which the kernel knows
/// that the request has been through the sidecar.
fn application_cluster() -> Value {
    json!({
        "name": application(),
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "1s",
        "upstream_bind_config": { "source_address": { "address": "127.0.0.6", "port_value": 0 } },
        "typed_extension_protocol_options": one_request_per_connection(),
    })
}

fn application() -> String {
    format!("inbound|{PORT}||")
}

fn one_request_per_connection() -> Value {
    let message = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({
        message: {
            "@type": format!("type.googleapis.com/{message}"),
            "common_http_protocol_options": { "max_requests_per_connection": 1 },
            "explicit_http_config": { "http_protocol_options": {} },
        }
    })
}

/// One end of a connection with mutual TLS: our certificate, and peers of our authority only.
fn tls(context: &str, mut config: Value, mut validation: Value) -> Value {
    let file = |name: &str| json!({ "filename": format!("{CERTIFICATES}/{name}") });
    validation["trusted_ca"] = file(pki::AUTHORITY_FILE);
    config["common_tls_context"] = json!({
        "tls_certificates": [{
            "certificate_chain": file(pki::CERTIFICATE_FILE),
            "private_key": file(pki::KEY_FILE),
        }],
        "validation_context": validation,
    });
    typed(
        &format!("envoy.extensions.transport_sockets.tls.v3.{context}"),
        "envoy.transport_sockets.tls",
        config,
    )
}

fn typed(message: &str, name: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/{message}"));
    json!({ "name": name, "typed_config": config })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbound_chains(config: &Value) -> Vec<Value> {
        let listeners = config["static_resources"]["listeners"].as_array().unwrap();
        let inbound = listeners.iter().find(|listener| listener["name"] == "virtualInbound").unwrap();
        inbound["filter_chains"].as_array().unwrap().clone()
    }

    #[test]
    fn a_sidecar_lets_nothing_in_without_a_certificate() {
        let chains = inbound_chains(&sidecar("details-v1"));
        assert_eq!(chains.len(), 2, "{chains:?}");
        let asks =
            |chain: &Value| chain["transport_socket"]["typed_config"]["require_client_certificate"] == true;
        let blackhole = |chain: &Value| chain["filters"][0]["typed_config"]["cluster"] == "BlackHoleCluster";
        assert!(chains.iter().all(|chain| asks(chain) || blackhole(chain)), "{chains:?}");
        assert_eq!(chains.iter().filter(|chain| asks(chain)).count(), 1);
    }

    #[test]
    fn each_service_is_believed_only_with_its_own_identity() {
        for service in SERVICES {
            let cluster = service_cluster(service);
            let validation =
                &cluster["transport_socket"]["typed_config"]["common_tls_context"]["validation_context"];
            let matcher = &validation["match_typed_subject_alt_names"][0]["matcher"]["exact"];
            assert_eq!(matcher, &service.identity());
        }
    }

    #[test]
    fn pods_that_do_not_run_are_no_endpoints() {
        let ip = |pod: &str| (pod != "reviews-v2").then_some(Ipv4Addr::new(10, 88, 0, 7));
        let [_, details, reviews, _] = SERVICES.map(|service| endpoints(service, 3, ip));
        let count =
            |value: &Value| value["resources"][0]["endpoints"][0]["lb_endpoints"].as_array().unwrap().len();
        assert_eq!((count(&details), count(&reviews)), (1, 2), "{details} {reviews}");
    }
}
