//! `vnode-example-grpc [--listen 127.0.0.1:9000 | --listen /run/example.sock] [--token TOKEN]
//! [--cert FILE --key FILE [--client-ca FILE]]`

use std::error::Error;
use std::fs;

use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use vnode_example_grpc::{Service, routes};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (mut listen, mut token, mut cert, mut key, mut ca) = ("127.0.0.1:9000".to_owned(), None, None, None, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("a value must follow {word}"))?;
        match word.as_str() {
            "--listen" => listen = value,
            "--token" => token = Some(value),
            "--cert" => cert = Some(fs::read(value)?),
            "--key" => key = Some(fs::read(value)?),
            "--client-ca" => ca = Some(fs::read(value)?),
            _ => return Err(format!("{word} is none of --listen, --token, --cert, --key, --client-ca").into()),
        }
    }
    let mut server = Server::builder();
    if let (Some(cert), Some(key)) = (cert, key) {
        let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(cert, key));
        if let Some(ca) = ca {
            tls = tls.client_ca_root(Certificate::from_pem(ca));
        }
        server = server.tls_config(tls)?;
    }
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    let router = server.add_routes(routes(Service::new(), token).await?);
    println!("listening on {listen}");
    if listen.starts_with('/') {
        // One that is left of an earlier run.
        let _ = fs::remove_file(&listen);
        let incoming = UnixListenerStream::new(UnixListener::bind(&listen)?);
        router.serve_with_incoming_shutdown(incoming, stop).await?;
    } else {
        // Without nodelay each answer waits 40 ms for the client's acknowledgement.
        let incoming = TcpIncoming::from(TcpListener::bind(&listen).await?).with_nodelay(Some(true));
        router.serve_with_incoming_shutdown(incoming, stop).await?;
    }
    Ok(())
}
