//! Pods as files: each is a record in a folder of the node, from its creation until it is removed. A bridge to a batch
//! system would look like this one, with a service's API in place of files.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use vnode::provider::{
    Capabilities, PodObservation, PodRef, Provider, ProviderContext, ProviderError, ResolvedPod, Result,
};

/// `spec.provider.folder`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Where the nodes' records are; made when it is missing.
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Record {
    namespace: String,
    name: String,
    uid: String,
    containers: Vec<Container>,
    started: Timestamp,
    stopped: Option<Timestamp>,
}

/// One node's folder.
pub struct Folder {
    path: PathBuf,
    turn: Arc<Mutex<()>>,
}

impl Folder {
    /// Records are kept by the node's uid, the mark by which they are found again after a restart.
    pub fn new(config: Config, context: ProviderContext) -> Self {
        Self { path: config.path.join(&*context.node_uid), turn: Arc::default() }
    }

    /// Works on the folder. A call may be given up at any await; what it began runs to its end all the same, so the next
    /// one waits for its turn and finds the folder whole.
    async fn work<T: Send + 'static>(&self, work: impl FnOnce(&Path) -> Result<T> + Send + 'static) -> Result<T> {
        let (path, turn) = (self.path.clone(), self.turn.clone());
        let work = move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            fs::create_dir_all(&path).map_err(lost)?;
            work(&path)
        };
        tokio::task::spawn_blocking(work).await.map_err(lost)?
    }
}

fn file(folder: &Path, uid: &str) -> PathBuf {
    folder.join(format!("{uid}.json"))
}

fn read(folder: &Path, pod: &PodRef) -> Result<Record> {
    match fs::read(file(folder, &pod.uid)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(lost),
        // Only this is a certain "no such pod"; every other error means that nothing is known.
        Err(error) if error.kind() == ErrorKind::NotFound => Err(ProviderError::NotFound(format!("pod {pod}"))),
        Err(error) => Err(lost(error)),
    }
}

/// Written aside and renamed: the process may be killed at any point, and nobody is to read half a record.
fn write(folder: &Path, record: &Record) -> Result<()> {
    let part = folder.join(format!("{}.part", record.uid));
    fs::write(&part, serde_json::to_vec(record).map_err(lost)?).map_err(lost)?;
    fs::rename(&part, file(folder, &record.uid)).map_err(lost)
}

fn lost(error: impl std::error::Error + Send + Sync + 'static) -> ProviderError {
    let message = format!("the folder cannot be used: {error}");
    ProviderError::Unavailable { message, retry_after: None, source: Some(Box::new(error)) }
}

fn observe(record: Record) -> PodObservation {
    let state = match record.stopped {
        Some(stopped) => json!({"terminated": {
            "exitCode": 0, "reason": "Completed", "startedAt": record.started, "finishedAt": stopped,
        }}),
        None => json!({"running": {"startedAt": record.started}}),
    };
    let status = |container: Container| ContainerStatus {
        name: container.name,
        image: container.image.unwrap_or_default(),
        ready: record.stopped.is_none(),
        started: Some(record.stopped.is_none()),
        state: serde_json::from_value(state.clone()).ok(),
        ..ContainerStatus::default()
    };
    PodObservation {
        pod: PodRef { namespace: record.namespace.into(), name: record.name.into(), uid: record.uid.into() },
        start_time: Some(record.started),
        pod_ips: vec![[127, 0, 0, 1].into()],
        host_ip: None,
        init_containers: Vec::new(),
        containers: record.containers.into_iter().map(status).collect(),
        ephemeral_containers: Vec::new(),
        reason: None,
        message: None,
    }
}

#[async_trait]
impl Provider for Folder {
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    async fn create_pod(&self, pod: &ResolvedPod) -> Result<()> {
        let id = pod.pod_ref();
        let containers = pod.pod.spec.as_ref().map(|s| s.containers.clone()).unwrap_or_default();
        let create = move |folder: &Path| match read(folder, &id) {
            // Asked again, as after an answer that was lost: the pod stays as it is.
            Ok(_) => Ok(()),
            Err(error) if !error.is_not_found() => Err(error),
            Err(_) => {
                let (namespace, name, uid) = (id.namespace.to_string(), id.name.to_string(), id.uid.to_string());
                write(folder, &Record { namespace, name, uid, containers, started: Timestamp::now(), stopped: None })
            }
        };
        self.work(create).await
    }

    async fn stop_pod(&self, pod: &PodRef, _grace: Duration) -> Result<()> {
        let pod = pod.clone();
        let stop = move |folder: &Path| {
            let mut record = read(folder, &pod)?;
            record.stopped.get_or_insert_with(Timestamp::now);
            write(folder, &record)
        };
        self.work(stop).await
    }

    async fn remove_pod(&self, pod: &PodRef) -> Result<()> {
        let uid = pod.uid.clone();
        let remove = move |folder: &Path| match fs::remove_file(file(folder, &uid)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(lost(error)),
            _ => Ok(()),
        };
        self.work(remove).await
    }

    async fn get_pod(&self, pod: &PodRef) -> Result<PodObservation> {
        let pod = pod.clone();
        self.work(move |folder| read(folder, &pod).map(observe)).await
    }

    async fn list_pods(&self) -> Result<Vec<PodObservation>> {
        let list = |folder: &Path| {
            let mut pods = Vec::new();
            for entry in fs::read_dir(folder).map_err(lost)? {
                let path = entry.map_err(lost)?.path();
                if path.extension().is_some_and(|e| e == "json") {
                    let bytes = fs::read(path).map_err(lost)?;
                    pods.push(observe(serde_json::from_slice(&bytes).map_err(lost)?));
                }
            }
            Ok(pods)
        };
        self.work(list).await
    }

    async fn ping(&self) -> Result<()> {
        self.work(|_| Ok(())).await
    }
}
