//! Which nodes' changes are wanted of a service, and how the service comes to know.
//!
//! Nodes come and go while the stream is open. What is to be said to the service is the difference between what is
//! wanted and what was said, so that nothing has to be queued.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::Stream;
use tokio::sync::Notify;
use tokio::time::Instant;
use vnode_proto::v1;

use crate::provider::remote::guard::Guard;
use crate::provider::{PodRef, ProviderContext};

/// A node whose changes are wanted.
pub(super) struct Subscription {
    /// Tells the providers apart that a node has one after the other.
    id: u64,
    pub node: Arc<str>,
    pub node_uid: Arc<str>,
    epoch: i64,
    config: BTreeMap<String, String>,
    pub guard: Guard,
    pub context: ProviderContext,
    /// Why the machine behind the node cannot be used, as the service says.
    unavailable: Mutex<Option<String>>,
    /// While the service tells of all pods: since when, and of which it has told.
    telling: Mutex<Option<(Instant, HashSet<Arc<str>>)>>,
}

impl Subscription {
    pub fn new(context: &ProviderContext, config: BTreeMap<String, String>) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            node: context.node.clone(),
            node_uid: context.node_uid.clone(),
            epoch: context.epoch,
            config,
            guard: Guard::new(context.node.clone(), context.notifier.clone()),
            context: context.clone(),
            unavailable: Mutex::default(),
            telling: Mutex::default(),
        }
    }

    fn telling(&self) -> MutexGuard<'_, Option<(Instant, HashSet<Arc<str>>)>> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The service has told of a pod.
    pub fn told_of(&self, uid: &Arc<str>) {
        if let Some((_, told)) = &mut *self.telling() {
            told.insert(uid.clone());
        }
    }

    /// The service has told of every pod: those that it had before and has no more.
    pub fn synced(&self) -> Vec<PodRef> {
        let Some((since, told)) = self.telling().take() else { return Vec::new() };
        self.guard.take_missing(&told, since)
    }

    pub fn set_unavailable(&self, why: Option<String>) {
        *self.unavailable.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    pub fn unavailable(&self) -> Option<String> {
        self.unavailable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn request(&self) -> v1::Subscribe {
        v1::Subscribe {
            node: self.node.to_string(),
            node_uid: self.node_uid.to_string(),
            epoch: self.epoch,
            config: self.config.clone(),
        }
    }
}

type Wanted = HashMap<Arc<str>, Weak<Subscription>>;

/// The nodes of one connection.
#[derive(Default)]
pub(super) struct Subscriptions {
    wanted: Mutex<Wanted>,
    changed: Notify,
}

impl Subscriptions {
    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wants a node's changes, in place of who wanted them before.
    pub fn add(&self, subscription: &Arc<Subscription>) {
        let mut wanted = self.wanted();
        let known = wanted.get(&subscription.node_uid).and_then(Weak::upgrade);
        // An older provider of the node that is still asked something does not take its place again.
        if known.is_none_or(|known| known.id < subscription.id) {
            wanted.insert(subscription.node_uid.clone(), Arc::downgrade(subscription));
            drop(wanted);
            self.changed.notify_one();
        }
    }

    /// Wants a node's changes no more, unless somebody else does by now.
    pub fn remove(&self, subscription: &Subscription) {
        let mut wanted = self.wanted();
        let Some(known) = wanted.get(&subscription.node_uid) else { return };
        if known.upgrade().is_none_or(|known| known.id == subscription.id) {
            wanted.remove(&subscription.node_uid);
            drop(wanted);
            self.changed.notify_one();
        }
    }

    pub fn get(&self, node_uid: &str) -> Option<Arc<Subscription>> {
        self.wanted().get(node_uid)?.upgrade()
    }

    pub fn is_empty(&self) -> bool {
        self.wanted().is_empty()
    }

    /// Nothing is known of any machine while the stream is away.
    pub fn forget_availability(&self) {
        let all: Vec<_> = self.wanted().values().filter_map(Weak::upgrade).collect();
        for subscription in all {
            subscription.set_unavailable(None);
        }
    }

    /// Returns when a node is wanted.
    pub async fn some(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// What is to be said to a service that knows of nothing yet. One such stream at a time.
    pub fn requests(self: &Arc<Self>) -> impl Stream<Item = v1::WatchRequest> + Send + 'static + use<> {
        let said: HashMap<Arc<str>, u64> = HashMap::new();
        futures::stream::unfold((self.clone(), said), |(all, mut said)| async move {
            loop {
                let changed = all.changed.notified();
                if let Some(action) = next(&all.wanted(), &mut said) {
                    return Some((v1::WatchRequest { action: Some(action) }, (all.clone(), said)));
                }
                changed.await;
            }
        })
    }
}

/// The next difference between what is wanted and what was said.
fn next(wanted: &Wanted, said: &mut HashMap<Arc<str>, u64>) -> Option<v1::watch_request::Action> {
    let gone = said.keys().find(|uid| !wanted.contains_key(*uid)).cloned();
    if let Some(uid) = gone {
        said.remove(&uid);
        return Some(v1::watch_request::Action::Unsubscribe(uid.to_string()));
    }
    let live = wanted.values().filter_map(Weak::upgrade);
    let new = live.into_iter().find(|s| said.get(&s.node_uid) != Some(&s.id))?;
    *new.telling() = Some((Instant::now(), HashSet::new()));
    said.insert(new.node_uid.clone(), new.id);
    Some(v1::watch_request::Action::Subscribe(new.request()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{PodNotifier, PodObservation};
    use futures::{FutureExt as _, StreamExt as _};

    struct Deaf;
    impl PodNotifier for Deaf {
        fn changed(&self, _: PodObservation) {}
    }

    fn subscription(uid: &str) -> Arc<Subscription> {
        let context = ProviderContext {
            node: "n".into(),
            node_uid: uid.into(),
            epoch: 4,
            notifier: Arc::new(Deaf),
            credentials: None,
        };
        Arc::new(Subscription::new(&context, BTreeMap::new()))
    }

    #[tokio::test]
    async fn the_service_is_told_the_difference_between_what_is_wanted_and_what_it_knows() {
        let all = Arc::new(Subscriptions::default());
        let mut requests = Box::pin(all.requests());
        let mut said = || {
            let action = requests.next().now_or_never().flatten().and_then(|r| r.action);
            action.map(|action| match action {
                v1::watch_request::Action::Subscribe(s) => format!("+{} {}", s.node_uid, s.epoch),
                v1::watch_request::Action::Unsubscribe(uid) => format!("-{uid}"),
            })
        };
        assert_eq!(said(), None);
        let (a, b) = (subscription("a"), subscription("b"));
        all.add(&a);
        assert_eq!(said().as_deref(), Some("+a 4"));
        all.add(&b);
        all.remove(&a);
        assert_eq!(said().as_deref(), Some("-a"));
        assert_eq!(said().as_deref(), Some("+b 4"));
        assert_eq!(said(), None);
        let newer = subscription("b");
        all.add(&newer);
        all.remove(&b);
        assert_eq!(said().as_deref(), Some("+b 4"), "the newer one begins anew, the older one takes nothing away");
        all.add(&b);
        assert_eq!(said(), None, "nor does it come back");
        assert_eq!(all.get("b").unwrap().id, newer.id);
        let mut again = Box::pin(all.requests());
        assert!(again.next().now_or_never().flatten().is_some(), "a new stream says all again");
    }
}
