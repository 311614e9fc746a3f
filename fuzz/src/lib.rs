//! Everything that others write and we read: the plugin's configuration and arguments, the result of the
//! plugins before it, pods' annotations, records, the agent's protocol, and the trace's block of bytes. One
//! function for each takes any bytes, and panics where a property does not hold.
//!
//! `cargo xtask fuzz` feeds them with libFuzzer. The corpus that is kept (`corpus/`) goes through them in
//! every run of the unit tests. The plugin is a program and no library: its files are taken in by path.

#[path = "../../cni/src/call.rs"]
mod call;
#[path = "../../cni/src/conf.rs"]
mod conf;
#[path = "../../cni/src/error.rs"]
#[expect(dead_code, reason = "other files of the plugin make these errors")]
mod error;
mod kept;
mod outcome;
mod plugin;
mod pods;
#[path = "../../cni/src/prev.rs"]
mod prev;
#[path = "../../cni/src/reply.rs"]
#[expect(dead_code, reason = "an error is put into words here, and not sent")]
mod reply;
#[path = "../../cni/src/version.rs"]
mod version;

pub use outcome::Outcome;

/// One function.
pub struct Target {
    /// Its name, and that of its folder in `corpus/`.
    pub name: &'static str,
    /// Takes any bytes.
    pub feed: fn(&[u8]) -> Outcome,
}

/// All of them.
pub const TARGETS: [Target; 8] = [
    Target { name: "conf", feed: plugin::conf },
    Target { name: "cni_args", feed: plugin::cni_args },
    Target { name: "prev_result", feed: plugin::prev_result },
    Target { name: "annotations", feed: pods::annotations },
    Target { name: "proxy_config", feed: pods::proxy_config },
    Target { name: "record", feed: kept::record },
    Target { name: "agent_protocol", feed: kept::agent_protocol },
    Target { name: "trace_block", feed: kept::trace_block },
];

impl Target {
    /// The function of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Target> {
        const ALL: &[Target] = &TARGETS;
        ALL.iter().find(|target| target.name == name)
    }
}
