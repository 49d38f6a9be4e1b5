//! A command in a container, its output kept up to a limit.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use super::{SHOWN, shorten};
use crate::provider::runtime::engine::{ContainerRef, Engine};
use crate::provider::{Result, SessionIo};

/// Keeps the beginning of what is written and swallows the rest.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl AsyncWrite for Kept {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = SHOWN.saturating_sub(kept.len());
        kept.extend_from_slice(&data[..data.len().min(room)]);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Its exit code, and what it wrote to either stream.
pub(super) async fn run(engine: &dyn Engine, container: &ContainerRef, command: &[String]) -> Result<(i32, String)> {
    let kept = Kept::default();
    let io = SessionIo {
        stdin: None,
        stdout: Some(Box::pin(kept.clone())),
        stderr: Some(Box::pin(kept.clone())),
        tty: false,
        resize: None,
    };
    let status = engine.exec(container, command, io).await?;
    let text = shorten(&kept.0.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((status.code, text))
}
