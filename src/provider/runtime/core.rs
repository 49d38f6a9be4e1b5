//! What the pods of one node share: the engine, the agent's ear, and the table of pods.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::engine::{ContainerRef, ContainerState, Engine};
use super::probe::Probed;
use super::spec::PodDir;
use super::volumes::HostPaths;
use crate::provider::{EventType, PodEvent, PodNotifier, PodObservation, PodRef, ProviderError, ResolvedPod, Result};

/// Messages that wait for a pod's task, which never does anything but take them and start work.
const MAILBOX: usize = 64;

pub(super) fn guard<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half-way under any of these locks.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The part that can be replaced under running pods.
#[derive(Clone)]
pub(super) struct Setup {
    pub engine: Arc<dyn Engine>,
    pub notifier: Arc<dyn PodNotifier>,
    pub host_paths: HostPaths,
}

/// One node.
pub(super) struct Core {
    /// The folder of this node's pods, one folder for each by uid.
    pub dir: PathBuf,
    pub node: Arc<str>,
    setup: RwLock<Setup>,
    pods: Mutex<HashMap<Arc<str>, Arc<Entry>>>,
    /// True once what ran before is known.
    pub adopted: watch::Sender<bool>,
    /// The engine was replaced.
    pub replaced: Notify,
    pub stop: CancellationToken,
    /// What time it is.
    pub clock: fn() -> Timestamp,
}

/// One pod, as others see it.
pub(super) struct Entry {
    pub reference: PodRef,
    mailbox: mpsc::Sender<Message>,
    view: Mutex<View>,
    /// How its probes went.
    pub probed: Probed,
}

/// What is known of a pod without asking its task.
#[derive(Clone)]
pub(super) struct View {
    pub observation: PodObservation,
    pub containers: Vec<ContainerView>,
    /// Made up from what an engine had, until the agent brings the pod.
    pub synthetic: bool,
}

#[derive(Clone)]
pub(super) struct ContainerView {
    pub name: String,
    pub current: Option<ContainerRef>,
    pub previous: Option<ContainerRef>,
    pub alive: bool,
}

/// Something for a pod's task.
pub(super) enum Message {
    Stop(std::time::Duration),
    Update(Box<ResolvedPod>),
    Volumes(Box<ResolvedPod>, Vec<String>),
    /// Of this pod's container.
    State(ContainerRef, ContainerState),
    /// It ran when the engine was asked, and the engine has no such container.
    Missing(ContainerRef),
    /// The addresses that it has now; `None` when there is no sandbox any more.
    Sandbox(Option<Vec<std::net::IpAddr>>),
    Remove(oneshot::Sender<Result<()>>),
}

impl Core {
    pub fn new(dir: PathBuf, node: Arc<str>, setup: Setup) -> Self {
        Self {
            dir,
            node,
            setup: RwLock::new(setup),
            pods: Mutex::default(),
            adopted: watch::Sender::new(false),
            replaced: Notify::new(),
            stop: CancellationToken::new(),
            clock: Timestamp::now,
        }
    }

    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub fn setup(&self) -> Setup {
        self.setup.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn engine(&self) -> Arc<dyn Engine> {
        self.setup().engine
    }

    pub fn set_up(&self, setup: Setup) {
        *self.setup.write().unwrap_or_else(PoisonError::into_inner) = setup;
        self.replaced.notify_one();
    }

    pub fn pod_dir(&self, uid: &str) -> PodDir {
        PodDir(self.dir.join(uid))
    }

    pub fn entry(&self, pod: &PodRef) -> Result<Arc<Entry>> {
        self.find(&pod.uid).ok_or_else(|| ProviderError::NotFound(format!("pod {pod}")))
    }

    pub fn find(&self, uid: &str) -> Option<Arc<Entry>> {
        guard(&self.pods).get(uid).cloned()
    }

    pub fn entries(&self) -> Vec<Arc<Entry>> {
        guard(&self.pods).values().cloned().collect()
    }

    /// Takes a pod into the table; the receiver is its task's. `None` when it is there already.
    pub fn insert(&self, reference: PodRef, view: View) -> Option<(Arc<Entry>, mpsc::Receiver<Message>)> {
        let mut pods = guard(&self.pods);
        if pods.contains_key(&reference.uid) {
            return None;
        }
        let (mailbox, receiver) = mpsc::channel(MAILBOX);
        let (view, probed) = (Mutex::new(view), Probed::default());
        let entry = Arc::new(Entry { reference: reference.clone(), mailbox, view, probed });
        pods.insert(reference.uid, entry.clone());
        Some((entry, receiver))
    }

    /// Takes a pod out of the table, if it is still this one.
    pub fn forget(&self, entry: &Arc<Entry>) {
        let mut pods = guard(&self.pods);
        if pods.get(&entry.reference.uid).is_some_and(|e| Arc::ptr_eq(e, entry)) {
            pods.remove(&entry.reference.uid);
        }
    }

    pub fn tell(&self, pod: &PodRef, field: Option<String>, kind: EventType, reason: &'static str, message: String) {
        self.setup().notifier.event(PodEvent { pod: pod.clone(), field, kind, reason, message });
    }

    /// Fails while it is not known what ran before: nothing may be started, and nothing is absent.
    pub async fn ready(&self) -> Result<()> {
        let mut adopted = self.adopted.subscribe();
        let known = tokio::time::timeout(std::time::Duration::from_secs(20), adopted.wait_for(|known| *known)).await;
        match known {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ProviderError::unavailable("it is not known yet which containers there are")),
        }
    }
}

impl Entry {
    pub fn view(&self) -> View {
        guard(&self.view).clone()
    }

    pub fn set_view(&self, view: View) {
        *guard(&self.view) = view;
    }

    pub async fn send(&self, message: Message) -> Result<()> {
        let sent = self.mailbox.send(message).await;
        sent.map_err(|_| ProviderError::NotFound(format!("pod {}", self.reference)))
    }

    /// The container that runs.
    pub fn running(&self, container: &str) -> Result<ContainerRef> {
        let found = self.container(container)?;
        match found.current {
            Some(current) if found.alive => Ok(current),
            _ => Err(ProviderError::NotFound(format!("running container {container:?} in pod {}", self.reference))),
        }
    }

    pub fn container(&self, container: &str) -> Result<ContainerView> {
        let view = guard(&self.view);
        let found = view.containers.iter().find(|c| c.name == container).cloned();
        found.ok_or_else(|| ProviderError::NotFound(format!("container {container:?} of pod {}", self.reference)))
    }
}
