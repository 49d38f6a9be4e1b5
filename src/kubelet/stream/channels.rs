//! WebSocket messages as channels: the first byte of each says which one the rest belongs to.
//!
//! [`Channels`] owns the socket and a pipe for each channel. It takes from a process only what the socket
//! takes, and from the socket only what the processes take: a message for a pipe that is full is kept,
//! and nothing more is read before it is gone.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use vnode_spdy::tunnel::goodbye;

use super::framing::{Framing, Said};

/// What a pipe holds.
const PIPE: usize = 64 * 1024;
/// The largest message that is sent.
const MESSAGE: usize = 32 * 1024;
/// The largest message that is taken: some clients send all of their input as one.
const MAX_MESSAGE: usize = 16 << 20;
/// Messages in a row before the processes get their turn.
const TURN: usize = 32;

/// Takes over a connection whose protocol has been changed.
pub(super) async fn socket<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    let config = WebSocketConfig::default()
        .read_buffer_size(32 * 1024)
        .write_buffer_size(64 * 1024)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// From the client to a process.
struct Inward {
    channel: u8,
    /// `None` once it is closed.
    pipe: Option<DuplexStream>,
}

/// From a process to the client.
struct Outward {
    channel: u8,
    pipe: DuplexStream,
    /// Waits until no other has anything to send.
    last: bool,
    ended: bool,
}

/// Why [`Channels::run`] returned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All processes have ended and the client has what they wrote.
    Finished,
    /// The client is gone.
    ClientGone,
}

/// A WebSocket and the pipes of its channels.
pub(super) struct Channels<T> {
    socket: WebSocketStream<T>,
    framing: Framing,
    inward: Vec<Inward>,
    outward: Vec<Outward>,
    /// Which process may send next.
    turn: usize,
    /// What was read for a pipe that has no room.
    waiting: Option<(usize, Bytes)>,
    /// Room for the next message.
    buffer: BytesMut,
    unflushed: bool,
    client_ended: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Channels<T> {
    /// Takes over a connection whose protocol has been changed.
    pub(super) async fn new(io: T, framing: Framing) -> Self {
        let socket = socket(io).await;
        Self {
            socket,
            framing,
            inward: Vec::new(),
            outward: Vec::new(),
            turn: 0,
            waiting: None,
            buffer: BytesMut::new(),
            unflushed: false,
            client_ended: false,
        }
    }

    /// Opens a channel on which the client sends.
    pub(super) fn inward(&mut self, channel: u8) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        self.inward.push(Inward { channel, pipe: Some(ours) });
        theirs
    }

    /// Opens a channel on which the client receives.
    pub(super) fn outward(&mut self, channel: u8) -> DuplexStream {
        self.open_outward(channel, false)
    }

    /// Opens a channel on which the client receives after all others have sent what they have.
    pub(super) fn last_outward(&mut self, channel: u8) -> DuplexStream {
        self.open_outward(channel, true)
    }

