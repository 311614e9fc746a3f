//! Pages for a browser: one file each, without anything from the network. [`pod`] draws the well-known
//! picture of interception for one pod, [`mesh`] which pods talk to which addresses.

#[cfg(test)]
mod hostile;
pub(crate) mod mesh;
pub(crate) mod picture;
pub(crate) mod pod;

use std::path::Path;

use anyhow::{Context as _, Result};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use redirect_user::printable::printable;

/// Light and dark, readable without a mouse, nothing that moves.
const STYLE: &str = include_str!("page/style.css");

/// A whole page. With `every`, the browser reads the file again after so many seconds. maud escapes what
/// would be markup; control characters in names are written out here, so that they turn or hide nothing.
pub(crate) fn page(title: &str, every: Option<u64>, body: &Markup) -> Markup {
    let (title, body) = (printable(title), PreEscaped(printable(&body.0)));
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if let Some(seconds) = every { meta http-equiv="refresh" content=(seconds); }
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#tables" { "Skip the picture" }
                main { h1 { (title) } (body) }
                footer { "redirect " (env!("CARGO_PKG_VERSION")) ", written " (moment()) }
            }
        }
    }
}

/// Now, in UTC, as `2026-01-31 12:00:00 UTC`.
fn moment() -> String {
    let seconds =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days as i64);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The date of a day since 1970: the calendar's eras of 400 years have 146,097 days each.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Writes a page in one step: a browser that reads it again never sees half of it.
pub(crate) fn write(file: &Path, page: &Markup) -> Result<()> {
    let mut name = file.file_name().context("the file has no name")?.to_owned();
    name.push(".new");
    let unfinished = file.with_file_name(name);
    std::fs::write(&unfinished, &page.0).with_context(|| format!("cannot write {}", unfinished.display()))?;
    std::fs::rename(&unfinished, file).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::civil;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_483), (2026, 1, 30));
    }
}
