//! How Envoy's configuration names an extension.

use serde_json::{Value, json};

/// An extension named `name` whose configuration is a message of type `message`.
pub(super) fn typed(message: &str, name: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/{message}"));
    json!({ "name": name, "typed_config": config })
}
