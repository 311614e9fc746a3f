//! The scratch pod: made, attached, and taken away on every way out.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};

use super::actor::{Actor, Order, Role};
use super::wire::{self, EXCLUDED_RANGES, IFNAME, POD, Wire};
use super::{ports, talk};
use crate::attach::record::{self, Attachment};
use crate::attach::{self, Request};
use crate::ids::AttachmentId;
use crate::kernel::install::{self, Ensured};
use crate::node::Node;
use crate::node::lock::{self, NodeLock};
use crate::pod::cgroup;
use crate::pod::netns;
use crate::policy::Policy;
use crate::repair;

/// What the names of a scratch pod's container and cgroup begin with.
pub const PREFIX: &str = "redirect-verify-";

/// uid and gid of the scratch pod's application.
const APPLICATION: u32 = 1000;

/// Why there is no scratch pod.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text of a variant says what its fields are")]
pub enum Error {
    /// There is no cgroup v2.
    #[error(transparent)]
    CgroupRoot(#[from] cgroup::Error),
    /// The cgroup could not be made or removed.
    #[error("cannot {what} the scratch pod's cgroup {}: {source}", path.display())]
    Cgroup { what: &'static str, path: PathBuf, source: io::Error },
    /// The network could not be made.
    #[error("cannot make the scratch pod's network: {0}")]
    Network(#[from] wire::Error),
    /// A process could not be started.
    #[error("cannot start the scratch pod's {who}: {source}")]
    Process { who: &'static str, source: io::Error },
    /// A server could not be opened.
    #[error("the scratch pod's {who} cannot listen on port {port}: {why}")]
    Listen { who: &'static str, port: u16, why: String },
    /// The pod could not be attached or detached.
    #[error("cannot attach the scratch pod: {0}")]
    Attach(#[from] Box<attach::Error>),
    /// The node's lock.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// The programs could not be removed again.
    #[error(transparent)]
    Install(#[from] install::Error),
}

/// Where cgroups are made.
pub(super) struct Place {
    cgroups: Option<PathBuf>,
}

impl Place {
    /// Below `cgroup_root`; else cgroup v2 is found.
    pub(super) fn below(cgroup_root: Option<&Path>) -> Place {
        Place { cgroups: cgroup_root.map(Path::to_owned) }
    }

    fn root(&self) -> Result<PathBuf, Error> {
        Ok(cgroup::root(self.cgroups.as_deref())?)
    }
}

/// A scratch pod. Dropping it takes it away; [`Scratch::remove`] also tells what could not be.
pub(super) struct Scratch {
    node: Node,
    id: AttachmentId,
    wire: Wire,
    // Processes end before their cgroup goes.
    application: Option<Actor>,
    sidecar: Option<Actor>,
    cgroup: OwnCgroup,
    attachment: Option<Box<Attachment>>,
    /// The programs are there because of this run.
    installed: bool,
    removed: bool,
}

impl Scratch {
    /// Makes one, and attaches it as the plugin would.
    pub(super) fn make(node: &Node, place: &Place) -> Result<Scratch, Error> {
        let root = place.root()?;
        sweep(&root);
        let cgroup = OwnCgroup::make(&root)?;
        let wire = Wire::make()?;
        let container_id = cgroup.name();
        let id = AttachmentId { container_id, ifname: IFNAME.into() };
        let mut scratch = Scratch {
            node: node.clone(),
            id,
            wire,
            application: None,
            sidecar: None,
            cgroup,
            attachment: None,
            installed: false,
            removed: false,
        };
        scratch.open_world()?;
        scratch.application = Some(scratch.start("application", APPLICATION)?);
        scratch.sidecar = Some(scratch.start("sidecar", Policy::default().proxy.uid)?);
        scratch.attach()?;
        scratch.open_servers()?;
        Ok(scratch)
    }

    /// The record of its attachment.
    pub(super) fn attachment(&self) -> &Attachment {
        self.attachment.as_deref().expect("a scratch pod that is made is attached")
    }

    /// Whether it has IPv6.
    pub(super) fn has_ipv6(&self) -> bool {
        self.wire.ipv6
    }

    /// The sidecar's end.
    pub(super) fn stop_sidecar(&mut self) {
        self.sidecar = None;
    }

    /// The application in the pod.
    pub(super) fn application(&mut self) -> Option<&mut Actor> {
        self.application.as_mut()
    }

    /// The sidecar in the pod.
    pub(super) fn sidecar(&mut self) -> Option<&mut Actor> {
        self.sidecar.as_mut()
    }

    /// Runs something in the rest of the world.
    pub(super) fn in_world<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        netns::inside(&self.wire.world, work)
    }

    /// Runs something in the pod's namespace, outside of its cgroup.
    pub(super) fn beside_pod<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        netns::inside(&self.wire.pod, work)
    }

    fn start(&self, who: &'static str, id: u32) -> Result<Actor, Error> {
        let role = Role { netns: wire::path(&self.wire.pod), cgroup: self.cgroup.path.clone(), id };
        Actor::start(&role).map_err(|source| Error::Process { who, source })
    }

    /// The servers of the rest of the world. Their threads are few and end with this process.
    fn open_world(&self) -> Result<(), Error> {
        for (port, family) in ports::world_listens(wire::families(self.wire.ipv6)) {
            let opened = self.in_world(|| talk::listener(family, port)).and_then(|listener| listener);
            let failed =
                |error: io::Error| Error::Listen { who: "rest of the world", port, why: error.to_string() };
            let listener = opened.map_err(failed)?;
            std::thread::spawn(move || talk::serve(&listener, "world"));
        }
        for family in wire::families(self.wire.ipv6) {
            let at = (wire::WORLD.of(family), ports::DNS);
            let opened = self.in_world(|| std::net::UdpSocket::bind(at)).and_then(|socket| socket);
            let failed = |error: io::Error| Error::Listen {
                who: "rest of the world",
                port: ports::DNS,
                why: error.to_string(),
            };
            let socket = opened.map_err(failed)?;
            std::thread::spawn(move || talk::answer(&socket, "world"));
        }
        Ok(())
    }

    fn attach(&mut self) -> Result<(), Error> {
        let netns = self.application.as_ref().map(Actor::netns).unwrap_or_default();
        let request = Request {
            id: self.id.clone(),
            cgroup: self.cgroup.path.clone(),
            netns,
            policy: policy(),
            pod: None,
            network: None,
            addresses: wire::families(self.wire.ipv6).map(|family| POD.of(family)).collect(),
            made_cgroups: vec![self.cgroup.path.clone()],
        };
        let (attached, lock) = attach::attach_locking(&self.node, &request).map_err(Box::new)?;
        self.installed = attached.programs == Ensured::Fresh;
        if self.installed {
            // Pods that were attached before have no entries in the new maps.
            repair::repair(&self.node, &lock, None).map_err(Box::new)?;
        }
        self.attachment = Some(Box::new(attached.attachment));
        Ok(())
    }

    fn open_servers(&mut self) -> Result<(), Error> {
        let with_ipv6 = self.wire.ipv6;
        let serve = |who: &str, port| Order::Serve { who: who.into(), port, with_ipv6 };
        let proxy = Policy::default().proxy;
        let sidecar = [
            (serve("outbound", proxy.outbound_port), proxy.outbound_port),
            (serve("inbound", proxy.inbound_port), proxy.inbound_port),
            (Order::Answer { who: "dns".into(), port: proxy.dns_port, with_ipv6 }, proxy.dns_port),
        ];
        let application = ports::OF_APPLICATION.map(|port| (serve("application", port), port));
        open(self.sidecar.as_mut(), "sidecar", &sidecar)?;
        open(self.application.as_mut(), "application", &application)
    }

    /// Takes it away and tells what could not be.
    pub(super) fn remove(mut self) -> Result<(), Error> {
        self.take_away()
    }

    fn take_away(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.removed, true) {
            return Ok(());
        }
        self.sidecar = None;
        // The application's process is the way to the namespace: it ends after the detach.
        let detached = self.detach();
        self.application = None;
        let gone = self.cgroup.remove();
        detached?;
        gone
    }

    fn detach(&self) -> Result<(), Error> {
        let lock = NodeLock::acquire(&self.node)?;
        attach::detach(&self.node, &lock, &self.id.container_id, None).map_err(Box::new)?;
        let others = record::all(&self.node).map_or(true, |records| !records.is_empty());
        if self.installed && !others {
            install::remove(&self.node, &lock)?;
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whoever wants to know calls `remove`.
        let _ = self.take_away();
    }
}

fn open(actor: Option<&mut Actor>, who: &'static str, servers: &[(Order, u16)]) -> Result<(), Error> {
    let Some(actor) = actor else { return Ok(()) };
    for (order, port) in servers {
        let got = actor.order(order).map_err(|source| Error::Process { who, source })?;
        if let Some(why) = got.error {
            return Err(Error::Listen { who, port: *port, why });
        }
    }
    Ok(())
}

/// Every kind of rule, and the guard.
fn policy() -> Policy {
    let ranges = EXCLUDED_RANGES.iter().filter_map(|range| range.parse().ok()).collect();
    let mut policy = Policy { dns_capture: true, exclude_outbound_ip_ranges: ranges, ..Policy::default() };
    policy.exclude_outbound_ports.insert(ports::EXCLUDED_OUTBOUND);
    policy.exclude_inbound_ports.insert(ports::EXCLUDED_INBOUND);
    policy
}

/// The scratch pod's cgroup. Its directory is locked as long as its run lives, so that others know.
struct OwnCgroup {
    path: PathBuf,
    _lock: Flock<File>,
}

impl OwnCgroup {
    fn make(root: &Path) -> Result<OwnCgroup, Error> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        const TRIES: usize = 5;
        let mut last = io::Error::other("another run takes it away each time");
        for _ in 0..TRIES {
            // Another pid namespace may have the same pid.
            let moment = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = root.join(format!("{PREFIX}{}-{number}-{moment}", std::process::id()));
            fs::create_dir(&path).map_err(|source| Error::Cgroup {
                what: "make",
                path: path.clone(),
                source,
            })?;
            match lock_directory(&path) {
                Ok(lock) => return Ok(OwnCgroup { path, _lock: lock }),
                Err(error) => last = error,
            }
        }
        Err(Error::Cgroup { what: "keep", path: root.join(PREFIX), source: last })
    }

    fn name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// A process that has just ended stays in its cgroup for a moment.
    fn remove(&self) -> Result<(), Error> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            match fs::remove_dir(&self.path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    if Instant::now() > deadline {
                        return Err(Error::Cgroup { what: "remove", path: self.path.clone(), source });
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                _ => return Ok(()),
            }
        }
    }
}

/// Locks a directory that is still there afterwards.
fn lock_directory(path: &Path) -> io::Result<Flock<File>> {
    let lock = Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)?;
    if fs::metadata(path)?.ino() != lock.metadata()?.ino() {
        return Err(io::Error::other("it was taken away"));
    }
    Ok(lock)
}

/// Whether an attachment is of a scratch pod whose run has ended without taking it away.
pub(crate) fn is_left_over(attachment: &Attachment) -> bool {
    // Where the cgroup cannot be seen, the kernel's answer about it counts, as for any pod.
    attachment.id.container_id.starts_with(PREFIX) && lock_directory(&attachment.cgroup).is_ok()
}

/// Removes the cgroups of runs that have ended without taking them away; how many.
pub(crate) fn sweep(root: &Path) -> usize {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let left = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    // A living run holds its lock, and a cgroup with processes cannot be removed.
    left.filter(|entry| lock_directory(&entry.path()).is_ok() && fs::remove_dir(entry.path()).is_ok()).count()
}
