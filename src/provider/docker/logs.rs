//! A container's log, as the engine keeps it.

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptions;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use jiff::Timestamp;

use super::client::{Failed, Session};
use crate::provider::{LogLine, LogOptions, LogSource, LogStream, ProviderError, Result};

/// Opens the log of a container by its name at the engine.
pub(super) fn open(session: &Session, name: &str, options: &LogOptions) -> LogStream {
    if options.tail == Some(0) && !options.follow {
        return stream::empty().boxed();
    }
    let asked = LogsOptions {
        follow: options.follow,
        stdout: true,
        stderr: true,
        // Whole seconds, so that what is too old is left out below.
        since: options.since.and_then(|t| i32::try_from(t.as_second()).ok()).unwrap_or_default(),
        timestamps: true,
        tail: options.tail.map_or_else(|| "all".to_owned(), |n| n.to_string()),
        ..LogsOptions::default()
    };
    let since = options.since;
    lines(session.docker.logs(name, Some(asked)))
        .filter(move |line| {
            let wanted = line.as_ref().map_or(true, |l| since.is_none_or(|since| is_since(l.time, since)));
            async move { wanted }
        })
        .boxed()
}

/// Engines that write whole seconds would lose what came in the same one.
fn is_since(time: Timestamp, since: Timestamp) -> bool {
    if time.subsec_nanosecond() == 0 { time.as_second() >= since.as_second() } else { time >= since }
}

fn lines(
    parts: impl Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send + 'static,
) -> impl Stream<Item = Result<LogLine>> + Send {
    parts.filter_map(|part| async move {
        let (source, text) = match part {
            Ok(LogOutput::StdErr { message }) => (LogSource::Stderr, message),
            Ok(LogOutput::StdOut { message } | LogOutput::Console { message }) => (LogSource::Stdout, message),
            Ok(LogOutput::StdIn { .. }) => return None,
            Err(error) => return Some(Err(failed(error))),
        };
        Some(Ok(line(source, text)))
    })
}

fn failed(error: bollard::errors::Error) -> ProviderError {
    Failed::from(error).asking("reading a log")
}

/// The time stands before the text.
fn line(source: LogSource, mut text: Bytes) -> LogLine {
    let end = text.iter().position(|b| *b == b' ');
    let time = end.and_then(|end| std::str::from_utf8(&text[..end]).ok()?.parse().ok());
    if let (Some(end), Some(_)) = (end, time) {
        text = text.slice(end + 1..);
    }
    LogLine { time: time.unwrap_or_else(Timestamp::now), source, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_taken_off_the_line() {
        let read = line(LogSource::Stdout, Bytes::from_static(b"2026-11-21T08:00:00.5+01:00 a b\n"));
        assert_eq!((read.time.to_string(), &read.text[..]), ("2026-11-21T07:00:00.5Z".into(), &b"a b\n"[..]));
        let read = line(LogSource::Stdout, Bytes::from_static(b"no time\n"));
        assert_eq!(&read.text[..], b"no time\n");
        let at = |t: &str| t.parse::<Timestamp>().unwrap();
        let since = at("2026-11-21T07:00:00.5Z");
        assert!(is_since(at("2026-11-21T07:00:00Z"), since), "an engine that knows seconds only");
        assert!(!is_since(at("2026-11-21T07:00:00.4Z"), since));
    }
}
