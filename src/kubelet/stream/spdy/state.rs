//! The streams of a session, their windows, and who waits for what.
//!
//! All of it is behind one lock that is held for the time of a copy. Streams put their frames into one
//! buffer for the connection to write; who finds it full waits in line, so that a stream that always has
//! something to say does not keep the others from saying theirs.

mod handles;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use bytes::{Bytes, BytesMut};

use crate::codec::{self, Encoder};
use crate::frame::{DEFAULT_WINDOW, Frame, GoAwayStatus, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, RstStatus};
use crate::input::Input;
use crate::{Error, Headers, Options};

/// The most that one write puts into a frame.
const CHUNK: usize = 32 * 1024;
/// Writers wait while so much is to be sent.
const OUT_FULL: usize = 64 * 1024;
/// Nothing is read while so much is to be sent: the peer makes us answer and does not read the answers.
pub(crate) const OUT_STUCK: usize = 256 * 1024;
/// How many of those who wait are woken when there is room; the others follow.
const WOKEN: usize = 8;
/// The largest window there can be.
const MAX_WINDOW: i64 = 0x7fff_ffff;

/// Which end of a session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

pub(crate) struct Shared {
    state: Mutex<State>,
}

/// How far the end of a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// What is to be sent is sent, and then it is over.
    Closing,
    Over,
}

pub(crate) struct State {
    role: Role,
    options: Options,
    encoder: Encoder,
    /// Frames to be sent.
    out: BytesMut,
    streams: HashMap<u32, Slot>,
    /// The id of the next stream that is opened here.
    next_id: u32,
    /// The id of the last stream that the peer opened.
    last_peer_id: u32,
    /// Streams of the peer that nobody has taken yet.
    incoming: VecDeque<u32>,
    accepting: Option<Waker>,
    /// Those who wait for the peer to end the session.
    leaving: Vec<Waker>,
    driver: Option<Waker>,
    /// Streams that wait for room in `out`.
    writers: VecDeque<u32>,
    /// The peer keeps windows, so it is held to be kept to them.
    windows: bool,
    peer_initial_window: i64,
    send_window: i64,
    /// Bytes read on all streams since the peer was last told.
    unacknowledged: u32,
    /// Bytes that wait to be read on all streams.
    buffered: usize,
    /// The connection does not read because of `buffered` or a full stream: the one that holds it up.
    blocked: Option<u32>,
    /// Those who want to know of it.
    watching: Vec<Waker>,
    peer_left: bool,
    phase: Phase,
}

/// One stream.
struct Slot {
    ours: bool,
    replied: bool,
    headers: Headers,
    input: Input,
    /// Bytes that were read.
    taken: u64,
    unacknowledged: u32,
    /// The peer will send no more.
    peer_fin: bool,
    /// We will send no more.
    fin: bool,
    reset: Option<RstStatus>,
    /// Nobody reads any more.
    discard: bool,
    /// Reader and writer that are alive.
    handles: u8,
    send_window: i64,
    /// In line for room.
    queued: bool,
    reading: Option<Waker>,
    writing: Option<Waker>,
}

impl Slot {
    fn wake(&mut self) {
        for waker in [self.reading.take(), self.writing.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the session is over")
}

fn was_reset(status: RstStatus) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, Error::Reset(status))
}

