//! Who may, what is refused before anything begins, `/run`, and how sessions end from our side.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use vnode::kubelet::{KubeletOptions, StreamOptions};

use crate::clients::{Client, KEY, open, upgrade};
use crate::world::{MOMENT, World};

fn websocket() -> String {
    format!("connection: upgrade\r\nupgrade: websocket\r\n{KEY}sec-websocket-protocol: v5.channel.k8s.io\r\n")
}

#[tokio::test]
async fn running_something_needs_create_on_the_proxy_whatever_the_method() {
    let world = World::new().await;
    let (exec, attach) = ("/exec/ns/p/c?command=echo&command=x&output=1", "/attach/ns/p/c?output=1");
    for (user, method, path, headers, status) in [
        ("reader", "GET", exec, websocket(), 403),
        ("reader", "GET", attach, websocket(), 403),
        ("reader", "GET", "/portForward/ns/p?port=7", websocket().replace("v5", "v4"), 403),
        ("reader", "GET", "/run/ns/p/c?cmd=id", String::new(), 403),
        ("reader", "POST", exec, upgrade("v4.channel.k8s.io"), 403),
        // The same answer whether or not there is such a pod.
        ("reader", "GET", "/exec/ns/absent/c?command=x&output=1", websocket(), 403),
        ("runner", "GET", exec, websocket(), 101),
        ("runner", "POST", exec, upgrade("v4.channel.k8s.io"), 101),
        ("runner", "GET", attach, websocket(), 101),
        ("runner", "GET", "/portForward/ns/p?port=7", websocket().replace("v5", "v4"), 101),
        ("runner", "POST", "/run/ns/p/c?cmd=id", "content-length: 0\r\n".into(), 500),
    ] {
        assert_eq!(world.ask_as(user, method, path, &headers).await.0, status, "{user} {method} {path}");
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_the_protocol_changes() {
    let world = World::new().await;
    let spdy = upgrade("v4.channel.k8s.io");
    for (method, path, headers, status) in [
        ("POST", "/exec/ns/absent/c?command=x&output=1", &*spdy, 404),
        ("POST", "/exec/ns/p/absent?command=x&output=1", &spdy, 404),
        ("POST", "/exec/ns/p/other-uid/c?command=x&output=1", &spdy, 404),
        ("POST", "/portForward/ns/p/other-uid", &spdy, 404),
        ("POST", "/exec/ns/p/c?output=1", &spdy, 400),
        ("POST", "/exec/ns/p/c?command=x", &spdy, 400),
        ("POST", "/exec/ns/p/c?command=x&output=1", "content-length: 0\r\n", 400),
        ("GET", "/exec/ns/p/c?command=x&output=1", "", 400),
        ("POST", "/exec/ns/p/c?command=x&output=1", "connection: upgrade\r\ncontent-length: 0\r\n", 400),
        ("POST", "/exec/ns/p/c?command=x&output=1", "upgrade: SPDY/3.1\r\ncontent-length: 0\r\n", 400),
        ("PUT", "/exec/ns/p/c?command=x&output=1", &spdy, 405),
        ("DELETE", "/attach/ns/p/c?output=1", &spdy, 405),
        ("POST", "/exec/ns/../c?command=x&output=1", &spdy, 404),
        ("POST", "/exec/ns/p/c/d/e?command=x&output=1", &spdy, 404),
        ("POST", "/exec/ns/p/c?command=%ff&output=1", &spdy, 400),
        ("GET", "/run/ns/p/c?cmd=id", "", 405),
        ("POST", "/run/ns/p/c", "content-length: 0\r\n", 400),
    ] {
        let (got, head, _) = world.ask(method, path, headers).await;
        assert_eq!(got, status, "{method} {path} {headers}: {head}");
    }
    assert_eq!(world.node.provider.running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn run_answers_with_the_output_and_a_status_that_fits() {
    let world = World::new().await;
    let headers = "content-length: 0\r\nconnection: close\r\n";
    for (cmd, status, part) in [
        ("echo%20hello", 200, "hello"),
        ("both%202", 200, "out\nout\nerr\nerr\n"),
        ("exit%203", 500, "command terminated with exit code 3"),
        ("fail", 500, "not found"),
    ] {
        let (got, head, mut stream) = world.ask("POST", &format!("/run/ns/p/c?cmd={cmd}"), headers).await;
        let mut body = String::new();
        timeout(MOMENT, stream.read_to_string(&mut body)).await.unwrap().unwrap();
        assert_eq!(got, status, "{cmd}: {head}{body}");
        assert!(body.contains(part), "{cmd}: {body}");
    }
    let (status, _, mut stream) = world.ask("POST", "/run/ns/p/u/c?cmd=zeros%203000000", headers).await;
    let mut body = Vec::new();
    timeout(MOMENT, stream.read_to_end(&mut body)).await.unwrap().unwrap();
    assert_eq!(status, 200);
    assert_eq!(body.iter().filter(|b| **b == 0).count(), 3_000_000);
}

#[tokio::test]
async fn sessions_end_with_their_pod_after_idling_and_when_the_node_stops() {
    let streams = StreamOptions { idle_timeout: Duration::from_millis(400), ..Default::default() };
    let options = KubeletOptions { drain_timeout: Duration::from_millis(300), streams, ..Default::default() };
    let mut world = World::with(options).await;
    let exec = "/exec/ns/p/c?command=sleep&output=1";
    // Idle.
    let client = Client::open(&world, exec, "v4.channel.k8s.io").await;
    let _streams = (client.stream("error").await, client.stream("stdout").await);
    let _ = timeout(MOMENT, client.connection).await.expect("to be closed");
    let mut socket = open(&world, exec, "v5.channel.k8s.io").await;
    timeout(MOMENT, async { while let Some(Ok(_)) = socket.next().await {} }).await.expect("to be closed");
    // Gone.
    let mut socket = open(&world, exec, "v5.channel.k8s.io").await;
    world.until("the command to run", |c| c.running.load(Ordering::SeqCst) == 1).await;
    world.node.gone.notify_waiters();
    timeout(Duration::from_millis(300), async { while let Some(Ok(_)) = socket.next().await {} })
        .await
        .expect("an end");
    // Stopped.
    let mut socket = open(&world, exec, "v5.channel.k8s.io").await;
    world.shutdown.cancel();
    timeout(MOMENT, &mut world.serving).await.expect("the node to stop").unwrap();
    timeout(MOMENT, async { while let Some(Ok(_)) = socket.next().await {} }).await.expect("to be closed");
    assert_eq!(world.node.provider.running.load(Ordering::SeqCst), 0);
}
