//! Fault points for the crash tests: a test names a step, and the process ends there as by `kill -9`, or
//! stops until the test lets it go on.
//!
//! They are in builds with debug assertions only: a release build does not look at the variable.

/// The variable that names the step.
pub const VARIABLE: &str = "REDIRECT_FAULT";

/// The variable that names the step before which the process stops (SIGSTOP).
pub const PAUSE_VARIABLE: &str = "REDIRECT_PAUSE";

/// Stops the process here if [`PAUSE_VARIABLE`] names this step: a test changes something meanwhile.
pub fn pause(step: &str) {
    if cfg!(debug_assertions) && std::env::var_os(PAUSE_VARIABLE).is_some_and(|wanted| wanted == step) {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGSTOP);
    }
}

/// Ends the process here if [`VARIABLE`] names this step.
pub fn point(step: &str) {
    if cfg!(debug_assertions) && std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == step) {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
    }
}
