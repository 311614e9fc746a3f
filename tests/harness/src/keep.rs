//! `KEEP=1`: what a failed test made stays.

/// Whether what a failed test made stays for somebody to look at.
pub(crate) fn keep() -> bool {
    std::env::var_os("KEEP").is_some_and(|value| !value.is_empty() && value != "0")
}
