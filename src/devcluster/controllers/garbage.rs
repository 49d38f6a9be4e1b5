//! The garbage collector: objects whose owners are gone, and the two finalizers that change the order.
//!
//! Metadata-only watches of every kind feed a graph of owners and dependents. A key is an object's uid; a reconcile
//! decides by [`verdict`] from the graph and asks the API itself before it believes in an absent owner.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::discovery::{self, Kind};
use super::queue::{Outcome, Queue};
use super::world::{World, gone_is_fine};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// CRDs are served a moment after they are established.
const SETTLE: Duration = Duration::from_millis(300);

#[derive(Clone, Debug)]
struct Object {
    kind: Arc<Kind>,
    namespace: Option<String>,
    name: String,
    owners: Vec<OwnerReference>,
    finalizers: Vec<String>,
    deleting: bool,
}

#[derive(Default)]
struct Graph {
    objects: HashMap<String, Object>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    /// Takes an object's state; whether the collector has something to look at.
    fn put(&mut self, kind: &Arc<Kind>, meta: &ObjectMeta) -> Vec<String> {
        let Some(uid) = meta.uid.clone() else { return Vec::new() };
        let object = Object {
            kind: kind.clone(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        };
        let mut look = Vec::new();
        let old = self.objects.get(&uid);
        let same_owners = old.is_some_and(|o| o.owners == object.owners);
        if !same_owners || object.deleting {
            look.push(uid.clone());
        }
        if !same_owners {
            for owner in old.map(|o| o.owners.clone()).unwrap_or_default() {
                self.unlink(&owner.uid, &uid);
                // It may have waited for this dependent.
                look.push(owner.uid);
            }
            for owner in &object.owners {
                self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            }
        }
        self.objects.insert(uid, object);
        look
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(all) = self.dependents.get_mut(owner) {
            all.remove(dependent);
            if all.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// Forgets an object; its dependents and its owners have to be looked at.
    fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(object) = self.objects.remove(uid) else { return Vec::new() };
        for owner in &object.owners {
            self.unlink(&owner.uid, uid);
        }
        let dependents = self.dependents.get(uid).into_iter().flatten().cloned();
        dependents.chain(object.owners.iter().map(|o| o.uid.clone())).collect()
    }

    fn dependents_of(&self, uid: &str) -> Vec<(String, Object)> {
        let all = self.dependents.get(uid).into_iter().flatten();
        all.filter_map(|d| Some((d.clone(), self.objects.get(d)?.clone()))).collect()
    }
}

/// How an owner looks to its dependent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Owner {
    Alive,
    /// Being deleted in the foreground: it waits for its dependents.
    Waiting,
    Gone,
}

/// What to do with an object whose owners look like this.
#[derive(Debug, PartialEq)]
enum Verdict {
    Keep,
    /// Drop the references at these positions, others still own it.
    Release(Vec<usize>),
    Delete {
        foreground: bool,
    },
}

fn verdict(owners: &[Owner], has_blocking_dependents: bool) -> Verdict {
    if owners.is_empty() || owners.iter().all(|o| *o == Owner::Alive) {
        return Verdict::Keep;
    }
    if owners.contains(&Owner::Alive) {
        let dead = owners.iter().enumerate().filter(|(_, o)| **o != Owner::Alive).map(|(i, _)| i);
        return Verdict::Release(dead.collect());
    }
    Verdict::Delete { foreground: owners.contains(&Owner::Waiting) && has_blocking_dependents }
}

struct Collector {
    client: Client,
    graph: Mutex<Graph>,
    queue: Arc<Queue<String>>,
    kinds: Mutex<Vec<Arc<Kind>>>,
    crds_changed: Notify,
}

/// Returns the collector's work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let me = Arc::new(Collector {
        client: world.client.clone(),
        graph: Mutex::default(),
        queue: Queue::new(),
        kinds: Mutex::default(),
        crds_changed: Notify::new(),
    });
    async move {
        let work = me.queue.work("garbage-collector", 16, |uid| me.reconcile(uid));
        tokio::join!(me.watch_all(), work);
    }
}

