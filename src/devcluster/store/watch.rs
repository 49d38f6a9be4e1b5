//! Fan-out: an event finds its watchers by namespace, name or node, so that its cost grows with those who asked for it.

use std::collections::HashMap;
use std::sync::Arc;

use super::object::Object;
use super::queue::{self, Receiver, Sender};

/// Events that may wait for a watcher; one that falls further behind is cut off and lists again.
const BUFFER: usize = 16_384;
/// What they may take together. They are shared with history and with other watchers, but history is forgotten.
const BUFFER_BYTES: usize = 32 << 20;

/// A change to one object.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) revision: u64,
    /// The object before, when there was one.
    pub(crate) before: Option<Arc<Object>>,
    /// The object after; for a deletion its last state under the deletion's revision.
    pub(crate) object: Arc<Object>,
    pub(crate) deleted: bool,
}

impl Event {
    pub(crate) fn size(&self) -> usize {
        self.object.size()
    }
}

/// The cheapest description of what a watcher may want to see; its selectors decide in its own task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Interest {
    All,
    Namespace(Box<str>),
    /// Namespace (may be empty for any) and name.
    Name(Box<str>),
    /// Position among the resource's selectable fields, and the value asked for.
    Field(usize, Box<str>),
}

impl Interest {
    fn wants(&self, object: &Object) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(ns) => object.key.namespace == *ns,
            Self::Name(name) => object.key.name == *name,
            Self::Field(at, value) => object.fields.get(*at) == Some(value),
        }
    }

    pub(crate) fn wants_event(&self, event: &Event) -> bool {
        self.wants(&event.object) || event.before.as_ref().is_some_and(|before| self.wants(before))
    }
}

/// The receiving end of a watch. It ends when its watcher was cut off.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) events: Receiver<Arc<Event>>,
}

/// All watchers of a resource.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    by_interest: HashMap<Interest, Vec<Sender<Arc<Event>>>>,
    /// How many watchers there are by a selectable field, for each field: skips lookups nobody needs.
    fields: Vec<usize>,
}

impl Watchers {
    pub(crate) fn subscribe(&mut self, interest: Interest) -> Subscription {
        let (sender, events) = queue::queue(BUFFER, BUFFER_BYTES);
        if let Interest::Field(at, _) = interest
            && !self.fields.contains(&at)
        {
            self.fields.push(at);
        }
        let bucket = self.by_interest.entry(interest).or_default();
        bucket.retain(|sender| !sender.is_closed());
        bucket.push(sender);
        if self.by_interest.len().is_power_of_two() {
            self.by_interest.retain(|_, bucket| bucket.iter().any(|sender| !sender.is_closed()));
        }
        Subscription { events }
    }

    pub(crate) fn publish(&mut self, event: &Arc<Event>) {
        if self.by_interest.is_empty() {
            return;
        }
        self.send(&Interest::All, event);
        let key = &event.object.key;
        self.send(&Interest::Namespace(key.namespace.clone()), event);
        self.send(&Interest::Name(key.name.clone()), event);
        for i in 0..self.fields.len() {
            let at = self.fields[i];
            let now = event.object.fields.get(at).cloned();
            let before = event.before.as_ref().and_then(|b| b.fields.get(at).cloned());
            if let Some(before) = before.filter(|b| now.as_ref() != Some(b)) {
                self.send(&Interest::Field(at, before), event);
            }
            if let Some(now) = now {
                self.send(&Interest::Field(at, now), event);
            }
        }
    }

    fn send(&mut self, interest: &Interest, event: &Arc<Event>) {
        if let Some(bucket) = self.by_interest.get_mut(interest) {
            bucket.retain(|sender| sender.send(event.clone(), event.size()));
        }
    }

    /// Ends every watch.
    pub(crate) fn clear(&mut self) {
        self.by_interest.clear();
    }
}
