//! Who may connect, and what happens when that changes.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use vnode::provider::grpc::GrpcFactory;
use vnode::provider::{Credentials, Provider, ProviderError};
use vnode_example_grpc::{Service, routes};

use crate::world::{Node, Way, pod, until};

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key, good for so long if it is said.
    fn sign(&self, name: &str, until: Option<std::time::SystemTime>) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned(), "127.0.0.1".to_owned()]).unwrap();
        if let Some(until) = until {
            params.not_after = until.into();
        }
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

fn secret(keys: &[(&str, &str)]) -> Option<Arc<Credentials>> {
    Some(Arc::new(Credentials(keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned().into())).collect())))
}

async fn serve(service: Service, token: Option<&str>, tls: Option<ServerTlsConfig>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls).unwrap();
    }
    let router = server.add_routes(routes(service, token.map(str::to_owned)).await.unwrap());
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

fn node(address: std::net::SocketAddr, credentials: Option<Arc<Credentials>>) -> Node {
    Node { endpoint: format!("https://{address}"), credentials, ..Node::new("n", address) }
}

fn sentence<T: std::fmt::Debug>(result: Result<T, ProviderError>) -> String {
    match result {
        Err(error @ ProviderError::Unavailable { .. }) => error.to_string(),
        other => panic!("nothing can be concluded from this: {other:?}"),
    }
}

#[tokio::test]
async fn only_friends_are_let_in_and_strangers_are_told_what_is_missing() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (cert, key) = ours.sign("localhost", None);
    let tls =
        ServerTlsConfig::new().identity(Identity::from_pem(cert, key)).client_ca_root(Certificate::from_pem(&ours.pem));
    let address = serve(Service::new(), Some("open sesame".replace(' ', "-").as_str()), Some(tls)).await;
    let (good, stranger) = (ours.sign("vnode", None), theirs.sign("vnode", None));
    let (ca, other) = (("ca.crt", ours.pem.as_str()), ("ca.crt", theirs.pem.as_str()));
    let (cert, key) = (("tls.crt", good.0.as_str()), ("tls.key", good.1.as_str()));
    let token = ("token", "open-sesame\n");
    for (keys, want) in [
        (vec![ca, cert, key, token], None),
        (vec![ca, cert, key], Some("credentialsSecretRef")),
        (vec![ca, cert, key, ("token", "guess")], Some("does not accept our credentials (wrong token)")),
        (vec![other, cert, key, token], Some("authority that is not in ca.crt")),
    ] {
        let provider = node(address, secret(&keys)).build(&GrpcFactory::default());
        let answer = provider.ping().await;
        match want {
            None => answer.unwrap(),
            Some(want) => {
                let text = sentence(answer);
                assert!(text.contains(want) && !text.contains("sesame") && !text.contains("guess"), "{text}");
            }
        }
    }
    // Refused by the server, which TLS 1.3 tells in its own time.
    for keys in [vec![ca, token], vec![ca, ("tls.crt", &stranger.0), ("tls.key", &stranger.1), token]] {
        let text = sentence(node(address, secret(&keys)).build(&GrpcFactory::default()).ping().await);
        assert!(!text.contains("sesame"), "{text}");
    }
}

#[tokio::test]
async fn a_certificate_that_expires_while_connected_is_named_when_it_is_needed_again() {
    let ours = Authority::new();
    let soon = std::time::SystemTime::now() + Duration::from_secs(3);
    let (cert, key) = ours.sign("localhost", Some(soon));
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(cert, key));
    let way = Way::to(serve(Service::new(), None, Some(tls)).await).await;
    let provider = node(way.address, secret(&[("ca.crt", &ours.pem)])).build(&GrpcFactory::default());
    provider.ping().await.unwrap();
    let a = pod("a", "sleep 3600", "Always");
    provider.create_pod(&a).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    provider.ping().await.expect("who is connected stays so");
    way.cut();
    way.mend();
    let said = async || provider.ping().await.err().map(|e| e.to_string()).unwrap_or_default();
    until("it is told", async || said().await.contains("the service's certificate has expired")).await;
    let unknown = provider.get_pod(&a.pod_ref()).await;
    assert!(matches!(unknown, Err(ProviderError::Unavailable { .. })), "no pod is lost by it: {unknown:?}");
}

#[tokio::test]
async fn our_own_certificate_that_expires_while_connected_is_named_when_it_is_needed_again() {
    let ours = Authority::new();
    let (cert, key) = ours.sign("localhost", None);
    let tls =
        ServerTlsConfig::new().identity(Identity::from_pem(cert, key)).client_ca_root(Certificate::from_pem(&ours.pem));
    let way = Way::to(serve(Service::new(), None, Some(tls)).await).await;
    let (cert, key) = ours.sign("vnode", Some(std::time::SystemTime::now() + Duration::from_secs(3)));
    let keys = secret(&[("ca.crt", &ours.pem), ("tls.crt", &cert), ("tls.key", &key)]);
    let factory = GrpcFactory::default();
    let provider = node(way.address, keys).build(&factory);
    let a = pod("a", "sleep 3600", "Always");
    provider.create_pod(&a).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    way.cut();
    way.mend();
    let said = async || provider.ping().await.err().map(|e| e.to_string()).unwrap_or_default();
    until("it is told", async || said().await.contains("tls.crt of the Secret expired at")).await;

    // A new one is put into the Secret: the provider is made anew, the pods are as they were.
    let (cert, key) = ours.sign("vnode", None);
    let keys = secret(&[("ca.crt", &ours.pem), ("tls.crt", &cert), ("tls.key", &key)]);
    let renewed = node(way.address, keys).build(&factory);
    drop(provider);
    renewed.ping().await.unwrap();
    let pods = renewed.list_pods().await.unwrap();
    assert_eq!(pods.iter().map(|o| &*o.pod.uid).collect::<Vec<_>>(), ["uid-a"]);
    renewed.remove_pod(&a.pod_ref()).await.unwrap();
}

#[tokio::test]
async fn a_secret_that_changes_while_running_takes_effect_and_touches_no_pod() {
    let ours = Authority::new();
    let service = Service::new();
    let dress = || {
        let (cert, key) = ours.sign("localhost", None);
        ServerTlsConfig::new().identity(Identity::from_pem(cert, key))
    };
    let old = serve(service.clone(), Some("old"), Some(dress())).await;
    let factory = GrpcFactory::default();
    let keys = |token: &str| secret(&[("ca.crt", &ours.pem), ("token", token)]);
    let build = |token: &str, address| -> (Node, Arc<dyn Provider>) {
        let node = node(address, keys(token));
        let provider = node.build(&factory);
        (node, provider)
    };
    let (_, before) = build("old", old);
    let a = pod("a", "sleep 3600", "Always");
    before.create_pod(&a).await.unwrap();
    let start = before.get_pod(&a.pod_ref()).await.unwrap().start_time;
    // The service takes another token from now on.
    let new = serve(service, Some("new"), Some(dress())).await;
    let (_, wrong) = build("old", new);
    let text = sentence(wrong.get_pod(&a.pod_ref()).await);
    assert!(text.contains("put others into the Secret"), "{text}");
    let (ear, after) = build("new", new);
    drop((before, wrong));
    assert_eq!(after.get_pod(&a.pod_ref()).await.unwrap().start_time, start);
    until("its changes come", async || ear.ear.last(&a.pod_ref()).is_some()).await;
    after.remove_pod(&a.pod_ref()).await.unwrap();
}
