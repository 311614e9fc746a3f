//! `redirect agent`: makes this node ready for pods with sidecars, keeps it so, and answers the plugin.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use redirect_agent::api::Access;
use redirect_agent::conflist::keep::Plan;
use redirect_agent::memory;
use redirect_agent::repair::Modes;
use redirect_agent::rules;
use redirect_agent::run::{self, Options, Source};
use redirect_user::node::Node;
use tokio::signal::unix::{SignalKind, signal};

use crate::node::Place;

/// `redirect agent`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pods from JSON manifests: a file, or a folder that is read again for every question. Alone, no API
    /// server is asked; with --kubeconfig or --in-cluster it is the place of static pods.
    #[arg(long, value_name = "PATH")]
    pods: Option<PathBuf>,
    /// Pods from the API server that this file names.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Pods from the API server of the cluster that the agent itself runs in (this is so without --pods and
    /// --kubeconfig).
    #[arg(long, conflicts_with = "kubeconfig")]
    in_cluster: bool,
    /// Know of no pods and ask no API server. With podSource annotations the plugin asks for none.
    #[arg(long, conflicts_with_all = ["pods", "kubeconfig", "in_cluster"])]
    no_pods: bool,
    /// The name of this node; else the variable NODE_NAME.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Where the plugin asks (its `agentSocket`).
    #[arg(long, value_name = "PATH", default_value = "/run/redirect-cni/agent.sock")]
    socket: PathBuf,
    /// Where /metrics, /healthz and /readyz are asked, for example 0.0.0.0:15014; without it, nowhere.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Keep the plugin and its entry in their places on this node.
    #[arg(long)]
    install: bool,
    /// Keep the plugin's entry out of this node's configuration, and take plugin and programs away when the
    /// last redirected pod is gone.
    #[arg(long, conflicts_with_all = ["install", "multus"])]
    remove_entry: bool,
    /// Try new programs in a scratch pod before running pods get them, and this node before it is ready.
    #[arg(long)]
    verify: bool,
    /// Keep the network istio-cni in the namespace default, which Istio's injector asks Multus for.
    #[arg(long)]
    multus: bool,
    #[command(flatten)]
    place: Place,
    /// Redirect pods that should be and are not, while they run.
    #[arg(long)]
    repair_pods: bool,
    /// Delete pods that should be redirected and are not, so that they are made again. --repair-pods counts
    /// first.
    #[arg(long)]
    delete_pods: bool,
    /// Label pods that should be redirected and are not. --repair-pods and --delete-pods count first.
    #[arg(long)]
    label_pods: bool,
    /// The label's key.
    #[arg(long, value_name = "KEY", default_value = "cni.istio.io/uninitialized")]
    broken_pod_label_key: String,
    /// The label's value.
    #[arg(long, value_name = "VALUE", default_value = "true")]
    broken_pod_label_value: String,
    /// The init container that ends with 126 in a pod that is not redirected.
    #[arg(long, value_name = "NAME", default_value = "istio-validation")]
    init_container_name: String,
    /// Let the policy of running pods follow their traffic annotations.
    #[arg(long)]
    live_policy: bool,
    /// When a running pod was repaired, reset its connections from before that go around the sidecar.
    #[arg(long, requires = "repair_pods")]
    reset_connections: bool,
    /// How the log is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Serves until SIGINT or SIGTERM, and takes the socket away at the end. Nothing else is removed.
pub(crate) fn run(node: &Node, args: &Args) -> Result<ExitCode> {
    memory::give_back();
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    let options = args.options(node)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    runtime.block_on(serve(options))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(options: Options) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let stop = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    Ok(run::run(options, stop).await?)
}

impl Args {
    fn options(&self, node: &Node) -> Result<Options> {
        let entry = self.place.entry()?;
        let modes = Modes {
            repair_pods: self.repair_pods,
            delete_pods: self.delete_pods,
            label_pods: self.label_pods,
            label_key: self.broken_pod_label_key.clone(),
            label_value: self.broken_pod_label_value.clone(),
            init_container: self.init_container_name.clone(),
            live_policy: self.live_policy,
            reset_connections: self.reset_connections,
        };
        let rules = rules::of_entry(&entry).context("the keys of --plugin-conf")?;
        Ok(Options {
            node: node.clone(),
            socket: self.socket.clone(),
            pods: self.source()?,
            listen: self.listen,
            install: self.plan()?,
            multus: self.multus.then_some(entry),
            verify: self.verify,
            repair: Some((modes, rules)),
        })
    }

    fn plan(&self) -> Result<Option<Plan>> {
        match (self.install, self.remove_entry) {
            (true, _) => self.place.plan().map(Some),
            (_, true) => Ok(Some(self.place.nothing())),
            _ => Ok(None),
        }
    }

    fn source(&self) -> Result<Source> {
        if self.no_pods {
            return Ok(Source::None);
        }
        let access = match (&self.kubeconfig, &self.pods) {
            (Some(path), _) => Access::Kubeconfig(path.clone()),
            (None, Some(path)) if !self.in_cluster => return Ok(Source::Manifests(path.clone())),
            (None, _) => Access::InCluster,
        };
        let Some(node) = self.node_name.clone().or_else(|| std::env::var("NODE_NAME").ok()) else {
            bail!(
                "the name of this node is needed to ask for its pods: set --node-name, or NODE_NAME in the environment"
            );
        };
        Ok(Source::Api { access, node, manifests: self.pods.clone() })
    }
}
