//! A service that answers as a test says, right or wrong.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use vnode::provider::Credentials;

/// What was asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// What is answered.
pub enum Reply {
    /// Status, media type, body.
    Whole(u16, &'static str, String),
    /// A body that says that it is so long, of which only the beginning comes.
    Half(usize, String),
    /// A body without an end.
    Endless,
    /// Nothing, for ever.
    Never,
    /// A body that goes on with what is sent.
    Stream(&'static str, mpsc::UnboundedReceiver<String>),
}

pub fn json(body: impl ToString) -> Reply {
    Reply::Whole(200, "application/json", body.to_string())
}

pub fn status(status: u16) -> Reply {
    Reply::Whole(status, "text/plain", String::new())
}

type Handler = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

/// The service.
pub struct Fake {
    pub url: String,
    /// What was asked, in order.
    pub asked: Arc<Mutex<Vec<Request>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub async fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(Arc::new(handler), None).await
    }

    /// The same over TLS, with the configuration as it is at each connection.
    pub async fn start_tls(
        config: Arc<Mutex<Arc<ServerConfig>>>,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(Arc::new(handler), Some(config)).await
    }

    async fn serve(handler: Handler, tls: Option<Arc<Mutex<Arc<ServerConfig>>>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = if tls.is_some() { format!("https://localhost:{port}") } else { format!("http://127.0.0.1:{port}") };
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = asked.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, asked, tls) = (handler.clone(), kept.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => drop(connection(stream, handler, asked).await),
                        Some(config) => {
                            let config = config.lock().unwrap().clone();
                            if let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await {
                                drop(connection(stream, handler, asked).await);
                            }
                        }
                    }
                });
            }
        });
        Self { url, asked, task }
    }

    /// How often something was asked.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|r| r.method == method && r.path == path).count()
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    handler: Handler,
    asked: Arc<Mutex<Vec<Request>>>,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let size: usize = headers.get("content-length").and_then(|s| s.parse().ok()).unwrap_or_default();
        let mut body = vec![0; size];
        stream.read_exact(&mut body).await?;
        let path = path.split('?').next().unwrap_or_default().to_owned();
        let request = Request { method, path, headers, body: String::from_utf8_lossy(&body).into_owned() };
        let reply = handler(&request);
        asked.lock().unwrap().push(request);
        match reply {
            Reply::Whole(status, kind, body) => {
                let head =
                    format!("HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).await?;
                stream.flush().await?;
            }
            Reply::Half(size, body) => {
                let head =
                    format!("HTTP/1.1 200 x\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\r\n");
                stream.write_all(format!("{head}{body}").as_bytes()).await?;
                return stream.flush().await;
            }
            Reply::Endless => {
                let head = "HTTP/1.1 200 x\r\ncontent-type: application/json\r\ncontent-length: 10737418240\r\n\r\n[";
                stream.write_all(head.as_bytes()).await?;
                let spaces = vec![b' '; 1 << 20];
                while stream.write_all(&spaces).await.is_ok() {}
                return Ok(());
            }
            Reply::Never => tokio::time::sleep(Duration::from_secs(3600)).await,
            Reply::Stream(kind, mut parts) => {
                let head = format!("HTTP/1.1 200 x\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                stream.flush().await?;
                while let Some(part) = parts.recv().await {
                    stream.write_all(part.as_bytes()).await?;
                    stream.flush().await?;
                }
                return Ok(());
            }
        }
    }
}

/// Authorities are told apart by their names.
static NUMBER: AtomicU32 = AtomicU32::new(1);

/// An authority.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, format!("authority {}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A service's certificate that is valid for so long.
    pub fn server(&self, valid: Duration) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + valid;
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap());
        Arc::new(config.unwrap())
    }

    /// A certificate of this authority and its key, for a service or for a client.
    pub fn certificate(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec![name.into()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    /// A Secret that trusts this authority.
    pub fn secret(&self) -> Credentials {
        Credentials([("ca.crt".to_owned(), self.pem.clone().into())].into())
    }
}
