//! Multus: the network `istio-cni` in the namespace `default`, which Istio's injector asks for by this name
//! where its value `pilot.cni.provider` is `multus`. The plugin then runs alone and not in a chain.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::watch::Pods;

/// The injector knows these two.
const NAMESPACE: &str = "default";
const NAME: &str = "istio-cni";
/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// The version of the specification that all releases of Multus in use speak.
const CNI_VERSION: &str = "0.4.0";

/// The network's configuration: the entry, with a name and a version as it is not in a list.
fn config(entry: &str) -> String {
    let mut config: Value = serde_json::from_str(entry).unwrap_or_default();
    config["cniVersion"] = json!(CNI_VERSION);
    config["name"] = json!(NAME);
    config.to_string()
}

/// Keeps the network as it should be, for ever.
pub async fn keep(pods: Arc<Pods>, entry: String) {
    let config = config(&entry);
    let mut told = false;
    loop {
        if let Some(client) = pods.client() {
            match once(client, &config).await {
                Ok(changed) => {
                    if changed {
                        tracing::info!(network = NAME, namespace = NAMESPACE, "changed for Multus");
                    }
                    told = false;
                }
                Err(error) => {
                    if !told {
                        tracing::warn!(network = NAME, namespace = NAMESPACE, %error, "not there for Multus");
                    }
                    told = true;
                }
            }
        }
        sleep(LOOK).await;
    }
}

async fn once(client: Client, config: &str) -> Result<bool, kube::Error> {
    let kind = GroupVersionKind::gvk("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition");
    let kind = ApiResource::from_gvk_with_plural(&kind, "network-attachment-definitions");
    let api: Api<DynamicObject> = Api::namespaced_with(client, NAMESPACE, &kind);
    let there = api.get_opt(NAME).await?;
    if there.is_some_and(|network| network.data["spec"]["config"] == config) {
        return Ok(false);
    }
    let network = json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": { "name": NAME, "namespace": NAMESPACE },
        "spec": { "config": config },
    });
    let params = PatchParams::apply("redirect-cni").force();
    api.patch(NAME, &params, &Patch::Apply(network)).await?;
    Ok(true)
}
