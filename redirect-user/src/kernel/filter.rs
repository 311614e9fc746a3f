//! The guard's programs. Like a [`crate::kernel::hook::Hook`], each has one name: function in
//! `redirect-ebpf`, pin, heading in the documents. Unlike a hook it is not linked: a filter of the kernel's
//! traffic control holds it.

use std::fmt;

/// One of the guard's two filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filter {
    /// Packets that leave the pod.
    Egress,
    /// Packets that enter it.
    Ingress,
}

impl Filter {
    /// Both.
    pub const ALL: [Filter; 2] = [Filter::Egress, Filter::Ingress];

    /// The name of program and pin.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Filter::Egress => "guard_egress",
            Filter::Ingress => "guard_ingress",
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
