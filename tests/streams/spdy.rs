//! Clients that speak SPDY.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use vnode_spdy::Headers;

use crate::clients::Client;
use crate::world::{MOMENT, World};

/// All that comes on the streams of a command, and its end.
async fn run(world: &World, path: &str, protocol: &str, kinds: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let client = Client::open(world, path, protocol).await;
    let mut all = BTreeMap::new();
    let mut readers = Vec::new();
    for kind in kinds {
        let mut stream = client.stream(kind).await;
        let kind = (*kind).to_owned();
        readers.push(tokio::spawn(async move {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.map(|_| (kind, bytes))
        }));
    }
    for reader in readers {
        let (kind, bytes) = timeout(MOMENT, reader).await.expect("an end").unwrap().unwrap();
        all.insert(kind, bytes);
    }
    client.session.close();
    timeout(MOMENT, client.connection).await.expect("an end").unwrap().unwrap();
    all
}

fn status(all: &BTreeMap<String, Vec<u8>>) -> Value {
    serde_json::from_slice(&all["error"]).expect("a status")
}

#[tokio::test]
async fn every_version_runs_a_command_and_tells_how_it_ended() {
    let world = World::new().await;
    for (protocol, json) in [
        ("v5.channel.k8s.io", true),
        ("v4.channel.k8s.io", true),
        ("v3.channel.k8s.io", false),
        ("v2.channel.k8s.io", false),
        ("channel.k8s.io", false),
    ] {
        let path = "/exec/ns/p/c?command=both&command=100&output=1&error=1";
        let all = run(&world, path, protocol, &["error", "stdout", "stderr"]).await;
        assert_eq!(all["stdout"], b"out\n".repeat(100), "{protocol}");
        assert_eq!(all["stderr"], b"err\n".repeat(100), "{protocol}");
        if json {
            assert_eq!(status(&all)["status"], "Success", "{protocol}");
        } else {
            assert!(all["error"].is_empty(), "{protocol}");
        }
        let all = run(&world, "/exec/ns/p/u/c?command=exit&command=3&output=1", protocol, &["error", "stdout"]).await;
        if json {
            assert_eq!(status(&all)["details"]["causes"][0]["message"], "3", "{protocol}");
        } else {
            assert!(String::from_utf8_lossy(&all["error"]).contains("exit code 3"), "{protocol}");
        }
    }
    let all = run(&world, "/exec/ns/p/c?command=fail&output=1", "v4.channel.k8s.io", &["stdout", "error"]).await;
    assert_eq!(status(&all)["reason"], "NotFound");
}

#[tokio::test]
async fn standard_input_ends_without_ending_the_session() {
    let world = World::new().await;
    let client = Client::open(&world, "/exec/ns/p/c?command=cat&input=1&output=1", "v4.channel.k8s.io").await;
    let mut error = client.stream("error").await;
    let mut stdin = client.stream("stdin").await;
    let mut stdout = client.stream("stdout").await;
    stdin.write_all(b"one two").await.unwrap();
    let mut echo = [0; 7];
    timeout(MOMENT, stdout.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(&echo, b"one two");
    stdin.shutdown().await.unwrap();
    let mut end = String::new();
    timeout(MOMENT, error.read_to_string(&mut end)).await.unwrap().unwrap();
    assert!(end.contains("Success"), "{end}");
    let mut rest = Vec::new();
    assert_eq!(timeout(MOMENT, stdout.read_to_end(&mut rest)).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_terminal_is_resized() {
    let world = World::new().await;
    let path = "/attach/ns/p/c?input=1&output=1&tty=1";
    let attached = Client::open(&world, path, "v4.channel.k8s.io").await;
    let (_error, _stdin) = (attached.stream("error").await, attached.stream("stdin").await);
    let mut stdout = attached.stream("stdout").await;
    let _resize = attached.stream("resize").await;
    let mut hello = [0; 9];
    timeout(MOMENT, stdout.read_exact(&mut hello)).await.unwrap().unwrap();
    assert_eq!(&hello, b"attached\n");

    let path = "/exec/ns/p/c?command=sizes&command=2&output=1&tty=1";
    let client = Client::open(&world, path, "v4.channel.k8s.io").await;
    let _error = client.stream("error").await;
    let (mut stdout, mut resize) = (client.stream("stdout").await, client.stream("resize").await);
    let mut text = [0; 6];
    resize.write_all(b"{\"Width\":80,\"Height\":24}\n").await.unwrap();
    timeout(MOMENT, stdout.read_exact(&mut text)).await.unwrap().unwrap();
    assert_eq!(&text, b"80x24 ");
    resize.write_all(b"{\"Width\":90,\"Height\":25}\n").await.unwrap();
    timeout(MOMENT, stdout.read_exact(&mut text)).await.unwrap().unwrap();
    assert_eq!(&text, b"90x25 ");
}

#[tokio::test]
async fn streams_that_nobody_asked_for_are_refused_and_missing_ones_end_the_session() {
    let options = vnode::kubelet::KubeletOptions {
        streams: vnode::kubelet::StreamOptions {
            creation_timeout: std::time::Duration::from_millis(300),
            ..Default::default()
        },
        ..Default::default()
    };
    let world = World::with(options).await;
    let client = Client::open(&world, "/exec/ns/p/c?command=sleep&output=1", "v4.channel.k8s.io").await;
    for kind in ["stdin", "resize", "nonsense"] {
        let stream = client.session.open(Headers::from([("streamtype", kind)])).unwrap();
        assert!(timeout(MOMENT, stream.replied()).await.unwrap().is_err(), "{kind}");
    }
    timeout(MOMENT, client.connection).await.expect("to be closed").unwrap().unwrap();
    assert_eq!(world.node.provider.running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_command_ends_when_its_client_goes() {
    let world = World::new().await;
    let client = Client::open(&world, "/exec/ns/p/c?command=sleep&output=1", "v4.channel.k8s.io").await;
    let _streams = (client.stream("error").await, client.stream("stdout").await);
    world.until("the command to run", |c| c.running.load(Ordering::SeqCst) == 1).await;
    client.connection.abort();
    world.until("the command to end", |c| c.running.load(Ordering::SeqCst) == 0).await;
}
