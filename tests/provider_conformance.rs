//! Every provider of this crate passes the conformance suite.

#[cfg(feature = "docker")]
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "docker")]
use vnode::api::{DockerConfig, DockerVolumes};
use vnode::api::{MockConfig, ProcessConfig, ProviderSpec};
use vnode::provider::conformance::{self, Options};
#[cfg(feature = "docker")]
use vnode::provider::docker::DockerFactory;
use vnode::provider::process::{self, ProcessFactory};
#[cfg(feature = "docker")]
use vnode::provider::registry::Factory as _;
use vnode::provider::registry::Registry;
#[cfg(feature = "docker")]
use vnode::provider::{Credentials, PodNotifier, PodObservation, ProviderContext, ProviderError};

#[path = "../e2e/support/checked.rs"]
mod checked;
#[cfg(feature = "docker")]
#[path = "../e2e/support/podman.rs"]
mod podman;

fn options() -> Options {
    Options { patience: Duration::from_secs(30), ..Options::default() }
}

/// A registry of its own for each provider, as after a restart.
async fn mock(config: MockConfig) {
    let report = conformance::run(
        |context| {
            let spec = ProviderSpec::mock(config.clone());
            async move { Registry::default().build(&spec, context) }
        },
        Options { simulated: true, ..options() },
    )
    .await;
    checked::record("mock", &report);
}

#[tokio::test]
async fn an_instant_simulated_node_conforms() {
    mock(MockConfig::default()).await;
}

#[tokio::test]
async fn a_slow_simulated_node_conforms() {
    mock(MockConfig {
        start_latency_ms: Some(120),
        stop_latency_ms: Some(80),
        jitter_percent: Some(30),
        ..MockConfig::default()
    })
    .await;
}

#[tokio::test]
async fn processes_of_this_machine_conform() {
    let state = tempfile::tempdir().unwrap();
    let registry = Registry::empty();
    let program = env!("CARGO_BIN_EXE_vnode").into();
    registry.register("process", ProcessFactory::allowed(state.path().to_owned(), Some(program)));
    let spec = ProviderSpec::process(ProcessConfig { allow_root: true, ..ProcessConfig::default() });
    let make = |context| std::future::ready(registry.build(&spec, context));
    let report = conformance::run(make, options()).await;
    checked::record("process", &report);
    process::remove_all(state.path()).await;
}

/// An engine of this machine, or one behind TLS that is treated as another machine's.
#[cfg(feature = "docker")]
async fn engine(host: String, volumes: DockerVolumes, credentials: Option<Arc<Credentials>>, only: &[&str]) {
    let state = tempfile::tempdir().unwrap();
    let registry = Registry::empty();
    let local = host.starts_with("unix:");
    registry.register("docker", DockerFactory::new(state.path().to_owned(), local));
    let spec = ProviderSpec::docker(DockerConfig {
        host: Some(host),
        sandbox_image: Some(podman::IMAGE.into()),
        sandbox_command: vec!["sleep".into(), "1000000".into()],
        volumes: Some(volumes),
        ..DockerConfig::default()
    });
    let make = |context| {
        let context = ProviderContext { credentials: credentials.clone(), ..context };
        std::future::ready(registry.build(&spec, context))
    };
    let options = Options {
        image: podman::IMAGE.into(),
        patience: Duration::from_secs(40),
        only: only.iter().map(|word| (*word).to_owned()).collect(),
        ..Options::default()
    };
    let report = conformance::run(make, options).await;
    if only.is_empty() {
        checked::record("docker", &report);
    }
}

#[cfg(feature = "docker")]
#[tokio::test]
async fn containers_of_an_engine_of_this_machine_conform() {
    let Some(podman) = podman::Podman::start() else { return };
    engine(podman.host(), DockerVolumes::Mount, None, &[]).await;
}

#[cfg(feature = "docker")]
#[tokio::test]
async fn containers_of_an_engine_behind_tls_conform_and_only_its_friends_reach_it() {
    let Some(podman) = podman::Podman::start() else { return };
    let behind = podman.host().trim_start_matches("unix://").to_owned();
    let (host, secret, stranger) = tls::front(behind.into()).await;
    // What is done in another way than on the same machine, and what goes over the connection.
    let only =
        ["begins", "that_runs", "files", "empty_dir", "stopping", "logs", "exec", "lost", "restart", "in_the_end"];
    engine(host.clone(), DockerVolumes::Copy, Some(secret), &only).await;

    let state = tempfile::tempdir().unwrap();
    let spec = ProviderSpec::docker(DockerConfig { host: Some(host), ..DockerConfig::default() });
    let context = ProviderContext {
        node: "n".into(),
        node_uid: "u".into(),
        notifier: Arc::new(Deaf),
        credentials: Some(stranger),
        epoch: 0,
    };
    let provider = DockerFactory::new(state.path().to_owned(), false).build(&spec, context).unwrap();
    let refused = provider.ping().await;
    assert!(matches!(refused, Err(ProviderError::Unavailable { .. })), "{refused:?}");
}

#[cfg(feature = "docker")]
struct Deaf;

#[cfg(feature = "docker")]
impl PodNotifier for Deaf {
    fn changed(&self, _: PodObservation) {}
}

/// TLS before a unix socket, with an authority of its own that clients must have a certificate of.
#[cfg(feature = "docker")]
mod tls {
    use std::path::PathBuf;
    use std::sync::Arc;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::crypto::ring;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::server::WebPkiClientVerifier;
    use rustls::{RootCertStore, ServerConfig};
    use vnode::provider::Credentials;

    struct Authority {
        pem: String,
        der: rustls::pki_types::CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn authority() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        Authority { pem: cert.pem(), der: cert.der().clone(), issuer: Issuer::new(params, key) }
    }

    /// The host, the Secret of who may connect, and that of who may not.
    pub async fn front(socket: PathBuf) -> (String, Arc<Credentials>, Arc<Credentials>) {
        let (ours, other) = (authority(), authority());
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &ours.issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ours.der.clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("tcp://localhost:{}", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, socket) = (acceptor.clone(), socket.clone());
                tokio::spawn(async move {
                    let Ok(mut near) = acceptor.accept(stream).await else { return };
                    let Ok(mut far) = tokio::net::UnixStream::connect(socket).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        (host, secret(&ours.pem, &ours), secret(&ours.pem, &other))
    }

    fn secret(ca: &str, issuer: &Authority) -> Arc<Credentials> {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec!["client".into()]).unwrap().signed_by(&key, &issuer.issuer).unwrap();
        let data = [("ca.crt", ca.to_owned()), ("tls.crt", cert.pem()), ("tls.key", key.serialize_pem())];
        Arc::new(Credentials(data.map(|(k, v)| (k.to_owned(), v.into())).into()))
    }
}
