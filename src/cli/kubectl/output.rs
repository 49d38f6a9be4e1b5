//! What is printed: tables for people, JSON and YAML for programs, colours for terminals alone.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;

/// Values of `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
    Yaml,
}

/// Colours, or none.
#[derive(Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    /// Colours when standard output is a terminal and nobody asked for none (<https://no-color.org>).
    pub(super) fn stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Self(io::stdout().is_terminal() && !unwanted)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    pub(super) fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub(super) fn careful(self, text: &str) -> String {
        self.wrap("33", text)
    }

    pub(super) fn faint(self, text: &str) -> String {
        self.wrap("2", text)
    }
}

/// Prints a value: as a program wants it, or as the function draws it for people.
pub(super) fn print<T: Serialize>(format: Format, value: &T, draw: impl FnOnce(Paint) -> String) -> Result<()> {
    match format {
        Format::Table => say(&draw(Paint::stdout())),
        Format::Json => say(&format!("{}\n", serde_json::to_string_pretty(value)?)),
        Format::Yaml => say(&serde_saphyr::to_string(value)?),
    }
}

/// How far long work is: a bar where standard error is a terminal, nothing otherwise.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// `what` has happened to none of `all` yet.
    pub(super) fn new(format: Format, all: usize, what: &str) -> Self {
        let bar = if format == Format::Table { ProgressBar::new(all as u64) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:30} {pos} of {len} {prefix}{msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(what.to_owned());
        Self(bar)
    }

    /// It has happened to `done` of `all`; `more` is said behind that.
    pub(super) fn show(&self, done: usize, all: usize, more: impl Into<String>) {
        self.0.set_length(all as u64);
        self.0.set_message(more.into());
        self.0.set_position(done as u64);
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}

/// Writes to standard output. A reader that went away, as `head` does, is no error.
pub(super) fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

/// Columns as kubectl aligns them: three spaces between, nothing at the ends of lines.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(visible(cell));
        }
    }
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    let mut out = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(visible(cell)) + 3));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// The characters of a text without its colours.
fn visible(text: &str) -> usize {
    let (mut count, mut escape) = (0, false);
    for c in text.chars() {
        match (escape, c) {
            (false, '\x1b') => escape = true,
            (true, 'm') => escape = false,
            (false, _) => count += 1,
            (true, _) => {}
        }
    }
    count
}

/// A time ago, as kubectl writes it.
pub(super) fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    let Some(since) = since else { return "<unknown>".into() };
    span(now.as_second().saturating_sub(since.as_second()).max(0))
}

/// A number of seconds in two units at most.
pub(super) fn span(seconds: i64) -> String {
    match seconds {
        s @ ..120 => format!("{s}s"),
        s @ ..600 if s % 60 != 0 => format!("{}m{}s", s / 60, s % 60),
        s @ ..10_800 => format!("{}m", s / 60),
        s @ ..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_whatever_their_colours() {
        let paint = Paint(true);
        let rows = vec![vec!["edge-0".into(), paint.good("True"), "x".into()], vec!["e".into(), "False".into()]];
        let drawn = table(&["NAME", "READY", "REASON"], &rows);
        assert_eq!(drawn, "NAME     READY   REASON\nedge-0   \x1b[32mTrue\x1b[0m    x\ne        False\n");
        assert_eq!(Paint(false).bad("x"), "x");
    }

    #[test]
    fn times_are_short() {
        for (seconds, want) in
            [(5, "5s"), (125, "2m5s"), (660, "11m"), (7200, "120m"), (90_000, "25h"), (200_000, "2d")]
        {
            assert_eq!(span(seconds), want);
        }
    }
}