impl Shared {
    pub(crate) fn new(state: State) -> Self {
        Self { state: Mutex::new(state) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The beginning of a session: what is to be sent first is already there.
    pub(crate) fn new(options: Options, role: Role) -> Self {
        let (stream_buffer, session_buffer) = (options.stream_buffer, options.session_buffer);
        let max_streams = u32::try_from(options.max_streams).unwrap_or(u32::MAX);
        let mut state = Self {
            role,
            options,
            encoder: Encoder::new(),
            out: BytesMut::new(),
            streams: HashMap::new(),
            next_id: if role == Role::Client { 1 } else { 2 },
            last_peer_id: 0,
            incoming: VecDeque::new(),
            accepting: None,
            leaving: Vec::new(),
            driver: None,
            writers: VecDeque::new(),
            windows: false,
            peer_initial_window: i64::from(DEFAULT_WINDOW),
            send_window: i64::from(DEFAULT_WINDOW),
            unacknowledged: 0,
            buffered: 0,
            blocked: None,
            watching: Vec::new(),
            peer_left: false,
            phase: Phase::Open,
        };
        state.send(&Frame::Settings(vec![(MAX_CONCURRENT_STREAMS, max_streams), (INITIAL_WINDOW_SIZE, stream_buffer)]));
        if let Some(delta) = session_buffer.checked_sub(DEFAULT_WINDOW).filter(|d| *d > 0) {
            state.send(&Frame::WindowUpdate { id: 0, delta });
        }
        state
    }

    /// Appends a frame. Headers that are made here always fit.
    fn send(&mut self, frame: &Frame) {
        if self.phase == Phase::Over {
            return;
        }
        let encoded = self.encoder.encode(frame, &mut self.out);
        debug_assert!(encoded.is_ok());
        self.wake_driver();
    }

    fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    fn update_window(&mut self, id: u32) {
        let (pending, whole) = match id {
            0 => (&mut self.unacknowledged, self.options.session_buffer),
            id => match self.streams.get_mut(&id) {
                Some(slot) if !slot.peer_fin && slot.reset.is_none() => {
                    (&mut slot.unacknowledged, self.options.stream_buffer)
                }
                _ => return,
            },
        };
        // Half a window at a time: an update for every read would be more frames than data.
        if *pending >= whole / 2 {
            let delta = std::mem::take(pending);
            self.send(&Frame::WindowUpdate { id, delta });
        }
    }

    /// Forgets a stream that nobody holds and nothing more can happen to.
    fn forget(&mut self, id: u32) {
        let over = self.streams.get(&id).is_some_and(|s| s.handles == 0 && (s.reset.is_some() || s.fin && s.peer_fin));
        if over && let Some(slot) = self.streams.remove(&id) {
            self.drop_input(slot.input.len());
        }
    }

    fn drop_input(&mut self, bytes: usize) {
        self.buffered -= bytes;
        // Bytes are bounded by the buffers, far below 4 GiB.
        self.unacknowledged = self.unacknowledged.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.update_window(0);
        self.unblock();
    }

    fn unblock(&mut self) {
        if self.blocked.take().is_some() {
            self.wake_driver();
        }
    }

    /// Ends a stream at once.
    pub(crate) fn reset(&mut self, id: u32, status: RstStatus) {
        let Some(slot) = self.streams.get_mut(&id) else { return };
        if slot.reset.is_some() {
            return;
        }
        slot.reset = Some(status);
        slot.wake();
        self.send(&Frame::RstStream { id, status });
        self.forget(id);
    }

    /// Ends what we send on a stream.
    pub(crate) fn fin(&mut self, id: u32) {
        let over = self.phase == Phase::Over;
        let Some(slot) = self.streams.get_mut(&id) else { return };
        if slot.fin || slot.reset.is_some() || over {
            return;
        }
        slot.fin = true;
        codec::data(id, true, &[], &mut self.out);
        self.wake_driver();
        self.forget(id);
    }

    fn slot(&self, ours: bool, headers: Headers) -> Slot {
        Slot {
            ours,
            replied: false,
            headers,
            input: Input::default(),
            taken: 0,
            unacknowledged: 0,
            peer_fin: false,
            fin: false,
            reset: None,
            discard: false,
            handles: 0,
            send_window: self.peer_initial_window,
            queued: false,
            reading: None,
            writing: None,
        }
    }

    /// Ends everything: nobody waits any longer.
    pub(crate) fn over(&mut self) {
        self.phase = Phase::Over;
        self.peer_left = true;
        self.out = BytesMut::new();
        self.streams.values_mut().for_each(Slot::wake);
        self.wake_leaving();
    }

    fn wake_leaving(&mut self) {
        self.leaving.drain(..).chain(self.accepting.take()).for_each(Waker::wake);
    }

    // What the connection does.

    /// Exchanges what is to be sent with an empty buffer and wakes those who wait for room.
    pub(crate) fn take_output(&mut self) -> BytesMut {
        let out = std::mem::take(&mut self.out);
        let count = if out.is_empty() { self.writers.len() } else { WOKEN.min(self.writers.len()) };
        for id in self.writers.drain(..count).collect::<Vec<_>>() {
            if let Some(slot) = self.streams.get_mut(&id) {
                slot.queued = false;
                if let Some(waker) = slot.writing.take() {
                    waker.wake();
                }
            }
        }
        out
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.out.len() >= OUT_STUCK
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Remembers whom to wake. Called before the state is looked at, under the same lock.
    pub(crate) fn register_driver(&mut self, cx: &Context<'_>) {
        match &mut self.driver {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.driver = Some(cx.waker().clone()),
        }
    }

    /// Says that the peer broke the protocol.
    pub(crate) fn accuse(&mut self) {
        self.send(&Frame::GoAway { last: self.last_peer_id, status: GoAwayStatus::ProtocolError });
    }

    /// Takes as many bytes for a stream as it has room for; the others are left.
    pub(crate) fn deliver(&mut self, id: u32, bytes: &mut Bytes) {
        let session_room = (self.options.session_buffer as usize).saturating_sub(self.buffered);
        let Some(slot) = self.streams.get_mut(&id).filter(|s| !s.discard && !s.peer_fin && s.reset.is_none()) else {
            // Nobody wants them: as good as read.
            self.unacknowledged = self.unacknowledged.saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            self.update_window(0);
            bytes.clear();
            return;
        };
        let room = (self.options.stream_buffer as usize).saturating_sub(slot.input.len());
        let n = bytes.len().min(room).min(session_room);
        if n > 0 {
            slot.input.push(bytes.split_to(n));
            self.buffered += n;
            if let Some(waker) = slot.reading.take() {
                waker.wake();
            }
        }
        self.blocked = None;
        if !bytes.is_empty() {
            // When it is the session that is full, whoever has most of it is in the way.
            let fullest = || self.streams.iter().max_by_key(|(_, s)| s.input.len()).map(|(id, _)| *id);
            self.blocked = if room < n + bytes.len() { Some(id) } else { fullest() };
            self.watching.drain(..).for_each(Waker::wake);
        }
    }

    /// The peer will send no more on a stream.
    pub(crate) fn peer_fin(&mut self, id: u32) {
        if let Some(slot) = self.streams.get_mut(&id) {
            slot.peer_fin = true;
            if let Some(waker) = slot.reading.take() {
                waker.wake();
            }
            self.forget(id);
        }
    }

    /// Acts on a frame other than data.
    pub(crate) fn receive(&mut self, frame: Frame) -> Result<(), Error> {
        match frame {
            Frame::SynStream { id, fin, unidirectional, headers, .. } => {
                let theirs = if self.role == Role::Server { 1 } else { 0 };
                if id % 2 != theirs || id <= self.last_peer_id {
                    return Err(Error::Protocol("the number of a new stream does not follow"));
                }
                self.last_peer_id = id;
                if self.phase != Phase::Open || self.streams.len() >= self.options.max_streams {
                    self.send(&Frame::RstStream { id, status: RstStatus::RefusedStream });
                    return Ok(());
                }
                let mut slot = self.slot(false, headers);
                (slot.peer_fin, slot.fin, slot.handles) = (fin, unidirectional, 1);
                self.streams.insert(id, slot);
                self.incoming.push_back(id);
                if let Some(waker) = self.accepting.take() {
                    waker.wake();
                }
            }
            Frame::SynReply { id, fin, headers } => {
                if let Some(slot) = self.streams.get_mut(&id).filter(|s| s.ours && !s.replied) {
                    (slot.replied, slot.headers) = (true, headers);
                    slot.wake();
                }
                if fin {
                    self.peer_fin(id);
                }
            }
            Frame::Headers { id, fin, .. } => {
                if fin {
                    self.peer_fin(id);
                }
            }
            Frame::RstStream { id, status } => {
                if let Some(slot) = self.streams.get_mut(&id) {
                    slot.reset = Some(status);
                    slot.wake();
                    self.forget(id);
                }
            }
            Frame::Settings(pairs) => {
                for (_, value) in pairs.into_iter().filter(|(id, _)| *id == INITIAL_WINDOW_SIZE) {
                    let change = i64::from(value) - self.peer_initial_window;
                    self.peer_initial_window = i64::from(value);
                    self.windows = true;
                    for slot in self.streams.values_mut() {
                        slot.send_window = (slot.send_window + change).min(MAX_WINDOW);
                        slot.writing.take().into_iter().for_each(Waker::wake);
                    }
                }
            }
            Frame::Ping(id) => {
                // Ours would be of our own parity; we send none, so any other is none of ours.
                if id % 2 == u32::from(self.role == Role::Server) {
                    self.send(&Frame::Ping(id));
                }
            }
            Frame::GoAway { .. } => {
                self.peer_left = true;
                self.wake_leaving();
            }
            Frame::WindowUpdate { id: 0, delta } => {
                self.windows = true;
                self.send_window = (self.send_window + i64::from(delta)).min(MAX_WINDOW);
                self.streams.values_mut().for_each(|s| s.writing.take().into_iter().for_each(Waker::wake));
            }
            Frame::WindowUpdate { id, delta } => {
                self.windows = true;
                if let Some(slot) = self.streams.get_mut(&id) {
                    slot.send_window = (slot.send_window + i64::from(delta)).min(MAX_WINDOW);
                    slot.writing.take().into_iter().for_each(Waker::wake);
                }
            }
            // Delivered by the connection, in pieces.
            Frame::Data { .. } => {}
        }
        Ok(())
    }
}
