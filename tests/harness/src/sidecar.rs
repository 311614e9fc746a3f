//! A sidecar for tests that need no Envoy: it runs as uid and gid 1337 and listens where Envoy would.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::pod::Pod;
use crate::process::{Capabilities, Process, User};
use crate::protocol::{Seen, Service};

/// The outbound listener.
pub const OUTBOUND_PORT: u16 = 15001;
/// The inbound listener.
pub const INBOUND_PORT: u16 = 15006;

/// A running sidecar. It stops, and its listeners close, when this goes out of scope.
#[derive(Debug)]
pub struct Sidecar {
    workers: Vec<Process>,
}

impl Pod {
    /// Starts a sidecar that listens on the wildcard addresses and tells what it sees.
    #[must_use]
    pub fn sidecar(&self) -> Sidecar {
        Sidecar::builder(self).start()
    }
}

impl Sidecar {
    /// A sidecar on the wildcard addresses of both families, with one worker, that tells what it sees.
    #[must_use]
    pub fn builder(pod: &Pod) -> Builder<'_> {
        let (user, capabilities) = (User::PROXY, Capabilities::OfUser);
        Builder { pod, localhost: false, workers: 1, service: Service::Tell, user, capabilities }
    }

    /// The connections that it accepted since this was asked last.
    #[must_use]
    pub fn take_seen(&self) -> Vec<Seen> {
        self.workers.iter().flat_map(Process::take_seen).collect()
    }

    /// Stops one worker; its listeners close.
    pub fn stop_worker(&mut self) {
        drop(self.workers.pop().expect("a worker is left"));
    }
}

/// What a [`Sidecar`] should be like.
#[derive(Debug)]
pub struct Builder<'a> {
    pod: &'a Pod,
    localhost: bool,
    workers: usize,
    service: Service,
    user: User,
    capabilities: Capabilities,
}

impl Builder<'_> {
    /// Listens on 127.0.0.1 and ::1 only.
    #[must_use]
    pub fn localhost(mut self) -> Self {
        self.localhost = true;
        self
    }

    /// Has so many processes, which share the ports (SO_REUSEPORT).
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Does this with its connections.
    #[must_use]
    pub fn service(mut self, service: Service) -> Self {
        self.service = service;
        self
    }

    /// Runs as this user, with these capabilities.
    #[must_use]
    pub fn user(mut self, user: User, capabilities: Capabilities) -> Self {
        (self.user, self.capabilities) = (user, capabilities);
        self
    }

    /// Starts it; it listens when this returns.
    #[must_use]
    pub fn start(self) -> Sidecar {
        let addresses: [IpAddr; 2] = if self.localhost {
            [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
        } else {
            [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
        };
        let ports = [OUTBOUND_PORT, INBOUND_PORT];
        let listen: Vec<_> =
            addresses.iter().flat_map(|ip| ports.map(|port| SocketAddr::new(*ip, port))).collect();
        let workers = (0..self.workers).map(|_| {
            let worker = self.pod.process_with("istio-proxy", self.user, self.capabilities);
            let listening = match self.service {
                Service::Imitate => worker.serve_transparent(&listen, self.service, false),
                _ => worker.serve(&listen, self.service),
            };
            listening.expect("listen as a sidecar does");
            worker
        });
        Sidecar { workers: workers.collect() }
    }
}
