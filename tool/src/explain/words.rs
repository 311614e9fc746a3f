//! What `redirect explain` answers.

use std::net::SocketAddr;

use anyhow::Result;
use redirect_user::explain::Explanation;
use serde_json::{Value, json};

/// With the destination, for a reader of JSON.
pub(super) fn value(dst: SocketAddr, one: &Explanation) -> Result<Value> {
    let mut value = serde_json::to_value(one)?;
    value["dst"] = json!(dst);
    Ok(value)
}

/// For a person.
pub(super) fn words(explanation: &Explanation) -> String {
    let Explanation { verdict, rule, rule_name, cause, change } = explanation;
    format!("{verdict}\nrule {rule} ({rule_name}): {cause}\nfor another verdict: {change}")
}
