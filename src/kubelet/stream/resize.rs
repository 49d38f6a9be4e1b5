//! A terminal's sizes, which clients send as JSON objects one after another.

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use crate::provider::TerminalSize;

/// Longer than any size.
const MAX_OBJECT: usize = 4096;

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

/// The last whole size at the start of `buffer`, and how many bytes were read.
///
/// # Errors
/// None can be read any more.
fn last_size(buffer: &[u8]) -> Result<(Option<TerminalSize>, usize), serde_json::Error> {
    let mut sizes = serde_json::Deserializer::from_slice(buffer).into_iter::<Size>();
    let (mut last, mut end) = (None, 0);
    loop {
        match sizes.next() {
            Some(Ok(size)) => {
                last = Some(TerminalSize { width: size.width, height: size.height });
                end = sizes.byte_offset();
            }
            Some(Err(error)) if error.is_eof() => return Ok((last, end)),
            Some(Err(error)) => return Err(error),
            None => return Ok((last, buffer.len())),
        }
    }
}

/// Passes sizes on until the client sends no more or nonsense. A provider that is busy gets the latest.
pub(super) async fn follow(mut from: impl AsyncRead + Unpin, to: mpsc::Sender<TerminalSize>) {
    let mut buffer = Vec::new();
    let mut latest = None;
    loop {
        tokio::select! {
            read = from.read_buf(&mut buffer) => {
                if !matches!(read, Ok(n) if n > 0) {
                    break;
                }
                match last_size(&buffer) {
                    Ok((size, end)) => {
                        latest = size.or(latest);
                        buffer.drain(..end);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a terminal's size cannot be read");
                        break;
                    }
                }
                if buffer.len() > MAX_OBJECT {
                    break;
                }
            }
            permit = to.reserve(), if latest.is_some() => match (permit, latest.take()) {
                (Ok(permit), Some(size)) => permit.send(size),
                _ => break,
            },
        }
    }
    if let Some(size) = latest {
        // Nobody may be left to hear it.
        let _ = to.send(size).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sizes_arrive_in_any_pieces_and_the_last_one_counts() {
        let (tx, mut rx) = mpsc::channel(1);
        let text: &[u8] = br#"{"Width":80,"Height":24}
{"Width":1,"Height":2}{"Width":132,"Height":43}"#;
        let one_by_one = tokio_test_reader(text);
        let sizes = tokio::spawn(async move {
            let mut all = Vec::new();
            while let Some(size) = rx.recv().await {
                all.push(size);
            }
            all
        });
        follow(one_by_one, tx).await;
        assert_eq!(sizes.await.unwrap().last(), Some(&TerminalSize { width: 132, height: 43 }));
    }

    fn tokio_test_reader(text: &'static [u8]) -> impl AsyncRead + Unpin {
        let (mut a, b) = tokio::io::duplex(1);
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            let _ = a.write_all(text).await;
        });
        b
    }

    #[tokio::test]
    async fn nonsense_and_endless_objects_end_it() {
        for text in [&b"hello"[..], br#"{"Width":70000,"Height":1}"#, br#"[1"#] {
            let (tx, mut rx) = mpsc::channel(1);
            follow(text, tx).await;
            assert_eq!(rx.recv().await, None);
        }
        let endless = format!("{{\"Width\":{}", " ".repeat(MAX_OBJECT * 2));
        let (tx, _rx) = mpsc::channel(1);
        follow(endless.as_bytes(), tx).await;
    }
}
