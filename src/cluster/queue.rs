//! A keyed work queue: what a reconciler has to look at, and when.
//!
//! - A key waits at most once, however often it is added.
//! - A key that is being worked on is never handed out a second time; added meanwhile, it comes back
//!   when the work is done.
//! - [`WorkQueue::add_after`] delays a key; an earlier time wins over a later one.
//! - [`WorkQueue::retry`] delays it by its own exponential back-off with jitter, which
//!   [`WorkQueue::forget`] resets.
//! - There is no rate limit.
//!
//! All keys share one list of timers, and a waiting key costs one map entry.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use rand::Rng as _;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::telemetry::metrics::{QueueMetrics, metrics};

/// How the delay of a key that keeps failing grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// After the first failure.
    pub base: Duration,
    /// The most it grows to.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(500), max: Duration::from_secs(300) }
    }
}

impl Backoff {
    /// The delay after so many failures in a row before this one, without jitter.
    pub fn delay(&self, failures: u32) -> Duration {
        self.base.saturating_mul(1u32.checked_shl(failures.min(31)).unwrap_or(u32::MAX)).min(self.max)
    }
}

/// What becomes of a key when [`WorkQueue::run`]'s handler is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more to do until somebody adds it again. Resets its back-off.
    Done,
    /// Look again after this time. Resets its back-off.
    After(Duration),
    /// Try again after the key's back-off.
    Retry,
    /// Try again after at least this time, as a service asked us to.
    RetryAfter(Duration),
}

#[derive(Default)]
struct Key {
    /// In `ready`.
    waiting: bool,
    /// Handed out.
    working: bool,
    /// Added while it was handed out.
    again: bool,
    /// When it becomes ready; timers in the heap that say otherwise are stale.
    due: Option<Instant>,
    /// Since when it waits, in a queue that is measured.
    since: Option<Instant>,
    failures: u32,
}

impl Key {
    fn is_idle(&self) -> bool {
        !self.waiting && !self.working && self.due.is_none() && self.failures == 0
    }
}

struct State<K> {
    keys: HashMap<K, Key>,
    ready: VecDeque<K>,
    timers: BinaryHeap<Reverse<Timer<K>>>,
    sequence: u64,
    closed: bool,
    metrics: OnceLock<QueueMetrics>,
}

struct Timer<K> {
    at: Instant,
    sequence: u64,
    key: K,
}

impl<K> PartialEq for Timer<K> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}
impl<K> Eq for Timer<K> {}
impl<K> PartialOrd for Timer<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Timer<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// The queue. See the module's page for what it promises.
pub struct WorkQueue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    backoff: Backoff,
    grid: Duration,
    epoch: Instant,
}

/// A key that was handed out. Dropping it says that the work on it is over.
pub struct Item<K: Eq + Hash + Clone> {
    key: K,
    queue: Arc<WorkQueue<K>>,
}

impl<K: Eq + Hash + Clone> Item<K> {
    /// The key to work on.
    pub fn key(&self) -> &K {
        &self.key
    }
}

impl<K: Eq + Hash + Clone> Drop for Item<K> {
    fn drop(&mut self) {
        self.queue.finish(&self.key);
    }
}

impl<K: Eq + Hash + Clone> WorkQueue<K> {
    /// An empty queue.
    pub fn new(backoff: Backoff) -> Arc<Self> {
        Self::on_a_grid(backoff, Duration::ZERO)
    }

