//! Following objects as they change, decoding as little of them as can be: the benchmark shares the processor with what
//! it measures.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use kube::api::{ApiResource, Object};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::common::Result;

/// What of a spec is looked at.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    pub node_name: Option<String>,
    pub renew_time: Option<String>,
}

/// What of a status is looked at.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Status {
    pub phase: Option<String>,
    pub shard: Option<String>,
    pub conditions: Vec<Condition>,
}

/// What of a condition is looked at.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Status {
    /// Whether the condition `Ready` is `True`.
    pub fn ready(&self) -> bool {
        self.conditions.iter().any(|c| c.kind == "Ready" && c.status == "True")
    }
}

/// An object of any kind, as far as it is looked at.
pub type Slim = Object<Spec, Status>;

/// The API of a kind, in one namespace or in none.
pub fn api<K: Resource<DynamicType = ()>>(client: &Client, namespace: Option<&str>) -> Api<Slim> {
    let resource = ApiResource::erase::<K>(&());
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// The versions of all objects: a watch that was cut for being slow begins with a list, and what happened meanwhile
/// follows from that.
#[derive(Default)]
struct Known {
    listed: bool,
    versions: HashMap<String, String>,
    /// Those of the list that is under way.
    found: HashSet<String>,
}

impl Known {
    /// What an event tells: names, and the objects unless they are gone.
    fn news(&mut self, event: watcher::Event<Slim>) -> Vec<(String, Option<Slim>)> {
        match event {
            watcher::Event::Init => {
                self.found.clear();
                vec![]
            }
            watcher::Event::InitApply(object) => {
                self.found.insert(object.metadata.name.clone().unwrap_or_default());
                self.change(object)
            }
            watcher::Event::Apply(object) => self.change(object),
            watcher::Event::Delete(object) => {
                let name = object.metadata.name.unwrap_or_default();
                self.versions.remove(&name);
                vec![(name, None)]
            }
            watcher::Event::InitDone => {
                self.listed = true;
                let gone = self.versions.extract_if(|name, _| !self.found.contains(name));
                gone.map(|(name, _)| (name, None)).collect()
            }
        }
    }

    fn change(&mut self, object: Slim) -> Vec<(String, Option<Slim>)> {
        let name = object.metadata.name.clone().unwrap_or_default();
        let version = object.metadata.resource_version.clone().unwrap_or_default();
        let old = self.versions.insert(name.clone(), version.clone());
        if old == Some(version) { vec![] } else { vec![(name, Some(object))] }
    }
}

/// Something that is told of every change from now on. It ends with its handle.
pub struct Follower<T> {
    state: Arc<Mutex<T>>,
    news: watch::Receiver<()>,
    task: tokio::task::JoinHandle<()>,
}

impl<T> Drop for Follower<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T: Default + Send + 'static> Follower<T> {
    /// Begins after what is there now. `take` is given each object that changes, `None` for one that is gone.
    pub async fn new(
        api: Api<Slim>,
        mut take: impl FnMut(&mut T, String, Option<Slim>) + Send + 'static,
    ) -> Result<Self> {
        let (state, (tell, news)) = (Arc::new(Mutex::new(T::default())), watch::channel(()));
        let into = state.clone();
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        let mut known = Known::default();
        // What is there now is no change.
        while !known.listed {
            known.news(events.next().await.ok_or("the watch ended")??);
        }
        let task = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let Ok(event) = event else { continue };
                let changes = known.news(event);
                let mut state = into.lock().unwrap_or_else(PoisonError::into_inner);
                changes.into_iter().for_each(|(name, object)| take(&mut state, name, object));
                let _ = tell.send(());
            }
        });
        Ok(Self { state, news, task })
    }

    /// Looks at what is known.
    pub fn look<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something is so; how long it took.
    pub async fn until(&self, what: &str, deadline: Duration, holds: impl Fn(&T) -> bool) -> Result<Duration> {
        let (start, mut news) = (Instant::now(), self.news.clone());
        while !self.look(&holds) {
            let left = deadline.saturating_sub(start.elapsed());
            tokio::time::timeout(left, news.changed()).await.map_err(|_| format!("waited in vain until {what}"))??;
        }
        Ok(start.elapsed())
    }
}

/// What is known of pods.
#[derive(Default)]
pub struct Pods {
    bound: HashMap<String, Instant>,
    /// From when the pod was seen bound to when it was seen running, in milliseconds.
    pub running: HashMap<String, f64>,
}

impl Pods {
    /// Follows the pods of the namespace `default` whose names begin so.
    pub async fn follow(client: &Client, begin: &'static str) -> Result<Follower<Self>> {
        Follower::new(
            api::<k8s_openapi::api::core::v1::Pod>(client, Some("default")),
            move |pods: &mut Self, name, pod| {
                let Some(pod) = pod.filter(|_| name.starts_with(begin) && !pods.running.contains_key(&name)) else {
                    return;
                };
                if pod.spec.node_name.is_some() {
                    pods.bound.entry(name.clone()).or_insert_with(Instant::now);
                }
                if pod.status.and_then(|s| s.phase).as_deref() == Some("Running") {
                    let since = pods.bound.get(&name).map(Instant::elapsed).unwrap_or_default();
                    pods.running.insert(name, since.as_secs_f64() * 1000.0);
                }
            },
        )
        .await
    }

    /// The latencies in order.
    pub fn latencies(&self) -> Vec<f64> {
        let mut all: Vec<f64> = self.running.values().copied().collect();
        all.sort_by(f64::total_cmp);
        all
    }
}
