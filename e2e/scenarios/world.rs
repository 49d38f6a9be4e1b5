//! The cluster as it was seen: every version of every pod, and every event, from one watch of each.

use std::collections::{BTreeSet, HashMap};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::core::DynamicObject;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Stage;
use crate::support::{Bed, objects};

/// One cluster, seen through the API.
pub struct World {
    pub client: Client,
    pub stage: Stage,
    pub features: BTreeSet<String>,
    bed: BedParts,
    seen: Mutex<Seen>,
    changed: watch::Sender<u64>,
}

/// What is needed of a [`Bed`] from other threads.
struct BedParts {
    id: String,
    kubectl: Vec<std::ffi::OsString>,
}

#[derive(Default)]
struct Seen {
    /// By namespace and name; `None` when it was gone.
    pods: HashMap<(String, String), Vec<Option<Arc<Value>>>>,
    events: HashMap<String, Vec<SeenEvent>>,
}

#[derive(Clone)]
pub struct SeenEvent {
    pub head: String,
    pub message: String,
    pub count: i32,
}

fn guard<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// Begins to watch.
    pub async fn watch(bed: &Bed, features: BTreeSet<String>, stage: Stage) -> Arc<Self> {
        let client = vnode::cluster::client::connect(Some(bed.kubeconfig())).await.expect("a client");
        let command = bed.command();
        let mut kubectl = vec![command.get_program().to_owned()];
        let mut args = command.get_args().map(ToOwned::to_owned);
        while let Some(arg) = args.next() {
            // The scenario's own comes in its place.
            if arg == "--namespace" {
                args.next();
            } else {
                kubectl.push(arg);
            }
        }
        let world = Arc::new(Self {
            client: client.clone(),
            stage,
            features,
            bed: BedParts { id: bed.id.clone(), kubectl },
            seen: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        tokio::spawn(world.clone().watch_pods(Api::all(client.clone())));
        tokio::spawn(world.clone().watch_events(Api::all(client)));
        world
    }

    async fn watch_pods(self: Arc<Self>, api: Api<Pod>) {
        let mut events = watcher(api, watcher::Config::default()).boxed();
        while let Some(event) = events.next().await {
            let Some((pod, gone)) = objects::change(event) else { continue };
            let key = (pod.namespace().unwrap_or_default(), pod.name_any());
            let version = (!gone).then(|| Arc::new(serde_json::to_value(&pod).expect("a pod is JSON")));
            guard(&self.seen).pods.entry(key).or_default().push(version);
            self.changed.send_modify(|n| *n += 1);
        }
    }

    async fn watch_events(self: Arc<Self>, api: Api<Event>) {
        let mut events = watcher(api, watcher::Config::default()).boxed();
        while let Some(event) = events.next().await {
            let Some((event, false)) = objects::change(event) else { continue };
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            let seen = SeenEvent {
                head: format!("{} {}", text(&event.type_), text(&event.reason)),
                message: text(&event.message),
                count: event.count.unwrap_or(1),
            };
            let namespace = event.involved_object.namespace.clone().unwrap_or_default();
            guard(&self.seen).events.entry(namespace).or_default().push(seen);
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// All versions of the pods of a name, or of a beginning and `*`; one list for each pod.
    pub fn pods(&self, namespace: &str, name: &str) -> Vec<Vec<Option<Arc<Value>>>> {
        let fits = |found: &str| match name.strip_suffix('*') {
            Some(begin) => found.starts_with(begin),
            None => found == name,
        };
        let seen = guard(&self.seen);
        seen.pods.iter().filter(|((ns, n), _)| ns == namespace && fits(n)).map(|(_, all)| all.clone()).collect()
    }

    /// All events about things in a namespace.
    pub fn events(&self, namespace: &str) -> Vec<SeenEvent> {
        guard(&self.seen).events.get(namespace).cloned().unwrap_or_default()
    }

    /// Waits until `check` is content; its last complaint otherwise.
    pub async fn until<T>(
        &self,
        patience: Duration,
        mut check: impl AsyncFnMut() -> Result<T, String>,
    ) -> Result<T, String> {
        let end = Instant::now() + patience;
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let complaint = match check().await {
                Ok(found) => return Ok(found),
                Err(complaint) => complaint,
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(complaint);
            }
            // Other kinds are not watched, so they are looked at now and then.
            let _ = tokio::time::timeout(left.min(Duration::from_millis(500)), changed.changed()).await;
        }
    }

    /// The name of one of the nodes.
    pub fn node(&self, name: &str) -> String {
        format!("{name}-{}", self.bed.id)
    }

    /// A name for a scenario's namespace.
    pub fn namespace(&self, scenario: &str) -> String {
        // Names of namespaces have 63 characters at most.
        let begin: String = scenario.chars().take(62 - self.bed.id.len()).collect();
        format!("{}-{}", begin.trim_end_matches('-'), self.bed.id)
    }

    /// The API of a kind.
    pub fn api(&self, kind: &str, namespace: &str) -> Api<DynamicObject> {
        objects::api(&self.client, kind, namespace)
    }

    /// An object as JSON, or `None`.
    pub async fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>, String> {
        let found = self.api(kind, namespace).get_opt(name).await.map_err(|e| e.to_string())?;
        Ok(found.map(|o| serde_json::to_value(o).unwrap_or(json!(null))))
    }

    /// `kubectl` in a namespace: whether it succeeded, and what it printed.
    pub async fn kubectl(&self, namespace: &str, args: &[String]) -> (bool, String, String) {
        let mut command = tokio::process::Command::new(&self.bed.kubectl[0]);
        command.args(&self.bed.kubectl[1..]).arg("--namespace").arg(namespace).args(args);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let run = tokio::time::timeout(Duration::from_secs(30), command.output()).await;
        let Ok(Ok(out)) = run else { return (false, String::new(), "kubectl did not end in time".into()) };
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        (out.status.success(), text(&out.stdout), text(&out.stderr))
    }

    /// Waits until no pod is left; the names of those that are, otherwise.
    pub async fn all_gone(&self, patience: Duration) -> Result<(), String> {
        let left = async || {
            let seen = guard(&self.seen);
            let left = seen.pods.iter().filter(|(_, all)| all.last().is_some_and(Option::is_some));
            let left: Vec<String> = left.map(|((ns, name), _)| format!("{ns}/{name}")).collect();
            if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
        };
        self.until(patience, left).await
    }
}