    /// An empty queue whose delays end on multiples of `grid` only: many keys that come back at times of their own
    /// then share wake-ups of the processor, which is what an idle fleet spends most of its time on.
    pub fn on_a_grid(backoff: Backoff, grid: Duration) -> Arc<Self> {
        let state = State {
            keys: HashMap::new(),
            ready: VecDeque::new(),
            timers: BinaryHeap::new(),
            sequence: 0,
            closed: false,
            metrics: OnceLock::new(),
        };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new(), backoff, grid, epoch: Instant::now() })
    }

    /// Has the queue measured under a name. The names of all queues are few and fixed.
    pub fn named(self: Arc<Self>, name: &'static str) -> Arc<Self> {
        // A second name would count the same keys twice; the first one stays.
        let _named = self.lock().metrics.set(metrics().queue(name));
        self
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        // Nothing in here panics half-way through a change, so a poisoned lock guards sound data.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a key ready now.
    pub fn add(&self, key: K) {
        let mut state = self.lock();
        if state.make_ready(key) {
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Makes a key ready after `delay`, unless it will be ready sooner.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let first = self.schedule(&mut self.lock(), key, delay);
        if first {
            self.changed.notify_one();
        }
    }

    /// True when no timer ends before this one, so that whoever sleeps must be told.
    fn schedule(&self, state: &mut State<K>, key: K, delay: Duration) -> bool {
        let at = self.round_up(Instant::now() + delay);
        let entry = state.keys.entry(key.clone()).or_default();
        if entry.waiting || entry.due.is_some_and(|due| due <= at) {
            return false;
        }
        entry.due = Some(at);
        state.sequence += 1;
        let sequence = state.sequence;
        state.timers.push(Reverse(Timer { at, sequence, key }));
        state.timers.peek().is_some_and(|t| t.0.sequence == sequence)
    }

    fn round_up(&self, at: Instant) -> Instant {
        let since = at.saturating_duration_since(self.epoch).as_nanos();
        let over = match self.grid.as_nanos() {
            0 => 0,
            grid => (grid - since % grid) % grid,
        };
        at + Duration::from_nanos(u64::try_from(over).unwrap_or(0))
    }

    /// Counts a failure of the key and makes it ready after its back-off, or after `at_least` if that is
    /// longer. Returns the delay.
    pub fn retry(&self, key: K, at_least: Option<Duration>) -> Duration {
        let mut state = self.lock();
        let entry = state.keys.entry(key.clone()).or_default();
        let full = self.backoff.delay(entry.failures);
        entry.failures = entry.failures.saturating_add(1);
        if let Some(metrics) = state.metrics.get() {
            metrics.retries.inc();
        }
        // Between half and all of it, so that keys that failed together do not come back together.
        let delay = full.mul_f64(rand::rng().random_range(0.5..=1.0)).max(at_least.unwrap_or_default());
        let first = self.schedule(&mut state, key, delay);
        drop(state);
        if first {
            self.changed.notify_one();
        }
        delay
    }

    /// Resets the back-off of a key.
    pub fn forget(&self, key: &K) {
        let mut state = self.lock();
        if let Some(entry) = state.keys.get_mut(key) {
            entry.failures = 0;
            if entry.is_idle() {
                state.keys.remove(key);
            }
        }
    }

    /// How often in a row the key has failed.
    pub fn failures(&self, key: &K) -> u32 {
        self.lock().keys.get(key).map_or(0, |k| k.failures)
    }

    /// How many keys are ready and wait for a worker.
    pub fn len(&self) -> usize {
        self.lock().ready.len()
    }

    /// True when no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes [`next`](Self::next) return `None` from now on.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    /// The next ready key, when there is one; `None` once closed. Cancel-safe.
    pub async fn next(self: &Arc<Self>) -> Option<Item<K>> {
        loop {
            let notified = self.changed.notified();
            let wake = {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                state.fire(Instant::now());
                if let Some(key) = state.take() {
                    let more = !state.ready.is_empty();
                    drop(state);
                    if more {
                        self.changed.notify_one();
                    }
                    return Some(Item { key, queue: self.clone() });
                }
                state.timers.peek().map(|t| t.0.at)
            };
            match wake {
                Some(at) => tokio::select! {
                    () = notified => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => notified.await,
            }
        }
    }

    fn finish(&self, key: &K) {
        let mut state = self.lock();
        let Some(entry) = state.keys.get_mut(key) else { return };
        entry.working = false;
        if std::mem::take(&mut entry.again) {
            state.make_ready(key.clone());
            drop(state);
            self.changed.notify_one();
        } else if entry.is_idle() {
            state.keys.remove(key);
        }
    }

    /// Hands every ready key to `handler`, at most `workers` at a time, until `shutdown`; then waits for
    /// those under way. A panic in the handler counts as [`Outcome::Retry`].
    pub async fn run<F, Fut>(self: Arc<Self>, workers: usize, shutdown: CancellationToken, handler: F)
    where
        K: Send + Sync + Debug + 'static,
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(workers.max(1)));
        let tasks = TaskTracker::new();
        loop {
            let step = async {
                // Never closed, so it can only fail together with this function.
                let place = places.clone().acquire_owned().await.ok()?;
                Some((self.next().await?, place))
            };
            let Some(Some((item, place))) = shutdown.run_until_cancelled(step).await else { break };
            let work = std::panic::AssertUnwindSafe(handler(item.key().clone())).catch_unwind();
            let queue = self.clone();
            tasks.spawn(async move {
                let _place = place;
                let outcome = work.await.unwrap_or_else(|_| {
                    if let Some(metrics) = queue.lock().metrics.get() {
                        metrics.panics.inc();
                    }
                    tracing::error!(key = ?item.key(), "work on a key panicked; it is tried again");
                    Outcome::Retry
                });
                queue.settle(item.key(), outcome);
            });
        }
        tasks.close();
        tasks.wait().await;
    }

    /// Applies an outcome to a key.
    pub fn settle(&self, key: &K, outcome: Outcome) {
        match outcome {
            Outcome::Done => self.forget(key),
            Outcome::After(delay) => {
                self.forget(key);
                self.add_after(key.clone(), delay);
            }
            Outcome::Retry => {
                self.retry(key.clone(), None);
            }
            Outcome::RetryAfter(delay) => {
                self.retry(key.clone(), Some(delay));
            }
        }
    }
}

impl<K: Eq + Hash + Clone> State<K> {
    /// True when the key was not ready before.
    fn make_ready(&mut self, key: K) -> bool {
        let entry = self.keys.entry(key.clone()).or_default();
        entry.due = None;
        if entry.working {
            entry.again = true;
            return false;
        }
        if entry.waiting {
            return false;
        }
        entry.waiting = true;
        if let Some(metrics) = self.metrics.get() {
            entry.since = Some(Instant::now());
            metrics.depth.inc();
        }
        self.ready.push_back(key);
        true
    }

