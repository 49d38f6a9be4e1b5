//! What scenarios need: an API server in memory, simulated nodes, a provider whose faults a test decides.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::fake_api::FakeApi;
use super::{NodeFacts, NodeHandle, PodConfig, PodController};
use crate::api::{MockConfig, ProviderSpec};
use crate::provider::registry::Registry;
use crate::provider::{
    Capabilities, PodObservation, PodRef, Provider, ProviderContext, ProviderError, ResolvedPod, Result,
};

pub(super) struct World {
    pub api: FakeApi,
    pub registry: Registry,
    pub pods: Arc<PodController>,
    _stop: DropGuard,
}

impl World {
    pub fn new() -> Self {
        Self::with(FakeApi::default())
    }

    /// A process that starts against an API server that is there.
    pub fn with(api: FakeApi) -> Self {
        Self::configured(api, PodConfig::default())
    }

    pub fn configured(api: FakeApi, config: PodConfig) -> Self {
        let pods = PodController::new(api.client(), config);
        let stop = CancellationToken::new();
        tokio::spawn(pods.clone().run(stop.clone()));
        Self { api, registry: Registry::default(), pods, _stop: stop.drop_guard() }
    }

    pub fn mock(&self, name: &str, config: MockConfig) -> Arc<dyn Provider> {
        let node: Arc<str> = name.into();
        let context = ProviderContext {
            notifier: self.pods.notifier(&node),
            node,
            node_uid: format!("uid-of-{name}").into(),
            credentials: None,
            epoch: 0,
        };
        self.registry.build(&ProviderSpec::mock(config), context).unwrap()
    }

    pub fn add(&self, name: &str, provider: Arc<dyn Provider>) {
        self.add_with(name, provider, NodeFacts::default());
    }

    pub fn add_with(&self, name: &str, provider: Arc<dyn Provider>, facts: NodeFacts) {
        self.pods.add_node(NodeHandle {
            name: name.into(),
            uid: format!("uid-of-{name}").into(),
            provider,
            host_ip: "192.0.2.1".parse().unwrap(),
            facts: Arc::new(facts),
            hold: crate::cluster::fence::Hold::always(),
        });
    }

    pub fn add_mock(&self, name: &str, config: MockConfig) -> Arc<dyn Provider> {
        let provider = self.mock(name, config);
        self.add(name, provider.clone());
        provider
    }

    /// Makes a pod and waits until it runs.
    pub async fn run(&self, name: &str, uid: &str, node: &str) {
        self.api.put(pod(name, uid, node));
        self.until_phase(name, "Running").await;
    }

    pub async fn until(&self, what: &str, holds: impl Fn(&FakeApi) -> bool) {
        for _ in 0..20_000 {
            if holds(&self.api) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("waited in vain until {what}; writes: {:?}", self.api.writes());
    }

    pub async fn until_phase(&self, pod: &str, phase: &str) {
        self.until(&format!("{pod} is {phase}"), |api| api.phase(pod).as_deref() == Some(phase)).await;
    }

    pub async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
}

pub(super) fn pod(name: &str, uid: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": uid, "generation": 1},
        "spec": {"nodeName": node, "restartPolicy": "Always", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort"},
    })
}

pub(super) fn delete(pod: &mut Value, grace: u64) {
    pod["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z");
    pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
}

/// A pod as it was handed over, and the volumes that were said to have changed.
pub(super) type Handed = (ResolvedPod, Option<Vec<String>>);

/// A provider whose faults a test decides.
#[derive(Default)]
pub(super) struct Faulty {
    pub inner: Option<Arc<dyn Provider>>,
    pub hang: AtomicBool,
    /// So many calls do their work, and their answers never come.
    pub late: AtomicUsize,
    pub mute: bool,
    pub refuse: AtomicBool,
    pub fail: AtomicUsize,
    pub panic: AtomicUsize,
    pub creates: AtomicUsize,
    /// In place of the simulator's.
    pub capabilities: Option<Capabilities>,
    /// Each pod as it was last handed over, with the volumes that were said to have changed.
    pub given: Mutex<Vec<Handed>>,
}

impl Faulty {
    pub fn around(inner: Arc<dyn Provider>) -> Arc<Self> {
        Arc::new(Self { inner: Some(inner), ..Self::default() })
    }

    /// With other abilities than the simulator's.
    pub fn able(inner: Arc<dyn Provider>, capabilities: Capabilities) -> Arc<Self> {
        let volatile = inner.capabilities().volatile;
        let capabilities = Some(Capabilities { volatile, ..capabilities });
        Arc::new(Self { inner: Some(inner), capabilities, ..Self::default() })
    }

    /// The pod as it was last handed over.
    pub fn last(&self) -> Handed {
        self.given.lock().unwrap().last().cloned().expect("a pod was handed over")
    }

    pub fn inner(&self) -> &dyn Provider {
        self.inner.as_deref().unwrap()
    }

    async fn gate(&self) {
        if self.hang.load(SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    async fn answer<T>(&self, answer: T) -> T {
        if once(&self.late) {
            std::future::pending::<()>().await;
        }
        answer
    }
}

pub(super) fn once(count: &AtomicUsize) -> bool {
    count.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok()
}

#[async_trait]
impl Provider for Faulty {
    fn capabilities(&self) -> Capabilities {
        let capabilities = self.capabilities.unwrap_or_else(|| self.inner().capabilities());
        Capabilities { notifies: !self.mute, ..capabilities }
    }
    async fn update_pod(&self, pod: &ResolvedPod) -> Result<()> {
        self.given.lock().unwrap().push((pod.clone(), None));
        self.answer(self.inner().update_pod(pod).await).await
    }
    async fn update_volumes(&self, pod: &ResolvedPod, changed: &[String]) -> Result<()> {
        self.gate().await;
        self.given.lock().unwrap().push((pod.clone(), Some(changed.to_vec())));
        Ok(())
    }
    async fn create_pod(&self, pod: &ResolvedPod) -> Result<()> {
        self.gate().await;
        self.creates.fetch_add(1, SeqCst);
        if once(&self.panic) {
            panic!("as the test wants it");
        }
        if once(&self.fail) {
            return Err(ProviderError::unavailable("try later"));
        }
        if self.refuse.load(SeqCst) {
            return Err(ProviderError::Rejected { reason: "QuotaExceeded".into(), message: "no more pods".into() });
        }
        self.given.lock().unwrap().push((pod.clone(), None));
        self.answer(self.inner().create_pod(pod).await).await
    }
    async fn restore_pod(&self, pod: &ResolvedPod) -> Result<()> {
        self.inner().restore_pod(pod).await
    }
    async fn stop_pod(&self, pod: &PodRef, grace: Duration) -> Result<()> {
        self.gate().await;
        self.answer(self.inner().stop_pod(pod, grace).await).await
    }
    async fn remove_pod(&self, pod: &PodRef) -> Result<()> {
        self.gate().await;
        self.answer(self.inner().remove_pod(pod).await).await
    }
    async fn get_pod(&self, pod: &PodRef) -> Result<PodObservation> {
        self.gate().await;
        self.inner().get_pod(pod).await
    }
    async fn list_pods(&self) -> Result<Vec<PodObservation>> {
        self.gate().await;
        self.inner().list_pods().await
    }
    async fn ping(&self) -> Result<()> {
        Ok(())
    }
}
