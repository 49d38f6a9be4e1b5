//! Starting and stopping a cluster.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::auth::rbac::Authorizer;
use crate::auth::tokens::Tokens;
use crate::kinds::Registry;
use crate::pki::{Authority, PkiError};
use crate::server::faults::Faults;
use crate::server::proxy::Kubelets;
use crate::server::{Api, listen};
use crate::status::ApiError;
use crate::store::{Store, wal};

/// How a cluster is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the API server listens; port 0 takes a free one. Default `127.0.0.1:0`.
    pub listen: SocketAddr,
    /// Where state and keys are kept; in memory only without it.
    pub data_dir: Option<PathBuf>,
    /// Whether the scheduler and the controllers run. Default true.
    pub controllers: bool,
    /// Serves `/debug/faults`, where administrators ask for faults; what is left to chance follows from this seed.
    /// Default none.
    pub faults: Option<u64>,
    /// What exec, attach and port-forward of WebSocket clients speak to nodes. Default: what each node declares.
    pub kubelet_streams: KubeletStreams,
}

/// What the API server speaks to a node for a client that speaks WebSocket. SPDY clients are always passed through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KubeletStreams {
    /// WebSocket to nodes that list `ExtendWebSocketsToKubelet` in `status.declaredFeatures`, SPDY/3.1 to others: as
    /// Kubernetes does from 1.36.
    #[default]
    Declared,
    /// SPDY/3.1 to all: as Kubernetes did up to 1.35.
    Spdy,
    /// WebSocket to all, passed through.
    WebSocket,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            data_dir: None,
            controllers: true,
            faults: None,
            kubelet_streams: KubeletStreams::default(),
        }
    }
}

/// Why a cluster could not be started or a credential not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("listening on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// The data directory cannot be read or written.
    #[error("using the data directory")]
    Data(#[from] std::io::Error),
    /// Keys or certificates could not be made or read.
    #[error("preparing keys and certificates")]
    Pki(#[from] PkiError),
    /// The key for service account tokens is unusable.
    #[error("preparing the key for service account tokens: {0}")]
    TokenKey(String),
    /// The objects that every cluster has could not be created.
    #[error("creating the first objects: {0}")]
    Bootstrap(#[from] ApiError),
    /// The client for the controllers could not be made.
    #[error("connecting the controllers: {0}")]
    Client(String),
}

/// A running cluster. Dropping it stops it without waiting; [`DevCluster::shutdown`] lets requests finish.
pub struct DevCluster {
    address: SocketAddr,
    authority: Arc<Authority>,
    api: Arc<Api>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl std::fmt::Debug for DevCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DevCluster").field("address", &self.address).finish_non_exhaustive()
    }
}

impl DevCluster {
    /// Starts a cluster; when this returns, it answers.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let data = options.data_dir.as_deref();
        let authority = Arc::new(Authority::open(data)?);
        let log = data.map(|directory: &Path| wal::Log::open(&directory.join("state"))).transpose()?;
        let store = Store::open(log);
        raise_open_files();
        let listener = TcpListener::bind(options.listen).await.map_err(|e| Error::Listen(options.listen, e))?;
        let address = listener.local_addr()?;
        let tls = listen::tls(&authority, address)?;
        let stop = CancellationToken::new();
        let api = Arc::new(assemble(&authority, store, &options, stop.child_token())?);
        api.bootstrap(address, &authority.certificate_pem)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(api.follow_crds());
        tasks.spawn(api.follow_aggregation());
        tasks.spawn(listen::serve(api.clone(), listener, tls, stop.clone()));
        let mut cluster = Self { address, authority, api, stop, tasks };
        if options.controllers {
            let client = cluster.client().await?;
            let (stop, authority) = (cluster.stop.clone(), cluster.authority.clone());
            cluster.tasks.spawn(crate::controllers::run_all(client, stop, authority));
        }
        Ok(cluster)
    }

    /// The controllers' client: one like any other, over HTTPS.
    async fn client(&self) -> Result<kube::Client, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Client(error.to_string());
        let text = self.kubeconfig("system:kube-controller-manager", &["system:masters"])?;
        let kubeconfig = serde_json::from_str(&text).map_err(|e| failed(&e))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await;
        let mut config = config.map_err(|e| failed(&e))?;
        // What the controllers write is theirs in `managedFields` by this name.
        let agent = http::HeaderValue::from_static("kube-controller-manager");
        config.headers.push((http::header::USER_AGENT, agent));
        kube::Client::try_from(config).map_err(|e| failed(&e))
    }

    /// The API server's address as a URL.
    pub fn url(&self) -> String {
        let host = match self.address {
            any if any.ip().is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, any.port())),
            address => address,
        };
        format!("https://{host}")
    }

    /// A kubeconfig (JSON, which is YAML too) with a new client certificate for a user in these groups.
    ///
    /// # Errors
    /// When the certificate cannot be signed.
    pub fn kubeconfig(&self, user: &str, groups: &[&str]) -> Result<String, Error> {
        let identity = self.authority.client(user, groups)?;
        let credentials = json!({
            "client-certificate-data": STANDARD.encode(identity.certificate_pem),
            "client-key-data": STANDARD.encode(identity.key_pem),
        });
        Ok(self.kubeconfig_with(user, credentials))
    }

    /// The kubeconfig of a cluster administrator.
    ///
    /// # Errors
    /// When the certificate cannot be signed.
    pub fn admin_kubeconfig(&self) -> Result<String, Error> {
        self.kubeconfig("kubernetes-admin", &["system:masters"])
    }

    fn kubeconfig_with(&self, user: &str, credentials: serde_json::Value) -> String {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "vnode-dev",
            "clusters": [{"name": "vnode-dev", "cluster": {"server": self.url(),
                "certificate-authority-data": STANDARD.encode(&self.authority.certificate_pem)}}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "vnode-dev", "context": {"cluster": "vnode-dev", "user": user}}],
        });
        format!("{config:#}\n")
    }

    /// Ends watches, lets other requests finish for a few seconds, and stops.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        self.api.store.cut_watches();
        while let Some(done) = self.tasks.join_next().await {
            if let Err(error) = done
                && error.is_panic()
            {
                tracing::error!(%error, "a task of the cluster panicked");
            }
        }
    }
}

/// The server without its listener.
pub(crate) fn assemble(
    authority: &Authority,
    store: Arc<Store>,
    options: &Options,
    stopping: CancellationToken,
) -> Result<Api, Error> {
    let registry = Registry::new();
    for kind in registry.kinds().iter().filter(|kind| !kind.is_virtual()) {
        // Aliases of a resource read the same places under other names.
        store.resource(&kind.storage).set_fields(&kind.fields);
    }
    Ok(Api {
        authorizer: Authorizer::new(store.clone()),
        store,
        registry,
        tokens: Tokens::new(&authority.token_key).map_err(|e| Error::TokenKey(e.to_string()))?,
        kubelets: Kubelets::new(authority, options.kubelet_streams)?,
        metrics: Default::default(),
        openapi: Default::default(),
        faults: options.faults.map(|seed| Arc::new(Faults::new(seed))),
        stopping,
    })
}

/// Every connection takes a file, and the usual limit of 1024 is there for programs that know no better.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
