//! A container's log, as the helper keeps it: a line with the time by the device's clock since its start, a letter
//! for the stream, and one for whether the line is whole.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream};

use super::device::{Device, Lease};
use super::found::Clock;
use super::lines::{Begin, Lines, verb};
use super::script;
use crate::provider::runtime::ContainerRef;
use crate::provider::{LogLine, LogOptions, LogSource, LogStream, ProviderError, Result};

struct Log {
    lines: Lines,
    lease: Lease,
    clock: Clock,
}

/// Opens a container's log.
pub(super) async fn open(device: &Arc<Device>, container: &ContainerRef, options: &LogOptions) -> Result<LogStream> {
    let place = script::place(container)?;
    let mut lease = device.lease().await?;
    let tail = options.tail.map_or_else(|| "all".to_owned(), |n| n.to_string());
    let words = format!("logs {}/{place} {tail} {}", device.settings.node, u8::from(options.follow));
    let mut lines = Lines::open(lease.link()?, verb(&lease, &words)).await?;
    if lines.begin().await? == Begin::Gone {
        lease.keep();
        return Err(ProviderError::NotFound(format!("log of {container}")));
    }
    let clock = lines.next().await;
    let Some(clock) = clock.and_then(|line| Clock::read(&String::from_utf8_lossy(&line))) else {
        return Err(ProviderError::unavailable(format!("{container} has not been made as a whole yet")));
    };
    let since = options.since;
    let lines = stream::unfold(Log { lines, lease, clock }, |mut log| async move {
        loop {
            let Some(line) = log.lines.next().await else {
                log.lease.keep();
                return None;
            };
            if let Some(line) = parse(&log.clock, &line) {
                return Some((line, log));
            }
        }
    });
    Ok(lines.filter(move |l| std::future::ready(since.is_none_or(|since| l.time >= since))).map(Ok).boxed())
}

/// `<seconds> <o or e><F or P> <text>`
fn parse(clock: &Clock, line: &[u8]) -> Option<LogLine> {
    let mut fields = line.splitn(3, |b| *b == b' ');
    let time = clock.time(std::str::from_utf8(fields.next()?).ok()?)?;
    let (source, whole) = match fields.next()? {
        b"oF" => (LogSource::Stdout, true),
        b"oP" => (LogSource::Stdout, false),
        b"eF" => (LogSource::Stderr, true),
        b"eP" => (LogSource::Stderr, false),
        _ => return None,
    };
    let mut text = fields.next().unwrap_or_default().to_vec();
    if whole {
        text.push(b'\n');
    }
    Some(LogLine { time, source, text: Bytes::from(text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_time_and_source() {
        let clock = Clock::read("1000 5.00").unwrap();
        let read = |line: &str| parse(&clock, line.as_bytes()).map(|l| (l.time.as_millisecond(), l.source, l.text));
        assert_eq!(read("5.50 oF a  b"), Some((1500, LogSource::Stdout, Bytes::from_static(b"a  b\n"))));
        assert_eq!(read("5.50 eP $ "), Some((1500, LogSource::Stderr, Bytes::from_static(b"$ "))));
        assert_eq!(read("5.50 oF "), Some((1500, LogSource::Stdout, Bytes::from_static(b"\n"))));
        assert_eq!(read("x oF a"), None);
        assert_eq!(read("5.50 xx a"), None);
    }
}