impl Collector {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a watch on every kind there is.
    async fn watch_all(self: &Arc<Self>) {
        let mut running: HashMap<String, tokio::task::AbortHandle> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            let changed = self.crds_changed.notified();
            match discovery::kinds(&self.client).await {
                Ok(kinds) => {
                    let kinds: Vec<_> = kinds.into_iter().filter(|k| k.watchable).map(Arc::new).collect();
                    let name = |k: &Kind| format!("{}/{}", k.resource.api_version, k.resource.plural);
                    let served: HashSet<_> = kinds.iter().map(|k| name(k)).collect();
                    running.retain(|kind, task| {
                        let keep = served.contains(kind);
                        if !keep {
                            task.abort();
                        }
                        keep
                    });
                    for kind in &kinds {
                        running.entry(name(kind)).or_insert_with(|| tasks.spawn(self.clone().watch(kind.clone())));
                    }
                    *self.kinds.lock().unwrap_or_else(PoisonError::into_inner) = kinds;
                    changed.await;
                }
                Err(error) => tracing::debug!(%error, "kinds could not be discovered and are asked for again"),
            }
            tokio::time::sleep(SETTLE).await;
            while tasks.try_join_next().is_some() {}
        }
    }

    async fn watch(self: Arc<Self>, kind: Arc<Kind>) {
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(self.client.clone(), &kind.resource);
        let backoff = watcher::DefaultBackoff::default();
        let mut events = watcher(api, watcher::Config::default().timeout(290)).backoff(backoff).boxed();
        let mut known: HashSet<String> = HashSet::new();
        let mut listed: Option<HashSet<String>> = None;
        let is_crd = kind.resource.kind == CustomResourceDefinition::kind(&());
        while let Some(event) = events.next().await {
            let mut look = Vec::new();
            let put = |object: &PartialObjectMeta<DynamicObject>| self.graph().put(&kind, &object.metadata);
            match event {
                Ok(watcher::Event::Apply(object)) => {
                    known.extend(object.metadata.uid.clone());
                    look = put(&object);
                }
                Ok(watcher::Event::InitApply(object)) => {
                    if let (Some(listed), Some(uid)) = (&mut listed, &object.metadata.uid) {
                        listed.insert(uid.clone());
                    }
                    look = put(&object);
                }
                Ok(watcher::Event::Delete(object)) => {
                    let uid = object.metadata.uid.unwrap_or_default();
                    known.remove(&uid);
                    look = self.graph().remove(&uid);
                }
                Ok(watcher::Event::Init) => listed = Some(HashSet::new()),
                Ok(watcher::Event::InitDone) => {
                    let now = listed.take().unwrap_or_default();
                    for uid in known.difference(&now) {
                        look.extend(self.graph().remove(uid));
                    }
                    known = now;
                }
                Err(error) => tracing::debug!(%error, kind = kind.resource.kind, "a watch for garbage broke"),
            }
            if is_crd {
                self.crds_changed.notify_one();
            }
            look.into_iter().for_each(|uid| self.queue.add(uid));
        }
    }

    fn api(&self, object: &Object) -> Api<DynamicObject> {
        match &object.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &object.kind.resource),
            None => Api::all_with(self.client.clone(), &object.kind.resource),
        }
    }

    async fn reconcile(&self, uid: String) -> Outcome {
        let (object, dependents) = {
            let graph = self.graph();
            let Some(object) = graph.objects.get(&uid).cloned() else { return Ok(None) };
            (object, graph.dependents_of(&uid))
        };
        if object.deleting {
            return self.finish(&uid, &object, dependents).await;
        }
        let mut owners = Vec::new();
        for owner in &object.owners {
            owners.push(self.look_at(&object, owner).await?);
        }
        let blocking = dependents.iter().any(|(_, d)| blocks(d, &uid));
        let api = self.api(&object);
        match verdict(&owners, blocking) {
            Verdict::Keep => {}
            Verdict::Release(gone) => {
                let kept: Vec<_> =
                    object.owners.iter().enumerate().filter(|(i, _)| !gone.contains(i)).map(|(_, o)| o).collect();
                let body = json!({"metadata": {"uid": uid, "ownerReferences": kept}});
                let patch = api.patch_metadata(&object.name, &PatchParams::default(), &Patch::Merge(body)).await;
                gone_is_fine(patch.map(drop))?;
            }
            Verdict::Delete { foreground } => {
                let params = if foreground { DeleteParams::foreground() } else { DeleteParams::background() };
                let params = params.preconditions(Preconditions { uid: Some(uid.clone()), ..Preconditions::default() });
                gone_is_fine(api.delete(&object.name, &params).await.map(drop))?;
            }
        }
        Ok(None)
    }

    /// Sees to the dependents of an object that is being deleted, then drops the finalizer that waited for it.
    async fn finish(&self, uid: &str, object: &Object, dependents: Vec<(String, Object)>) -> Outcome {
        let has = |name: &str| object.finalizers.iter().any(|f| f == name);
        let finalizer = if has(ORPHAN) {
            for (dependent, d) in dependents {
                let kept: Vec<_> = d.owners.iter().filter(|o| o.uid != uid).collect();
                let body = json!({"metadata": {"uid": dependent, "ownerReferences": kept}});
                let api = self.api(&d);
                let patch = api.patch_metadata(&d.name, &PatchParams::default(), &Patch::Merge(body)).await;
                gone_is_fine(patch.map(drop))?;
            }
            ORPHAN
        } else if has(FOREGROUND) {
            for (dependent, _) in &dependents {
                self.queue.add(dependent.clone());
            }
            if dependents.iter().any(|(_, d)| blocks(d, uid)) {
                return Ok(None);
            }
            FOREGROUND
        } else {
            return Ok(None);
        };
        let api = self.api(object);
        let Some(now) = api.get_metadata_opt(&object.name).await? else { return Ok(None) };
        if now.metadata.uid.as_deref() != Some(uid) {
            return Ok(None);
        }
        let mut kept = now.metadata.finalizers.unwrap_or_default();
        kept.retain(|f| f != finalizer);
        let body = json!({"metadata": {"resourceVersion": now.metadata.resource_version, "finalizers": kept}});
        let patch = api.patch_metadata(&object.name, &PatchParams::default(), &Patch::Merge(body)).await;
        gone_is_fine(patch.map(drop))?;
        Ok(None)
    }

    /// The state of an owner; its absence is believed only when the API says so.
    async fn look_at(&self, object: &Object, owner: &OwnerReference) -> Result<Owner, kube::Error> {
        let state = |deleting: bool, finalizers: &[String]| match deleting && finalizers.iter().any(|f| f == FOREGROUND)
        {
            true => Owner::Waiting,
            false => Owner::Alive,
        };
        if let Some(known) = self.graph().objects.get(&owner.uid) {
            return Ok(state(known.deleting, &known.finalizers));
        }
        let kind = {
            let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
            let group = |v: &str| v.split_once('/').map_or(String::new(), |(g, _)| g.to_string());
            let named = |k: &&Arc<Kind>| k.resource.kind == owner.kind && k.resource.group == group(&owner.api_version);
            kinds.iter().find(named).cloned()
        };
        // A kind that isn't served may come back; its objects are not known to be gone.
        let Some(kind) = kind else { return Ok(Owner::Alive) };
        let at = Object {
            namespace: object.namespace.clone().filter(|_| kind.namespaced),
            name: owner.name.clone(),
            owners: Vec::new(),
            finalizers: Vec::new(),
            deleting: false,
            kind,
        };
        if at.kind.namespaced && at.namespace.is_none() {
            return Ok(Owner::Gone);
        }
        match self.api(&at).get_metadata_opt(&owner.name).await? {
            Some(found) if found.metadata.uid.as_deref() == Some(&owner.uid) => {
                let finalizers = found.metadata.finalizers.unwrap_or_default();
                Ok(state(found.metadata.deletion_timestamp.is_some(), &finalizers))
            }
            _ => Ok(Owner::Gone),
        }
    }
}

/// Whether a dependent keeps its owner from going.
fn blocks(dependent: &Object, owner: &str) -> bool {
    dependent.owners.iter().any(|o| o.uid == owner && o.block_owner_deletion == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_goes_only_when_no_owner_is_left_alive() {
        use Owner::{Alive, Gone, Waiting};
        for (owners, blocking, want) in [
            (vec![], false, Verdict::Keep),
            (vec![Alive], false, Verdict::Keep),
            (vec![Gone], false, Verdict::Delete { foreground: false }),
            (vec![Gone, Gone], true, Verdict::Delete { foreground: false }),
            (vec![Alive, Gone], false, Verdict::Release(vec![1])),
            (vec![Waiting, Alive], false, Verdict::Release(vec![0])),
            (vec![Waiting], false, Verdict::Delete { foreground: false }),
            (vec![Waiting], true, Verdict::Delete { foreground: true }),
        ] {
            assert_eq!(verdict(&owners, blocking), want, "{owners:?}");
        }
    }
}
