//! `redirect agent` as a process, against an API server for tests.

mod conflist;
mod driver;
mod kernel;
mod kubectl;
mod pods;
mod shown;
mod soak;
