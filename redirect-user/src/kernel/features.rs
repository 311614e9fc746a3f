//! What a set of programs can do: the bits of a pod's configuration that they know, and an operator's word
//! for each.
//!
//! Programs that do not know a bit ignore it, so a policy that needs one would be accepted and not carried
//! out. The stamp beside the pins says which bits the installed programs know; attach compares.

use redirect_common::flags;

/// Every bit that this version's programs know.
pub const KNOWN: u32 = all();

/// What programs know whose stamp does not say.
pub const FIRST: u32 = (1 << 17) - 1;

/// The bits, and what an operator knows them by.
const WORDS: &[(u32, &str)] = &[
    (flags::INCLUDE_ALL, "includeOutboundIPRanges"),
    (flags::INCLUDED_RANGES, "includeOutboundIPRanges"),
    (flags::EXCLUDED_RANGES, "excludeOutboundIPRanges"),
    (flags::EXCLUDED_INTERFACES, "excludeInterfaces"),
    (flags::LOOPBACK_INCLUDED, "includeOutboundIPRanges"),
    (flags::OUTBOUND_EXCLUDED_PORTS, "excludeOutboundPorts"),
    (flags::OUTBOUND_INCLUDED_PORTS, "includeOutboundPorts"),
    (flags::GROUPS_INCLUDED, "OUTBOUND_OWNER_GROUPS"),
    (flags::GROUPS_EXCLUDED, "OUTBOUND_OWNER_GROUPS_EXCLUDE"),
    (flags::DNS, "dnsCapture"),
    (flags::INBOUND_ALL, "includeInboundPorts"),
    (flags::INBOUND_LIST, "includeInboundPorts"),
    (flags::INBOUND_INTERFACES, "excludeInterfaces"),
    (flags::LO_EXCLUDED, "excludeInterfaces"),
    (flags::DNS_LISTED, "dnsServers"),
    (flags::GUARD, "guard"),
    (flags::MORE_ADDRESSES, "more addresses than one of each family"),
    (flags::TPROXY, "interceptionMode"),
];

const fn all() -> u32 {
    let (mut bits, mut index) = (0, 0);
    while index < WORDS.len() {
        bits |= WORDS[index].0;
        index += 1;
    }
    bits
}

/// What an operator knows these bits by, each word once.
#[must_use]
pub fn words(bits: u32) -> String {
    let mut words: Vec<_> = WORDS.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| *word).collect();
    words.dedup();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The constants of the module `flags`, counted in its source.
    fn constants() -> usize {
        let source = include_str!("../../../redirect-common/src/abi.rs");
        let module = source.split("pub mod flags {").nth(1).expect("the module");
        let module = module.split("\n}").next().expect("its end");
        module.matches("pub const").count()
    }

    #[test]
    fn every_flag_has_a_word_and_no_bit_two() {
        assert_eq!(WORDS.len(), constants(), "a flag has no word here");
        assert_eq!(KNOWN.count_ones() as usize, WORDS.len());
        assert_eq!(KNOWN & FIRST, FIRST);
        assert_eq!(words(flags::DNS_LISTED | flags::GUARD), "dnsServers, guard");
    }
}
