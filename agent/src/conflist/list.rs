//! A network configuration as text: whether a runtime would take it, and the same text with our entry or
//! without.
//!
//! Only the bytes of the entry change. Order, numbers, blanks and keys that are not known here stay as
//! somebody else wrote them, and taking the entry out again gives the text from before.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use thiserror::Error;

/// The type of our entry, which is the plugin's file name.
pub const TYPE: &str = "redirect-cni";

/// Why a runtime skips a file.
#[derive(Debug, Error)]
pub enum Invalid {
    /// Not JSON, or a key has the wrong type.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A key is missing.
    #[error("{0} is missing or empty")]
    Missing(&'static str),
}

/// A configuration that a runtime would take.
#[derive(Debug)]
pub struct Conf<'a> {
    text: &'a str,
    /// The network's name: `host-local` keeps its addresses under it.
    pub name: Cow<'a, str>,
    /// `cniVersion`, which stays what it is.
    pub version: Option<Cow<'a, str>>,
    /// The plugins of a list; none where the file is one plugin's configuration (`.conf`).
    plugins: Option<Plugins>,
}

#[derive(Debug)]
struct Plugins {
    /// Between the brackets.
    inner: Range<usize>,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    place: Range<usize>,
    ours: bool,
}

#[derive(Deserialize)]
struct Keys<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "cniVersion")]
    version: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    plugins: Option<&'a RawValue>,
}

