//! The future that moves a session's bytes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Error;
use crate::codec::Decoder;
use crate::frame::Frame;
use crate::state::{Phase, Shared};

/// Read at a time: what TLS gives at a time.
const READ: usize = 16 * 1024;
/// Frames before others get their turn.
const TURN: usize = 256;

/// Reads and writes a session's connection; must be polled for anything to happen.
///
/// Completes when the peer has closed the connection or [`Session::close`](crate::Session::close) was called
/// and all is sent. Dropping it ends the session and every stream of it.
#[must_use = "nothing moves unless it is polled"]
pub struct Connection<T> {
    io: T,
    shared: Arc<Shared>,
    decoder: Decoder,
    input: BytesMut,
    /// What was read for a stream that has no room, and whether it is the stream's end.
    waiting: Option<(u32, Bytes, bool)>,
    writing: BytesMut,
    unflushed: bool,
    /// Nothing is read because the peer does not read our answers.
    stuck: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection<T> {
    pub(crate) fn new(io: T, shared: Arc<Shared>, decoder: Decoder) -> Self {
        let (input, writing) = (BytesMut::new(), BytesMut::new());
        Self { io, shared, decoder, input, waiting: None, writing, unflushed: false, stuck: false }
    }

    /// Ready when all is sent and the session is to be closed.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            if self.writing.is_empty() {
                self.writing = self.shared.lock().take_output();
            }
            if self.writing.is_empty() {
                if self.unflushed {
                    ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                    self.unflushed = false;
                }
                let state = self.shared.lock();
                if state.has_output() {
                    continue;
                }
                if state.phase() == Phase::Open {
                    return Poll::Pending;
                }
                drop(state);
                ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
                return Poll::Ready(Ok(()));
            }
            while !self.writing.is_empty() {
                let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.writing))?;
                if n == 0 {
                    return Poll::Ready(Err(Error::Io(std::io::ErrorKind::WriteZero.into())));
                }
                self.writing.advance(n);
                self.unflushed = true;
            }
            self.writing = BytesMut::new();
        }
    }

    /// Ready when the peer has closed the connection.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        for _ in 0..TURN {
            if let Some((id, bytes, fin)) = &mut self.waiting {
                let mut state = self.shared.lock();
                state.deliver(*id, bytes);
                if !bytes.is_empty() {
                    // The reader will wake us.
                    return Poll::Pending;
                }
                if *fin {
                    state.peer_fin(*id);
                }
                drop(state);
                self.waiting = None;
            }
            self.stuck = self.shared.lock().is_stuck();
            if self.stuck {
                return Poll::Pending;
            }
            match self.decoder.decode(&mut self.input)? {
                Some(Frame::Data { id, fin, bytes }) => self.waiting = Some((id, bytes, fin)),
                Some(frame) => self.shared.lock().receive(frame)?,
                None => {
                    self.input.reserve(READ);
                    let read = tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input);
                    if ready!(read)? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Connection<T> {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.shared.lock().register_driver(cx);
        let read = this.poll_read(cx);
        if let Poll::Ready(Err(Error::Codec(_) | Error::Protocol(_))) = &read {
            this.shared.lock().accuse();
        }
        // After reading, so that answers go out at once; what it says of a broken connection, reading says too.
        let written = this.poll_write(cx);
        if this.stuck && !this.shared.lock().is_stuck() {
            cx.waker().wake_by_ref();
        }
        let ended = match (read, written) {
            (Poll::Ready(ended), _) | (_, Poll::Ready(ended)) => ended,
            (Poll::Pending, Poll::Pending) => return Poll::Pending,
        };
        this.shared.lock().over();
        Poll::Ready(ended)
    }
}

impl<T> Drop for Connection<T> {
    fn drop(&mut self) {
        self.shared.lock().over();
    }
}
