//! The plugin's place on the node: its binary beside the other plugins, and its entry in the configuration
//! that the runtime takes.
//!
//! [`list`] changes a text, [`files`] a directory; [`keep`] does it again whenever somebody undoes it;
//! [`places`] finds out where the runtime looks; [`leave`] takes everything away.

pub mod files;
pub mod keep;
pub mod leave;
pub mod list;
pub mod multus;
pub mod places;
mod runtime;

use serde_json::{Map, Value, json};

/// The text of our entry: the capabilities that the plugin needs, and the keys that the operator adds or
/// changes.
#[must_use]
pub fn entry(keys: &Map<String, Value>) -> String {
    let mut entry = Map::new();
    let capabilities = json!({ "io.kubernetes.cri.pod-annotations": true, "cgroupPath": true });
    entry.insert("capabilities".to_owned(), capabilities);
    entry.extend(keys.iter().map(|(key, value)| (key.clone(), value.clone())));
    entry.remove("type");
    let rest = Value::Object(entry).to_string();
    // The type first, as people look for it there.
    format!("{{\"type\":\"{}\",{}", list::TYPE, &rest[1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_has_its_type_first_and_the_operators_keys() {
        let keys = json!({ "podSource": "annotations", "type": "other" });
        let text = entry(keys.as_object().unwrap());
        assert!(text.starts_with(r#"{"type":"redirect-cni","capabilities":{"#), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["type"], &value["podSource"]), (&json!(list::TYPE), &json!("annotations")));
        assert_eq!(value["capabilities"]["cgroupPath"], true);
    }
}
