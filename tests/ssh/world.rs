//! A node on a device, and what it tells.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::io::AsyncReadExt as _;
use vnode::api::{ProviderSpec, SshConfig};
use vnode::provider::registry::Factory as _;
use vnode::provider::ssh::SshFactory;
use vnode::provider::{
    Credentials, EnvVar, ExitStatus, LogOptions, PodEvent, PodNotifier, PodObservation, PodRef, Provider,
    ProviderContext, ResolvedContainer, ResolvedPod, Result, SessionIo,
};

use crate::sshd::Sshd;

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub struct Recorder {
    seen: Mutex<Vec<PodObservation>>,
    events: Mutex<Vec<PodEvent>>,
}

impl PodNotifier for Recorder {
    fn changed(&self, observation: PodObservation) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(observation);
    }

    fn event(&self, event: PodEvent) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

/// A device, and what an operator keeps of it.
pub struct World {
    pub sshd: Sshd,
    pub config: SshConfig,
    pub recorder: Arc<Recorder>,
    state: tempfile::TempDir,
}

impl World {
    pub fn new(sshd: Sshd, shell: Option<&str>) -> Self {
        let config = SshConfig {
            host: "127.0.0.1".into(),
            port: Some(sshd.port),
            user: sshd.user(),
            host_key: Some(sshd.host_key()),
            directory: Some(sshd.directory().display().to_string()),
            shell: shell.map(str::to_owned),
            ..SshConfig::default()
        };
        let state = tempfile::tempdir().expect("a folder");
        Self { sshd, config, recorder: Arc::default(), state }
    }

    pub fn secret(&self) -> BTreeMap<String, bytes::Bytes> {
        [("ssh-privatekey".to_owned(), self.sshd.key("user").into())].into()
    }

    /// A provider as after a restart of the operator.
    pub fn build(&self, context: ProviderContext) -> Result<Arc<dyn Provider>> {
        self.build_with(context, &self.config, self.secret())
    }

    pub fn build_with(
        &self,
        context: ProviderContext,
        config: &SshConfig,
        secret: BTreeMap<String, bytes::Bytes>,
    ) -> Result<Arc<dyn Provider>> {
        let context = ProviderContext { credentials: Some(Arc::new(Credentials(secret))), ..context };
        let factory = SshFactory::new(self.state.path().join("ssh"));
        factory.build(&ProviderSpec::ssh(config.clone()), context)
    }

    pub fn context(&self) -> ProviderContext {
        ProviderContext {
            node: "node".into(),
            node_uid: "11111111-0000-4000-8000-000000000001".into(),
            epoch: 7,
            notifier: self.recorder.clone(),
            credentials: None,
        }
    }

    pub fn provider(&self) -> Arc<dyn Provider> {
        self.build(self.context()).expect("a provider")
    }

    /// Forgets what the operator has kept of pods.
    pub fn lose_records(&mut self) {
        self.state = tempfile::tempdir().expect("a folder");
    }

