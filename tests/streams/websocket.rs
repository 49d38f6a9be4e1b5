//! Raw WebSocket clients.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use std::collections::BTreeMap;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::world::{MOMENT, World};

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

fn status(all: &BTreeMap<u8, Vec<u8>>) -> Value {
    serde_json::from_slice(&all[&3]).expect("a status")
}

#[tokio::test]
async fn every_version_runs_a_command_and_tells_how_it_ended() {
    let world = World::new().await;
    for (protocol, base64, json) in [
        ("v5.channel.k8s.io", false, true),
        ("v4.channel.k8s.io", false, true),
        ("v3.channel.k8s.io", false, false),
        ("v2.channel.k8s.io", false, false),
        ("channel.k8s.io", false, false),
        ("v5.base64.channel.k8s.io", true, true),
        ("v4.base64.channel.k8s.io", true, true),
        ("base64.channel.k8s.io", true, false),
        ("", false, false),
    ] {
        let path = "/exec/ns/p/c?command=echo&command=hello&output=1&error=1";
        let all = drain(&mut open(&world, path, protocol).await, base64).await;
        assert_eq!(all[&1], b"hello", "{protocol}");
        if json {
            assert_eq!(status(&all)["status"], "Success", "{protocol}");
        } else {
            assert!(all.get(&3).is_none_or(Vec::is_empty), "{protocol}");
        }
        let all =
            drain(&mut open(&world, "/exec/ns/p/u/c?command=exit&command=3&error=1", protocol).await, base64).await;
        if json {
            assert_eq!(status(&all)["details"]["causes"][0]["message"], "3", "{protocol}");
        } else {
            assert!(String::from_utf8_lossy(&all[&3]).contains("exit code 3"), "{protocol}");
        }
    }
}

#[tokio::test]
async fn version_five_ends_standard_input_without_ending_the_session() {
    let world = World::new().await;
    for (protocol, base64) in [("v5.channel.k8s.io", false), ("v5.base64.channel.k8s.io", true)] {
        let mut socket = open(&world, "/exec/ns/p/c?command=cat&input=1&output=1", protocol).await;
        for part in [&b"one "[..], b"", b"two"] {
            socket.send(message(0, part, base64)).await.unwrap();
        }
        let close = if base64 { Message::text("/AA==") } else { Message::Binary(Bytes::from_static(&[255, 0])) };
        socket.send(close).await.unwrap();
        let all = drain(&mut socket, base64).await;
        assert_eq!(all[&1], b"one two");
        assert_eq!(status(&all)["status"], "Success");
    }
}

#[tokio::test]
async fn a_terminal_is_resized_and_a_failure_of_the_provider_is_told() {
    let world = World::new().await;
    let mut socket = open(&world, "/exec/ns/p/c?command=sizes&command=2&output=1&tty=1", "v5.channel.k8s.io").await;
    socket.send(message(4, br#"{"Width":80,"Height":24}"#, false)).await.unwrap();
    let mut first = Vec::new();
    while first != b"80x24 " {
        if let Message::Binary(bytes) = timeout(MOMENT, socket.next()).await.unwrap().unwrap().unwrap() {
            assert_eq!(bytes[0], 1);
            first.extend_from_slice(&bytes[1..]);
        }
    }
    socket.send(message(4, br#"{"Width":132,"Height":43}"#, false)).await.unwrap();
    assert_eq!(drain(&mut socket, false).await[&1], b"132x43 ");

    let all = drain(&mut open(&world, "/exec/ns/p/c?command=fail&output=1", "v4.channel.k8s.io").await, false).await;
    assert_eq!(status(&all)["reason"], "NotFound");
    let all = drain(&mut open(&world, "/attach/ns/p/c?output=1", "v4.channel.k8s.io").await, false).await;
    assert_eq!(all[&1], b"attached\n");
}

#[tokio::test]
async fn a_command_ends_when_its_client_goes() {
    let world = World::new().await;
    for politely in [true, false] {
        let mut socket = open(&world, "/exec/ns/p/c?command=sleep&output=1", "v5.channel.k8s.io").await;
        world.until("the command to run", |c| c.running.load(std::sync::atomic::Ordering::SeqCst) == 1).await;
        if politely {
            socket.close(None).await.unwrap();
            while timeout(MOMENT, socket.next()).await.expect("an answer").is_some() {}
        }
        drop(socket);
        world.until("the command to end", |c| c.running.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test]
async fn pings_are_answered_while_a_command_is_silent() {
    let world = World::new().await;
    let mut socket = open(&world, "/exec/ns/p/c?command=sleep&output=1", "v5.channel.k8s.io").await;
    socket.send(Message::Ping(Bytes::from_static(b"alive?"))).await.unwrap();
    loop {
        match timeout(MOMENT, socket.next()).await.unwrap().unwrap().unwrap() {
            Message::Pong(bytes) => break assert_eq!(&bytes[..], b"alive?"),
            other => assert_eq!(other.into_data().len(), 1),
        }
    }
}
