//! `redirect node enable | disable`: the plugin's entry in this node's CNI configuration, without an agent.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use redirect_agent::conflist::files::{self, Done};
use redirect_agent::conflist::keep::{self, Plan, Wanted};
use redirect_agent::conflist::{self, leave, places};
use redirect_user::node::Node;
use serde_json::{Map, Value, json};

use crate::output::{self, Output};

/// Keys of the plugin's configuration on this node, below its root.
const USUAL_CONF: &str = "etc/redirect-cni/plugin.json";

/// Where the plugin belongs on this node.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// The node's root directory, as this process sees it.
    #[arg(long, value_name = "PATH", default_value = "/")]
    host_root: PathBuf,
    /// Where the runtime reads network configuration; else the runtime's own configuration is asked, and then
    /// the platform's habit counts.
    #[arg(long, value_name = "PATH")]
    cni_conf_dir: Option<PathBuf>,
    /// Where the runtime looks for plugins; else as with --cni-conf-dir.
    #[arg(long, value_name = "PATH")]
    cni_bin_dir: Option<PathBuf>,
    /// The container runtime's socket, to ask where it looks; else where containerd usually has it.
    #[arg(long, value_name = "PATH")]
    cri_socket: Option<PathBuf>,
    /// The plugin to install; else the file `redirect-cni` beside this program, or in lib/redirect-cni.
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// Keys of the plugin's configuration, as a JSON object, or the path of a file with one; else those of
    /// etc/redirect-cni/plugin.json, where there is one.
    #[arg(long, value_name = "JSON|FILE")]
    plugin_conf: Option<String>,
    /// A file of our own instead of an entry in somebody else's. It follows what the runtime would take
    /// without it, and its name should sort first, for example 02-redirect-cni.conflist.
    #[arg(long, value_name = "NAME")]
    own_conf_file: Option<String>,
    /// The file that gets the entry, instead of the first valid one in lexicographic order.
    #[arg(long, value_name = "NAME")]
    cni_conf_file: Option<String>,
    /// Install the plugin only. With Multus the entry is in a network of its own, not in the node's files.
    #[arg(long, conflicts_with_all = ["own_conf_file", "cni_conf_file"])]
    no_entry: bool,
}

/// `redirect node`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Install the plugin and put its entry last into what the runtime takes.
    Enable {
        #[command(flatten)]
        place: Place,
        /// Only where the plugin is installed already, for example after an upgrade of the package.
        #[arg(long)]
        if_enabled: bool,
    },
    /// Take the entry out, and put files back that were converted for it. The plugin stays for pods that run.
    Disable(Place),
}

/// Runs `redirect uninstall --node`.
pub(crate) fn uninstall(node: &Node, output: Output, place: &Place) -> Result<ExitCode> {
    let (conf_dir, bin_dir) = place.dirs();
    let left = leave::once(node, &conf_dir, &bin_dir)?;
    match output {
        Output::Json => {
            output::json(&json!({ "changed": left.changed, "pods": left.pods, "removed": left.gone() }))?;
        }
        Output::Text => {
            left.changed.iter().for_each(|file| println!("changed {}", file.display()));
            match left.pods {
                0 => println!("the plugin and its programs are off this node"),
                pods => println!(
                    "new pods are not redirected; {pods} running ones still are, and the plugin stays to delete them: \
                     run this again when they are gone"
                ),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the verb.
pub(crate) fn run(output: Output, command: &Command) -> Result<ExitCode> {
    match command {
        Command::Enable { place, if_enabled } => {
            let plan = place.plan()?;
            if *if_enabled && !plan.bin_dir.join("redirect-cni").is_file() {
                return tell(output, &Done::default());
            }
            let done = keep::once(&plan)?;
            if done.primary.is_none() {
                let skipped = done.skipped.join("; ");
                bail!("no valid network configuration in {}: {skipped}", plan.conf_dir.display());
            }
            tell(output, &done)
        }
        Command::Disable(place) => tell(output, &files::disable(&place.dirs().0)?),
    }
}

fn tell(output: Output, done: &Done) -> Result<ExitCode> {
    match output {
        Output::Json => {
            output::json(&json!({ "file": done.primary, "changed": done.changed, "skipped": done.skipped }))?;
        }
        Output::Text => {
            done.changed.iter().for_each(|file| println!("changed {}", file.display()));
            done.skipped.iter().for_each(|file| println!("skipped {file}"));
            if done.changed.is_empty() {
                println!("nothing to change");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Place {
    /// Configuration and plugins.
    pub(crate) fn dirs(&self) -> (PathBuf, PathBuf) {
        if let (Some(conf), Some(bin)) = (&self.cni_conf_dir, &self.cni_bin_dir) {
            return (conf.clone(), bin.clone());
        }
        let found = places::find(&self.host_root, self.cri_socket.as_deref());
        let conf = self.cni_conf_dir.clone().unwrap_or(found.conf_dir);
        (conf, self.cni_bin_dir.clone().unwrap_or(found.bin_dir))
    }

    /// The text of the entry.
    pub(crate) fn entry(&self) -> Result<String> {
        let usual = self.host_root.join(USUAL_CONF);
        let usual = usual.is_file().then(|| usual.display().to_string());
        Ok(conflist::entry(&keys_of(self.plugin_conf.as_deref().or(usual.as_deref()))?))
    }

    /// What to keep where.
    pub(crate) fn plan(&self) -> Result<Plan> {
        let (conf_dir, bin_dir) = self.dirs();
        let plugin = self.plugin.clone().map_or_else(beside, Ok)?;
        let own_file = self.own_conf_file.clone();
        if let Some(name) = own_file.as_deref()
            && (Path::new(name).components().count() != 1
                || !name.ends_with(".conflist")
                || !name.contains("redirect-cni"))
        {
            bail!(
                "--own-conf-file {name:?} must be a file name with redirect-cni in it that ends with .conflist"
            );
        }
        let wanted = if self.no_entry { Wanted::Plugin } else { Wanted::Entry };
        let (entry, named_file) = (self.entry()?, self.cni_conf_file.clone());
        Ok(Plan { conf_dir, bin_dir, plugin, entry, own_file, named_file, wanted })
    }

    /// Where nothing is to be.
    pub(crate) fn nothing(&self) -> Plan {
        let (conf_dir, bin_dir) = self.dirs();
        Plan {
            conf_dir,
            bin_dir,
            plugin: PathBuf::new(),
            entry: String::new(),
            own_file: None,
            named_file: None,
            wanted: Wanted::Nothing,
        }
    }
}

/// Keys of the plugin's configuration, from a JSON object or the path of a file with one.
pub(crate) fn keys_of(plugin_conf: Option<&str>) -> Result<Map<String, Value>> {
    match plugin_conf {
        None => Ok(Map::new()),
        Some(text) if text.trim_start().starts_with('{') => {
            serde_json::from_str(text).context("--plugin-conf is not a JSON object")
        }
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("--plugin-conf: cannot read {file}"))?;
            serde_json::from_str(&text).with_context(|| format!("{file} is not a JSON object"))
        }
    }
}

/// The plugin beside this program, or where packages put it, out of the way of shells.
fn beside() -> Result<PathBuf> {
    let program = std::env::current_exe().context("find this program")?;
    let beside = program.with_file_name("redirect-cni");
    let of_package = program.ancestors().nth(2).map(|prefix| prefix.join("lib/redirect-cni/redirect-cni"));
    let found = [Some(beside.clone()), of_package].into_iter().flatten().find(|file| file.is_file());
    found.with_context(|| format!("there is no {}: name the plugin with --plugin", beside.display()))
}
