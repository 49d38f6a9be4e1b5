//! What stands behind a node, and the one interface to it: [`Provider`].
//!
//! A provider never sees the API server. It receives pods whose environment is resolved
//! ([`ResolvedPod`]), keeps each under its uid, and tells what it knows of them as
//! [`PodObservation`]s, on request and through its [`PodNotifier`]. Phase, conditions, retries,
//! deletion and status are the agent's business.
//!
//! | module | holds |
//! |---|---|
//! | [`error`] | [`ProviderError`]: what a failed call lets the agent conclude |
//! | [`types`] | what travels in both directions |
//! | [`volumes`] | of it: the content of volumes, and credentials for images |
//! | [`features`] | what of a pod a provider can do |
//! | [`external`] | of it: providers that a program brings along |
//! | `lost` | containers of which only is known that they are no more |
//! | [`registry`] | from a VirtualNode's `spec.provider` to a running provider |
//! | [`conformance`] | the checks that every provider must pass |
//! | [`mock`] | the simulator |
//! | [`process`] | pods as processes of this machine |
//! | `docker` | pods as containers of a Docker or Podman engine; a cargo feature |
//! | `grpc` | pods run by a gRPC service; a cargo feature |
//! | [`web`] | pods that an HTTP service runs |
//! | `remote` | what can be believed of services outside of this process |
//! | `ssh` | pods as processes of a device that is reached over SSH; a cargo feature |
//! | [`runtime`] | the pod life-cycle for engines that only start and stop containers |

pub mod conformance;
#[cfg(feature = "docker")]
pub mod docker;
pub mod error;
pub mod external;
pub mod features;
#[cfg(feature = "grpc")]
pub mod grpc;
pub(crate) mod lost;
pub mod mock;
pub mod process;
pub mod registry;
pub(crate) mod remote;
pub mod runtime;
#[cfg(feature = "ssh")]
pub mod ssh;
pub mod types;
mod usage;
pub mod volumes;
pub mod web;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

pub use error::{ProviderError, Result};
pub use external::External;
pub use features::{PodFeature, PodFeatures};
pub use types::*;
pub use usage::*;
pub use volumes::{FileSet, PullCredentials, ResolvedMount, ResolvedVolume, VolumeFile};

/// Receives word that a pod changed at the provider.
///
/// Calls are cheap, never block and may come from any thread. Only the latest observation of a pod is
/// kept, so a provider may call as often as it likes.
pub trait PodNotifier: Send + Sync + 'static {
    /// The pod is now as `observation` says.
    fn changed(&self, observation: PodObservation);

    /// The provider had this pod and has it no more, without having been asked to remove it. The agent asks for it
    /// before it concludes anything.
    fn missing(&self, _pod: &PodRef) {}

    /// Something happened that users should see. Events are hints: they may be merged or dropped.
    fn event(&self, _event: PodEvent) {}
}

/// What every provider is given when it is made.
#[derive(Clone)]
pub struct ProviderContext {
    /// The node's name, which is also the VirtualNode's.
    pub node: Arc<str>,
    /// The VirtualNode's uid: the mark to put on everything made for this node.
    pub node_uid: Arc<str>,
    /// Grows each time the node changes hands between replicas of the operator. A service that keeps it can refuse
    /// what comes late from an older owner.
    pub epoch: i64,
    /// Where to tell of changes.
    pub notifier: Arc<dyn PodNotifier>,
    /// The data of the credentials Secret, if the VirtualNode names one.
    pub credentials: Option<Arc<Credentials>>,
}

