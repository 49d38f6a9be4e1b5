//! The kubelet API of every node of this process.
//!
//! A connection comes in at a node's own port or at one that several share (`nodes`, `listeners`, `server`) and is
//! served within its limits
//! (`connection`); its requests are named (`route`), the caller is identified and its right to ask is
//! established ([`auth`]); only then is the node looked at and one of `logs`, `stats`, `pods` or `stream`
//! answers through the node's [`NodeBackend`] (`handler`).
//!
//! All nodes share one acceptor task, one TLS identity and one set of caches: a listener costs a socket
//! and a few hundred bytes.

mod about;
pub mod auth;
mod connection;
mod handler;
mod listeners;
mod logs;
mod nodes;
mod pods;
mod route;
mod server;
mod stats;
mod stream;

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;

use crate::provider::{PodRef, Provider};

pub use server::{KubeletServer, Listening};
pub use stream::StreamOptions;

/// What the kubelet API needs to know of one node.
#[async_trait]
pub trait NodeBackend: Send + Sync + 'static {
    /// The node's name.
    fn name(&self) -> &str;

    /// The pods that are bound to the node, as the API server last showed them.
    fn pods(&self) -> Vec<Arc<Pod>>;

    /// One pod of the node.
    fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;

    /// The provider behind the node, as it is now.
    fn provider(&self) -> Arc<dyn Provider>;

    /// The names and addresses that the Node publishes, which its serving certificate is for. Without any, the
    /// certificate is for what the process is called.
    fn serving_names(&self) -> Arc<Vec<String>> {
        Arc::default()
    }

    /// Returns once a pod of this node may have changed since the future was first polled.
    ///
    /// Implement it with a notification where there is one; the default is to look every two seconds.
    async fn changed(&self) {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    /// Returns once the pod is no longer on this node: that ends the log streams that follow it, and sessions with it.
    async fn until_gone(&self, pod: &PodRef) {
        loop {
            // Listening before looking, so that nothing is missed in between.
            let mut changed = self.changed();
            let listening = futures::poll!(&mut changed) == Poll::Pending;
            let found = self.find(&pod.namespace, &pod.name);
            if found.is_none_or(|p| p.metadata.uid.as_deref().unwrap_or_default() != &*pod.uid) {
                return;
            }
            match listening {
                true => changed.await,
                false => tokio::task::yield_now().await,
            }
        }
    }
}

/// Limits of the kubelet API, for all nodes of the process together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeletOptions {
    /// Connections at a time; one more is closed at once.
    pub max_connections: usize,
    /// Connections at a time from one address.
    pub max_connections_per_client: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a client may take to send a request's headers.
    pub header_timeout: Duration,
    /// How long a connection without a request is kept.
    pub idle_timeout: Duration,
    /// How long a provider may take to begin its answer.
    pub provider_timeout: Duration,
    /// How long open requests may go on after the shutdown began.
    pub drain_timeout: Duration,
    /// Limits of exec, attach and port-forward.
    pub streams: StreamOptions,
}

impl Default for KubeletOptions {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_connections_per_client: 2048,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(120),
            provider_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            streams: StreamOptions::default(),
        }
    }
}
