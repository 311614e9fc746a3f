//! The files that containers are given: what a control plane and a kubelet would write.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::pki::Authority;
use crate::plan::{self, GATEWAY, SERVICES, WORKLOADS};
use crate::proxy;
use crate::trips::identity_of;

/// A directory with the files of all pods.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    version: u32,
}

impl Files {
    /// Makes certificates and configurations of all Envoys, and the names that every pod knows.
    pub(crate) fn create(dir: PathBuf) -> Result<Files> {
        let files = Files { dir, version: 0 };
        make_dir(&files.endpoints())?;
        write(&files.hosts(), &plan::hosts())?;
        // Names come from the file above, and from nowhere else.
        write(&files.name_service(), "hosts: files\n")?;
        let authority = Authority::new()?;
        for pod in WORKLOADS.map(|workload| workload.pod()).iter().map(String::as_str).chain([GATEWAY.pod]) {
            let dir = files.of_proxy(pod);
            make_dir(&dir)?;
            let identity = identity_of(pod).with_context(|| format!("the pod {pod} has no identity"))?;
            authority.equip(&identity, &dir)?;
            let config = if pod == GATEWAY.pod { proxy::gateway(pod) } else { proxy::sidecar(pod) };
            write(&dir.join(proxy::CONFIG_FILE), &config.to_string())?;
        }
        Ok(files)
    }

    /// Tells all Envoys where the pods are.
    pub(crate) fn publish(&mut self, ips: &BTreeMap<String, Ipv4Addr>) -> Result<()> {
        self.version += 1;
        for service in SERVICES {
            let endpoints = proxy::endpoints(service, self.version, |pod| ips.get(pod).copied());
            let path = self.endpoints().join(proxy::endpoints_file(service));
            // Envoy looks again when a file is moved into the directory, so it never reads half of one.
            let new = self.dir.join("endpoints.new");
            write(&new, &endpoints.to_string())?;
            fs::rename(&new, &path).with_context(|| format!("replacing {}", path.display()))?;
        }
        Ok(())
    }

    /// The directory of one Envoy.
    pub(crate) fn of_proxy(&self, pod: &str) -> PathBuf {
        self.dir.join(pod)
    }

    /// The directory with the endpoints.
    pub(crate) fn endpoints(&self) -> PathBuf {
        self.dir.join("endpoints")
    }

    /// Every pod's `/etc/hosts`.
    pub(crate) fn hosts(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    /// Every pod's `/etc/nsswitch.conf`.
    pub(crate) fn name_service(&self) -> PathBuf {
        self.dir.join("nsswitch.conf")
    }
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