    pub async fn wait(&self, pod: &PodRef, what: &str, holds: impl Fn(&PodObservation) -> bool) -> PodObservation {
        let end = Instant::now() + PATIENCE;
        loop {
            let last = {
                let seen = self.recorder.seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.iter().rev().find(|o| o.pod.uid == pod.uid).cloned()
            };
            match last {
                Some(last) if holds(&last) => return last,
                last => assert!(Instant::now() < end, "waited in vain for {pod} to be {what}: {last:#?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn runs(&self, pod: &PodRef) -> PodObservation {
        self.wait(pod, "running", |o| main(o).state.as_ref().is_some_and(|s| s.running.is_some())).await
    }

    /// The exit code of a container that is not started again.
    pub async fn ends(&self, pod: &PodRef) -> i32 {
        let over = |o: &PodObservation| main(o).state.as_ref().is_some_and(|s| s.terminated.is_some());
        let last = self.wait(pod, "over", over).await;
        main(&last).state.as_ref().and_then(|s| s.terminated.as_ref()).expect("it ended").exit_code
    }

    pub fn events(&self) -> Vec<PodEvent> {
        self.recorder.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nothing of a pod is left on the device.
    pub async fn nothing_runs(&self) {
        eventually("nothing runs", || {
            let left: Vec<String> =
                self.sshd.running().into_iter().filter(|l| l.contains("supervise") || !l.contains("helper-")).collect();
            left.is_empty().then_some(()).ok_or_else(|| format!("{left:?}"))
        })
        .await;
        let nodes = self.sshd.directory().join("nodes");
        for node in std::fs::read_dir(nodes).into_iter().flatten().flatten() {
            let pods: Vec<_> = std::fs::read_dir(node.path().join("pods")).into_iter().flatten().flatten().collect();
            assert!(pods.is_empty(), "{pods:?}");
        }
    }
}

pub async fn eventually<T>(what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match check() {
            Ok(found) => return found,
            Err(last) => assert!(Instant::now() < end, "waited in vain: {what}; last: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn main(o: &PodObservation) -> &ContainerStatus {
    o.containers.first().expect("a container")
}

/// A pod with one container.
pub struct Made {
    pub pod: ResolvedPod,
}

pub fn pod(number: u32, restart: &str, command: &[&str]) -> Made {
    let command: Vec<String> = command.iter().map(|w| (*w).to_owned()).collect();
    let container = Container {
        name: "main".into(),
        image: Some("any".into()),
        command: Some(command.clone()),
        ..Container::default()
    };
    let pod = Pod {
        metadata: ObjectMeta {
            name: Some(format!("pod-{number}")),
            namespace: Some("test".into()),
            uid: Some(format!("22222222-0000-4000-8000-{number:012}")),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { restart_policy: Some(restart.into()), containers: vec![container], ..PodSpec::default() }),
        status: None,
    };
    let container = ResolvedContainer { command, ..ResolvedContainer::default() };
    Made {
        pod: ResolvedPod {
            pod: Arc::new(pod),
            containers: [("main".to_owned(), container)].into(),
            ..ResolvedPod::default()
        },
    }
}

pub fn script(number: u32, text: &str) -> Made {
    pod(number, "Never", &["sh", "-c", text])
}

impl Made {
    pub fn env(mut self, name: &str, value: &str, secret: bool) -> Self {
        let container = self.pod.containers.get_mut("main").expect("main");
        container.env.push(EnvVar { name: name.into(), value: value.into(), secret });
        self
    }

    pub fn spec(mut self, change: impl FnOnce(&mut PodSpec)) -> Self {
        change(Arc::make_mut(&mut self.pod.pod).spec.as_mut().expect("a spec"));
        self
    }

    pub async fn create(self, provider: &Arc<dyn Provider>) -> PodRef {
        provider.create_pod(&self.pod).await.expect("it is taken");
        self.pod.pod_ref()
    }
}

pub async fn log(provider: &Arc<dyn Provider>, pod: &PodRef) -> String {
    let lines = provider.logs(pod, "main", &LogOptions::default()).await.expect("a log");
    let lines: Vec<_> = lines.collect().await;
    lines.into_iter().map(|l| String::from_utf8_lossy(&l.expect("a line").text).into_owned()).collect()
}

/// A command's exit code and output, given something to read.
pub async fn exec(provider: &Arc<dyn Provider>, pod: &PodRef, command: &[&str], input: &[u8]) -> (i32, String) {
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let io = SessionIo {
        stdin: Some(Box::pin(std::io::Cursor::new(input.to_vec()))),
        stdout: Some(Box::pin(far)),
        stderr: None,
        tty: false,
        resize: None,
    };
    let command: Vec<String> = command.iter().map(|w| (*w).to_owned()).collect();
    let mut text = Vec::new();
    let (status, _) = tokio::join!(provider.exec(pod, "main", &command, io), near.read_to_end(&mut text));
    let ExitStatus { code } = status.expect("it runs");
    (code, String::from_utf8_lossy(&text).into_owned())
}
