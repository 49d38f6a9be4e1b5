//! Listeners and connections.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::auth::Auth;
use super::{KubeletOptions, NodeBackend};
use crate::tls::ServingCerts;

/// Serves the kubelet API of every node of the process.
pub struct KubeletServer {}

/// A node's open port. Dropping it frees the port.
pub struct Listening {
    port: u16,
}

impl Listening {
    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops accepting and frees the port at once; requests under way are completed.
    pub fn close(self) {}
}

impl KubeletServer {
    /// Makes a server without any listener.
    pub fn new(_auth: Arc<Auth>, _certs: Arc<ServingCerts>, _options: KubeletOptions) -> Arc<Self> {
        todo!()
    }

    /// Opens a port for a node. Connections are accepted while [`run`](Self::run) runs.
    pub async fn listen(&self, _backend: Arc<dyn NodeBackend>, _addr: SocketAddr) -> io::Result<Listening> {
        todo!()
    }

    /// Serves until the shutdown, then lets open requests end.
    pub async fn run(self: Arc<Self>, _shutdown: CancellationToken) {
        todo!()
    }
}
