//! Log lines, in the form in which container runtimes write them: `TIME STREAM F|P TEXT`.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use tokio::io::AsyncBufRead;
use tokio::time::timeout;
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, FramedRead};

use crate::provider::{LogLine, LogOptions, LogSource, LogStream, ProviderError};

/// A longer line is none of a program's.
const MAX_LINE: usize = 1 << 20;
/// How long the next line may take when there is nothing to wait for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The lines of an answer.
pub(super) fn lines(body: Pin<Box<dyn AsyncBufRead + Send>>, options: &LogOptions) -> LogStream {
    let patience = if options.follow { Duration::MAX } else { PATIENCE };
    let since = options.since;
    let parts = FramedRead::new(body, AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), Vec::new(), MAX_LINE));
    let lines = stream::unfold(Some(parts), move |parts| async move {
        let mut parts = parts?;
        let next = timeout(patience, parts.next()).await;
        let failed = |message: String| Some((Err(ProviderError::unavailable(message)), None));
        match next {
            Ok(None) => None,
            Ok(Some(Ok(text))) => Some((Ok(line(text)), Some(parts))),
            Ok(Some(Err(AnyDelimiterCodecError::MaxChunkLengthExceeded))) => {
                failed(format!("a line of the log is longer than {MAX_LINE} bytes"))
            }
            Ok(Some(Err(error))) => failed(format!("reading a log: {error}")),
            Err(_) => failed(format!("reading a log: nothing more came for {} s", PATIENCE.as_secs())),
        }
    });
    let wanted = move |line: &LogLine| since.is_none_or(|since| line.time >= since);
    lines.filter(move |line| std::future::ready(line.as_ref().map_or(true, wanted))).boxed()
}

/// A line, as it is when it is none of this form.
fn line(text: Bytes) -> LogLine {
    let parsed = (|| {
        let mut parts = text.splitn(4, |b| *b == b' ');
        let time: Timestamp = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let source = match parts.next()? {
            b"stdout" => LogSource::Stdout,
            b"stderr" => LogSource::Stderr,
            _ => return None,
        };
        let whole = match parts.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        let rest = parts.next()?;
        let mut out = BytesMut::with_capacity(rest.len() + 1);
        out.extend_from_slice(rest);
        if whole {
            out.extend_from_slice(b"\n");
        }
        Some(LogLine { time, source, text: out.freeze() })
    })();
    parsed.unwrap_or_else(|| {
        let whole = [&text[..], b"\n"].concat();
        LogLine { time: Timestamp::now(), source: LogSource::Stdout, text: whole.into() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_taken_apart_and_too_long_ones_end_the_log() {
        let text = b"2026-01-01T00:00:00.5Z stdout F hello  there\n2026-01-01T00:00:01Z stderr P half\n\
            2026-01-01T00:00:02Z stdout F \nnot of this form\n";
        let read = |options: &LogOptions, text: Vec<u8>| {
            lines(Box::pin(std::io::Cursor::new(text)), options).collect::<Vec<_>>()
        };
        let all = read(&LogOptions::default(), text.to_vec()).await;
        let all: Vec<_> = all.into_iter().map(|l| l.unwrap()).map(|l| (l.source, l.text)).collect();
        assert_eq!(
            all,
            [
                (LogSource::Stdout, "hello  there\n".into()),
                (LogSource::Stderr, "half".into()),
                (LogSource::Stdout, "\n".into()),
                (LogSource::Stdout, "not of this form\n".into()),
            ]
        );
        let late = LogOptions { since: "2026-01-01T00:00:01Z".parse().ok(), ..LogOptions::default() };
        assert_eq!(read(&late, text.to_vec()).await.len(), 3);
        let endless = read(&LogOptions::default(), vec![b'x'; 3 << 20]).await;
        assert!(endless.len() == 1 && endless[0].is_err());
    }
}
