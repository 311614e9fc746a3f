//! Can this node run it, and is everything as it should be? Everything is tried, never derived from a version
//! number.
//!
//! A check has a stable id, and docs/doctor.md has a section for each. [`checks`] is the list;
//! [`requirements`] are what an ADD needs, [`neighbours`] who else is on the node, [`pods`] what is attached,
//! [`inside`] one pod. What the runtime's network configuration says is looked at by the tool, which knows
//! the agent's reader.
//!
//! "Could not be tried" is a state of its own: it is never taken for "missing".

pub mod checks;
mod finding;
mod inside;
mod neighbours;
mod pods;
mod requirements;

pub use self::checks::{CHECKS, Check};
pub use self::finding::{Finding, Options, Says, Status};
pub use self::pods::captures_nothing;
use crate::attach::record::Attachment;
use crate::node::Node;

/// Examines the node and changes nothing but the state directory, which it makes.
#[must_use]
pub fn examine(node: &Node, options: &Options) -> Vec<Finding> {
    let mut findings = requirements::examine(node, options);
    findings.extend(neighbours::examine(node, options));
    if !options.before {
        findings.extend(pods::examine(node));
    }
    findings
}

/// Examines one attached pod.
#[must_use]
pub fn examine_pod(node: &Node, attachment: &Attachment) -> Vec<Finding> {
    inside::examine(node, attachment)
}
