//! Connections to a service: TCP, or TLS over TCP.
//!
//! A connection ends with the certificates that it was made with, so that one that has expired is noticed when it
//! expires and not when the connection happens to break.

use std::fmt;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use jiff::Timestamp;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::provider::Duplex;
use crate::provider::remote::pooled::Pooled;
use crate::provider::remote::tls::{Tls, valid_until};

const CONNECT: Duration = Duration::from_secs(10);
/// A peer that is gone without a word is noticed after a minute, also by streams that wait for hours.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_PROBES: u32 = 3;
/// Timers are not set for longer: no connection lives for so long.
const FAR: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where a service is.
#[derive(Clone)]
pub(super) struct Target {
    pub host: Arc<str>,
    pub port: u16,
    tls: Option<Tls>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin())
    }
}

/// A connection to a service.
pub(super) struct Io {
    stream: Box<dyn Duplex>,
    expiry: Option<Expiry>,
}

/// When a connection ends, and why.
struct Expiry {
    timer: Pin<Box<Sleep>>,
    why: String,
}

impl Target {
    pub fn new(host: Arc<str>, port: u16, tls: Option<Tls>) -> Self {
        Self { host, port, tls }
    }

    /// `https://host:port`
    pub fn origin(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    /// `host:port`
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// A new connection.
    pub async fn connect(&self) -> io::Result<Io> {
        match timeout(CONNECT, self.dial()).await {
            Ok(connected) => connected,
            Err(_) => {
                let message = format!("no connection to {} within {} s", self.authority(), CONNECT.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, message))
            }
        }
    }

    async fn dial(&self) -> io::Result<Io> {
        let own = self.tls.as_ref().and_then(|t| t.until);
        if let Some(until) = own.filter(|u| *u <= Timestamp::now()) {
            return Err(io::Error::other(own_expired(until)));
        }
        let stream = TcpStream::connect((&*self.host, self.port)).await;
        let stream = stream.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", self.authority())))?;
        stream.set_nodelay(true)?;
        let keep_alive = socket2::TcpKeepalive::new()
            .with_time(KEEP_ALIVE)
            .with_interval(KEEP_ALIVE / KEEP_ALIVE_PROBES)
            .with_retries(KEEP_ALIVE_PROBES);
        socket2::SockRef::from(&stream).set_tcp_keepalive(&keep_alive)?;
        let Some(tls) = &self.tls else { return Ok(Io { stream: Box::new(stream), expiry: None }) };
        let name = ServerName::try_from(self.host.to_string())
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {e}", self.host)))?;
        let stream = TlsConnector::from(tls.config.clone()).connect(name, stream).await?;
        let theirs = stream.get_ref().1.peer_certificates().and_then(|c| c.first()).and_then(|c| valid_until(c));
        let theirs = theirs.map(|t| (t, format!("the certificate of the service expired at {t}; renew it")));
        let first = theirs.into_iter().chain(own.map(|t| (t, own_expired(t)))).min_by_key(|(t, _)| *t);
        let expiry = first.and_then(|(until, why)| {
            let left = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
            (left < FAR).then(|| Expiry { timer: Box::pin(tokio::time::sleep(left)), why })
        });
        Ok(Io { stream: Box::new(stream), expiry })
    }
}

fn own_expired(until: Timestamp) -> String {
    format!("tls.crt of the credentials Secret expired at {until}; put a new one into it")
}

impl Io {
    fn poll_expiry(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(expiry) = &mut self.expiry
            && expiry.timer.as_mut().poll(cx).is_ready()
        {
            return Err(io::Error::other(expiry.why.clone()));
        }
        Ok(())
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_expiry(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_expiry(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Connects to one service, whatever the address of a request says.
#[derive(Clone, Debug)]
pub(super) struct Connector(pub Target);

impl tower::Service<Uri> for Connector {
    type Response = Pooled<Io>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = self.0.clone();
        Box::pin(async move { target.connect().await.map(Pooled::new) })
    }
}
