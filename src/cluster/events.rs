//! The one writer of events: aggregated, bounded, lowest priority.
//!
//! [`EventWriter::emit`] never waits. What does not fit into the queue or the budget is dropped, since
//! events are hints and the API server has better to do. An event that is repeated raises the count of
//! the one that is there.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::names::EVENT_COMPONENT;

/// Events that wait to be written.
const QUEUE: usize = 1024;
/// Events written in a row before the pace applies. A single kubelet may write 100 in a row and 50 each second; this
/// is for all nodes of the process together.
const BURST: f64 = 300.0;
/// Events written each second in the long run.
const RATE: f64 = 50.0;
/// The same for one object, which must not use up what others need. client-go: `EventSourceObjectSpamFilter`.
const OBJECT_BURST: f64 = 25.0;
const OBJECT_RATE: f64 = 1.0 / 300.0;
/// Events whose repetitions are recognised, and for how long. client-go: `EventCorrelator`.
const REMEMBERED: usize = 4096;
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// Events that are written at the same time.
const WRITERS: usize = 8;
const DEADLINE: Duration = Duration::from_secs(10);
/// The API server's limit for `message`.
const MAX_MESSAGE: usize = 1024;

/// One thing to tell about an object.
#[derive(Clone, Debug)]
struct Note {
    regarding: ObjectReference,
    warning: bool,
    reason: String,
    message: String,
}

/// Writes events. Clones share one queue.
#[derive(Clone)]
pub struct EventWriter {
    client: kube::Client,
    sender: mpsc::Sender<Note>,
    receiver: Arc<Mutex<Option<mpsc::Receiver<Note>>>>,
}

struct Known {
    name: String,
    count: i32,
    last: Instant,
}

/// What an event is about, for telling objects apart.
fn about(note: &Note) -> String {
    let about = &note.regarding;
    about.uid.clone().or_else(|| about.name.clone()).unwrap_or_default()
}

/// Which of the writers writes what is told of an object.
fn share_of(object: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    usize::try_from(hasher.finish() % WRITERS as u64).unwrap_or(0)
}

/// What may still be told.
#[derive(Clone, Copy)]
struct Budget {
    left: f64,
    since: Instant,
}

impl Budget {
    fn full(burst: f64, now: Instant) -> Self {
        Self { left: burst, since: now }
    }

    fn refill(&mut self, burst: f64, rate: f64, now: Instant) {
        self.left = (self.left + (now - self.since).as_secs_f64() * rate).min(burst);
        self.since = now;
    }
}

/// The budgets of objects of which something was told lately.
#[derive(Default)]
struct Objects(HashMap<String, Budget>);

impl Objects {
    /// True when one more event about the object may be told.
    fn allow(&mut self, object: &str, now: Instant) -> bool {
        if self.0.len() >= REMEMBERED {
            // Those that have told little are as good as new.
            self.0.retain(|_, b| b.left < OBJECT_BURST / 2.0 && now - b.since < REMEMBERED_FOR);
            if self.0.len() >= REMEMBERED {
                self.0.clear();
            }
        }
        let full = || Budget::full(OBJECT_BURST, now);
        let budget = self.0.entry(object.to_owned()).or_insert_with(full);
        budget.refill(OBJECT_BURST, OBJECT_RATE, now);
        if budget.left < 1.0 {
            return false;
        }
        budget.left -= 1.0;
        true
    }
}

