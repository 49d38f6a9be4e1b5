//! Clients of the streaming protocols.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use vnode_spdy::{Headers, Options, Session, Stream};

use crate::world::{MOMENT, World};

/// A session with the node, and the task that carries it.
pub struct Client {
    pub session: Session,
    pub connection: JoinHandle<Result<(), vnode_spdy::Error>>,
}

pub fn upgrade(protocol: &str) -> String {
    format!(
        "connection: Upgrade\r\nupgrade: SPDY/3.1\r\nx-stream-protocol-version: {protocol}\r\ncontent-length: 0\r\n"
    )
}

impl Client {
    pub async fn open(world: &World, path: &str, protocol: &str) -> Self {
        let (status, head, stream) = world.ask("POST", path, &upgrade(protocol)).await;
        assert_eq!(status, 101, "{head}");
        assert!(head.to_lowercase().contains(&format!("x-stream-protocol-version: {protocol}\r\n")), "{head}");
        let (session, connection) = vnode_spdy::client(stream, Options { max_streams: 2048, ..Options::default() });
        Self { session, connection: tokio::spawn(connection) }
    }

    pub async fn stream(&self, kind: &str) -> Stream {
        let stream = self.session.open(Headers::from([("streamType", kind)])).unwrap();
        timeout(MOMENT, stream.replied()).await.expect("an answer").expect("to be accepted");
        stream
    }
}

pub const KEY: &str = "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

pub type Socket = WebSocketStream<TlsStream<TcpStream>>;

pub async fn open(world: &World, path: &str, protocol: &str) -> Socket {
    let mut headers = format!("connection: Upgrade\r\nupgrade: websocket\r\n{KEY}");
    if !protocol.is_empty() {
        headers += &format!("sec-websocket-protocol: {protocol}\r\n");
    }
    let (status, head, stream) = world.ask("GET", path, &headers).await;
    assert_eq!(status, 101, "{head}");
    if !protocol.is_empty() {
        assert!(
            head.to_lowercase().contains(&format!("sec-websocket-protocol: {}\r\n", protocol.to_lowercase())),
            "{head}"
        );
    }
    WebSocketStream::from_raw_socket(stream, Role::Client, None).await
}

/// What came on each channel until the server said goodbye.
pub async fn drain(socket: &mut Socket, base64: bool) -> BTreeMap<u8, Vec<u8>> {
    let mut all: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    timeout(MOMENT, async {
        while let Some(message) = socket.next().await {
            match message {
                Ok(Message::Binary(bytes)) => {
                    assert!(!base64);
                    all.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]);
                }
                Ok(Message::Text(text)) => {
                    assert!(base64);
                    let bytes = text.as_bytes();
                    all.entry(bytes[0] - b'0').or_default().extend(STANDARD.decode(&bytes[1..]).unwrap());
                }
                Ok(Message::Close(frame)) => {
                    assert_eq!(u16::from(frame.expect("a reason").code), 1000);
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
    })
    .await
    .expect("an end");
    all
}

pub fn message(channel: u8, content: &[u8], base64: bool) -> Message {
    if base64 {
        return Message::text(format!("{}{}", channel, STANDARD.encode(content)));
    }
    let mut bytes = vec![channel];
    bytes.extend_from_slice(content);
    Message::Binary(Bytes::from(bytes))
}
