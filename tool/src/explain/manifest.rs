//! A pod that does not run yet: would it be enrolled, and what would happen to a connection?

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use redirect_agent::pod::Pod;
use redirect_agent::{conflist, rules};
use redirect_user::enrol::source::{self, Container, PodDetails, PodSource, STATUS};
use redirect_user::enrol::{Enrolment, Reason, Rules, enrol};
use redirect_user::explain;
use redirect_user::ids::PodRef;
use redirect_user::policy::Policy;
use redirect_user::policy::annotations::Annotations;
use serde_json::{Value, json};

use super::args::Args;
use super::words::{value, words};
use crate::node::keys_of;
use crate::output::{self, Output};

/// What a manifest says is all that is known.
struct Told(PodDetails);

impl PodSource for Told {
    fn details(&self, _pod: &PodRef, _handed: Option<&Annotations>) -> Result<PodDetails, source::Error> {
        Ok(self.0.clone())
    }
}

/// Explains; exits 1 where the pod would not be enrolled.
pub(super) fn run(output: Output, file: &Path, args: &Args) -> Result<ExitCode> {
    let pod = read(file)?;
    let rules = rules::of_entry(&conflist::entry(&keys_of(args.plugin_conf.as_deref())?))?;
    let mut details = pod.details();
    if args.assume_injected {
        inject(&mut details, &rules);
    }
    let name = PodRef { namespace: pod.namespace().to_owned(), name: pod.name().to_owned(), uid: None };
    match enrol(&name, None, &rules, &Told(details))? {
        Enrolment::NotEnrolled(reason) => {
            match output {
                Output::Json => {
                    output::json(&json!({ "pod": name, "enrolled": false, "reason": reason.label() }))?
                }
                Output::Text => println!("{name} would not be enrolled: {reason}\n{}", hint(reason)),
            }
            Ok(ExitCode::FAILURE)
        }
        Enrolment::Enrolled { policy, .. } => enrolled(output, &name, *policy, args),
    }
}

fn enrolled(output: Output, name: &PodRef, policy: Policy, args: &Args) -> Result<ExitCode> {
    let planned = explain::planned(policy);
    let explanation = match (&args.dst, args.inbound) {
        (_, Some(port)) => Some(json!(explain::inbound(&planned, port, args.interface))),
        (Some(dst), None) => {
            let dst = dst.parse().with_context(|| {
                format!("--dst {dst:?}: a pod that does not run knows no names; give an address and port")
            })?;
            Some(value(dst, &args.outbound(&planned, dst))?)
        }
        (None, None) => None,
    };
    match output {
        Output::Json => output::json(&json!({
            "pod": name, "enrolled": true, "policy": planned.policy, "explanation": explanation,
        }))?,
        Output::Text => {
            println!("{name} would be enrolled");
            if let Some(why) = redirect_user::doctor::captures_nothing(&planned.policy) {
                println!("warning: {why}");
            }
            if let Some(port) = args.inbound {
                println!("{}", words(&explain::inbound(&planned, port, args.interface)));
            } else if let Some(Ok(dst)) = args.dst.as_ref().map(|dst| dst.parse()) {
                println!("{}", words(&args.outbound(&planned, dst)));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the injector adds.
fn inject(details: &mut PodDetails, rules: &Rules) {
    if details.containers.iter().all(|container| container.name != rules.proxy_container) {
        details.containers.push(Container { name: rules.proxy_container.clone(), ..Container::default() });
    }
    details.annotations.entry(STATUS.to_owned()).or_insert_with(|| "{}".to_owned());
}

fn hint(reason: Reason) -> &'static str {
    match reason {
        Reason::NoProxyContainer | Reason::NotInjected => {
            "the manifest has no sidecar; the injector adds it later: see what comes then with --assume-injected"
        }
        Reason::IstioInit => "Istio is not in CNI mode: the container istio-init redirects by iptables",
        Reason::SingleContainer => "there is no application beside the sidecar",
        Reason::ExcludedNamespace => "its namespace is in excludeNamespaces of the plugin's configuration",
        _ => "the pod says so itself; docs/install.md and cni/README.md have the conditions",
    }
}

/// The pod of a manifest: a Pod, or what a Deployment, a Job or the like makes pods from.
fn read(file: &Path) -> Result<Pod> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let document: Value = serde_saphyr::from_str(&text)
        .with_context(|| format!("{} is neither YAML nor JSON", file.display()))?;
    let spec = &document["spec"];
    let template = [&spec["jobTemplate"]["spec"]["template"], &spec["template"]];
    let mut pod = template.into_iter().find(|template| template.is_object()).unwrap_or(&document).clone();
    if !pod["spec"]["containers"].is_array() {
        bail!("{} has no pod: neither spec.containers nor spec.template", file.display());
    }
    for key in ["name", "namespace"] {
        if pod["metadata"][key].is_null() {
            let outer = &document["metadata"][key];
            let usual = if key == "name" { "pod" } else { "default" };
            pod["metadata"][key] = if outer.is_null() { json!(usual) } else { outer.clone() };
        }
    }
    serde_json::from_value(pod).with_context(|| format!("{} is not a pod's manifest", file.display()))
}
