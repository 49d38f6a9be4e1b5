//! What a container has written.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use vnode_proto::v1;

/// The lines that are kept of a container.
const KEPT: usize = 10_000;

struct State {
    lines: VecDeque<v1::LogLine>,
    /// The number of the first line that is kept.
    first: u64,
    ended: bool,
}

/// The log of one attempt to run a container.
pub struct Log {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Default for Log {
    fn default() -> Self {
        let state = State { lines: VecDeque::new(), first: 0, ended: false };
        Self { state: Mutex::new(state), changed: watch::Sender::new(()) }
    }
}

impl Log {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
    }

    /// Adds a line.
    pub fn push(&self, source: v1::LogSource, text: Vec<u8>) {
        let line = v1::LogLine { time: Some(SystemTime::now().into()), source: source.into(), text: text.into() };
        self.change(|state| {
            if state.lines.len() == KEPT {
                state.lines.pop_front();
                state.first += 1;
            }
            state.lines.push_back(line);
        });
    }

    /// There will be no more lines.
    pub fn end(&self) {
        self.change(|state| state.ended = true);
    }

    /// Lines from number `from` on, the number after them, and whether there can be more.
    fn read(&self, from: u64) -> (Vec<v1::LogLine>, u64, bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = usize::try_from(from.saturating_sub(state.first)).unwrap_or(usize::MAX);
        let end = state.first + state.lines.len() as u64;
        (state.lines.iter().skip(skip).cloned().collect(), end, !state.ended)
    }

    /// The log as a request wants it.
    pub fn follow(self: Arc<Self>, request: &v1::ReadLogsRequest) -> BoxStream<'static, v1::ReadLogsResponse> {
        let (mut lines, next, _) = self.read(0);
        if let Some(since) = request.since {
            let key = |t: &prost_types::Timestamp| (t.seconds, t.nanos);
            lines.retain(|line| line.time.as_ref().is_some_and(|t| key(t) >= key(&since)));
        }
        if let Some(tail) = request.tail_lines {
            let skip = lines.len().saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX));
            lines.drain(..skip);
        }
        // The first message comes at once, also without lines.
        let head = lines.chunks(500).map(|part| v1::ReadLogsResponse { lines: part.to_vec() });
        let mut head: Vec<_> = head.collect();
        if head.is_empty() {
            head.push(v1::ReadLogsResponse::default());
        }
        let head = stream::iter(head);
        if !request.follow {
            return head.boxed();
        }
        let changed = self.changed.subscribe();
        let tail = stream::unfold((self, changed, next), |(log, mut changed, from)| async move {
            loop {
                changed.borrow_and_update();
                let (lines, next, live) = log.read(from);
                if !lines.is_empty() {
                    return Some((v1::ReadLogsResponse { lines }, (log, changed, next)));
                }
                if !live || changed.changed().await.is_err() {
                    return None;
                }
            }
        });
        head.chain(tail).boxed()
    }
}
