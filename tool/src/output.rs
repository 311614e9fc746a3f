//! Printing, and finding the attachment that a user means.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Result, bail};
use clap::ValueEnum;
use redirect_user::attach::record::Attachment;
use redirect_user::inspect;
use redirect_user::node::Node;
use serde::Serialize;

/// What `--output` may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs: one JSON value, or one per line where records keep coming.
    Json,
    /// `verify`: for a CI system.
    Junit,
    /// `doctor`: only what is not as it should be.
    Short,
    /// `trace`: one line of fixed columns.
    Compact,
}

impl Format {
    /// For a command that knows text and JSON only.
    pub(crate) fn plain(self) -> Result<Output> {
        match self {
            Format::Text => Ok(Output::Text),
            Format::Json => Ok(Output::Json),
            Format::Junit => bail!("--output junit is for `redirect verify`; here there are text and json"),
            Format::Short => bail!("--output short is for `redirect doctor`; here there are text and json"),
            Format::Compact => {
                bail!("--output compact is for `redirect trace`; here there are text and json")
            }
        }
    }
}

/// How most commands print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs: one JSON value, or one per line where records keep coming.
    Json,
}

/// A colour of a terminal, by its number in ECMA-48.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
    Grey = 90,
}

/// Whether colours are wanted: on a terminal, unless NO_COLOR is set.
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Text in a colour, where that is wanted.
pub(crate) fn painted(text: &str, colour: Colour, wanted: bool) -> String {
    if wanted { format!("\x1b[{}m{text}\x1b[0m", colour as u8) } else { text.to_owned() }
}

/// Prints one JSON value.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    Ok(writeln!(out)?)
}

/// Prints columns, each as wide as its widest cell.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> Result<()> {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = io::stdout().lock();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| -> io::Result<()> {
        let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", padded.join("  ").trim_end())
    };
    line(&mut header.iter().copied())?;
    for row in rows {
        line(&mut row.iter().map(String::as_str))?;
    }
    Ok(())
}

/// An error with its causes, each told once: our errors tell their cause themselves, others do not.
pub(crate) fn causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The attachments of the container with this id, of the one whose id begins with it, or of the pod that
/// `namespace/name` names.
pub(crate) fn resolve(node: &Node, id: &str) -> Result<Vec<Attachment>> {
    let exact = inspect::find(node, id)?;
    if !exact.is_empty() {
        return Ok(exact);
    }
    let mut found = inspect::list(node)?;
    if let Some((namespace, name)) = id.split_once('/') {
        // A pod may have an old sandbox beside its new one: both are meant.
        found.retain(|attachment| {
            attachment.pod.as_ref().is_some_and(|pod| pod.namespace == namespace && pod.name == name)
        });
        if found.is_empty() {
            bail!("no attached pod is called {id:?}; `redirect list` shows them all");
        }
        return Ok(found);
    }
    found.retain(|attachment| attachment.id.container_id.starts_with(id));
    let Some(first) = found.first().map(|attachment| attachment.id.container_id.clone()) else {
        bail!("no attached container has an id that begins with {id:?}; `redirect list` shows them all");
    };
    if found.iter().any(|attachment| attachment.id.container_id != first) {
        bail!("more than one container has an id that begins with {id:?}; give more of it");
    }
    Ok(found)
}

/// The attachments that an optional id means: one container's, or all.
pub(crate) fn resolve_all(node: &Node, id: Option<&str>) -> Result<Vec<Attachment>> {
    match id {
        Some(id) => resolve(node, id),
        None => Ok(inspect::list(node)?),
    }
}

/// `namespace/name`, or the container id where the pod is not known.
pub(crate) fn pod_name(attachment: &Attachment) -> String {
    match &attachment.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => "-".into(),
    }
}

/// What to call an attachment: its pod, or the container where the pod is not known.
pub(crate) fn name(attachment: &Attachment) -> String {
    match &attachment.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => format!("container {}", attachment.id.container_id),
    }
}
