//! A connection to a port of a device, which keeps what it goes through.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use russh::{ChannelStream, client};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::device::Lease;

/// The stream is dropped first: it is closed before its connection is given to another.
pub(super) struct Forward {
    stream: ChannelStream<client::Msg>,
    _lease: Lease,
}

impl Forward {
    pub fn new(stream: ChannelStream<client::Msg>, lease: Lease) -> Self {
        Self { stream, _lease: lease }
    }
}

impl AsyncRead for Forward {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Forward {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
