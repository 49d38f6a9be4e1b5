//! What all controllers share: the client, one informer a kind, and the event recorder.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};

use super::informer::{Change, Informer, Key, key_of};

/// Events beyond this many are dropped: they must not hold up what they tell about.
const EVENTS: usize = 1024;

/// A running piece: a watch or a controller.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Shared by all controllers.
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) root_ca_pem: String,
    pub(crate) pods: Arc<Informer<Pod>>,
    pub(crate) nodes: Arc<Informer<Node>>,
    pub(crate) leases: Arc<Informer<Lease>>,
    pub(crate) namespaces: Arc<Informer<Namespace>>,
    pub(crate) accounts: Arc<Informer<ServiceAccount>>,
    pub(crate) root_cas: Arc<Informer<ConfigMap>>,
    pub(crate) replica_sets: Arc<Informer<ReplicaSet>>,
    pub(crate) deployments: Arc<Informer<Deployment>>,
    pub(crate) daemon_sets: Arc<Informer<DaemonSet>>,
    pub(crate) stateful_sets: Arc<Informer<StatefulSet>>,
    pub(crate) revisions: Arc<Informer<ControllerRevision>>,
    pub(crate) jobs: Arc<Informer<Job>>,
    pub(crate) cron_jobs: Arc<Informer<CronJob>>,
    pub(crate) claims: Arc<Informer<PersistentVolumeClaim>>,
    pub(crate) volumes: Arc<Informer<PersistentVolume>>,
    pub(crate) services: Arc<Informer<Service>>,
    pub(crate) budgets: Arc<Informer<PodDisruptionBudget>>,
    pub(crate) signing_requests: Arc<Informer<CertificateSigningRequest>>,
    pods_on: std::sync::Mutex<HashMap<String, HashSet<Key>>>,
    pods_of: std::sync::Mutex<HashMap<String, HashSet<Key>>>,
    events: mpsc::Sender<Event>,
    posted: Mutex<mpsc::Receiver<Event>>,
}

impl World {
    pub(crate) fn new(client: Client, root_ca_pem: String) -> Arc<Self> {
        let (events, posted) = mpsc::channel(EVENTS);
        let world = Arc::new(Self {
            client,
            root_ca_pem,
            pods: Informer::new(),
            nodes: Informer::new(),
            leases: Informer::new(),
            namespaces: Informer::new(),
            accounts: Informer::new(),
            root_cas: Informer::new(),
            replica_sets: Informer::new(),
            deployments: Informer::new(),
            daemon_sets: Informer::new(),
            stateful_sets: Informer::new(),
            revisions: Informer::new(),
            jobs: Informer::new(),
            cron_jobs: Informer::new(),
            claims: Informer::new(),
            volumes: Informer::new(),
            services: Informer::new(),
            budgets: Informer::new(),
            signing_requests: Informer::new(),
            pods_on: std::sync::Mutex::default(),
            pods_of: std::sync::Mutex::default(),
            events,
            posted: Mutex::new(posted),
        });
        let index = Arc::downgrade(&world);
        world.pods.on_change(move |change| {
            if let Some(world) = index.upgrade() {
                world.index(change);
            }
        });
        world
    }

    /// Breaks the circles between informers, handlers and controllers once all have stopped.
    pub(crate) fn close(&self) {
        self.pods.close();
        self.nodes.close();
        self.leases.close();
    }

    fn index(&self, change: Change<'_, Pod>) {
        let Some(key) = change.new.or(change.old).map(|pod| key_of(pod.as_ref())) else { return };
        let (old, new) = (change.old.map(Arc::as_ref), change.new.map(Arc::as_ref));
        let node = |pod: Option<&Pod>| pod.and_then(node_of).map(String::from);
        reindex(&self.pods_on, &key, node(old), node(new));
        let owner = |pod: Option<&Pod>| {
            let pod = pod?;
            Some(controller_of(pod).map_or_else(|| orphans(&key.0), |o| o.uid.clone()))
        };
        reindex(&self.pods_of, &key, owner(old), owner(new));
    }

    /// The keys of the pods bound to a node.
    pub(crate) fn pods_on(&self, node: &str) -> Vec<Key> {
        let pods_on = self.pods_on.lock().unwrap_or_else(PoisonError::into_inner);
        pods_on.get(node).into_iter().flatten().cloned().collect()
    }