    fn open_outward(&mut self, channel: u8, last: bool) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        self.outward.push(Outward { channel, pipe: ours, last, ended: false });
        theirs
    }

    /// Opens a channel for both.
    pub(super) fn both(&mut self, channel: u8) -> tokio::io::Join<DuplexStream, DuplexStream> {
        tokio::io::join(self.inward(channel), self.outward(channel))
    }

    /// Sends a message at once, before anything that processes write.
    pub(super) async fn send(&mut self, channel: u8, content: &[u8]) -> io::Result<()> {
        let mut message = BytesMut::with_capacity(content.len() + 1);
        message.put_u8(0);
        message.put_slice(content);
        let message = self.framing.write(channel, message);
        futures::SinkExt::send(&mut self.socket, message).await.map_err(io::Error::other)
    }

    /// Carries bytes in both directions until all processes have closed their ends or the client is gone.
    pub(super) async fn run(&mut self) -> End {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let read = self.poll_read(cx);
        let written = self.poll_write(cx);
        match (read, written) {
            (Poll::Ready(()), _) | (_, Poll::Ready(Err(()))) => Poll::Ready(End::ClientGone),
            (_, Poll::Ready(Ok(()))) => Poll::Ready(End::Finished),
            _ => Poll::Pending,
        }
    }

    /// Ready when the client is gone.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..TURN {
            std::task::ready!(self.poll_deliver(cx));
            match Pin::new(&mut self.socket).poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(message @ (Message::Binary(_) | Message::Text(_))))) => {
                    match self.framing.read(message.into_data()) {
                        Ok(Said::Data(channel, bytes)) => {
                            let to = self.inward.iter().position(|i| i.channel == channel);
                            self.waiting = to.map(|to| (to, bytes));
                        }
                        Ok(Said::Close(channel)) => {
                            self.inward.iter_mut().filter(|i| i.channel == channel).for_each(|i| i.pipe = None);
                        }
                        Ok(Said::Nothing) => {}
                        Err(why) => {
                            tracing::debug!(why, "a WebSocket client broke the protocol");
                            return Poll::Ready(());
                        }
                    }
                }
                // An answer to a ping goes out with the next flush.
                Poll::Ready(Some(Ok(Message::Ping(_)))) => self.unflushed = true,
                Poll::Ready(Some(Ok(Message::Pong(_) | Message::Frame(_)))) => {}
                Poll::Ready(None | Some(Ok(Message::Close(_)))) => {
                    self.client_ended = true;
                    return Poll::Ready(());
                }
                Poll::Ready(Some(Err(error))) => {
                    if !matches!(error, WsError::ConnectionClosed | WsError::Io(_)) {
                        tracing::debug!(%error, "a WebSocket client broke the protocol");
                    }
                    self.client_ended = true;
                    return Poll::Ready(());
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready when nothing waits for a pipe any more.
    fn poll_deliver(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some((to, bytes)) = &mut self.waiting {
            let Some(pipe) = self.inward.get_mut(*to).and_then(|i| i.pipe.as_mut()) else {
                self.waiting = None;
                break;
            };
            match std::task::ready!(Pin::new(pipe).poll_write(cx, bytes)) {
                Ok(n) if n < bytes.len() => bytes.advance(n),
                Ok(_) => self.waiting = None,
                // The process does not read any more, which is its right.
                Err(_) => {
                    self.inward[*to].pipe = None;
                    self.waiting = None;
                }
            }
        }
        Poll::Ready(())
    }

    /// Ready when all that processes wrote is sent and they write no more.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        for _ in 0..TURN {
            std::task::ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(|_| ())?;
            match self.poll_next_outward(cx) {
                Poll::Ready(Some(message)) => {
                    self.unflushed = true;
                    Pin::new(&mut self.socket).start_send(message).map_err(|_| ())?;
                }
                idle => {
                    if self.unflushed {
                        std::task::ready!(Pin::new(&mut self.socket).poll_flush(cx)).map_err(|_| ())?;
                        self.unflushed = false;
                    }
                    return idle.map(|_| Ok(()));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The next message of a process; `None` when there will be none.
    fn poll_next_outward(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let count = self.outward.len();
        let mut open = false;
        for last in [false, true] {
            for step in 0..count {
                let index = (self.turn + step) % count;
                let out = &mut self.outward[index];
                if out.ended || out.last != last {
                    continue;
                }
                self.buffer.clear();
                self.buffer.reserve(MESSAGE + 1);
                self.buffer.put_u8(0);
                let mut limited = (&mut self.buffer).limit(MESSAGE);
                match tokio_util::io::poll_read_buf(Pin::new(&mut out.pipe), cx, &mut limited) {
                    Poll::Ready(Ok(n)) if n > 0 => {
                        self.turn = index + 1;
                        let message = self.buffer.split();
                        return Poll::Ready(Some(self.framing.write(out.channel, message)));
                    }
                    Poll::Ready(_) => out.ended = true,
                    Poll::Pending => open = true,
                }
            }
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    }

    /// Says goodbye and waits until the client has read all and is gone, which the caller limits.
    ///
    /// Closing at once would throw away what is still on its way to a client that reads slowly.
    pub(super) async fn finish(mut self) {
        self.inward.clear();
        self.waiting = None;
        let told = self.socket.close(Some(goodbye())).await;
        if self.client_ended || told.is_err() {
            return;
        }
        while let Some(Ok(_)) = futures::StreamExt::next(&mut self.socket).await {}
    }
}
