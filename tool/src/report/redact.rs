//! Takes what looks like a secret out of configuration and logs.

use serde_json::Value;

const REDACTED: &str = "[redacted]";

/// Words of keys whose value is one.
const KEYS: [&str; 10] = [
    "token",
    "secret",
    "password",
    "passwd",
    "authorization",
    "bearer",
    "credential",
    "apikey",
    "privatekey",
    "kubeconfig",
];

fn names_a_secret(key: &str) -> bool {
    let plain: String = key.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    KEYS.iter().any(|word| plain.contains(word)) || plain.contains("key") || plain.contains("cert")
}

/// Replaces the values of such keys, and every variable of an environment.
pub(super) fn json(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                if names_a_secret(key) || key == "env" {
                    *value = REDACTED.into();
                } else {
                    json(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(json),
        Value::String(text) => *text = line(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The same for lines of a log: what follows such a word goes, and keys in PEM, and tokens in the form of
/// JWT.
pub(super) fn text(text: &str) -> String {
    let mut pem = false;
    let mut out = String::with_capacity(text.len());
    for one in text.lines() {
        let begins = one.contains("-----BEGIN ");
        if pem || begins {
            if begins {
                out.push_str(REDACTED);
                out.push('\n');
            }
            pem = !one.contains("-----END ");
            continue;
        }
        out.push_str(&line(one));
        out.push('\n');
    }
    out
}

fn line(line: &str) -> String {
    if line.contains("-----BEGIN ") {
        return REDACTED.into();
    }
    let lower = line.to_ascii_lowercase();
    let first = KEYS.iter().filter_map(|word| Some(lower.find(word)? + word.len())).min();
    let kept = first.map_or(line, |end| &line[..end]);
    let words: Vec<_> = kept.split(' ').map(|word| if is_jwt(word) { REDACTED } else { word }).collect();
    match first {
        Some(end) if end < line.len() => format!("{} {REDACTED}", words.join(" ")),
        _ => words.join(" "),
    }
}

/// Three parts of base64 with dots between, the first one a JSON object.
fn is_jwt(word: &str) -> bool {
    word.find("eyJ").is_some_and(|at| word[at..].matches('.').count() >= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_goes_and_the_rest_stays() {
        let mut value = serde_json::json!({
            "type": "x", "policy": {"authToken": "s3cr3t", "env": [{"name": "A", "value": "s3cr3t"}]},
            "plugins": [{"client-key-data": "s3cr3t", "mtu": 1500}], "note": "password=s3cr3t",
        });
        json(&mut value);
        let text_of = value.to_string();
        assert!(!text_of.contains("s3cr3t") && text_of.contains("1500"), "{text_of}");
        let log = "pod shop/web enrolled\nAuthorization: Bearer s3cr3t\nasked with eyJhbGci.s3cr3t.s3cr3t now\n\
            -----BEGIN PRIVATE KEY-----\ns3cr3t\n-----END PRIVATE KEY-----\nlast line\n";
        let text = text(log);
        assert!(!text.contains("s3cr3t"), "{text}");
        assert!(text.contains("pod shop/web enrolled") && text.contains("last line"), "{text}");
    }
}
