//! Connections to a pod's ports.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use vnode_spdy::codec::{Decoder, Encoder, Limits};
use vnode_spdy::frame::Frame;
use vnode_spdy::{Headers, Options, Session, Stream};

use crate::clients::{Client, KEY, drain, message, open, upgrade};
use crate::world::{MOMENT, World};

async fn connect(session: &Session, port: u16, request: usize) -> (Stream, Stream) {
    let (port, request) = (port.to_string(), request.to_string());
    let headers =
        |kind: &str| Headers::from([("streamType", kind), ("port", port.as_str()), ("requestID", request.as_str())]);
    let error = session.open(headers("error")).unwrap();
    let data = session.open(headers("data")).unwrap();
    timeout(MOMENT, async { (error.replied().await.unwrap(), data.replied().await.unwrap()) })
        .await
        .expect("an answer");
    (data, error)
}

/// Sends what `port` 7 sends back.
async fn echo(mut data: impl AsyncRead + AsyncWrite + Unpin, mut error: impl AsyncRead + Unpin, bytes: Vec<u8>) {
    let (mut from, mut to) = tokio::io::split(&mut data);
    let mut back = Vec::new();
    timeout(MOMENT, async {
        let sending = async {
            to.write_all(&bytes).await.unwrap();
            to.shutdown().await.unwrap();
        };
        tokio::join!(sending, async { from.read_to_end(&mut back).await.unwrap() });
    })
    .await
    .expect("an echo");
    assert!(back == bytes);
    let mut trouble = String::new();
    timeout(MOMENT, error.read_to_string(&mut trouble)).await.expect("an end").unwrap();
    assert_eq!(trouble, "");
}

async fn two_hundred(world: &World, session: Session) {
    let session = Arc::new(session);
    let mut clients = Vec::new();
    for n in 0..200_usize {
        let session = session.clone();
        clients.push(tokio::spawn(async move {
            let (data, error) = connect(&session, 7, n).await;
            let bytes = (0..50_000 + n).map(|i| (i * n) as u8).collect();
            echo(data, error, bytes).await;
        }));
    }
    for client in clients {
        timeout(Duration::from_secs(60), client).await.expect("an end").unwrap();
    }
    world.until("all connections to end", |c| c.forwarded.load(Ordering::SeqCst) == 0).await;
    timeout(MOMENT, async {
        while session.streams() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("no streams to be left");
}

#[tokio::test]
async fn one_session_carries_two_hundred_connections_at_a_time() {
    let world = World::new().await;
    let client = Client::open(&world, "/portForward/ns/p", "portforward.k8s.io").await;
    two_hundred(&world, client.session.clone()).await;
    client.session.close();
    timeout(MOMENT, client.connection).await.expect("an end").unwrap().unwrap();
}

#[tokio::test]
async fn spdy_inside_of_a_websocket_carries_as_many() {
    let world = World::new().await;
    let socket = open(&world, "/portForward/ns/p/u", "SPDY/3.1+portforward.k8s.io").await;
    // The other end of a tunnel: bytes to binary messages and back.
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut sink, mut stream) = socket.split();
    let (mut from, mut to) = tokio::io::split(far);
    tokio::spawn(async move {
        let mut buffer = vec![0; 10_000];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            if to.write_all(&message.into_data()).await.is_err() {
                break;
            }
        }
    });
    let (session, connection) = vnode_spdy::client(near, Options { max_streams: 2048, ..Options::default() });
    let connection = tokio::spawn(connection);
    two_hundred(&world, session).await;
    connection.abort();
}

#[tokio::test]
async fn a_port_that_cannot_be_reached_is_told_and_the_session_goes_on() {
    let world = World::new().await;
    let client = Client::open(&world, "/portForward/ns/p", "portforward.k8s.io").await;
    let (mut data, mut error) = connect(&client.session, 80, 0).await;
    let mut why = String::new();
    timeout(MOMENT, error.read_to_string(&mut why)).await.unwrap().unwrap();
    assert!(why.starts_with("error forwarding port 80 to pod p, uid u: "), "{why}");
    assert!(timeout(MOMENT, data.read(&mut [0; 1])).await.unwrap().is_err());
    let (mut data, _error) = connect(&client.session, 13, 1).await;
    let mut said = String::new();
    timeout(MOMENT, data.read_to_string(&mut said)).await.unwrap().unwrap();
    assert_eq!(said, "noon\n");
}

#[tokio::test]
async fn streams_without_a_request_number_belong_together_by_their_own() {
    let world = World::new().await;
    let client = Client::open(&world, "/portForward/ns/p", "portforward.k8s.io").await;
    for _ in 0..2 {
        let error = client.session.open(Headers::from([("streamtype", "error"), ("port", "7")])).unwrap();
        let data = client.session.open(Headers::from([("streamtype", "data"), ("port", "7")])).unwrap();
        data.replied().await.unwrap();
        echo(data, error, b"hello".to_vec()).await;
    }
}

