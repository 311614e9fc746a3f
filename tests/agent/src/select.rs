//! Field and label selectors: equality, inequality and presence, which is what clients use.

use serde_json::Value;

/// Both selectors of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selector {
    fields: Vec<Term>,
    labels: Vec<Term>,
}

#[derive(Clone, Debug)]
struct Term {
    key: String,
    wanted: Wanted,
}

#[derive(Clone, Debug)]
enum Wanted {
    Is(String),
    IsNot(String),
    There,
}

impl Selector {
    pub(crate) fn parse(fields: Option<&str>, labels: Option<&str>) -> Selector {
        Selector { fields: terms(fields), labels: terms(labels) }
    }

    pub(crate) fn selects(&self, object: &Value) -> bool {
        let field = |key: &str| {
            let pointer = format!("/{}", key.replace('.', "/"));
            object.pointer(&pointer).and_then(Value::as_str).map(str::to_owned)
        };
        let label = |key: &str| object["metadata"]["labels"][key].as_str().map(str::to_owned);
        self.fields.iter().all(|term| term.holds(field(&term.key)))
            && self.labels.iter().all(|term| term.holds(label(&term.key)))
    }
}

impl Term {
    fn holds(&self, value: Option<String>) -> bool {
        match &self.wanted {
            Wanted::Is(wanted) => value.unwrap_or_default() == *wanted,
            Wanted::IsNot(unwanted) => value.unwrap_or_default() != *unwanted,
            Wanted::There => value.is_some(),
        }
    }
}

fn terms(selector: Option<&str>) -> Vec<Term> {
    let parts = selector.unwrap_or_default().split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (key, wanted) = if let Some((key, value)) = part.split_once("!=") {
                (key, Wanted::IsNot(value.to_owned()))
            } else if let Some((key, value)) = part.split_once('=') {
                (key, Wanted::Is(value.trim_start_matches('=').to_owned()))
            } else {
                (part, Wanted::There)
            };
            Term { key: key.trim().to_owned(), wanted }
        })
        .collect()
}
