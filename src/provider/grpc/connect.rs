//! Reaching a service: a unix socket, TCP, or TLS over TCP, and not more often than makes sense.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use jiff::Timestamp;
use rand::Rng as _;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::provider::Duplex;
use crate::provider::remote::pooled::Pooled;
use crate::provider::remote::tls::Tls;

const CONNECT: Duration = Duration::from_secs(10);
/// The longest between two attempts.
const MAX_WAIT: Duration = Duration::from_secs(15);
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// Where a service listens.
#[derive(Clone)]
pub(super) enum Target {
    Unix(PathBuf),
    Tcp { host: String, port: u16, tls: Option<Tls> },
}

/// Attempts that were not followed by an answer.
#[derive(Default)]
struct Failures {
    count: u32,
    /// Not before then is another attempt made.
    until: Option<Instant>,
    error: Option<String>,
}

/// Connects to one service, whatever the address of a request says.
///
/// An attempt counts as failed until the service has answered a request: with TLS 1.3 a certificate is refused
/// only after the client took the connection for made.
#[derive(Clone)]
pub(super) struct Connector(Arc<Inner>);

struct Inner {
    target: Target,
    failures: Mutex<Failures>,
    /// The service answers again.
    revived: Notify,
}

/// How long to wait after so many failures in a row; `share` in 0..1 spreads it.
pub(super) fn wait(failures: u32, share: f64) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(10));
    doubled.min(MAX_WAIT).mul_f64(0.5 + share / 2.0)
}

impl Target {
    async fn connect(&self) -> io::Result<Box<dyn Duplex>> {
        match self {
            Self::Unix(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            },
            Self::Tcp { host, port, tls } => {
                if let Some(until) = tls.as_ref().and_then(|t| t.until).filter(|u| *u <= Timestamp::now()) {
                    let message = format!("tls.crt of the Secret expired at {until}; put a new one into it");
                    return Err(io::Error::other(message));
                }
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let Some(tls) = tls else { return Ok(Box::new(stream)) };
                let name = ServerName::try_from(host.clone())
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("{host}: {e}")))?;
                let connected = TlsConnector::from(tls.config.clone()).connect(name, stream).await;
                Ok(Box::new(connected.map_err(explained)?))
            }
        }
    }
}

/// What to do about an error of TLS, if it is one.
pub(super) fn hint(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    use rustls::{AlertDescription as Alert, CertificateError as Certificate, Error as Tls};
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).and_then(|e| e.downcast_ref::<Tls>());
    Some(match inner.or_else(|| error.downcast_ref::<Tls>())? {
        Tls::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            "the service's certificate has expired; give the service a new one"
        }
        // The latter when the authority is another one of the same name.
        Tls::InvalidCertificate(Certificate::UnknownIssuer | Certificate::BadSignature) => {
            "the service's certificate is from an authority that is not in ca.crt of the Secret"
        }
        Tls::InvalidCertificate(Certificate::NotValidForName | Certificate::NotValidForNameContext { .. }) => {
            "the service's certificate is for another host than the endpoint names"
        }
        Tls::AlertReceived(Alert::CertificateRequired) => {
            "the service wants a client certificate: tls.crt and tls.key in the Secret"
        }
        Tls::AlertReceived(_) => "the service refused the connection; look at tls.crt of the Secret and at its log",
        Tls::NoApplicationProtocol => "the service does not speak HTTP/2",
        _ => return None,
    })
}

fn explained(error: io::Error) -> io::Error {
    match hint(&error) {
        Some(hint) => io::Error::new(error.kind(), format!("{hint} ({error})")),
        None => error,
    }
}

impl Connector {
    pub fn new(target: Target) -> Self {
        Self(Arc::new(Inner { target, failures: Mutex::default(), revived: Notify::new() }))
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        // Only plain values, each replaced as a whole.
        self.0.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The service has answered.
    pub fn worked(&self) {
        let mut failures = self.failures();
        if failures.count != 0 {
            *failures = Failures::default();
            self.0.revived.notify_one();
        }
    }

    /// Waits until the service answers again after it did not. For one at a time.
    pub async fn revived(&self) {
        self.0.revived.notified().await;
    }

    /// A request got no answer, for this reason.
    pub fn failed(&self, error: &str) {
        let mut failures = self.failures();
        // While the service answers others this says nothing of it.
        if failures.count != 0 {
            failures.error = Some(error.to_owned());
        }
    }

    /// Whether an attempt may be made now; it is taken for failed until the service answers.
    fn begin(&self) -> io::Result<()> {
        let mut failures = self.failures();
        let now = Instant::now();
        if let (Some(until), Some(error)) = (failures.until.filter(|u| now < *u), &failures.error) {
            let left = until.duration_since(now).as_secs_f64();
            return Err(io::Error::other(format!("{error}; tried again in {left:.1} s")));
        }
        failures.count = failures.count.saturating_add(1);
        failures.until = Some(now + wait(failures.count, rand::rng().random_range(0.0..1.0)));
        Ok(())
    }

    async fn connect(self) -> io::Result<Pooled<Box<dyn Duplex>>> {
        self.begin()?;
        let connected = match timeout(CONNECT, self.0.target.connect()).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to a connection")),
        };
        connected.map(Pooled::new).inspect_err(|error| {
            let mut failures = self.failures();
            failures.error = Some(error.to_string());
            // An attempt may itself take longer than the wait.
            let pause = wait(failures.count, rand::rng().random_range(0.0..1.0));
            failures.until = Some(Instant::now() + pause);
        })
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
        Box::pin(self.clone().connect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_are_spread() {
        let waits: Vec<_> = (1..=9).map(|n| wait(n, 1.0).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
        assert_eq!(wait(1, 0.0).as_millis(), 125);
        assert_eq!(wait(u32::MAX, 1.0), MAX_WAIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_is_away_is_not_tried_at_every_call() {
        let connector = Connector::new(Target::Unix("/nonexistent/socket".into()));
        let attempt = || async { connector.clone().connect().await.err().map(|e| e.to_string()).unwrap_or_default() };
        let first = attempt().await;
        assert!(first.starts_with("/nonexistent/socket: ") && !first.contains("tried again"), "{first}");
        let second = attempt().await;
        assert!(second.starts_with(&first) && second.contains("tried again in 0."), "{second}");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(attempt().await, first, "a new attempt after the wait");
        assert_eq!(connector.failures().count, 2);
        connector.worked();
        assert_eq!(connector.failures().count, 0);
    }
}