#[tokio::test]
async fn streams_that_make_no_sense_are_refused_and_lonely_ones_given_up() {
    let streams = vnode::kubelet::StreamOptions { creation_timeout: Duration::from_millis(300), ..Default::default() };
    let world = World::with(vnode::kubelet::KubeletOptions { streams, ..Default::default() }).await;
    let client = Client::open(&world, "/portForward/ns/p", "portforward.k8s.io").await;
    for (kind, port) in [("data", "0"), ("data", "65536"), ("data", "x"), ("data", ""), ("stdin", "7"), ("", "7")] {
        let stream = client.session.open(Headers::from([("streamtype", kind), ("port", port)])).unwrap();
        assert!(timeout(MOMENT, stream.replied()).await.unwrap().is_err(), "{kind} {port}");
    }
    let headers = || Headers::from([("streamtype", "data"), ("port", "7"), ("requestid", "1")]);
    let mut lonely = client.session.open(headers()).unwrap();
    lonely.replied().await.unwrap();
    let mut twice = client.session.open(headers()).unwrap();
    assert!(timeout(MOMENT, twice.read(&mut [0; 1])).await.unwrap().is_err());
    assert!(timeout(MOMENT, lonely.read(&mut [0; 1])).await.unwrap().is_err());
    let (data, error) = connect(&client.session, 7, 1).await;
    echo(data, error, b"still here".to_vec()).await;
}

/// What a client sends that keeps no windows, as kubectl: it opens connections, and then says all of this.
fn stuck(ports: &[(u32, &str)], more: &[Frame]) -> BytesMut {
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    let mut add = |frame: &Frame| encoder.encode(frame, &mut out).unwrap();
    for (id, port) in ports {
        for (id, kind) in [(*id, "error"), (id + 2, "data")] {
            let request = port.to_string();
            let headers = Headers::from([("streamtype", kind), ("port", *port), ("requestid", request.as_str())]);
            let fin = kind == "error";
            add(&Frame::SynStream { id, associated: 0, priority: 0, fin, unidirectional: false, headers });
        }
    }
    more.iter().for_each(add);
    out
}

#[tokio::test]
async fn a_connection_that_its_pod_does_not_read_keeps_others_waiting_only_for_a_while() {
    let patience = Duration::from_millis(300);
    let streams = vnode::kubelet::StreamOptions { stall_timeout: patience, ..Default::default() };
    let world = World::with(vnode::kubelet::KubeletOptions { streams, ..Default::default() }).await;
    // More than is kept for one connection, so that what comes after it waits.
    let flood = vec![Frame::Data { id: 7, fin: false, bytes: vec![0; 32 * 1024].into() }; 48];
    let after = Frame::Data { id: 3, fin: true, bytes: "after"[..].into() };
    for alone in [false, true] {
        let (status, head, stream) = world.ask("POST", "/portForward/ns/p", &upgrade("portforward.k8s.io")).await;
        assert_eq!(status, 101, "{head}");
        let frames = [&flood[..], std::slice::from_ref(&after)].concat();
        let bytes = stuck(if alone { &[(5, "9")] } else { &[(1, "7"), (5, "9")] }, &frames);
        let (mut from, mut to) = tokio::io::split(stream);
        let sending = tokio::spawn(async move { to.write_all(&bytes).await.map(|()| to) });
        let (mut decoder, mut input) = (Decoder::new(Limits::default()), BytesMut::new());
        let (mut reset, mut echoed) = (Vec::new(), Vec::new());
        let began = Instant::now();
        let read = async {
            loop {
                match decoder.decode(&mut input).unwrap() {
                    Some(Frame::RstStream { id, .. }) => {
                        reset.push(id);
                        if alone {
                            break;
                        }
                    }
                    Some(Frame::Data { id: 3, fin, bytes }) => {
                        echoed.extend_from_slice(&bytes);
                        if fin {
                            break;
                        }
                    }
                    Some(_) => {}
                    None => assert!(from.read_buf(&mut input).await.unwrap() > 0),
                }
            }
        };
        timeout(MOMENT, read).await.expect("an end");
        assert_eq!(reset, [7]);
        assert_eq!(echoed, if alone { &b""[..] } else { b"after" });
        assert!(began.elapsed() >= patience * if alone { 2 } else { 1 });
        timeout(MOMENT, sending).await.expect("everything to be taken").unwrap().unwrap();
        world.until("all connections to end", |c| c.forwarded.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test]
async fn websocket_channels_begin_with_their_port_and_end_with_their_pod() {
    let world = World::new().await;
    for (protocol, base64) in
        [("v4.channel.k8s.io", false), ("v4.base64.channel.k8s.io", true), ("portforward.k8s.io", false), ("", false)]
    {
        let mut socket = open(&world, "/portForward/ns/p?port=13,80&port=13", protocol).await;
        let all = drain(&mut socket, base64).await;
        assert_eq!(all[&0], b"\x0d\x00noon\n", "{protocol}");
        assert_eq!(all[&1], b"\x0d\x00");
        assert_eq!(all[&2], b"\x50\x00");
        assert!(String::from_utf8_lossy(&all[&3][2..]).starts_with("error forwarding port 80"), "{protocol}");
        assert_eq!(all[&4], b"\x0d\x00noon\n");

        let mut socket = open(&world, "/portForward/ns/p?port=7", protocol).await;
        socket.send(message(0, b"over and out", base64)).await.unwrap();
        let mut back = Vec::new();
        while back.len() < 2 + 12 {
            let data = timeout(MOMENT, socket.next()).await.unwrap().unwrap().unwrap().into_data();
            if base64 && data[0] == b'0' {
                use base64::Engine as _;
                back.extend(base64::engine::general_purpose::STANDARD.decode(&data[1..]).unwrap());
            } else if !base64 && data[0] == 0 {
                back.extend_from_slice(&data[1..]);
            }
        }
        assert_eq!(back, b"\x07\x00over and out", "{protocol}");
    }
    let headers = format!("connection: upgrade\r\nupgrade: websocket\r\n{}", KEY);
    assert_eq!(world.ask("GET", "/portForward/ns/p", &headers).await.0, 400);
}