    fn fire(&mut self, now: Instant) {
        while self.timers.peek().is_some_and(|t| t.0.at <= now) {
            let Some(Reverse(timer)) = self.timers.pop() else { return };
            if self.keys.get(&timer.key).is_some_and(|k| k.due == Some(timer.at)) {
                self.make_ready(timer.key);
            }
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        let entry = self.keys.entry(key.clone()).or_default();
        entry.waiting = false;
        entry.working = true;
        if let (Some(metrics), Some(since)) = (self.metrics.get(), entry.since.take()) {
            metrics.depth.dec();
            metrics.latency.observe(since.elapsed().as_secs_f64());
        }
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn queue() -> Arc<WorkQueue<&'static str>> {
        WorkQueue::new(Backoff { base: S, max: S * 60 })
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_twice_is_handed_out_once() {
        let q = queue();
        q.add("a");
        q.add("a");
        assert_eq!(*q.next().await.unwrap().key(), "a");
        assert!(tokio::time::timeout(S, q.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_during_its_work_comes_back_after_it() {
        let q = queue();
        q.add("a");
        let item = q.next().await.unwrap();
        q.add("a");
        assert!(tokio::time::timeout(S, q.next()).await.is_err(), "handed out while being worked on");
        drop(item);
        assert_eq!(*q.next().await.unwrap().key(), "a");
    }

    #[tokio::test(start_paused = true)]
    async fn delays_on_a_grid_end_together_and_never_early() {
        let q = WorkQueue::on_a_grid(Backoff { base: S, max: S }, S);
        let start = Instant::now();
        q.add_after("a", Duration::from_millis(3_100));
        q.add_after("b", Duration::from_millis(3_900));
        q.add_after("c", Duration::from_millis(4_000));
        q.add_after("d", Duration::from_millis(4_001));
        for (key, seconds) in [("a", 4), ("b", 4), ("c", 4), ("d", 5)] {
            assert_eq!(*q.next().await.unwrap().key(), key);
            assert_eq!(start.elapsed().as_millis() / 10, u128::from(seconds * 100_u32), "{key}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_key_waits_and_an_earlier_time_wins() {
        let q = queue();
        let start = Instant::now();
        q.add_after("a", S * 10);
        q.add_after("a", S * 2);
        q.add_after("a", S * 5);
        drop(q.next().await.unwrap());
        assert_eq!(start.elapsed().as_secs(), 2);
        assert!(tokio::time::timeout(S * 60, q.next()).await.is_err(), "the later times were replaced");
    }

    #[tokio::test(start_paused = true)]
    async fn adding_now_overtakes_a_delay() {
        let q = queue();
        let start = Instant::now();
        q.add_after("a", S * 10);
        q.add("a");
        drop(q.next().await.unwrap());
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(tokio::time::timeout(S * 60, q.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn back_off_doubles_to_its_limit_and_is_reset() {
        let q = queue();
        let mut last = Duration::ZERO;
        for n in 0..10 {
            last = q.retry("a", None);
            let full = Backoff { base: S, max: S * 60 }.delay(n);
            assert!(last >= full / 2 && last <= full, "attempt {n}: {last:?} of {full:?}");
            drop(q.next().await.unwrap());
        }
        assert!(last >= S * 30);
        q.forget(&"a");
        assert!(q.retry("a", None) <= S);
        assert!(q.retry("a", Some(S * 90)) >= S * 90);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_keys_cost_nothing() {
        let q = queue();
        q.add("a");
        drop(q.next().await.unwrap());
        assert!(q.lock().keys.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn workers_are_bounded_and_a_panic_is_retried() {
        use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
        static NOW: AtomicUsize = AtomicUsize::new(0);
        static MOST: AtomicUsize = AtomicUsize::new(0);
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let q: Arc<WorkQueue<usize>> = WorkQueue::new(Backoff { base: S, max: S });
        for n in 0..20 {
            q.add(n);
        }
        let stop = CancellationToken::new();
        let running = tokio::spawn(q.clone().run(4, stop.clone(), |n| async move {
            MOST.fetch_max(NOW.fetch_add(1, SeqCst) + 1, SeqCst);
            tokio::time::sleep(S).await;
            NOW.fetch_sub(1, SeqCst);
            if RUNS.fetch_add(1, SeqCst) == 0 {
                panic!("key {n}");
            }
            Outcome::Done
        }));
        tokio::time::sleep(S * 30).await;
        stop.cancel();
        running.await.unwrap();
        assert_eq!(MOST.load(SeqCst), 4);
        assert_eq!(RUNS.load(SeqCst), 21);
    }

    #[tokio::test]
    async fn a_closed_queue_ends() {
        let q = queue();
        let waiting = tokio::spawn({
            let q = q.clone();
            async move { q.next().await.is_none() }
        });
        tokio::task::yield_now().await;
        q.close();
        assert!(waiting.await.unwrap());
    }
}
