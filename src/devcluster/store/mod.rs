//! The state of the cluster: objects in memory under one revision counter, with history for watches.
//!
//! `Store` hands out a [`Resource`] for each group and plural. A write takes its resource's lock only to compare
//! revisions, splice the new one in, append to the log and hand the event to the watchers that want it.
//!
//! ```text
//! Draft --put--> Resource { objects, history, watchers } --event--> Subscription
//!                    \--record--> wal::Log (when a data directory is given)
//! ```

mod object;
mod queue;
pub(crate) mod wal;
mod watch;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(crate) use object::{Draft, Field, Key, Object, encoded};
pub(crate) use watch::{Event, Interest, Subscription};

/// History kept for watches that resume, a resource: by number and by size, whichever ends first.
const HISTORY_EVENTS: usize = 65_536;
const HISTORY_BYTES: usize = 48 << 20;
/// No object may be larger. etcd: `--max-request-bytes`.
const OBJECT_LIMIT: usize = 3 << 19;

/// A group and a plural name, whatever the version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ResourceId {
    pub(crate) group: Box<str>,
    pub(crate) plural: Box<str>,
}

impl ResourceId {
    pub(crate) fn new(group: &str, plural: &str) -> Self {
        Self { group: group.into(), plural: plural.into() }
    }
}

/// What a write expects to find.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Expect {
    Absent,
    Revision(u64),
}

/// Why a write did not happen.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The expectation failed: somebody else wrote first.
    Raced,
    /// The object is too large (`FileTooLarge`) or the log could not be written.
    Log(std::io::Error),
}

/// History does not reach that far back; the oldest revision that still does is given.
#[derive(Debug)]
pub(crate) struct TooOld(pub(crate) u64);

/// All resources.
#[derive(Debug)]
pub(crate) struct Store {
    revision: AtomicU64,
    resources: RwLock<HashMap<ResourceId, Arc<Resource>>>,
    log: Option<Arc<wal::Log>>,
}

/// The objects of one group and plural.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) id: ResourceId,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Key, Arc<Object>>,
    fields: Arc<[Field]>,
    history: VecDeque<Arc<Event>>,
    history_bytes: usize,
    /// Watches may resume from this revision or a later one.
    floor: u64,
    /// Revision of the last change.
    changed: u64,
    watchers: watch::Watchers,
}

/// A part of a list, in the order of keys.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) objects: Vec<Arc<Object>>,
    pub(crate) revision: u64,
    /// How many objects of the range lie behind the page, selectors not considered.
    pub(crate) remaining: usize,
}

/// What part of a resource to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Range<'a> {
    pub(crate) namespace: Option<&'a str>,
    pub(crate) after: Option<&'a Key>,
    /// As of this revision instead of now.
    pub(crate) at: Option<u64>,
    pub(crate) limit: usize,
}

