//! Why a pod is left alone: the labels that logs, outcomes and metrics share.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a pod is not enrolled.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// All reasons, in the order in which they are looked at.
            pub const ALL: &[Reason] = &[$(Reason::$name,)+];

            /// The stable name in logs and metrics.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Reason::$name => $label,)+ }
            }
        }
    };
}

reasons! {
    /// The runtime named no pod: a container outside Kubernetes.
    NotKubernetes = "not_kubernetes",
    /// The namespace is in `excludeNamespaces`.
    ExcludedNamespace = "excluded_namespace",
    /// No sidecar was injected: `sidecar.istio.io/status` is absent.
    NotInjected = "not_injected",
    /// The pod shares the node's network.
    HostNetwork = "host_network",
    /// An `istio-init` container will redirect the pod itself.
    IstioInit = "istio_init",
    /// `DISABLE_ENVOY` is true: proxyless gRPC.
    EnvoyDisabled = "envoy_disabled",
    /// No container has the proxy's name.
    NoProxyContainer = "no_proxy_container",
    /// The proxy is no sidecar but, for example, a gateway (`proxy router`).
    NotASidecar = "not_a_sidecar",
    /// The proxy is alone in its pod.
    SingleContainer = "single_container",
    /// The label, or else the annotation, `sidecar.istio.io/inject` is false.
    InjectFalse = "inject_false",
    /// `interceptionMode` is NONE.
    InterceptionNone = "interception_none",
}

impl Reason {
    /// What a pod of the mesh says to be left alone; `None` where the reason is none of the pod's own making.
    #[must_use]
    pub const fn opts_out_by(self) -> Option<&'static str> {
        match self {
            Reason::IstioInit => Some("a container istio-init"),
            Reason::EnvoyDisabled => Some("DISABLE_ENVOY or a template without Envoy"),
            Reason::NotASidecar => Some("a proxy that is no sidecar, as a gateway's"),
            Reason::InjectFalse => Some("the label or annotation sidecar.istio.io/inject"),
            Reason::InterceptionNone => Some("the annotation sidecar.istio.io/interceptionMode"),
            Reason::NotKubernetes
            | Reason::ExcludedNamespace
            | Reason::NotInjected
            | Reason::HostNetwork
            | Reason::NoProxyContainer
            | Reason::SingleContainer => None,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}
