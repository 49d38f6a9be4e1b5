//! Pods run by a gRPC service, in any language.
//!
//! ```text
//!  node ──▶ GrpcProvider ─┐                         ┌─▶ calls, logs of pods ──┐
//!  node ──▶ GrpcProvider ─┼─▶ Connection (shared) ──┼─▶ sessions ─────────────┼──▶ service
//!  node ──▶ GrpcProvider ─┘        ▲                └─▶ one watch of all nodes┘       │
//!             ▲                    └──────────────── changes ◀────────────────────────┘
//!             └── Guard: what of them can be believed
//! ```
//!
//! The protocol is described in `proto/vnode/provider/v1/provider.proto`.
//!
//! | module | what it is |
//! |---|---|
//! | `settings` | the configuration, checked |
//! | `connect`, `channel` | reaching a service, with back-off; what goes with every request |
//! | `connection` | what all nodes of a service share: connections, health |
//! | `subscriptions`, `watch` | which nodes' changes are wanted, and the stream that brings them |
//! | `encode`, `decode` | between our types and the protocol's: pure |
//! | `failure` | from a status to what the agent may conclude: pure |
//! | `provider` | the [`Provider`] |
//! | `session` | exec, attach and port-forward |

mod channel;
mod connect;
mod connection;
mod decode;
mod encode;
mod failure;
mod provider;
mod session;
mod settings;
mod subscriptions;
mod watch;

use std::sync::Arc;

use super::registry::Factory;
use super::{Capabilities, PodFeatures, Provider, ProviderContext, Result, VolumeFiles};
use crate::api::ProviderSpec;
use connection::Connections;
use provider::GrpcProvider;

/// Makes nodes whose pods are run by a gRPC service.
#[derive(Default)]
pub struct GrpcFactory {
    sockets: bool,
    connections: Connections,
}

impl GrpcFactory {
    /// `sockets` allows services of this machine by their unix sockets.
    pub fn new(sockets: bool) -> Self {
        Self { sockets, connections: Connections::default() }
    }
}

impl Factory for GrpcFactory {
    fn build(&self, spec: &ProviderSpec, context: ProviderContext) -> Result<Arc<dyn Provider>> {
        let config = spec.grpc.clone().unwrap_or_default();
        let settings = settings::check(&config, context.credentials.as_deref(), self.sockets)?;
        let connection = self.connections.get(&settings);
        Ok(Arc::new(GrpcProvider::new(connection, &settings, &context)?))
    }

    /// Everything: what a service lacks it says itself.
    fn capabilities(&self) -> Option<Capabilities> {
        Some(Capabilities {
            notifies: true,
            events: true,
            volume_files: VolumeFiles::Live,
            starts_apart: true,
            ..Capabilities::serving_all(PodFeatures::ALL)
        })
    }

    /// A socket is this machine's.
    fn is_pinned(&self, spec: &ProviderSpec) -> bool {
        spec.grpc.as_ref().is_some_and(|g| g.endpoint.starts_with("unix:"))
    }
}
