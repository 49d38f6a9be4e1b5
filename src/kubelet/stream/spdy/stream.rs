//! Readers and writers of one stream.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frame::RstStatus;
use crate::state::Shared;
use crate::{Error, Headers};

/// One stream of a session.
///
/// Reading ends when the peer has closed its side; shutting it down closes this side. A stream that is
/// dropped before both are closed is reset.
pub struct Stream {
    handle: Handle,
}

/// The reading side of a stream. When it is dropped, what the peer sends is thrown away.
pub struct ReadHalf {
    handle: Handle,
}

/// The writing side of a stream. Dropping it closes this side, as shutting it down does.
pub struct WriteHalf {
    handle: Handle,
}

/// What the sides of a stream share.
struct Handle {
    id: u32,
    shared: Arc<Shared>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Whole,
    Reader,
    Writer,
    /// Given up for other handles.
    Split,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        match self.kind {
            Kind::Whole => state.drop_handle(self.id),
            Kind::Reader => state.drop_reader(self.id),
            Kind::Writer => state.drop_writer(self.id),
            Kind::Split => {}
        }
    }
}

impl Stream {
    pub(crate) fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { handle: Handle { id, shared, kind: Kind::Whole } }
    }

    /// The stream's number.
    pub fn id(&self) -> u32 {
        self.handle.id
    }

    /// Waits for the peer to accept a stream that was opened here. Gives the headers of its answer.
    ///
    /// # Errors
    /// The peer refused it, or the session is over.
    pub async fn replied(&self) -> Result<Headers, Error> {
        poll_fn(|cx| self.handle.shared.lock().poll_replied(self.handle.id, cx)).await
    }

    /// Ends the stream at once, in both directions.
    pub fn reset(self, status: RstStatus) {
        self.handle.shared.lock().reset(self.handle.id, status);
    }

    /// Takes the two sides apart.
    pub fn into_split(mut self) -> (ReadHalf, WriteHalf) {
        self.handle.kind = Kind::Split;
        let (id, shared) = (self.handle.id, &self.handle.shared);
        shared.lock().add_handle(id);
        let half = |kind| Handle { id, shared: shared.clone(), kind };
        (ReadHalf { handle: half(Kind::Reader) }, WriteHalf { handle: half(Kind::Writer) })
    }
}

macro_rules! reads {
    ($name:ident) => {
        impl AsyncRead for $name {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                self.handle.shared.lock().poll_read(self.handle.id, cx, buf)
            }
        }
    };
}

macro_rules! writes {
    ($name:ident) => {
        impl AsyncWrite for $name {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                self.handle.shared.lock().poll_write(self.handle.id, cx, bytes)
            }

            /// The connection sends what it has as soon as it can.
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.handle.shared.lock().fin(self.handle.id);
                Poll::Ready(Ok(()))
            }
        }
    };
}

reads!(Stream);
reads!(ReadHalf);
writes!(Stream);
writes!(WriteHalf);
