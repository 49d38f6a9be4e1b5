//! WebSocket messages as one stream of bytes, in which another protocol is spoken.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::channels::config;

/// The largest message that is sent.
const MESSAGE: usize = 32 * 1024;

/// A WebSocket whose binary messages, put together, are a stream of bytes.
pub(super) struct Tunnel<T> {
    socket: WebSocketStream<T>,
    /// What is left of the last message.
    rest: Bytes,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Tunnel<T> {
    /// Takes over a connection whose protocol has been changed.
    pub(super) async fn new(io: T) -> Self {
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await;
        Self { socket, rest: Bytes::new() }
    }
}

fn broken(error: WsError) -> io::Error {
    match error {
        WsError::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a text message")));
                }
                // The answer is made by the socket, and must go out though nothing else may be said.
                Some(Ok(Message::Ping(_))) => {
                    if let Poll::Ready(Err(error)) = Pin::new(&mut self.socket).poll_flush(cx) {
                        return Poll::Ready(Err(broken(error)));
                    }
                }
                Some(Ok(Message::Pong(_) | Message::Frame(_))) => {}
                None | Some(Ok(Message::Close(_)) | Err(WsError::ConnectionClosed)) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..n]);
        self.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(broken)?;
        let n = bytes.len().min(MESSAGE);
        let message = Message::Binary(Bytes::copy_from_slice(&bytes[..n]));
        Pin::new(&mut self.socket).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(broken)
    }
}
