//! Connections to an engine: a unix socket, TCP, or TLS over TCP.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::provider::Duplex;
use crate::provider::remote::pooled::Pooled;

const CONNECT: Duration = Duration::from_secs(10);

/// Where an engine listens.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Unix(PathBuf),
    Tcp { host: String, port: u16, tls: Option<Arc<ClientConfig>> },
}

/// Connects to one engine, whatever the address of a request says.
#[derive(Clone, Debug)]
pub(super) struct Connector(pub Target);

impl Target {
    async fn connect(&self) -> io::Result<Box<dyn Duplex>> {
        match self {
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Self::Tcp { host, port, tls } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let Some(config) = tls else { return Ok(Box::new(stream)) };
                let name = ServerName::try_from(host.clone())
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("{host}: {e}")))?;
                Ok(Box::new(TlsConnector::from(config.clone()).connect(name, stream).await?))
            }
        }
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Pooled<Box<dyn Duplex>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = self.0.clone();
        Box::pin(async move {
            match timeout(CONNECT, target.connect()).await {
                Ok(connected) => connected.map(Pooled::new),
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to a connection")),
            }
        })
    }
}