impl Store {
    /// An empty store, or what the log holds.
    pub(crate) fn open(log: Option<(Arc<wal::Log>, wal::Loaded)>) -> Arc<Self> {
        let (log, loaded) = match log {
            Some((log, loaded)) => (Some(log), loaded),
            None => (None, wal::Loaded::default()),
        };
        // Revision 1 is never an object's: clients use it as "very old".
        let revision = loaded.revision.max(1);
        let store = Self { revision: revision.into(), resources: RwLock::default(), log };
        for (id, objects) in loaded.resources {
            let resource = store.resource(&id);
            let mut state = resource.write();
            state.objects = objects.into_iter().map(|object| (object.key.clone(), Arc::new(object))).collect();
            state.changed = revision;
        }
        Arc::new(store)
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::SeqCst)
    }

    /// The resource, made empty when it is new.
    pub(crate) fn resource(&self, id: &ResourceId) -> Arc<Resource> {
        if let Some(found) = self.resources.read().unwrap_or_else(PoisonError::into_inner).get(id) {
            return found.clone();
        }
        let mut resources = self.resources.write().unwrap_or_else(PoisonError::into_inner);
        let floor = self.revision();
        let make = || {
            let state = State { floor, changed: floor, ..State::default() };
            Arc::new(Resource { id: id.clone(), state: RwLock::new(state) })
        };
        resources.entry(id.clone()).or_insert_with(make).clone()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Resource>> {
        self.resources.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Forgets a resource that is no longer served and ends its watches.
    pub(crate) fn forget(&self, id: &ResourceId) {
        let gone = self.resources.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(resource) = gone {
            resource.cut_watches();
        }
    }

    /// Ends all watches, as at shutdown.
    pub(crate) fn cut_watches(&self) {
        for resource in self.all() {
            resource.cut_watches();
        }
    }

    /// Writes an object when `expect` holds and returns it with its revision.
    pub(crate) fn put(&self, resource: &Resource, draft: Draft, expect: Expect) -> Result<Arc<Object>, Refused> {
        if draft.len() > OBJECT_LIMIT {
            return Err(Refused::Log(std::io::ErrorKind::FileTooLarge.into()));
        }
        let mut state = resource.write();
        let before = state.objects.get(draft.key()).cloned();
        match (&before, expect) {
            (None, Expect::Absent) => {}
            (Some(found), Expect::Revision(revision)) if found.revision == revision => {}
            _ => return Err(Refused::Raced),
        }
        // Taken under the resource's lock: revisions of one resource grow in the order of its events.
        let revision = self.revision.fetch_add(1, Ordering::SeqCst) + 1;
        let object = Arc::new(draft.stamp(revision));
        if let Some(log) = &self.log {
            log.put(&resource.id, &object).map_err(Refused::Log)?;
        }
        state.objects.insert(object.key.clone(), object.clone());
        state.record(Event { revision, before, object: object.clone(), deleted: false });
        drop(state);
        self.compact_when_due();
        Ok(object)
    }

    /// Removes an object that is still at `revision` and returns its last state.
    pub(crate) fn remove(&self, resource: &Resource, key: &Key, revision: u64) -> Result<Arc<Object>, Refused> {
        let mut state = resource.write();
        let Some(before) = state.objects.get(key).filter(|found| found.revision == revision).cloned() else {
            return Err(Refused::Raced);
        };
        let revision = self.revision.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(log) = &self.log {
            log.remove(&resource.id, key, revision).map_err(Refused::Log)?;
        }
        state.objects.remove(key);
        let object = Arc::new(before.stamped(revision));
        state.record(Event { revision, before: Some(before), object: object.clone(), deleted: true });
        drop(state);
        self.compact_when_due();
        Ok(object)
    }

    fn compact_when_due(&self) {
        let Some(log) = self.log.clone().filter(|log| log.begin_compaction()) else { return };
        let resources = self.all();
        // Its own thread: it writes for as long as the state is large, and no request waits for it.
        std::thread::spawn(move || {
            let live = resources.iter().map(|r| (r.id.clone(), r.read().objects.values().cloned().collect()));
            if let Err(error) = log.compact(live) {
                tracing::warn!(%error, "could not write a snapshot; the log keeps growing");
            }
        });
    }
}

impl Resource {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        // A panic never leaves this state half written: every mutation below is a single insertion or removal.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.read().objects.get(key).cloned()
    }

    /// Ends the watches that there are now.
    pub(crate) fn cut_watches(&self) {
        self.write().watchers.clear();
    }

    /// Forgets the past, so that watches from it and pages of it are refused.
    pub(crate) fn compact(&self, store: &Store) {
        let mut state = self.write();
        state.history.clear();
        state.history_bytes = 0;
        state.floor = store.revision();
    }

    /// Revision of the last change to any object.
    pub(crate) fn changed(&self) -> u64 {
        self.read().changed
    }

    pub(crate) fn len(&self) -> usize {
        self.read().objects.len()
    }

    pub(crate) fn fields(&self) -> Arc<[Field]> {
        self.read().fields.clone()
    }

    /// Sets what field selectors may ask for and reads it out of every object.
    pub(crate) fn set_fields(&self, fields: &[Field]) {
        let mut state = self.write();
        if *state.fields != *fields {
            state.fields = fields.into();
            for object in state.objects.values_mut() {
                *object = Arc::new(object.reindexed(fields));
            }
        }
    }

    /// A revision such that every change of this resource up to it has been handed to the watchers.
    pub(crate) fn settled(&self, store: &Store) -> u64 {
        let _state = self.read();
        store.revision()
    }

    pub(crate) fn list(
        &self,
        store: &Store,
        range: &Range<'_>,
        wanted: impl Fn(&Object) -> bool,
    ) -> Result<Page, TooOld> {
        let state = self.read();
        let revision = range.at.unwrap_or_else(|| store.revision());
        if revision < state.floor {
            return Err(TooOld(state.floor));
        }
        let past = range.at.and_then(|at| state.undo(at));
        let mut page = Page { objects: Vec::new(), revision, remaining: 0 };
        let mut take = |object: &Arc<Object>| {
            if !page.objects.is_empty() && range.limit > 0 && page.objects.len() >= range.limit {
                page.remaining += usize::from(wanted(object));
            } else if wanted(object) {
                page.objects.push(object.clone());
            }
        };
        match past {
            None => state.walk(range).for_each(&mut take),
            Some(past) => {
                let mut merged: BTreeMap<&Key, &Arc<Object>> = state.walk(range).map(|o| (&o.key, o)).collect();
                for (key, object) in &past {
                    match object {
                        Some(object) if range.contains(key) => merged.insert(key, object),
                        _ => merged.remove(key),
                    };
                }
                merged.values().for_each(|object| take(object));
            }
        }
        Ok(page)
    }

    /// Events after `from`: those of the past at once, the rest as they come.
    pub(crate) fn watch(&self, from: u64, interest: Interest) -> Result<(Vec<Arc<Event>>, Subscription), TooOld> {
        let mut state = self.write();
        if from < state.floor {
            return Err(TooOld(state.floor));
        }
        let start = state.history.partition_point(|event| event.revision <= from);
        let past = state.history.range(start..).filter(|event| interest.wants_event(event)).cloned().collect();
        Ok((past, state.watchers.subscribe(interest)))
    }

    /// The present objects and everything that happens to them afterwards, without a gap.
    pub(crate) fn list_and_watch(
        &self,
        store: &Store,
        namespace: Option<&str>,
        interest: Interest,
        wanted: impl Fn(&Object) -> bool,
    ) -> (Vec<Arc<Object>>, u64, Subscription) {
        let mut state = self.write();
        let range = Range { namespace, ..Range::default() };
        let objects = state.walk(&range).filter(|o| wanted(o)).cloned().collect();
        (objects, store.revision(), state.watchers.subscribe(interest))
    }
}

