//! The handle through which streams are opened and accepted.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use crate::state::{Role, Shared, State};
use crate::stream::Stream;
use crate::{Error, Headers, Options};

/// A handle to a session. Clones are the same session.
#[derive(Clone)]
pub struct Session {
    pub(crate) shared: Arc<Shared>,
}

impl Session {
    pub(crate) fn new(options: Options, role: Role) -> Self {
        Self { shared: Arc::new(Shared::new(State::new(options, role))) }
    }

    /// The next stream that the peer opens; `None` when there will be none. Safe to cancel.
    pub async fn accept(&self) -> Option<Incoming> {
        let (id, headers) = poll_fn(|cx| self.shared.lock().poll_accept(cx)).await?;
        Some(Incoming { id, headers, shared: self.shared.clone(), accepted: false })
    }

    /// Opens a stream. It can be written once the peer has accepted it, which [`Stream::replied`] waits for.
    ///
    /// # Errors
    /// The session is closed or full, or the headers are too long.
    pub fn open(&self, headers: Headers) -> Result<Stream, Error> {
        let id = self.shared.lock().open(headers)?;
        Ok(Stream::new(self.shared.clone(), id))
    }

    /// Returns when the peer wants no more streams or is gone. Safe to cancel.
    pub async fn peer_left(&self) {
        poll_fn(|cx| self.shared.lock().poll_peer_left(cx)).await;
    }

    /// The number of a stream that nobody reads and that thereby keeps the others from receiving, once it has done so
    /// for this long without a byte being taken from it. Only a peer that keeps no windows can bring that about.
    /// Safe to cancel.
    pub async fn held_up(&self, patience: Duration) -> u32 {
        // Looked at now and then in between, or a byte that is taken at the beginning would double the wait.
        const LOOKS: u32 = 8;
        let mut seen = None;
        let mut looks = 0;
        loop {
            let held = poll_fn(|cx| self.shared.lock().poll_held_up(cx)).await;
            looks = if seen.replace(held) == Some(held) { looks + 1 } else { 0 };
            if looks >= LOOKS {
                return held.0;
            }
            tokio::time::sleep(patience / LOOKS).await;
        }
    }

    /// Ends the session once all that was written is sent: the connection says goodbye and completes.
    pub fn close(&self) {
        self.shared.lock().close();
    }

    /// How many streams there are.
    pub fn streams(&self) -> usize {
        self.shared.lock().stream_count()
    }
}

/// A stream that the peer wants to open. Dropping it refuses it.
pub struct Incoming {
    id: u32,
    headers: Headers,
    shared: Arc<Shared>,
    accepted: bool,
}

impl Incoming {
    /// The stream's number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What the peer says of the stream.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Accepts the stream.
    pub fn accept(mut self) -> Stream {
        self.accepted = true;
        self.shared.lock().reply(self.id);
        Stream::new(self.shared.clone(), self.id)
    }

    /// Refuses the stream.
    pub fn refuse(self) {}
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.accepted {
            self.shared.lock().refuse(self.id);
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
