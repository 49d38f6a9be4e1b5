//! The TCP stream under a connection: it ends when its client stops reading, and fails on demand.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Sleep;

use super::faults::{Line, Network};

/// How long a client may take no bytes while there are some for it.
const STALLED: Duration = Duration::from_secs(60);

type Pause = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module.
pub(crate) struct Socket {
    stream: TcpStream,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
    line: Arc<Line>,
    /// There when faults may be asked for.
    network: Option<watch::Receiver<Network>>,
    pauses: [Option<Pause>; 2],
}

const READ: usize = 0;
const WRITE: usize = 1;

impl Socket {
    pub(crate) fn new(stream: TcpStream, line: Arc<Line>, network: Option<watch::Receiver<Network>>) -> Self {
        Self { stream, stalled: None, line, network, pauses: [None, None] }
    }

    /// Pending as long as the network is silent.
    fn poll_network(&mut self, cx: &mut Context<'_>, side: usize) -> Poll<()> {
        let Some(network) = &self.network else { return Poll::Ready(()) };
        if *network.borrow() != Network::Silent {
            self.pauses[side] = None;
            return Poll::Ready(());
        }
        let mut network = network.clone();
        let pause = self.pauses[side].get_or_insert_with(|| {
            Box::pin(async move {
                let _ = network.wait_for(|network| *network != Network::Silent).await;
            })
        });
        ready!(pause.as_mut().poll(cx));
        self.pauses[side] = None;
        Poll::Ready(())
    }

    /// Turns a write that waits for too long into an error.
    fn watched<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALLED)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_network(cx, READ));
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_network(cx, WRITE));
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watched(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_network(cx, WRITE));
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.watched(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.line.cut.is_cancelled() {
            // The client sees a reset, not an orderly end.
            let _ = self.stream.set_zero_linger();
        }
    }
}