impl EventWriter {
    /// A writer that begins to write when it is [`run`](Self::run).
    pub fn new(client: kube::Client) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Self { client, sender, receiver: Arc::new(Mutex::new(Some(receiver))) }
    }

    /// Tells of something at an object. `reason` is one CamelCase word.
    pub fn emit(&self, regarding: ObjectReference, warning: bool, reason: &str, message: impl Into<String>) {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE {
            message.truncate((0..=MAX_MESSAGE).rev().find(|n| message.is_char_boundary(*n)).unwrap_or(0));
        }
        // A full queue drops the event: it may never hold up what it tells about.
        let _ = self.sender.try_send(Note { regarding, warning, reason: reason.to_owned(), message });
    }

    /// True when no event waits, so that unimportant ones may be told as well.
    pub fn is_idle(&self) -> bool {
        self.sender.capacity() * 4 > QUEUE * 3
    }

    /// Writes until `shutdown`. Only the first call of all clones does anything.
    pub async fn run(&self, shutdown: CancellationToken) {
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut receiver) = receiver else { return };
        // What is told of one object is written by one writer, in order.
        let mut writers = Vec::new();
        let mut writing = tokio::task::JoinSet::new();
        for _ in 0..WRITERS {
            let (sender, receiver) = mpsc::channel(QUEUE / WRITERS);
            writers.push(sender);
            writing.spawn(self.clone().write_all(receiver, shutdown.clone()));
        }
        let mut budget = Budget::full(BURST, Instant::now());
        let mut objects = Objects::default();
        while let Some(Some(note)) = shutdown.run_until_cancelled(receiver.recv()).await {
            let about = about(&note);
            if !objects.allow(&about, Instant::now()) {
                continue;
            }
            budget.refill(BURST, RATE, Instant::now());
            if budget.left < 1.0 {
                // Warnings wait for their turn, the rest is dropped.
                if !note.warning {
                    continue;
                }
                let wait = tokio::time::sleep(Duration::from_secs_f64((1.0 - budget.left) / RATE));
                if shutdown.run_until_cancelled(wait).await.is_none() {
                    return;
                }
                budget = Budget::full(1.0, Instant::now());
            }
            budget.left -= 1.0;
            let at = share_of(&about);
            // Waits for a slow API server, and so does what follows; the queue before this drops what is too much.
            let sent = shutdown.run_until_cancelled(writers[at].send(note)).await;
            if !matches!(sent, Some(Ok(()))) {
                return;
            }
        }
    }

    async fn write_all(self, mut notes: mpsc::Receiver<Note>, shutdown: CancellationToken) {
        let mut known: HashMap<String, Known> = HashMap::new();
        while let Some(Some(note)) = shutdown.run_until_cancelled(notes.recv()).await {
            if known.len() >= REMEMBERED / WRITERS {
                known.retain(|_, k| k.last.elapsed() < REMEMBERED_FOR / 4);
                if known.len() >= REMEMBERED / WRITERS {
                    known.clear();
                }
            }
            let written = tokio::time::timeout(DEADLINE, self.write(&note, &mut known));
            match shutdown.run_until_cancelled(written).await {
                Some(Ok(Err(error))) => tracing::debug!(reason = note.reason, %error, "an event could not be written"),
                Some(Err(_)) => tracing::debug!(reason = note.reason, "writing an event took too long"),
                Some(Ok(Ok(()))) => {}
                None => return,
            }
        }
    }

    async fn write(&self, note: &Note, known: &mut HashMap<String, Known>) -> kube::Result<()> {
        let about = &note.regarding;
        let namespace = about.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let text = |v: &Option<String>| v.clone().unwrap_or_default();
        let key = [&text(&about.uid), &text(&about.name), &note.reason, &note.message].map(String::as_str).join("\n");
        let now = Time(jiff::Timestamp::now());
        if let Some(k) = known.get_mut(&key).filter(|k| k.last.elapsed() < REMEMBERED_FOR) {
            k.count = k.count.saturating_add(1);
            k.last = Instant::now();
            let patch = serde_json::json!({"count": k.count, "lastTimestamp": now});
            match api.patch(&k.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                // Events expire; then it is told anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => return other.map(|_| ()),
            }
        }
        let name = format!("{}.{:016x}", text(&about.name), rand::random::<u64>());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: about.clone(),
            reason: Some(note.reason.clone()),
            message: Some(note.message.clone()),
            type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(EventSource { component: Some(EVENT_COMPONENT.to_owned()), host: None }),
            reporting_component: Some(EVENT_COMPONENT.to_owned()),
            ..Event::default()
        };
        api.create(&PostParams::default(), &event).await?;
        known.insert(key, Known { name, count: 1, last: Instant::now() });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_object_cannot_use_up_what_others_need() {
        let (mut objects, now) = (Objects::default(), Instant::now());
        let told = (0..100).filter(|_| objects.allow("noisy", now)).count();
        assert_eq!(told, 25);
        assert!(objects.allow("quiet", now));
        let later = now + Duration::from_secs(301);
        assert!(objects.allow("noisy", later) && !objects.allow("noisy", later), "one more after five minutes");
    }
}
