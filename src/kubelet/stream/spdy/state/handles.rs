//! What streams and the session's handle ask of the state.

use std::io;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::{CHUNK, OUT_FULL, Phase, Slot, State, gone, was_reset};
use crate::codec;
use crate::frame::{Frame, GoAwayStatus, RstStatus};
use crate::{Error, Headers};

impl State {
    pub(crate) fn poll_read(&mut self, id: u32, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let over = self.phase == Phase::Over;
        let Some(slot) = self.streams.get_mut(&id) else { return Poll::Ready(Err(gone())) };
        let n = slot.input.read(buf);
        if n > 0 {
            slot.taken += n as u64;
            slot.unacknowledged = slot.unacknowledged.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
            self.update_window(id);
            self.drop_input(n);
            return Poll::Ready(Ok(()));
        }
        match slot.reset {
            _ if slot.peer_fin || buf.remaining() == 0 => Poll::Ready(Ok(())),
            Some(status) => Poll::Ready(Err(was_reset(status))),
            None if over => Poll::Ready(Err(gone())),
            None => {
                slot.reading = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(crate) fn poll_write(&mut self, id: u32, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.phase != Phase::Open {
            return Poll::Ready(Err(gone()));
        }
        let Some(slot) = self.streams.get_mut(&id) else { return Poll::Ready(Err(gone())) };
        if let Some(status) = slot.reset {
            return Poll::Ready(Err(was_reset(status)));
        }
        if slot.fin {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut n = bytes.len().min(CHUNK);
        if self.windows {
            let window = slot.send_window.min(self.send_window).max(0);
            n = n.min(usize::try_from(window).unwrap_or(CHUNK));
        }
        // Some peers drop what comes before they have accepted the stream.
        let must_wait = slot.ours && !slot.replied;
        if n == 0 || must_wait || self.out.len() >= OUT_FULL {
            slot.writing = Some(cx.waker().clone());
            if n > 0 && !must_wait && !slot.queued {
                slot.queued = true;
                self.writers.push_back(id);
            }
            return Poll::Pending;
        }
        // At most CHUNK.
        slot.send_window -= n as i64;
        self.send_window -= n as i64;
        codec::data(id, false, &bytes[..n], &mut self.out);
        self.wake_driver();
        Poll::Ready(Ok(n))
    }

    pub(crate) fn add_handle(&mut self, id: u32) {
        if let Some(slot) = self.streams.get_mut(&id) {
            slot.handles += 1;
        }
    }

    /// Nobody reads a stream any more: what comes is thrown away.
    pub(crate) fn drop_reader(&mut self, id: u32) {
        if let Some(slot) = self.streams.get_mut(&id) {
            slot.discard = true;
            let unread = std::mem::take(&mut slot.input).len();
            self.drop_input(unread);
            self.drop_handle(id);
        }
    }

    /// Nobody writes a stream any more, which is its end.
    pub(crate) fn drop_writer(&mut self, id: u32) {
        self.fin(id);
        self.drop_handle(id);
    }

    pub(crate) fn drop_handle(&mut self, id: u32) {
        let Some(slot) = self.streams.get_mut(&id) else { return };
        slot.handles -= 1;
        if slot.handles > 0 {
            return;
        }
        if slot.fin && slot.peer_fin || slot.reset.is_some() {
            self.forget(id);
        } else {
            // The peer need not send what nobody will read.
            self.reset(id, RstStatus::Cancel);
        }
    }

    pub(crate) fn poll_replied(&mut self, id: u32, cx: &Context<'_>) -> Poll<Result<Headers, Error>> {
        let over = self.phase == Phase::Over;
        let Some(slot) = self.streams.get_mut(&id) else { return Poll::Ready(Err(Error::Closed)) };
        match slot.reset {
            _ if slot.replied => Poll::Ready(Ok(slot.headers.clone())),
            Some(status) => Poll::Ready(Err(Error::Reset(status))),
            None if over => Poll::Ready(Err(Error::Closed)),
            None => {
                slot.reading = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    // What the session's handle does.

    pub(crate) fn poll_accept(&mut self, cx: &Context<'_>) -> Poll<Option<(u32, Headers)>> {
        while let Some(id) = self.incoming.pop_front() {
            if let Some(slot) = self.streams.get(&id) {
                return Poll::Ready(Some((id, slot.headers.clone())));
            }
        }
        if self.peer_left || self.phase != Phase::Open {
            return Poll::Ready(None);
        }
        self.accepting = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Accepts a stream of the peer.
    pub(crate) fn reply(&mut self, id: u32) {
        self.send(&Frame::SynReply { id, fin: false, headers: Headers::new() });
        if let Some(slot) = self.streams.get_mut(&id) {
            slot.replied = true;
        }
    }

    /// Refuses a stream of the peer.
    pub(crate) fn refuse(&mut self, id: u32) {
        let Some(slot) = self.streams.get_mut(&id) else { return };
        slot.handles = 0;
        let unread = std::mem::take(&mut slot.input).len();
        self.drop_input(unread);
        self.reset(id, RstStatus::RefusedStream);
        // The peer may have reset it first.
        self.forget(id);
    }

    pub(crate) fn open(&mut self, headers: Headers) -> Result<u32, Error> {
        if self.peer_left || self.phase != Phase::Open || self.next_id > i32::MAX as u32 {
            return Err(Error::Closed);
        }
        if self.streams.len() >= self.options.max_streams {
            return Err(Error::TooManyStreams);
        }
        let id = self.next_id;
        let frame = Frame::SynStream { id, associated: 0, priority: 0, fin: false, unidirectional: false, headers };
        self.encoder.encode(&frame, &mut self.out)?;
        self.next_id += 2;
        let mut slot = self.slot(true, Headers::new());
        slot.handles = 1;
        self.streams.insert(id, slot);
        self.wake_driver();
        Ok(id)
    }

    pub(crate) fn poll_peer_left(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.peer_left {
            return Poll::Ready(());
        }
        self.leaving.retain(|w| !w.will_wake(cx.waker()));
        self.leaving.push(cx.waker().clone());
        Poll::Pending
    }

    /// The stream that keeps the connection from reading, and how much of it was read so far.
    pub(crate) fn held_up(&self) -> Option<(u32, u64)> {
        let id = self.blocked?;
        self.streams.get(&id).map(|slot| (id, slot.taken))
    }

    pub(crate) fn poll_held_up(&mut self, cx: &Context<'_>) -> Poll<(u32, u64)> {
        if let Some(held) = self.held_up() {
            return Poll::Ready(held);
        }
        self.watching.retain(|w| !w.will_wake(cx.waker()));
        self.watching.push(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn close(&mut self) {
        if self.phase == Phase::Open {
            self.send(&Frame::GoAway { last: self.last_peer_id, status: GoAwayStatus::Ok });
            self.phase = Phase::Closing;
            self.streams.values_mut().for_each(Slot::wake);
            self.wake_leaving();
        }
    }

    pub(crate) fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Bytes that wait to be read, and bytes that wait to be sent.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.buffered, self.out.len())
    }
}
