//! Metrics and health over HTTP.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::driver::{Cluster, until};

/// A page: its status and its body.
pub(crate) fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect(address) else { return (0, String::new()) };
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// A port that is free now.
pub(crate) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The value of a metric, whose name is everything before the value.
pub(crate) fn value(address: SocketAddr, name: &str) -> Option<f64> {
    let (_, page) = get(address, "/metrics");
    page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[test]
fn health_says_what_is_missing_and_metrics_are_open_metrics() {
    let cluster = Cluster::start();
    let address = free_port();
    let _agent = cluster.agent(&["--listen", &address.to_string()]);
    until("it answers", || get(address, "/healthz").0 == 200);
    let (status, text) = get(address, "/readyz");
    assert_eq!(status, 503, "there is no bpffs: {text}");
    assert!(text.contains("programs: "), "{text}");
    until("the watch is up", || value(address, "redirect_cni_watch_up") == Some(1.0));
    let (_, page) = get(address, "/metrics");
    assert!(page.ends_with("# EOF\n") && page.contains("redirect_cni_agent_info{version="), "{page}");
    cluster.api.away();
    until("the watch is down", || value(address, "redirect_cni_watch_up") == Some(0.0));
    assert!(get(address, "/readyz").1.contains("watch: "));
    assert!(value(address, "redirect_cni_watch_failures_total").unwrap() > 0.0);
    cluster.api.back();
    until("the watch is up again", || value(address, "redirect_cni_watch_up") == Some(1.0));
    assert!(
        cluster.log().contains("no bpf file system") || cluster.log().contains("bpf"),
        "{}",
        cluster.log()
    );
}

#[test]
fn lines_of_the_plugin_reach_the_log_and_are_counted() {
    let cluster = Cluster::start();
    let address = free_port();
    let agent = cluster.agent(&["--listen", &address.to_string()]);
    let lines = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let socket = agent.socket.with_file_name("log.sock");
    until("the socket is there", || socket.exists());
    let line = "2026-01-01T00:00:00.000000Z  WARN call{verb=\"ADD\"}: not enrolled reason=not_injected\n";
    lines.send_to(line.as_bytes(), &socket).unwrap();
    until("the line is in the log", || cluster.log().contains("reason=not_injected"));
    let log = cluster.log();
    let told = log.lines().find(|line| line.contains("not_injected")).unwrap();
    assert!(told.contains(" WARN ") && told.contains("plugin"), "{told}");
    until("it is counted", || value(address, "redirect_cni_plugin_lines_total") == Some(1.0));
}
