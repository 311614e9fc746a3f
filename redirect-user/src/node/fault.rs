//! Fault points for the crash tests: a test names a step, and the process ends there as by `kill -9`.
//!
//! They are in builds with debug assertions only: a release build does not look at the variable.

/// The variable that names the step.
pub const VARIABLE: &str = "REDIRECT_FAULT";

/// Ends the process here if [`VARIABLE`] names this step.
pub fn point(step: &str) {
    if cfg!(debug_assertions) && std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == step) {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
    }
}
