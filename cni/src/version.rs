//! The versions of the CNI specification.

/// The versions of the specification that are spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub(crate) const NEWEST: Version = Version::V1_1_0;
    /// In the order of the variants.
    pub(crate) const NAMES: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

    pub(crate) fn name(self) -> &'static str {
        Version::NAMES[self as usize]
    }

    pub(crate) fn parse(name: &str) -> Option<Version> {
        use Version::{V0_3_1, V0_4_0, V1_0_0, V1_1_0};
        [V0_3_1, V0_4_0, V1_0_0, V1_1_0].into_iter().find(|version| version.name() == name)
    }
}