    /// The pods that the object with this uid controls.
    pub(crate) fn pods_of(&self, owner: &str) -> Vec<Arc<Pod>> {
        let keys: Vec<Key> = {
            let pods_of = self.pods_of.lock().unwrap_or_else(PoisonError::into_inner);
            pods_of.get(owner).into_iter().flatten().cloned().collect()
        };
        keys.iter().filter_map(|k| self.pods.get(k)).collect()
    }

    /// The pods of a namespace that nobody controls.
    pub(crate) fn orphans(&self, namespace: &str) -> Vec<Arc<Pod>> {
        self.pods_of(&orphans(namespace))
    }

    /// The watches; each ends only when dropped.
    pub(crate) fn watches(&self) -> Vec<super::Start> {
        fn watch<K>(client: &Client, informer: &Arc<Informer<K>>, config: watcher::Config) -> super::Start
        where
            K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
        {
            let (client, informer) = (client.clone(), informer.clone());
            Box::new(move || Box::pin(informer.clone().run(Api::all(client.clone()), config.clone())))
        }
        let (c, all) = (&self.client, watcher::Config::default);
        vec![
            watch(c, &self.pods, all()),
            watch(c, &self.nodes, all()),
            watch(c, &self.leases, all()),
            watch(c, &self.namespaces, all()),
            watch(c, &self.accounts, all()),
            watch(c, &self.root_cas, all().fields(&format!("metadata.name={}", super::service_account::ROOT_CA))),
            watch(c, &self.replica_sets, all()),
            watch(c, &self.deployments, all()),
            watch(c, &self.daemon_sets, all()),
            watch(c, &self.stateful_sets, all()),
            watch(c, &self.revisions, all()),
            watch(c, &self.jobs, all()),
            watch(c, &self.cron_jobs, all()),
            watch(c, &self.claims, all()),
            watch(c, &self.volumes, all()),
            watch(c, &self.services, all()),
            watch(c, &self.budgets, all()),
            watch(c, &self.signing_requests, all()),
        ]
    }