impl<'a> Conf<'a> {
    /// Reads a `.conflist`.
    ///
    /// # Errors
    /// A runtime would skip it.
    pub fn list(text: &'a str) -> Result<Conf<'a>, Invalid> {
        let keys: Keys<'a> = serde_json::from_str(text)?;
        let name = keys.name.filter(|name| !name.is_empty()).ok_or(Invalid::Missing("name"))?;
        let plugins = keys.plugins.ok_or(Invalid::Missing("plugins"))?;
        let outer = place(text, plugins.get());
        let mut entries = Vec::new();
        for entry in serde_json::from_str::<Vec<&RawValue>>(&text[outer.clone()])? {
            let keys: Keys<'_> = serde_json::from_str(entry.get())?;
            let kind =
                keys.kind.filter(|kind| !kind.is_empty()).ok_or(Invalid::Missing("a plugin's type"))?;
            entries.push(Entry { place: place(text, entry.get()), ours: kind == TYPE });
        }
        if entries.is_empty() {
            return Err(Invalid::Missing("plugins"));
        }
        let plugins = Plugins { inner: outer.start + 1..outer.end - 1, entries };
        Ok(Conf { text, name, version: keys.version, plugins: Some(plugins) })
    }

    /// Reads a `.conf`: one plugin.
    ///
    /// # Errors
    /// A runtime would skip it.
    pub fn single(text: &'a str) -> Result<Conf<'a>, Invalid> {
        let keys: Keys<'a> = serde_json::from_str(text)?;
        keys.kind.filter(|kind| !kind.is_empty()).ok_or(Invalid::Missing("type"))?;
        let name = keys.name.filter(|name| !name.is_empty()).ok_or(Invalid::Missing("name"))?;
        Ok(Conf { text, name, version: keys.version, plugins: None })
    }

    /// Whether it is a list.
    #[must_use]
    pub fn is_list(&self) -> bool {
        self.plugins.is_some()
    }

    /// Whether an entry of ours is in it.
    #[must_use]
    pub fn has_entry(&self) -> bool {
        self.plugins.as_ref().is_some_and(|plugins| plugins.entries.iter().any(|entry| entry.ours))
    }

    /// Whether nothing but entries of ours is in it.
    #[must_use]
    pub fn is_ours_alone(&self) -> bool {
        self.plugins.as_ref().is_some_and(|plugins| plugins.entries.iter().all(|entry| entry.ours))
    }

    /// The list with `entry` as its last and only one of ours; a single plugin becomes a list of the same
    /// name and version. `None` when it is so already.
    #[must_use]
    pub fn with_entry(&self, entry: &str) -> Option<String> {
        let Some(plugins) = &self.plugins else { return Some(self.converted(entry)) };
        let ours = plugins.entries.iter().filter(|known| known.ours).count();
        let last = plugins.entries.last().filter(|last| last.ours && ours == 1);
        if last.is_some_and(|last| same(&self.text[last.place.clone()], entry)) {
            return None;
        }
        Some(self.rebuilt(plugins, Some(entry)))
    }

    /// The list without entries of ours; `None` when there is none in it.
    #[must_use]
    pub fn without_entry(&self) -> Option<String> {
        let plugins = self.plugins.as_ref().filter(|_| self.has_entry())?;
        Some(self.rebuilt(plugins, None))
    }

    fn rebuilt(&self, plugins: &Plugins, entry: Option<&str>) -> String {
        let (inner, entries) = (&plugins.inner, &plugins.entries);
        let lead = &self.text[inner.start..entries[0].place.start];
        let end = entries[entries.len() - 1].place.end;
        let mut text = self.text[..inner.start].to_owned();
        let mut first = true;
        for (index, kept) in entries.iter().enumerate().filter(|(_, entry)| !entry.ours) {
            let before =
                if first { lead } else { &self.text[entries[index - 1].place.end..kept.place.start] };
            text += before;
            text += &self.text[kept.place.clone()];
            first = false;
        }
        if let Some(entry) = entry {
            text += if first { "" } else { "," };
            text += lead;
            text += entry;
        }
        text + &self.text[end..]
    }

    fn converted(&self, entry: &str) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let version =
            self.version.as_ref().map(|version| format!("\"cniVersion\": {},\n  ", quoted(version)));
        let indented = self.text.trim().replace('\n', "\n    ");
        format!(
            "{{\n  {}\"name\": {},\n  \"plugins\": [\n    {indented},\n    {entry}\n  ]\n}}\n",
            version.unwrap_or_default(),
            quoted(&self.name)
        )
    }
}

/// Where a part that was borrowed from a text is in it.
fn place(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - text.as_ptr() as usize;
    start..start + part.len()
}

fn same(one: &str, other: &str) -> bool {
    let read = |text: &str| serde_json::from_str::<Value>(text).ok();
    read(one) == read(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"{"type":"redirect-cni","capabilities":{"cgroupPath":true}}"#;
    const LIST: &str = "{\n  \"name\": \"k8s-pod-network\", \"cniVersion\": \"0.3.1\",\n  \"zeta\": 1.50, \"plugins\": \
                        [\n    { \"type\": \"calico\", \"mtu\": 12345678901234567890 },\n    {\"type\":\"portmap\"}\n  ],\n  \
                        \"disableCheck\": true\n}\n";

    #[test]
    fn the_entry_is_last_and_everything_else_is_as_it_was() {
        let with = Conf::list(LIST).unwrap().with_entry(ENTRY).unwrap();
        let expected =
            LIST.replace("{\"type\":\"portmap\"}", &format!("{{\"type\":\"portmap\"}},\n    {ENTRY}"));
        assert_eq!(with, expected);
        let conf = Conf::list(&with).unwrap();
        assert!(conf.with_entry(ENTRY).is_none(), "a second time there is nothing to do");
        assert_eq!(conf.without_entry().unwrap(), LIST, "the bytes from before");
        assert!(Conf::list(LIST).unwrap().without_entry().is_none());
        assert_eq!((conf.name.as_ref(), conf.version.as_deref()), ("k8s-pod-network", Some("0.3.1")));
    }

    #[test]
    fn duplicates_old_entries_and_wrong_places_are_put_right() {
        let old = r#"{"type":"redirect-cni"}"#;
        for plugins in [
            format!(r#"{old},{{"type":"a"}},{{"type":"b"}}"#),
            format!(r#"{{"type":"a"}},{old},{{"type":"b"}}"#),
            format!(r#"{{"type":"a"}},{old}, {old} ,{{"type":"b"}},{ENTRY}"#),
            format!(r#"{ENTRY},{old},{{"type":"a"}},{{"type":"b"}},{old}"#),
        ] {
            let text = format!(r#"{{"name":"n","plugins":[{plugins}]}}"#);
            let conf = Conf::list(&text).unwrap();
            let expected = format!(r#"{{"name":"n","plugins":[{{"type":"a"}},{{"type":"b"}},{ENTRY}]}}"#);
            let squeezed = |text: String| text.replace(' ', "");
            assert_eq!(squeezed(conf.with_entry(ENTRY).unwrap()), expected, "{text}");
            let without = r#"{"name":"n","plugins":[{"type":"a"},{"type":"b"}]}"#;
            assert_eq!(squeezed(conf.without_entry().unwrap()), without, "{text}");
        }
    }

    #[test]
    fn an_entry_with_other_keys_is_brought_to_ours_and_order_is_no_difference() {
        let other = r#"{"name":"n","plugins":[{"type":"a"},{"capabilities":{"cgroupPath":true},"type":"redirect-cni"}]}"#;
        assert!(Conf::list(other).unwrap().with_entry(ENTRY).is_none());
        let other = r#"{"name":"n","plugins":[{"type":"a"},{"type":"redirect-cni"}]}"#;
        assert!(Conf::list(other).unwrap().with_entry(ENTRY).is_some());
    }

    #[test]
    fn a_single_plugin_becomes_a_list_of_its_name_and_version() {
        let single =
            "{\n  \"cniVersion\": \"0.4.0\",\n  \"name\": \"pod \\\"net\\\"\",\n  \"type\": \"bridge\"\n}\n";
        let text = Conf::single(single).unwrap().with_entry(ENTRY).unwrap();
        let conf = Conf::list(&text).unwrap();
        assert_eq!((conf.name.as_ref(), conf.version.as_deref()), ("pod \"net\"", Some("0.4.0")));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["plugins"][0]["type"], "bridge");
        assert_eq!(value["plugins"][1]["type"], TYPE);
        let unversioned = Conf::single(r#"{"name":"n","type":"bridge"}"#).unwrap().with_entry(ENTRY).unwrap();
        assert!(Conf::list(&unversioned).unwrap().version.is_none());
    }

    #[test]
    fn what_a_runtime_skips_is_not_touched() {
        for (text, part) in [
            ("{", "EOF"),
            ("[]", ""),
            (r#"{"plugins":[{"type":"a"}]}"#, "name"),
            (r#"{"name":"","plugins":[{"type":"a"}]}"#, "name"),
            (r#"{"name":"n"}"#, "plugins"),
            (r#"{"name":"n","plugins":[]}"#, "plugins"),
            (r#"{"name":"n","plugins":{}}"#, ""),
            (r#"{"name":"n","plugins":[{"x":1}]}"#, "type"),
            (r#"{"name":7,"plugins":[{"type":"a"}]}"#, ""),
            (r#"{"name":"n","cniVersion":1,"plugins":[{"type":"a"}]}"#, ""),
        ] {
            let error = Conf::list(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(Conf::single(r#"{"name":"n","plugins":[{"type":"a"}]}"#).is_err());
        assert!(Conf::single(r#"{"type":"a"}"#).is_err());
        assert!(Conf::list(r#"{"name":"n","plugins":[{"type":"a"}]}"#).is_ok(), "a version is not required");
    }
}
