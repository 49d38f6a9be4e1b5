//! What running pods depend on, looked at now and then: changes reach their files within a minute.
//!
//! Kubelet watches each ConfigMap and Secret that its pods use by name. It has some dozens; a fleet of ten
//! thousand nodes has ten thousand of them in one process, and as many watches would cost the API server a
//! connection's worth of memory each, and be opened anew all together after every restart of it. Watching all
//! ConfigMaps and Secrets would show us those that no pod of ours names. So each object is asked for its
//! metadata, a few hundred bytes, at intervals: 20 s while there are few objects, at most 50 s, evenly spread
//! and with a bound on how many questions are under way. Only an object whose version differs is read. Objects
//! that say they are immutable are never looked at again, and providers that do not take updates need none of
//! this.
//!
//! All of it is one queue: objects come back at their intervals, pods when a token of theirs has to be renewed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::objects::{ObjectCache, ObjectKey};
use super::resolve::Sources;
use crate::cluster::queue::{Backoff, Outcome, WorkQueue};

const SHORTEST: Duration = Duration::from_secs(20);
/// With the jitter, and the time that resolving and handing over take, below a minute.
const LONGEST: Duration = Duration::from_secs(50);
/// Questions each second up to which the interval is the shortest.
const PACE: f64 = 100.0;
/// Questions under way at a time.
const WORKERS: usize = 16;
/// Of an API server that does not answer.
const BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(30) };

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Object(ObjectKey),
    Pod(Arc<str>),
}

struct Seen {
    /// The version that the pods have; `None` for one that was missing. Outer `None`: not all have the same.
    version: Option<Option<String>>,
    pods: HashSet<Arc<str>>,
}

#[derive(Default)]
struct State {
    objects: HashMap<ObjectKey, Seen>,
    pods: HashMap<Arc<str>, Vec<ObjectKey>>,
}

/// Which pods depend on what.
pub(super) struct Feed {
    state: Mutex<State>,
    queue: Arc<WorkQueue<Key>>,
}

impl Feed {
    pub fn new() -> Self {
        Self { state: Mutex::default(), queue: WorkQueue::new(BACKOFF) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Maps that are changed whole entries at a time, so a panic leaves them sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a pod was made from, in place of what was noted before.
    pub fn follow(&self, uid: &Arc<str>, used: BTreeMap<ObjectKey, Option<String>>, again: Option<Instant>) {
        let mut state = self.lock();
        let before = state.pods.insert(uid.clone(), used.keys().cloned().collect()).unwrap_or_default();
        for key in before.into_iter().filter(|k| !used.contains_key(k)) {
            state.leave(&key, uid);
        }
        let interval = interval(state.objects.len());
        for (key, version) in used {
            match state.objects.get_mut(&key) {
                Some(seen) => {
                    seen.pods.insert(uid.clone());
                    if seen.version.as_ref() != Some(&version) {
                        // One of them is behind: the next look tells which, and need not be waited for.
                        seen.version = None;
                        self.queue.add_after(Key::Object(key), Duration::from_secs(1));
                    }
                }
                None => {
                    let seen = Seen { version: Some(version), pods: [uid.clone()].into() };
                    state.objects.insert(key.clone(), seen);
                    // Spread from the start.
                    let share = rand::rng().random_range(0.2..1.0);
                    self.queue.add_after(Key::Object(key), interval.mul_f64(share));
                }
            }
        }
        if let Some(at) = again {
            self.queue.add_after(Key::Pod(uid.clone()), at.saturating_duration_since(Instant::now()));
        }
    }

    /// Forgets a pod.
    pub fn forget(&self, uid: &str) {
        let mut state = self.lock();
        let Some(keys) = state.pods.remove(uid) else { return };
        for key in keys {
            state.leave(&key, uid);
        }
    }

    /// Looks at what is due until `shutdown`, and names each pod that something changed for.
    pub async fn run(
        self: &Arc<Self>,
        sources: Arc<Sources>,
        stale: impl Fn(&Arc<str>) + Send + Sync + 'static,
        shutdown: CancellationToken,
    ) {
        let (feed, stale) = (self.clone(), Arc::new(stale));
        let look = move |key: Key| {
            let (feed, stale, sources) = (feed.clone(), stale.clone(), sources.clone());
            async move {
                match key {
                    Key::Pod(uid) => {
                        if feed.lock().pods.contains_key(&uid) {
                            stale(&uid);
                        }
                        Outcome::Done
                    }
                    Key::Object(key) => {
                        let (outcome, pods) = feed.look(&sources.objects, &key).await;
                        pods.iter().for_each(|uid| stale(uid));
                        outcome
                    }
                }
            }
        };
        self.queue.clone().run(WORKERS, shutdown, look).await;
    }

    /// Compares an object's version with the one that its pods have.
    async fn look(&self, objects: &ObjectCache, key: &ObjectKey) -> (Outcome, Vec<Arc<str>>) {
        if !self.lock().objects.contains_key(key) {
            return (Outcome::Done, Vec::new());
        }
        let now = match objects.version(key).await {
            Ok(now) => now,
            Err(error) => {
                tracing::debug!(
                    kind = key.kind.word(),
                    namespace = key.namespace,
                    name = key.name,
                    error,
                    "an object could not be looked at"
                );
                return (Outcome::Retry, Vec::new());
            }
        };
        let changed = {
            let state = self.lock();
            let Some(seen) = state.objects.get(key) else { return (Outcome::Done, Vec::new()) };
            seen.version.as_ref() != Some(&now)
        };
        if changed {
            // Before the pods are told, or they would get what was read before.
            objects.drop_kept(key).await;
        }
        let mut state = self.lock();
        let interval = interval(state.objects.len());
        let Some(seen) = state.objects.get_mut(key) else { return (Outcome::Done, Vec::new()) };
        let pods = if changed { seen.pods.iter().cloned().collect() } else { Vec::new() };
        seen.version = Some(now);
        (Outcome::After(interval.mul_f64(rand::rng().random_range(0.9..1.0))), pods)
    }
}

impl State {
    fn leave(&mut self, key: &ObjectKey, uid: &str) {
        if let Some(seen) = self.objects.get_mut(key) {
            seen.pods.remove(uid);
            if seen.pods.is_empty() {
                // Its key in the queue finds nothing and is not put back.
                self.objects.remove(key);
            }
        }
    }
}

/// How often an object is looked at when there are so many.
fn interval(objects: usize) -> Duration {
    Duration::from_secs_f64(objects as f64 / PACE).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_objects_are_looked_at_less_often_but_within_a_minute() {
        for (objects, seconds) in [(0, 20), (1000, 20), (3000, 30), (100_000, 50)] {
            assert_eq!(interval(objects).as_secs(), seconds, "{objects}");
        }
    }
}
