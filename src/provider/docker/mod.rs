//! Pods as containers of a Docker or Podman engine, on this machine or another.
//!
//! ```text
//!  runtime loop ──▶ DockerEngine ──▶ Client ──▶ unix socket, TCP, TLS ──▶ engine
//!        ▲                                                                  │
//!        └──────────── events: containers that ended ◀──────────────────────┘
//! ```
//!
//! A pod is a container that does nothing but hold the network, and one container for each attempt to run
//! one of the pod's. All carry labels that say whose they are, so that a restart finds them.
//!
//! | module | what it is |
//! |---|---|
//! | `settings` | the configuration, checked |
//! | `connect`, `client` | talking to an engine |
//! | `names` | names and labels |
//! | `body` | from what the loop wants to what an engine is told: pure |
//! | `found` | what an engine says of a container: pure |
//! | `engine` | the [`Engine`](super::runtime::Engine) of the loop |
//! | `sandbox`, `volumes` | what a pod's containers share, and their files |
//! | `events` | what happens at the engine |
//! | `images`, `logs`, `archive` | pulls, logs, files as tar archives |
//! | `exec`, `session` | exec and attach |
//! | `machine` | what only works on the engine's own machine |

mod archive;
mod body;
mod client;
mod connect;
mod engine;
mod events;
mod exec;
mod found;
mod images;
mod logs;
mod machine;
mod names;
mod sandbox;
mod session;
mod settings;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::registry::Factory;
use super::runtime::{self, Runtimes};
use super::{Capabilities, Provider, ProviderContext, ProviderError, Result};
use crate::api::{DockerConfig, ProviderSpec};
use engine::DockerEngine;

/// Makes nodes whose pods are containers of an engine.
pub struct DockerFactory {
    state: Option<PathBuf>,
    host_engine: bool,
    runtimes: Runtimes,
}

impl DockerFactory {
    /// Refuses every node: there is no folder for what has to be remembered of pods.
    pub fn without_state() -> Self {
        Self { state: None, host_engine: false, runtimes: Runtimes::default() }
    }

    /// Keeps records of pods, and the files of their volumes, below the folder `state`. `host_engine` allows
    /// engines of this machine: whoever may talk to one can do everything here.
    pub fn new(state: PathBuf, host_engine: bool) -> Self {
        Self { state: Some(state), host_engine, runtimes: Runtimes::default() }
    }
}

impl Factory for DockerFactory {
    /// What was begun with a pod is remembered on this machine.
    fn is_pinned(&self, _: &ProviderSpec) -> bool {
        true
    }

    fn build(&self, spec: &ProviderSpec, context: ProviderContext) -> Result<Arc<dyn Provider>> {
        let Some(state) = &self.state else {
            return Err(ProviderError::Invalid {
                field: "spec.provider.type".into(),
                message: "this program was given no folder to remember pods in".into(),
            });
        };
        let config = spec.docker.clone().unwrap_or_default();
        let credentials = context.credentials.as_deref();
        let settings = settings::check(&config, credentials, context.node_uid.clone(), self.host_engine)?;
        make_state_dir(state)?;
        let host_paths: Vec<PathBuf> = config.host_paths.iter().map(PathBuf::from).collect();
        let engine = Arc::new(DockerEngine::new(settings));
        Ok(self.runtimes.get_or_start(&context, engine, state, &host_paths))
    }

    fn capabilities(&self) -> Option<Capabilities> {
        Some(runtime::capabilities(engine::capabilities(true, false)))
    }
}

/// What is in it may be secret, and only the engine hands parts of it on.
fn make_state_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).map_err(|error| ProviderError::Unavailable {
        message: format!("making {}: {error}; --state-dir names another folder", dir.display()),
        retry_after: None,
        source: Some(Box::new(error)),
    })
}

/// Removes all containers of the nodes that have pods below a state folder, and the folder: for a cluster that
/// ends with its process.
pub async fn remove_all(state: &Path, host: Option<&str>) {
    let config = DockerConfig { host: host.map(str::to_owned), ..DockerConfig::default() };
    let nodes = std::fs::read_dir(state).into_iter().flatten().flatten();
    for node in nodes.filter_map(|n| n.file_name().into_string().ok()) {
        let Ok(settings) = settings::check(&config, None, node.as_str().into(), true) else { return };
        let removed = tokio::time::timeout(Duration::from_secs(30), DockerEngine::new(settings).remove_all()).await;
        if !matches!(removed, Ok(Ok(()))) {
            tracing::warn!(node, "its containers could not all be removed; they have the label {}", names::NODE);
        }
    }
    if let Err(error) = std::fs::remove_dir_all(state)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %state.display(), %error, "could not be removed");
    }
}
