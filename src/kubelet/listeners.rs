//! Many listening sockets for one task.
//!
//! A [`Port`] is shared by its owner, who can close it at any time, and by the acceptor, which polls it
//! as an [`Accepts`] stream. Only the ports that have a connection to offer are looked at.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::task::AtomicWaker;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::nodes::Nodes;
use crate::telemetry::metrics::metrics;

/// How long a port rests after an error of the process rather than of one connection, such as no file
/// descriptor being left; it would otherwise repeat at once.
const REST: Duration = Duration::from_millis(100);

/// A listening socket.
pub(super) struct Port {
    socket: Mutex<Option<TcpListener>>,
    waker: AtomicWaker,
    /// Cancelled when the port is closed: its connections finish what they do and end.
    pub(super) closed: CancellationToken,
    pub(super) nodes: Nodes,
}

impl Port {
    pub(super) fn new(socket: TcpListener, nodes: Nodes) -> Arc<Self> {
        metrics().kubelet_listeners.inc();
        let (waker, closed) = (AtomicWaker::new(), CancellationToken::new());
        Arc::new(Self { socket: Mutex::new(Some(socket)), waker, closed, nodes })
    }

    /// Frees the port at once. A second call changes nothing.
    pub(super) fn close(&self) {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        if socket.is_some() {
            drop(socket);
            metrics().kubelet_listeners.dec();
            self.closed.cancel();
            self.waker.wake();
        }
    }
}

/// The connections that come in at a port; ends when it is closed.
pub(super) struct Accepts {
    pub(super) port: Arc<Port>,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Accepts {
    pub(super) fn new(port: Arc<Port>) -> Self {
        Self { port, rest: None }
    }
}

impl Stream for Accepts {
    type Item = (Arc<Port>, TcpStream, SocketAddr);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        // Registered before the socket is looked at, so that a close in between is not missed.
        this.port.waker.register(cx.waker());
        loop {
            let socket = this.port.socket.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(listener) = socket.as_ref() else { return Poll::Ready(None) };
            if let Some(rest) = &mut this.rest {
                if rest.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                this.rest = None;
            }
            match listener.poll_accept(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok((stream, peer))) => {
                    drop(socket);
                    return Poll::Ready(Some((this.port.clone(), stream, peer)));
                }
                Poll::Ready(Err(error)) if is_of_one_connection(&error) => {}
                Poll::Ready(Err(error)) => {
                    tracing::warn!(%error, node = this.port.nodes.name(), "a kubelet port cannot accept connections");
                    this.rest = Some(Box::pin(tokio::time::sleep(REST)));
                }
            }
        }
    }
}

/// The client was gone before its connection was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