impl Range<'_> {
    fn contains(&self, key: &Key) -> bool {
        self.namespace.is_none_or(|ns| &*key.namespace == ns) && self.after.is_none_or(|after| key > after)
    }
}

impl State {
    fn walk<'a>(&'a self, range: &'a Range<'_>) -> impl Iterator<Item = &'a Arc<Object>> {
        let start = match (range.after, range.namespace) {
            (Some(after), _) => Bound::Excluded(after.clone()),
            (None, Some(ns)) => Bound::Included(Key::new(ns, "")),
            (None, None) => Bound::Unbounded,
        };
        let inside = move |key: &Key| range.namespace.is_none_or(|ns| &*key.namespace == ns);
        self.objects.range((start, Bound::Unbounded)).take_while(move |(key, _)| inside(key)).map(|(_, o)| o)
    }

    /// What objects that changed after `at` were then; `None` when nothing has changed since.
    fn undo(&self, at: u64) -> Option<BTreeMap<Key, Option<Arc<Object>>>> {
        let start = self.history.partition_point(|event| event.revision <= at);
        if start == self.history.len() {
            return None;
        }
        let mut past = BTreeMap::new();
        for event in self.history.range(start..) {
            past.entry(event.object.key.clone()).or_insert_with(|| event.before.clone());
        }
        Some(past)
    }

    fn record(&mut self, event: Event) {
        self.changed = event.revision;
        self.history_bytes += event.size();
        let event = Arc::new(event);
        self.watchers.publish(&event);
        self.history.push_back(event);
        while self.history.len() > HISTORY_EVENTS || self.history_bytes > HISTORY_BYTES {
            let Some(oldest) = self.history.pop_front() else { break };
            self.history_bytes -= oldest.size();
            self.floor = oldest.revision;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn put(store: &Store, resource: &Resource, name: &str, expect: Expect) -> Result<Arc<Object>, Refused> {
        store.put(resource, Draft::new(&json!({"metadata": {"name": name, "namespace": "a"}}), &[]), expect)
    }

    fn names(page: &Page) -> Vec<&str> {
        page.objects.iter().map(|o| &*o.key.name).collect()
    }

    #[test]
    fn a_write_that_lost_the_race_changes_nothing() {
        let store = Store::open(None);
        let resource = store.resource(&ResourceId::new("", "things"));
        let first = put(&store, &resource, "x", Expect::Absent).unwrap();
        assert!(matches!(put(&store, &resource, "x", Expect::Absent), Err(Refused::Raced)));
        put(&store, &resource, "x", Expect::Revision(first.revision)).unwrap();
        assert!(matches!(put(&store, &resource, "x", Expect::Revision(first.revision)), Err(Refused::Raced)));
        assert!(matches!(store.remove(&resource, &first.key, first.revision), Err(Refused::Raced)));
    }

    #[test]
    fn later_pages_show_the_state_of_the_first() {
        let store = Store::open(None);
        let resource = store.resource(&ResourceId::new("", "things"));
        for name in ["a", "b", "c", "d"] {
            put(&store, &resource, name, Expect::Absent).unwrap();
        }
        let first = resource.list(&store, &Range { limit: 2, ..Range::default() }, |_| true).unwrap();
        assert_eq!((names(&first), first.remaining), (vec!["a", "b"], 2));
        let gone = resource.get(&Key::new("a", "c")).unwrap();
        store.remove(&resource, &gone.key, gone.revision).unwrap();
        put(&store, &resource, "bb", Expect::Absent).unwrap();
        let range = Range { after: Some(&first.objects[1].key), at: Some(first.revision), ..Range::default() };
        assert_eq!(names(&resource.list(&store, &range, |_| true).unwrap()), ["c", "d"]);
    }

    #[test]
    fn a_watch_sees_what_happened_since_its_revision_and_what_follows() {
        let store = Store::open(None);
        let resource = store.resource(&ResourceId::new("", "things"));
        let start = store.revision();
        put(&store, &resource, "x", Expect::Absent).unwrap();
        let (past, mut live) = resource.watch(start, Interest::Namespace("a".into())).unwrap();
        assert_eq!(past.len(), 1);
        put(&store, &resource, "y", Expect::Absent).unwrap();
        assert_eq!(&*live.events.try_recv().unwrap().object.key.name, "y");
        assert!(resource.watch(0, Interest::All).is_err());
    }

    #[test]
    fn a_watcher_by_field_sees_objects_leave() {
        let store = Store::open(None);
        let resource = store.resource(&ResourceId::new("", "pods"));
        let fields =
            [Field { name: "spec.nodeName".into(), pointer: "/spec/nodeName".into(), default: "", otherwise: "" }];
        resource.set_fields(&fields);
        let (_, mut live) = resource.watch(store.revision(), Interest::Field(0, "n1".into())).unwrap();
        let pod = |node: &str| Draft::new(&json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}}), &fields);
        let one = store.put(&resource, pod("n1"), Expect::Absent).unwrap();
        let two = store.put(&resource, pod("n2"), Expect::Revision(one.revision)).unwrap();
        store.put(&resource, pod("n3"), Expect::Revision(two.revision)).unwrap();
        assert_eq!(live.events.try_recv().unwrap().revision, one.revision);
        assert_eq!(live.events.try_recv().unwrap().revision, two.revision);
        assert!(live.events.try_recv().is_err());
    }
}
