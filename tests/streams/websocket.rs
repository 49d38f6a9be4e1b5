//! Raw WebSocket clients.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::clients::{drain, message, open};
use crate::world::{MOMENT, World};

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
