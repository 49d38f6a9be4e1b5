//! One acceptor for the ports of all nodes, and a task for each live connection.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use futures::stream::SelectAll;
use jiff::Timestamp;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::auth::Auth;
use super::listeners::{Accepts, Port};
use super::nodes::{Nodes, Shared};
use super::{KubeletOptions, NodeBackend, connection};
use crate::telemetry::metrics::metrics;
use crate::tls::ServingCerts;

/// Serves the kubelet API of every node of the process.
pub struct KubeletServer {
    pub(super) auth: Arc<Auth>,
    pub(super) options: KubeletOptions,
    pub(super) certs: Arc<ServingCerts>,
    /// When this was made.
    pub(super) started: Timestamp,
    clients: Arc<Clients>,
    /// Ports that the acceptor does not know yet.
    opened: Mutex<Vec<Arc<Port>>>,
    changed: Notify,
    /// The port that nodes share, once one of them does.
    shared: tokio::sync::Mutex<Option<(SocketAddr, Arc<Port>)>>,
}

/// A node's place at a port. Dropping it frees the port, or the place at a shared one.
pub struct Listening {
    port: u16,
    socket: Arc<Port>,
    /// The node's name at a shared port.
    member: Option<Arc<str>>,
}

impl Listening {
    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops accepting and frees the port at once; requests under way are completed.
    pub fn close(self) {}
}

impl Drop for Listening {
    fn drop(&mut self) {
        match (&self.member, &self.socket.nodes) {
            (Some(name), Nodes::Shared(shared)) => shared.remove(name),
            _ => self.socket.close(),
        }
    }
}

impl KubeletServer {
    /// Makes a server without any listener.
    pub fn new(auth: Arc<Auth>, certs: Arc<ServingCerts>, options: KubeletOptions) -> Arc<Self> {
        let clients = Clients { options: options.clone(), open: Mutex::default() };
        Arc::new(Self {
            auth,
            options,
            certs,
            started: Timestamp::now(),
            clients: Arc::new(clients),
            opened: Mutex::default(),
            changed: Notify::new(),
            shared: tokio::sync::Mutex::default(),
        })
    }

    /// Opens a port for a node. Connections are accepted while [`run`](Self::run) runs.
    ///
    /// # Errors
    /// Those of binding: a taken port is `AddrInUse`.
    pub async fn listen(&self, backend: Arc<dyn NodeBackend>, addr: SocketAddr) -> io::Result<Listening> {
        let (port, socket) = self.open(addr, Nodes::One(backend)).await?;
        Ok(Listening { port, socket, member: None })
    }

    /// Gives a node a place at the port that several share, which is opened for the first of them. A node of the same
    /// name is replaced.
    ///
    /// # Errors
    /// Those of binding: a taken port is `AddrInUse`.
    pub async fn share(&self, backend: Arc<dyn NodeBackend>, addr: SocketAddr) -> io::Result<Listening> {
        let mut shared = self.shared.lock().await;
        let (addr, socket) = match &*shared {
            Some(open) => open.clone(),
            None => {
                let (port, socket) = self.open(addr, Nodes::Shared(Shared::default())).await?;
                shared.insert((SocketAddr::new(addr.ip(), port), socket)).clone()
            }
        };
        let member = Some(backend.name().into());
        if let Nodes::Shared(nodes) = &socket.nodes {
            nodes.add(backend);
        }
        Ok(Listening { port: addr.port(), socket, member })
    }

    async fn open(&self, addr: SocketAddr, nodes: Nodes) -> io::Result<(u16, Arc<Port>)> {
        let listener = TcpListener::bind(addr).await?;
        let port = listener.local_addr()?.port();
        let socket = Port::new(listener, nodes);
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).push(socket.clone());
        self.changed.notify_one();
        Ok((port, socket))
    }

    /// Serves until the shutdown, then frees all ports and lets open requests end within the drain time.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let tls = match self.certs.server_config() {
            Ok(tls) => Arc::new(tls),
            Err(error) => {
                tracing::error!(%error, "the kubelet API cannot be served");
                return;
            }
        };
        let (connections, abort) = (TaskTracker::new(), CancellationToken::new());
        let mut ports: SelectAll<Accepts> = SelectAll::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.changed.notified() => {}
                Some((port, stream, peer)) = ports.next(), if !ports.is_empty() => {
                    self.clone().accept(&connections, &tls, &abort, port, stream, peer);
                }
            }
            let opened = std::mem::take(&mut *self.opened.lock().unwrap_or_else(PoisonError::into_inner));
            ports.extend(opened.into_iter().map(Accepts::new));
        }
        ports.iter().for_each(|p| p.port.close());
        for port in std::mem::take(&mut *self.opened.lock().unwrap_or_else(PoisonError::into_inner)) {
            port.close();
        }
        connections.close();
        if tokio::time::timeout(self.options.drain_timeout, connections.wait()).await.is_err() {
            tracing::info!(open = connections.len(), "kubelet connections are cut off");
            abort.cancel();
            connections.wait().await;
        }
    }

    fn accept(
        self: Arc<Self>,
        connections: &TaskTracker,
        tls: &Arc<ServerConfig>,
        abort: &CancellationToken,
        port: Arc<Port>,
        stream: TcpStream,
        peer: SocketAddr,
    ) {
        let Some(slot) = self.clients.clone().admit(peer.ip().to_canonical()) else {
            metrics().kubelet_refused.inc();
            tracing::debug!(%peer, node = port.nodes.name(), "too many kubelet connections: one more is refused");
            return;
        };
        let (tls, abort) = (tls.clone(), abort.clone());
        connections.spawn(async move {
            let _slot = slot;
            tokio::select! {
                () = abort.cancelled() => {}
                () = connection::serve(self, port, tls, stream, peer) => {}
            }
        });
    }
}

/// How many connections each client has open.
struct Clients {
    options: KubeletOptions,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// The right to one connection, given back on drop.
struct Slot {
    clients: Arc<Clients>,
    address: IpAddr,
}

impl Clients {
    fn admit(self: Arc<Self>, address: IpAddr) -> Option<Slot> {
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let of_client = open.by_address.get(&address).copied().unwrap_or(0);
            if open.total >= self.options.max_connections || of_client >= self.options.max_connections_per_client {
                return None;
            }
            open.total += 1;
            open.by_address.insert(address, of_client + 1);
        }
        metrics().kubelet_connections.inc();
        Some(Slot { clients: self, address })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.clients.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.total -= 1;
        if let Some(count) = open.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&self.address);
            }
        }
        metrics().kubelet_connections.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_limited_in_total_and_for_each_client() {
        let options = KubeletOptions { max_connections: 3, max_connections_per_client: 2, ..Default::default() };
        let clients = Arc::new(Clients { options, open: Mutex::default() });
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = clients.clone().admit(a).unwrap();
        let _second = clients.clone().admit(a).unwrap();
        assert!(clients.clone().admit(a).is_none());
        let _other = clients.clone().admit(b).unwrap();
        assert!(clients.clone().admit(b).is_none());
        drop(first);
        assert!(clients.clone().admit(b).is_some());
        assert_eq!(clients.open.lock().unwrap().by_address.len(), 2);
    }
}
