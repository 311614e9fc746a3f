//! Ports in a record: a number each, and a text such as `"1-49000"` for three and more in a row. A list of
//! 49,000 ports is as small as what it says.

use std::collections::BTreeSet;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Run {
    One(u16),
    FromTo(String),
}

pub(super) fn serialize<S: Serializer>(ports: &BTreeSet<u16>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(runs(ports))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<u16>, D::Error> {
    let mut ports = BTreeSet::new();
    for run in Vec::<Run>::deserialize(deserializer)? {
        let (first, last) = run.bounds().ok_or_else(|| D::Error::custom("a run of ports is no \"1-3\""))?;
        ports.extend(first..=last);
    }
    Ok(ports)
}

impl Run {
    fn bounds(&self) -> Option<(u16, u16)> {
        match self {
            Run::One(port) => Some((*port, *port)),
            Run::FromTo(text) => {
                let (first, last) = text.split_once('-')?;
                let bounds = (first.parse().ok()?, last.parse().ok()?);
                // A number may also begin with a sign. What is written has none, and ends behind its
                // beginning.
                (bounds.0 <= bounds.1 && !text.contains('+')).then_some(bounds)
            }
        }
    }
}

fn runs(ports: &BTreeSet<u16>) -> Vec<Run> {
    let mut found: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match found.last_mut() {
            Some((_, last)) if *last + 1 == *port => *last = *port,
            _ => found.push((*port, *port)),
        }
    }
    let written = |(first, last): (u16, u16)| match last - first {
        0 => vec![Run::One(first)],
        1 => vec![Run::One(first), Run::One(last)],
        _ => vec![Run::FromTo(format!("{first}-{last}"))],
    };
    found.into_iter().flat_map(written).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Holder(#[serde(with = "super")] BTreeSet<u16>);

    #[test]
    fn three_in_a_row_are_a_run_and_what_is_written_is_read() {
        for (ports, text) in [
            (vec![], "[]"),
            (vec![25], "[25]"),
            (vec![15020, 15021, 15090], "[15020,15021,15090]"),
            (vec![1, 2, 3, 5, 65533, 65534, 65535], r#"["1-3",5,"65533-65535"]"#),
            ((0..=65535).collect(), r#"["0-65535"]"#),
        ] {
            let ports = Holder(ports.into_iter().collect());
            assert_eq!(serde_json::to_string(&ports).unwrap(), text);
            assert_eq!(serde_json::from_str::<Holder>(text).unwrap(), ports);
        }
    }

    #[test]
    fn what_is_no_run_is_an_error() {
        for bad in [
            r#"["1"]"#,
            r#"["1-"]"#,
            r#"["1-70000"]"#,
            r#"[70000]"#,
            r#"["a-b"]"#,
            r#"["+1-3"]"#,
            r#"["1-+3"]"#,
            r#"["3-1"]"#,
        ] {
            assert!(serde_json::from_str::<Holder>(bad).is_err(), "{bad}");
        }
    }
}
