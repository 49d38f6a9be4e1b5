//! One watch a kind, shared by all controllers: a cache and the handlers that hear of every change.
//!
//! Handlers run in the watch's own task and only put keys into [`super::queue::Queue`]s, so there is neither a copy of
//! the object nor a task per controller and object.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// Namespace (empty for cluster-scoped kinds) and name.
pub(crate) type Key = (String, String);

/// What happened to an object: before and after, one of them absent at birth and death.
pub(crate) struct Change<'a, K> {
    pub(crate) old: Option<&'a Arc<K>>,
    pub(crate) new: Option<&'a Arc<K>>,
}

type Handler<K> = Box<dyn Fn(Change<'_, K>) + Send + Sync>;

/// The shared cache of one kind.
pub(crate) struct Informer<K> {
    objects: RwLock<HashMap<Key, Arc<K>>>,
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

/// The key of an object.
pub(crate) fn key_of<K: Resource>(object: &K) -> Key {
    (object.meta().namespace.clone().unwrap_or_default(), object.name_any())
}

impl<K> Informer<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { objects: RwLock::default(), handlers: Mutex::default(), synced: watch::Sender::new(false) })
    }

    /// Calls `handler` for every change from now on, and for all that is cached already.
    pub(crate) fn on_change(&self, handler: impl Fn(Change<'_, K>) + Send + Sync + 'static) {
        // The lock order is handlers, then objects, here and in `put`.
        let mut handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        for object in self.all() {
            handler(Change { old: None, new: Some(&object) });
        }
        handlers.push(Box::new(handler));
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub(crate) fn get_in(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get(&(namespace.to_string(), name.to_string()))
    }

    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn select(&self, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).values().filter(|o| wanted(o)).cloned().collect()
    }

    /// Returns once the first list is in the cache.
    pub(crate) async fn synced(&self) {
        // The sender lives in `self`, so waiting can't end in an error.
        let _ = self.synced.subscribe().wait_for(|s| *s).await;
    }

    /// Lets go of the handlers, and of what they hold on to.
    pub(crate) fn close(&self) {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn put(&self, key: Key, new: Option<K>) {
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let new = new.map(Arc::new);
        let old = {
            let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
            match &new {
                Some(object) => objects.insert(key, object.clone()),
                None => objects.remove(&key),
            }
        };
        if let (Some(old), Some(new)) = (&old, &new)
            && old.meta().resource_version == new.meta().resource_version
            && old.meta().uid == new.meta().uid
        {
            return;
        }
        for handler in handlers.iter() {
            handler(Change { old: old.as_ref(), new: new.as_ref() });
        }
    }

    /// Watches until dropped; errors are retried with back-off for ever.
    pub(crate) async fn run(self: Arc<Self>, api: Api<K>, config: watcher::Config) {
        let backoff = watcher::DefaultBackoff::default();
        let mut events = watcher(api, config.timeout(290)).backoff(backoff).boxed();
        let mut listed: Option<HashSet<Key>> = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(mut object)) => {
                    object.meta_mut().managed_fields = None;
                    self.put(key_of(&object), Some(object));
                }
                Ok(watcher::Event::Delete(object)) => self.put(key_of(&object), None),
                Ok(watcher::Event::Init) => listed = Some(HashSet::new()),
                Ok(watcher::Event::InitApply(mut object)) => {
                    object.meta_mut().managed_fields = None;
                    let key = key_of(&object);
                    if let Some(listed) = &mut listed {
                        listed.insert(key.clone());
                    }
                    self.put(key, Some(object));
                }
                Ok(watcher::Event::InitDone) => {
                    let listed = listed.take().unwrap_or_default();
                    let gone: Vec<Key> = {
                        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
                        objects.keys().filter(|k| !listed.contains(*k)).cloned().collect()
                    };
                    for key in gone {
                        self.put(key, None);
                    }
                    self.synced.send_replace(true);
                }
                Err(error) => {
                    let kind = std::any::type_name::<K>().rsplit("::").next().unwrap_or_default();
                    tracing::debug!(%error, kind, "a controller's watch broke and is started again");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}