/// The data of a credentials Secret. Its Debug output shows key names only.
pub struct Credentials(pub std::collections::BTreeMap<String, bytes::Bytes>);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A duplex byte stream to a port of a pod.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Runs the pods of one node.
///
/// The agent bounds how many calls are under way, gives each a deadline and drops the future when it
/// passes, so every method must be cancel-safe: a dropped call may or may not have taken effect, and the
/// agent will ask again. All calls are idempotent by the pod's uid.
///
/// Only the pod's life-cycle and [`ping`](Self::ping) must be implemented. The other abilities default
/// to [`ProviderError::Unsupported`], which users see as "not supported by this provider"; say which
/// ones are there in [`capabilities`](Self::capabilities).
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// What this provider can do. Constant for the provider's life.
    fn capabilities(&self) -> Capabilities;

    /// Starts the pod. Creating a pod that is already there succeeds and changes nothing.
    async fn create_pod(&self, pod: &ResolvedPod) -> Result<()>;

    /// Applies a change that Kubernetes allows on a running pod: labels, annotations, images, tolerations.
    /// A provider that has nothing to do with them keeps the default, which succeeds.
    async fn update_pod(&self, _pod: &ResolvedPod) -> Result<()> {
        Ok(())
    }

    /// The files of these volumes are to be replaced: a ConfigMap or Secret, a label or annotation of the pod has
    /// changed, or a token was renewed. Only called when [`Capabilities::volume_files`] is
    /// [`Live`](VolumeFiles::Live).
    ///
    /// All of `pod` is resolved anew, so a container that starts later should have its environment from here, as
    /// on any node. `changed` is empty when only environments differ.
    async fn update_volumes(&self, _pod: &ResolvedPod, _changed: &[String]) -> Result<()> {
        Ok(())
    }

    /// Begins to stop the pod: its containers are asked to end and killed after `grace`.
    ///
    /// Returns as soon as stopping has begun. The record stays until [`remove_pod`](Self::remove_pod), and its
    /// observations must come to show every container terminated. A second call with a shorter grace
    /// shortens the wait. `NotFound` when there is no such pod.
    async fn stop_pod(&self, pod: &PodRef, grace: Duration) -> Result<()>;

    /// Forgets a pod and frees all that it held, killing what still runs. Removing a pod that is not
    /// there succeeds.
    async fn remove_pod(&self, pod: &PodRef) -> Result<()>;

    /// What is known of one pod; `NotFound` only when it is certain that there is no such pod.
    async fn get_pod(&self, pod: &PodRef) -> Result<PodObservation>;

    /// Every pod that carries this node's mark, stopped ones included. Fails rather than answer in part.
    async fn list_pods(&self) -> Result<Vec<PodObservation>>;

    /// Takes back a pod that ran before this process started. Only called for
    /// [`volatile`](Capabilities::volatile) providers, with the status that the API server last had.
    async fn restore_pod(&self, pod: &ResolvedPod) -> Result<()> {
        self.create_pod(pod).await
    }

    /// Succeeds when the provider can be reached and would accept work.
    async fn ping(&self) -> Result<()>;

    /// What the machine behind the node looks like. Called at the start and now and then.
    async fn describe_node(&self) -> Result<NodeDescription> {
        Ok(NodeDescription::default())
    }

    /// The log lines of a container. `tail` and `since` apply to the lines there are when it is called.
    async fn logs(&self, _pod: &PodRef, _container: &str, _options: &LogOptions) -> Result<LogStream> {
        Err(ProviderError::Unsupported("reading logs"))
    }

    /// Runs a command in a container and returns when it has ended and its output is written.
    async fn exec(&self, _pod: &PodRef, _container: &str, _command: &[String], _io: SessionIo) -> Result<ExitStatus> {
        Err(ProviderError::Unsupported("exec"))
    }

    /// Joins the main process of a container; returns when the process or the client ends.
    async fn attach(&self, _pod: &PodRef, _container: &str, _io: SessionIo) -> Result<ExitStatus> {
        Err(ProviderError::Unsupported("attach"))
    }

    /// Connects to a port inside the pod.
    async fn port_forward(&self, _pod: &PodRef, _port: u16) -> Result<Box<dyn Duplex>> {
        Err(ProviderError::Unsupported("port-forward"))
    }

    /// What the node and its pods use at this moment.
    async fn stats(&self) -> Result<NodeUsage> {
        Err(ProviderError::Unsupported("statistics"))
    }

    /// How the probes went of the containers there are. None of it from a provider that leaves them to its service.
    /// Asked for at every scrape, so it answers from memory.
    fn probes(&self) -> Vec<ProbeCounts> {
        Vec::new()
    }
}