    /// An API handle in a namespace.
    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Deletes a pod if it still is the one meant.
    pub(crate) async fn delete_pod(&self, pod: &Pod, grace: Option<u32>) -> Result<(), kube::Error> {
        let params = DeleteParams {
            grace_period_seconds: grace,
            preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        let api: Api<Pod> = self.api(&pod.namespace().unwrap_or_default());
        gone_is_fine(api.delete(&pod.name_any(), &params).await.map(drop))
    }

    /// Merges into a pod's status by the strategic rules, conditions by their type.
    pub(crate) async fn patch_pod_status(&self, pod: &Pod, status: Value) -> Result<(), kube::Error> {
        let api: Api<Pod> = self.api(&pod.namespace().unwrap_or_default());
        let mut body = json!({"metadata": {"uid": pod.uid()}, "status": status});
        // New conditions follow those that are there.
        let there: Vec<&str> =
            pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).map(|c| c.type_.as_str()).collect();
        let given = body["status"]["conditions"].as_array().into_iter().flatten();
        let new = given.filter(|c| !there.iter().any(|t| c["type"] == *t)).map(|c| c["type"].clone());
        let order: Vec<Value> = there.iter().map(|t| json!(t)).chain(new).map(|t| json!({"type": t})).collect();
        body["status"]["$setElementOrder/conditions"] = order.into();
        gone_is_fine(
            api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(body)).await.map(drop),
        )
    }

    /// Merges into an object's status what differs from the one it has. A number that is not there is zero.
    pub(crate) async fn write_status<K>(&self, key: &Key, have: &impl Serialize, want: Value) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let have = serde_json::to_value(have).unwrap_or_default();
        let same = |(field, v): (&String, &Value)| have.get(field).unwrap_or(&json!(0)) == v;
        if !have.is_null() && want.as_object().into_iter().flatten().all(same) {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"status": want}));
        gone_is_fine(self.api::<K>(&key.0).patch_status(&key.1, &PatchParams::default(), &patch).await.map(drop))
    }

    /// Records an event about an object, best effort.
    pub(crate) fn event<K>(&self, by: &str, about: &K, kind: &str, reason: &str, message: &str)
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        let now = Timestamp::now();
        let event = json!({
            "type": kind, "reason": reason, "message": message, "count": 1,
            "source": {"component": by}, "reportingComponent": by, "reportingInstance": "",
            "firstTimestamp": now.to_string(), "lastTimestamp": now.to_string(),
        });
        self.post(about, now, event);
    }

    /// Records an event in the newer form, which says what was done and when, but not how often.
    pub(crate) fn event_of<K>(&self, by: &str, about: &K, kind: &str, action: &str, reason: &str, message: &str)
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        let now = Timestamp::now();
        let event = json!({
            "type": kind, "reason": reason, "message": message, "action": action,
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
            "reportingComponent": by, "reportingInstance": format!("{by}-vnode-dev"),
        });
        self.post(about, now, event);
    }

    /// Has an event about an object posted.
    fn post<K>(&self, about: &K, now: Timestamp, mut event: Value)
    where
        K: Resource<DynamicType = ()>,
    {
        let meta = about.meta();
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        let name = format!("{}.{:x}", about.name_any(), now.as_nanosecond());
        event["metadata"] = json!({"name": name, "namespace": namespace});
        event["involvedObject"] = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()), "namespace": meta.namespace,
            "name": meta.name, "uid": meta.uid, "resourceVersion": meta.resource_version,
        });
        if let Ok(event) = serde_json::from_value(event) {
            // A full channel drops the event, as said at EVENTS.
            let _ = self.events.try_send(event);
        }
    }

    /// Posts recorded events until dropped.
    pub(crate) async fn post_events(self: Arc<Self>) {
        let mut posted = self.posted.lock().await;
        let events = futures::stream::poll_fn(|cx| posted.poll_recv(cx));
        events
            .for_each_concurrent(4, |event| async {
                let event = event;
                let api: Api<Event> = self.api(event.metadata.namespace.as_deref().unwrap_or("default"));
                let params = PostParams::default();
                let post = api.create(&params, &event);
                if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(10), post).await {
                    tracing::trace!(%error, "an event was not posted");
                }
            })
            .await;
    }
}

/// What stands for the owner of those without one; no uid looks like it.
fn orphans(namespace: &str) -> String {
    format!("orphans of {namespace}")
}

fn reindex(
    index: &std::sync::Mutex<HashMap<String, HashSet<Key>>>,
    key: &Key,
    old: Option<String>,
    new: Option<String>,
) {
    if old == new {
        return;
    }
    let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(old) = old
        && let Some(keys) = index.get_mut(&old)
    {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(&old);
        }
    }
    if let Some(new) = new {
        index.entry(new).or_default().insert(key.clone());
    }
}

/// The owner that controls an object.
pub(crate) fn controller_of<K: Resource>(object: &K) -> Option<&OwnerReference> {
    object.meta().owner_references.iter().flatten().find(|o| o.controller == Some(true))
}

/// The node a pod is bound to.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

/// Whether a pod has run to its end.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether a pod's condition is True.
pub(crate) fn has_condition(pod: &Pod, kind: &str) -> bool {
    pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == kind && c.status == "True")
}

/// The time as `metav1.Time` writes it.
pub(crate) fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The names of the PersistentVolumeClaims that a pod uses.
pub(crate) fn claim_names(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(|v| v.persistent_volume_claim.as_ref()).map(|claim| claim.claim_name.as_str())
}

/// Takes a finalizer off an object, as it is known, that has it.
pub(crate) async fn release<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    if !object.finalizers().iter().any(|f| f == finalizer) {
        return Ok(());
    }
    let left: Vec<_> = object.finalizers().iter().filter(|f| *f != finalizer).collect();
    let body = json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": left}});
    let patch = api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(body)).await;
    gone_is_fine(patch.map(drop))
}

/// What is gone already needs neither deleting nor patching; a changed uid means the same.
pub(crate) fn gone_is_fine(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 && status.message.contains("recondition") => Ok(()),
        other => other,
    }
}

/// What exists already needs no creating.
pub(crate) fn there_is_fine(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => Ok(()),
        other => other,
    }
}
