//! The process that makes sockets inside a pod on a test's behalf, see `harness::agent`.

fn main() -> std::process::ExitCode {
    harness::agent::main()
}
