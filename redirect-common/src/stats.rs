//! What the programs count: every way out of a hook that matters to an operator has an [`Event`].

macro_rules! events {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Something that a program counts for a pod.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event { $($(#[doc = $doc])+ $name,)+ }

        impl Event {
            /// All events, in the order of their counters.
            pub const ALL: &[Event] = &[$(Event::$name,)+];

            /// The name that `redirect stats` and the metrics show.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Event::$name => $label,)+ }
            }
        }
    };
}

events! {
    /// `connect()` taken to the sidecar's outbound listener.
    OutboundRedirected = "outbound_redirected",
    /// The proxy's call to its own pod, taken to its inbound listener.
    SelfCallRedirected = "self_call_redirected",
    /// `connect()` of the sidecar, left alone.
    ProxyDirect = "proxy_direct",
    /// `connect()` over loopback, left alone.
    LoopbackDirect = "loopback_direct",
    /// `connect()` left alone because a port, range, interface or group is excluded.
    ExcludedDirect = "excluded_direct",
    /// `connect()` left alone because no include rule matched.
    UnmatchedDirect = "unmatched_direct",
    /// DNS over TCP or UDP taken to the DNS proxy.
    DnsRedirected = "dns_redirected",
    /// DNS refused: no address of the pod's prefix is left for the server.
    DnsRefused = "dns_refused",
    /// An answer of a DNS proxy that does not answer from the address at which it was asked; attributed in
    /// the order of the questions.
    DnsAnsweredElsewhere = "dns_answered_elsewhere",
    /// The DNS proxy's `bind()` could not be opened for questions; they are refused.
    DnsProxyRejected = "dns_proxy_rejected",
    /// Refused: the sidecar has not opened its listener (yet).
    NoListener = "no_listener",
    /// Refused as unreachable: the pod had no address of the destination's family when it was attached.
    Unreachable = "unreachable",
    /// Refused: the kernel had no memory to keep something in the socket.
    NoStorage = "no_storage",
    /// Refused: the pod's configuration was replaced at this very moment.
    ConfigChanged = "config_changed",
    /// A connection on the detour: the sidecar's accepted socket learned its original destination in the
    /// handshake. In TPROXY mode also each connection whose client the application's socket learned.
    HandoffTaken = "handoff_taken",
    /// The sidecar asked for the original destination of a connection to localhost that was not redirected.
    HandoffMissing = "handoff_missing",
    /// The table of handshakes in flight was full: the sidecar does not learn the destination or, in TPROXY
    /// mode, the application its client.
    HandoffFull = "handoff_full",
    /// In TPROXY mode: the sidecar's connection to the application refused, because too many others wait for
    /// the application to take them.
    ClientRefused = "client_refused",
    /// An inbound connection that the sidecar accepted: it asked for the original destination.
    InboundRedirected = "inbound_redirected",
    /// An inbound connection left to the socket that listens on its port.
    InboundDirect = "inbound_direct",
    /// An inbound connection refused: the sidecar does not listen (yet).
    InboundRefused = "inbound_refused",
    /// An inbound packet for the prefix that exists only inside the pod, or for the DNS proxy, dropped.
    InboundForeign = "inbound_foreign",
    /// The guard: a connection that no hook of ours saw, on its way out of the pod.
    GuardOutbound = "guard_outbound",
    /// The guard: a forwarded connection, of a network namespace or a guest inside the pod, on its way out.
    GuardForwarded = "guard_forwarded",
    /// The guard: a SYN of a raw socket on its way out of the pod.
    GuardRaw = "guard_raw",
    /// The guard: a DNS question on its way out of the pod.
    GuardDns = "guard_dns",
    /// The guard: a packet for an address that exists inside the pod only, on its way out.
    GuardLoopback = "guard_loopback",
    /// The guard: a fragment or a chain of headers that hides the TCP header.
    GuardHidden = "guard_hidden",
    /// The guard: an arriving connection that another listener than the sidecar's would have got.
    GuardInbound = "guard_inbound",
    /// A listening socket of the sidecar was registered.
    ListenerAdded = "listener_added",
    /// A listening socket of the sidecar could not be registered (an MPTCP listener).
    ListenerRejected = "listener_rejected",
    /// Another user than the proxy wanted to bind to one of Envoy's ports, and was refused.
    ListenerForeign = "listener_foreign",
    /// A record of `redirect trace` was lost: the buffer was full.
    TraceLost = "trace_lost",
    /// An inbound packet for an ephemeral port on which no socket listens, refused as the kernel would: a
    /// connection for no socket, or late, for one of the pod's own that is over.
    InboundNoSocket = "inbound_no_socket",
}

impl Event {
    /// What the guard counts: a packet that went around the sidecar, or would have.
    pub const GUARD: [Event; 7] = [
        Event::GuardOutbound,
        Event::GuardForwarded,
        Event::GuardRaw,
        Event::GuardDns,
        Event::GuardLoopback,
        Event::GuardHidden,
        Event::GuardInbound,
    ];

    /// Whether the guard counts it.
    #[must_use]
    pub fn of_guard(self) -> bool {
        Event::GUARD.contains(&self)
    }
}

/// How many events there are.
pub const EVENTS: usize = Event::ALL.len();

/// One CPU's counters for one pod, indexed by [`Event`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// The counts.
    pub counts: [u64; EVENTS],
}

impl Counters {
    /// All zero.
    pub const ZERO: Counters = Counters { counts: [0; EVENTS] };
}
