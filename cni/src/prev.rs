//! `prevResult`: looked at for the pod's addresses, and passed on byte for byte.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::value::RawValue;

use crate::conf::Conf;
use crate::error::Error;
use crate::version::Version;

/// What the plugins before this one made of the pod.
#[derive(Debug)]
pub(crate) struct PrevResult<'a> {
    raw: Option<&'a RawValue>,
    version: Version,
    /// The pod's addresses, the preferred ones first.
    pub(crate) addresses: Vec<IpAddr>,
}

impl<'a> PrevResult<'a> {
    /// Reads the key; absent is fine, for a plugin that runs alone.
    pub(crate) fn read(conf: &'a Conf) -> Result<PrevResult<'a>, Error> {
        let raw = conf.prev_result();
        let addresses = raw.map(addresses).transpose()?.unwrap_or_default();
        Ok(PrevResult { raw, version: conf.version, addresses })
    }

    /// The result of this plugin: the one before it, or an empty one.
    pub(crate) fn pass_on(&self) -> String {
        let empty = || {
            let version = self.version.name();
            format!(r#"{{"cniVersion":"{version}","interfaces":[],"ips":[],"routes":[],"dns":{{}}}}"#)
        };
        self.raw.map_or_else(empty, |raw| raw.get().to_owned())
    }
}

fn addresses(raw: &RawValue) -> Result<Vec<IpAddr>, Error> {
    let result: BTreeMap<String, Box<RawValue>> = part("prevResult".to_owned(), raw)?;
    let ips: Option<Vec<BTreeMap<String, Box<RawValue>>>> =
        result.get("ips").map(|ips| part("prevResult.ips".to_owned(), ips)).transpose()?.flatten();
    let address = |(index, ip): (usize, BTreeMap<String, Box<RawValue>>)| {
        let what = format!("prevResult.ips[{index}].address");
        match ip.get("address") {
            Some(raw) => part::<IpNet>(what, raw).map(|net| net.addr()),
            None => Err(Error::Decode { what, problem: "is missing".to_owned() }),
        }
    };
    ips.unwrap_or_default().into_iter().enumerate().map(address).collect()
}

fn part<T: serde::de::DeserializeOwned>(what: String, raw: &RawValue) -> Result<T, Error> {
    serde_json::from_str(raw.get()).map_err(|error| Error::Decode { what, problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(prev_result: &str) -> Conf {
        Conf::read(format!(r#"{{"cniVersion":"0.4.0","prevResult":{prev_result}}}"#).as_bytes()).unwrap()
    }

    #[test]
    fn it_is_passed_on_byte_for_byte() {
        let text = "{ \"z\":1.50, \"a\":12345678901234567890123,\n \"ips\":[{\"address\":\"10.1.0.5/16\"},{\"address\":\
                    \"fd00::5/64\",\"interface\":2}], \"z\": 1e400, \"\\u00e9\":\"\\/\"}";
        let conf = conf(text);
        let prev = PrevResult::read(&conf).unwrap();
        assert_eq!(prev.pass_on(), text);
        let expected: Vec<IpAddr> = vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        assert_eq!(prev.addresses, expected);
    }

    #[test]
    fn without_one_the_result_is_empty_and_of_the_confs_version() {
        for conf in [conf("null"), Conf::read(br#"{"cniVersion":"0.4.0"}"#).unwrap()] {
            let text = PrevResult::read(&conf).unwrap().pass_on();
            assert_eq!(text, r#"{"cniVersion":"0.4.0","interfaces":[],"ips":[],"routes":[],"dns":{}}"#);
        }
    }

    #[test]
    fn what_is_no_result_is_refused_by_name() {
        for (text, part) in [
            ("[]", "prevResult:"),
            ("5", "prevResult:"),
            (r#"{"ips":{}}"#, "prevResult.ips:"),
            (r#"{"ips":["10.0.0.1/8"]}"#, "prevResult.ips:"),
            (r#"{"ips":[{}]}"#, "prevResult.ips[0].address"),
            (r#"{"ips":[{"address":"10.0.0.1/8"},{"address":"10.0.0.1"}]}"#, "prevResult.ips[1].address"),
            (r#"{"ips":[{"address":7}]}"#, "prevResult.ips[0].address"),
        ] {
            let text = PrevResult::read(&conf(text)).unwrap_err().to_string();
            assert!(text.starts_with(part), "{text}");
        }
    }
}
