//! The names by which the test that goes on for minutes is started, here and in a guest.

/// The test, in the target `agent`.
pub(crate) const SOAK: &str = "soak::what_comes_and_goes_for_long_leaves_the_node_as_it_was";
/// The variable that says for how many minutes.
pub(crate) const MINUTES: &str = "REDIRECT_SOAK_MINUTES";
