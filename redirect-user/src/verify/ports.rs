//! Ports of the scratch pod and its world.

use redirect_common::addr::Family;

/// A port that the policy captures both ways.
pub(super) const CAPTURED: u16 = 8080;
/// A port that `excludeOutboundPorts` has.
pub(super) const EXCLUDED_OUTBOUND: u16 = 3306;
/// A port that `excludeInboundPorts` has.
pub(super) const EXCLUDED_INBOUND: u16 = 9090;
/// DNS.
pub(super) const DNS: u16 = 53;
/// What the application listens on.
pub(super) const OF_APPLICATION: [u16; 2] = [CAPTURED, EXCLUDED_INBOUND];

/// What the rest of the world listens on over these families.
pub(super) fn world_listens(families: impl Iterator<Item = Family>) -> impl Iterator<Item = (u16, Family)> {
    families.flat_map(|family| [CAPTURED, EXCLUDED_OUTBOUND].map(|port| (port, family)))
}
