//! Both examples pass the suite that every provider passes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;
use vnode::api::{GrpcConfig, ProviderSpec};
use vnode::provider::conformance::{self, Options, Report};
use vnode::provider::grpc::GrpcFactory;
use vnode::provider::registry::Registry;
use vnode_example_grpc::{Service, routes};

use crate::checked;

async fn suite(endpoint: String) -> Report {
    let registry = Registry::empty();
    registry.register("grpc", GrpcFactory::new(true));
    let spec = ProviderSpec::grpc(GrpcConfig { endpoint, ..GrpcConfig::default() });
    let make = |context| std::future::ready(registry.build(&spec, context));
    conformance::run(make, Options { patience: Duration::from_secs(15), ..Options::default() }).await
}

#[tokio::test]
async fn the_example_in_rust_conforms_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Server::builder().add_routes(routes(Service::new(), None).await.unwrap());
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    checked::record("grpc", &suite(format!("http://{address}")).await);
}

#[tokio::test]
async fn the_example_in_rust_conforms_over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("service.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let router = Server::builder().add_routes(routes(Service::new(), None).await.unwrap());
    tokio::spawn(router.serve_with_incoming(UnixListenerStream::new(listener)));
    suite(format!("unix://{}", path.display())).await;
}

/// A Python that has what the example needs.
fn python() -> Option<String> {
    let wanted = std::env::var("VNODE_PYTHON").unwrap_or_else(|_| "python3".into());
    let imports = "import grpc, grpc_tools, grpc_health, grpc_reflection";
    let tried = Command::new(&wanted).args(["-c", imports]).stderr(Stdio::null()).status();
    if tried.is_ok_and(|status| status.success()) {
        return Some(wanted);
    }
    eprintln!(
        "!!! NOT TESTED: {wanted} has no grpcio; pip install -r examples/grpc-python/requirements.txt, or name another \
         one in VNODE_PYTHON"
    );
    None
}

#[tokio::test]
async fn the_example_in_python_conforms() {
    let Some(python) = python() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/grpc-python");
    let mut child = tokio::process::Command::new(python)
        .arg("server.py")
        .args(["--listen", "127.0.0.1:0"])
        .current_dir(folder)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await.unwrap().unwrap();
    let address = line.as_deref().and_then(|l| l.strip_prefix("listening on ")).expect("it says where it listens");
    suite(format!("http://{address}")).await;
}
