//! The screen: pods above, programs below.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Row, Table};

use super::sample::{COLUMNS, Sample};

/// Two moments, and which pod is the first one shown.
pub(super) struct View<'a> {
    pub(super) now: &'a Sample,
    pub(super) before: &'a Sample,
    pub(super) first: usize,
}

/// The first of the columns that are bad news.
const BAD: usize = 4;

impl View<'_> {
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let programs = self.now.programs.len() as u16 + 3;
        let rows =
            [Constraint::Length(1), Constraint::Min(5), Constraint::Length(programs), Constraint::Length(1)];
        let [head, pods, below, foot] = Layout::vertical(rows).areas(frame.area());
        frame.render_widget(self.head(), head);
        frame.render_widget(self.pods(), pods);
        frame.render_widget(self.programs(), below);
        frame.render_widget(
            Line::from(" q quits, arrows scroll; connections a second, since ADD in brackets").dim(),
            foot,
        );
    }

    fn seconds(&self) -> f64 {
        self.now.at.duration_since(self.before.at).as_secs_f64().max(0.001)
    }

    fn head(&self) -> Line<'static> {
        let sums = |column: usize| self.now.pods.values().map(|(_, sums)| sums[column]).sum::<u64>();
        let bad: u64 = sums(BAD) + sums(BAD + 1);
        let text = format!(" {} pods", self.now.pods.len());
        let style = if bad > 0 { Style::new().fg(Color::Red).bold() } else { Style::new().fg(Color::Green) };
        Line::from(vec![
            Span::raw(text).bold(),
            Span::raw(", "),
            Span::styled(format!("{bad} refused or dropped"), style),
        ])
    }

    fn pods(&self) -> Table<'static> {
        let names = COLUMNS.iter().map(|(name, _)| Cell::from(format!("{name:>16}")));
        let header = Row::new([Cell::from("POD")].into_iter().chain(names))
            .style(Style::new().add_modifier(Modifier::BOLD));
        let rows: Vec<_> = self
            .now
            .pods
            .iter()
            .skip(self.first)
            .map(|(cookie, (name, sums))| {
                let before = self.before.pods.get(cookie).map_or(*sums, |(_, sums)| *sums);
                let cells = sums.iter().zip(before).enumerate().map(|(column, (now, before))| {
                    let rate = (now.saturating_sub(before)) as f64 / self.seconds();
                    let style = match (column >= BAD, *now, rate > 0.0) {
                        (true, 1.., true) => Style::new().fg(Color::Red).bold(),
                        (true, 1.., false) => Style::new().fg(Color::Red),
                        (_, _, true) => Style::new().fg(Color::Green),
                        _ => Style::new().add_modifier(Modifier::DIM),
                    };
                    Cell::from(format!("{:>16}", format!("{rate:.0} ({now})"))).style(style)
                });
                Row::new([Cell::from(name.clone())].into_iter().chain(cells))
            })
            .collect();
        let widths = [Constraint::Min(20)].into_iter().chain([Constraint::Length(16); COLUMNS.len()]);
        Table::new(rows, widths).header(header).block(Block::bordered().title(" pods "))
    }

    fn programs(&self) -> Table<'static> {
        let header = Row::new(["PROGRAM", "  RUNS/S", " NS/RUN", "  % OF A CPU"])
            .style(Style::new().add_modifier(Modifier::BOLD));
        let rows: Vec<_> = self
            .now
            .programs
            .iter()
            .map(|(name, now)| {
                let before =
                    self.before.programs.iter().find(|(other, _)| other == name).map(|(_, runs)| *runs);
                let before = before.unwrap_or(*now);
                let runs = now.count.saturating_sub(before.count);
                let time = now.time.saturating_sub(before.time);
                let each = (time.as_nanos() as u64).checked_div(runs);
                let share = 100.0 * time.as_secs_f64() / self.seconds();
                let style = if runs == 0 { Style::new().add_modifier(Modifier::DIM) } else { Style::new() };
                Row::new([
                    (*name).to_owned(),
                    format!("{:>8.0}", runs as f64 / self.seconds()),
                    each.map_or(format!("{:>7}", "-"), |each| format!("{each:>7}")),
                    format!("{share:>12.3}"),
                ])
                .style(style)
            })
            .collect();
        let widths =
            [Constraint::Length(20), Constraint::Length(10), Constraint::Length(9), Constraint::Length(14)];
        Table::new(rows, widths).header(header).block(Block::bordered().title(" programs "))
    }
}
