//! The services under `examples/`, each a process of its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use vnode::api::{ProviderSpec, WebConfig};
use vnode::provider::registry::Registry;
use vnode::provider::{
    Credentials, EnvVar, PodEvent, PodNotifier, PodObservation, PodRef, Provider, ProviderContext, ResolvedContainer,
    ResolvedPod, Result,
};

/// How long something that takes a moment on an idle machine may take on a busy one.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A service, ended with its handle.
pub struct Example {
    child: Child,
    pub url: String,
}

impl Example {
    /// Starts `examples/<file>` with a program; `None`, loudly, where the program is not installed.
    pub fn start(program: &str, file: &str, args: &[&str]) -> Option<Self> {
        let path = format!("{}/examples/{file}", env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(program);
        command.arg(path).args(["--listen", "127.0.0.1:0"]).args(args).env("PYTHONDONTWRITEBYTECODE", "1");
        let mut child = match command.stdout(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => {
                eprintln!("!!! NOT TESTED: {program} is not there ({error}), so examples/{file} was not run");
                return None;
            }
        };
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{file} said {line:?}"));
        Some(Self { url: url.to_owned(), child })
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // Its pods end with it.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// Keeps what a provider tells.
#[derive(Default)]
pub struct Told {
    pub changed: Mutex<Vec<PodObservation>>,
    pub missing: Mutex<Vec<PodRef>>,
    pub events: Mutex<Vec<PodEvent>>,
}

impl PodNotifier for Told {
    fn changed(&self, observation: PodObservation) {
        self.changed.lock().unwrap().push(observation);
    }

    fn missing(&self, pod: &PodRef) {
        self.missing.lock().unwrap().push(pod.clone());
    }

    fn event(&self, event: PodEvent) {
        self.events.lock().unwrap().push(event);
    }
}

pub const NODE_UID: &str = "0c0f0000-0000-4000-8000-000000000001";

/// A provider for node `conformance`, and what it tells.
pub fn provider(
    config: WebConfig,
    credentials: Option<Credentials>,
    epoch: i64,
) -> (Result<Arc<dyn Provider>>, Arc<Told>) {
    let told = Arc::new(Told::default());
    let context = ProviderContext {
        node: "conformance".into(),
        node_uid: NODE_UID.into(),
        epoch,
        notifier: told.clone(),
        credentials: credentials.map(Arc::new),
    };
    (Registry::default().build(&ProviderSpec::web(config), context), told)
}

pub fn config(url: &str) -> WebConfig {
    WebConfig { url: url.into(), ..WebConfig::default() }
}

/// Waits for something.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < end, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A pod of one container that runs a script.
pub fn pod(name: &str, number: u32, script: &str) -> ResolvedPod {
    let pod = serde_json::json!({
        "metadata": {"namespace": "ns", "name": name, "uid": format!("0c0f0000-0000-4000-8000-{number:012}")},
        "spec": {"nodeName": "conformance", "restartPolicy": "Never", "containers": [{
            "name": "main", "image": "none", "command": ["sh", "-c", script],
            "env": [{"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}],
        }]},
    });
    let env = vec![EnvVar { name: "GREETING".into(), value: "hello".into(), secret: false }];
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let container = ResolvedContainer { env, command, ..ResolvedContainer::default() };
    let pod: Pod = serde_json::from_value(pod).unwrap();
    ResolvedPod { pod: Arc::new(pod), containers: [("main".to_owned(), container)].into(), ..ResolvedPod::default() }
}
