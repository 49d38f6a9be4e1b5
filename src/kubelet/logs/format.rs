//! Log lines as a client gets them.

use std::fmt::Write;

use bytes::{BufMut, BytesMut};

use super::query::{LogQuery, Source};
use crate::provider::{LogLine, LogSource};

/// Writes lines with their times, up to the limit.
#[derive(Debug)]
pub(super) struct Format {
    timestamps: bool,
    source: Option<LogSource>,
    remaining: Option<u64>,
    at_line_start: bool,
}

impl Format {
    pub(super) fn new(query: &LogQuery) -> Self {
        Self { timestamps: query.timestamps, source: query.source.map(of), remaining: query.limit, at_line_start: true }
    }

    /// Appends a line; false once the limit is reached. The limit counts times too, and may cut a line.
    pub(super) fn write(&mut self, line: &LogLine, out: &mut BytesMut) -> bool {
        if self.source.is_some_and(|s| s != line.source) {
            return true;
        }
        let before = out.len();
        // The rest of a line that came in pieces has no time of its own.
        if self.timestamps && self.at_line_start {
            // Nine digits always, so that lines align and sort. Writing to memory cannot fail.
            let _ = write!(out, "{} ", line.time.strftime("%Y-%m-%dT%H:%M:%S.%9fZ"));
        }
        out.put_slice(&line.text);
        self.at_line_start = line.text.ends_with(b"\n");
        let Some(remaining) = &mut self.remaining else { return true };
        let written = (out.len() - before) as u64;
        if written >= *remaining {
            // Less than what was just written, so it fits.
            out.truncate(before + *remaining as usize);
            *remaining = 0;
            return false;
        }
        *remaining -= written;
        true
    }
}

fn of(source: Source) -> LogSource {
    match source {
        Source::Stdout => LogSource::Stdout,
        Source::Stderr => LogSource::Stderr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    #[test]
    fn lines_carry_their_times_and_end_at_the_limit() {
        let line = |nanos: i128, source, text: &'static str| LogLine {
            time: Timestamp::from_nanosecond(nanos).unwrap(),
            source,
            text: text.into(),
        };
        use LogSource::{Stderr, Stdout};
        let lines = [
            line(1_000_000_000, Stdout, "one\n"),
            line(2_000_000_001, Stderr, "t"),
            line(2_500_000_000, Stderr, "wo\n"),
            line(3_120_000_000, Stdout, "three"),
        ];
        let stamped = "1970-01-01T00:00:01.000000000Z one\n1970-01-01T00:00:02.000000001Z two\n\
                       1970-01-01T00:00:03.120000000Z three";
        for (timestamps, limit, source, want) in [
            (false, None, None, "one\ntwo\nthree"),
            (true, None, None, stamped),
            (false, Some(6), None, "one\ntw"),
            (false, Some(4), None, "one\n"),
            (false, Some(1000), None, "one\ntwo\nthree"),
            (true, Some(10), None, "1970-01-01"),
            (false, None, Some(Source::Stdout), "one\nthree"),
            (false, None, Some(Source::Stderr), "two\n"),
        ] {
            let mut format = Format::new(&LogQuery { timestamps, limit, source, ..Default::default() });
            let mut out = BytesMut::new();
            let _cut = lines.iter().try_for_each(|l| format.write(l, &mut out).then_some(()));
            assert_eq!(std::str::from_utf8(&out).unwrap(), want, "{timestamps} {limit:?} {source:?}");
        }
    }
}
