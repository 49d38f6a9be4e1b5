//! Small files, read with a limit and written as a whole.

use std::io;
use std::path::Path;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::provider::{ProviderError, Result};

/// kubelet: `MaxContainerTerminationMessageLength`.
pub(crate) const MESSAGE_LIMIT: u64 = 4096;

/// The beginning of a file; nothing when there is no such file.
pub(crate) async fn read_at_most(file: &Path, limit: u64) -> Result<Bytes> {
    let read = async {
        let mut text = Vec::new();
        tokio::fs::File::open(file).await?.take(limit).read_to_end(&mut text).await?;
        Ok::<_, io::Error>(Bytes::from(text))
    };
    match read.await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Bytes::new()),
        other => other.map_err(|e| failed("reading", file, e)),
    }
}

/// Writes a file for its owner alone, so that a reader sees the old content or the new.
pub(crate) async fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    let part = file.with_extension("part");
    let mut options = tokio::fs::OpenOptions::new();
    let mut open = options.write(true).create(true).truncate(true).mode(0o600).open(&part).await?;
    open.write_all(content).await?;
    open.flush().await?;
    drop(open);
    tokio::fs::rename(&part, file).await
}

/// A provider's error for a file operation that failed: nothing is concluded from it.
pub(crate) fn failed(doing: &str, file: &Path, error: io::Error) -> ProviderError {
    ProviderError::Unavailable {
        message: format!("{doing} {}: {error}", file.display()),
        retry_after: None,
        source: Some(Box::new(error)),
    }
}
