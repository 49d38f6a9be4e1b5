//! Much data, clients that do not read, and hostile ones: what they cost the process.
//!
//! A test binary of its own, whose tests run one after another, because they count the memory, the files
//! and the tasks of the whole process. `HOSTILE_ROUNDS` makes the suites longer.

#[allow(dead_code)]
#[path = "streams/clients.rs"]
mod clients;
#[allow(dead_code)]
#[path = "streams/world.rs"]
mod world;

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use vnode::kubelet::{KubeletOptions, StreamOptions};
use vnode_spdy::Headers;
use vnode_spdy::codec::Encoder;
use vnode_spdy::frame::{Frame, RstStatus};

use clients::{Client, KEY, drain, open, upgrade};
use world::{MOMENT, World};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a test while no other does. The runtime is made by whoever holds the lock, for it opens files too.
fn alone(test: impl Future<Output = ()>) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap().block_on(test);
}

const AMOUNT: u64 = 256 << 20;
/// What the process may grow by while that much goes through it, both ends of the connection included.
const GROWTH: u64 = 24 << 20;

fn rounds() -> usize {
    std::env::var("HOSTILE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(150)
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Open files and live tasks.
fn held() -> (usize, usize) {
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    (std::fs::read_dir("/proc/self/fd").unwrap().count(), tasks)
}

async fn until_released(before: (usize, usize)) {
    let released = timeout(MOMENT, async {
        while held() > before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    released.await.unwrap_or_else(|_| panic!("still held: {:?}, before: {before:?}", held()));
}

/// The highest resident memory while `work` runs, above what it was before.
async fn growth(work: impl Future<Output = ()>) -> u64 {
    let before = resident();
    let mut most = before;
    let mut work = std::pin::pin!(work);
    loop {
        match timeout(Duration::from_millis(20), work.as_mut()).await {
            Ok(()) => return most.max(resident()).saturating_sub(before),
            Err(_) => most = most.max(resident()),
        }
    }
}

#[test]
fn a_quarter_gigabyte_goes_out_and_in_with_flat_memory() {
    alone(async {
        let world = World::new().await;
        let zeros = format!("/exec/ns/p/c?command=zeros&command={AMOUNT}&output=1");
        let swallow = "/exec/ns/p/c?command=swallow&input=1&output=1";

        let grown = growth(async {
            let client = Client::open(&world, &zeros, "v4.channel.k8s.io").await;
            let _error = client.stream("error").await;
            let mut out = client.stream("stdout").await;
            assert_eq!(tokio::io::copy(&mut out, &mut tokio::io::sink()).await.unwrap(), AMOUNT);
        })
        .await;
        assert!(grown < GROWTH, "SPDY out: {grown}");

        let grown = growth(async {
            let client = Client::open(&world, swallow, "v4.channel.k8s.io").await;
            let _error = client.stream("error").await;
            let (mut stdin, mut out) = (client.stream("stdin").await, client.stream("stdout").await);
            let mut from = tokio::io::repeat(7).take(AMOUNT);
            tokio::io::copy(&mut from, &mut stdin).await.unwrap();
            stdin.shutdown().await.unwrap();
            let mut text = String::new();
            out.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, AMOUNT.to_string());
        })
        .await;
        assert!(grown < GROWTH, "SPDY in: {grown}");

        let grown = growth(async {
            let mut socket = open(&world, &zeros, "v5.channel.k8s.io").await;
            let mut received = 0;
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Binary(bytes) = message
                    && bytes[0] == 1
                {
                    received += bytes.len() as u64 - 1;
                }
            }
            assert_eq!(received, AMOUNT);
        })
        .await;
        assert!(grown < GROWTH, "WebSocket out: {grown}");

        let grown = growth(async {
            let mut socket = open(&world, swallow, "v5.channel.k8s.io").await;
            let message = Bytes::from(vec![0; 32 * 1024 + 1]);
            for _ in 0..AMOUNT / (32 * 1024) {
                socket.send(Message::Binary(message.clone())).await.unwrap();
            }
            socket.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap();
            assert_eq!(drain(&mut socket, false).await[&1], AMOUNT.to_string().as_bytes());
        })
        .await;
        assert!(grown < GROWTH, "WebSocket in: {grown}");
    });
}

#[test]
fn a_client_that_never_reads_stops_its_command_and_nobody_else() {
    alone(async {
        let world = World::new().await;
        let endless = format!("/exec/ns/p/c?command=zeros&command={}&output=1", u64::MAX);
        let before = held();
        for spdy in [true, false] {
            world.node.provider.produced.store(0, Ordering::SeqCst);
            let client = if spdy {
                let client = Client::open(&world, &endless, "v4.channel.k8s.io").await;
                let streams = (client.stream("error").await, client.stream("stdout").await);
                (Some((client, streams)), None)
            } else {
                (None, Some(open(&world, &endless, "v5.channel.k8s.io").await))
            };
            let produced = || world.node.provider.produced.load(Ordering::SeqCst);
            let mut last = 0;
            timeout(MOMENT, async {
                while last == 0 || last != produced() {
                    last = produced();
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            })
            .await
            .expect("the command to be held back");
            // What the sockets of both ends hold, and little more.
            assert!(last < 32 << 20, "{last}");
            let mut other = open(&world, "/exec/ns/p/c?command=echo&command=hi&output=1", "v5.channel.k8s.io").await;
            assert_eq!(drain(&mut other, false).await[&1], b"hi");
            if let Some((client, _)) = &client.0 {
                client.connection.abort();
            }
            drop(client);
        }
        world.until("the commands to end", |c| c.running.load(Ordering::SeqCst) == 0).await;
        until_released(before).await;
    });
}

/// An upgraded connection that says `bytes` and then waits to be closed, or gives up.
async fn say(mut stream: TlsStream<TcpStream>, bytes: &[u8]) {
    // It may be closed before all is said.
    let _ = stream.write_all(bytes).await;
    let mut buffer = [0; 4096];
    while let Ok(Ok(1..)) = timeout(Duration::from_millis(10), stream.read(&mut buffer)).await {}
}

/// Frames as a client sends them, some of them damaged.
fn damaged_frames(random: &mut StdRng) -> Vec<u8> {
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    for _ in 0..random.random_range(1..8) {
        let id = random.random_range(1..9);
        let kinds = ["error", "stdin", "stdout", "stderr", "resize", "data", ""];
        let headers = Headers::from([("streamtype", kinds[random.random_range(0..kinds.len())]), ("port", "7")]);
        let fin = random.random();
        let frame = match random.random_range(0..9) {
            0..3 => Frame::SynStream { id, associated: 0, priority: 0, fin, unidirectional: random.random(), headers },
            3 => Frame::SynReply { id, fin, headers },
            4 => Frame::RstStream { id, status: RstStatus::from(random.random::<u32>() | 1) },
            5 => Frame::Settings(vec![(7, random.random()), (random.random(), random.random())]),
            6 => Frame::WindowUpdate { id: random.random_range(0..9), delta: random.random::<u32>() | 1 },
            7 => Frame::Ping(random.random::<u32>() | 1),
            _ => Frame::Data { id, fin, bytes: vec![1; random.random_range(0..70_000)].into() },
        };
        encoder.encode(&frame, &mut out).unwrap();
    }
    for _ in 0..random.random_range(0..4) {
        let at = random.random_range(0..out.len());
        out[at] = random.random();
    }
    out.truncate(random.random_range(1..=out.len()));
    out.to_vec()
}

#[test]
fn hostile_spdy_clients_get_nowhere_and_leave_nothing_behind() {
    alone(async {
        let world = World::new().await;
        let mut random = StdRng::seed_from_u64(1);
        let paths = [
            ("/exec/ns/p/c?command=cat&input=1&output=1&error=1", "v4.channel.k8s.io"),
            ("/attach/ns/p/c?input=1&output=1&tty=1", "v4.channel.k8s.io"),
            ("/portForward/ns/p", "portforward.k8s.io"),
        ];
        let before = held();
        for round in 0..rounds() {
            let (path, protocol) = paths[round % paths.len()];
            let (status, head, stream) = world.ask("POST", path, &upgrade(protocol)).await;
            assert_eq!(status, 101, "{head}");
            say(stream, &damaged_frames(&mut random)).await;
        }
        // HTTP after the upgrade, headers that expand a thousand times, a frame that never ends.
        let mut bomb = BytesMut::new();
        let headers = Headers::from([("streamtype", &*"0".repeat(12 << 20))]);
        let syn = Frame::SynStream { id: 1, associated: 0, priority: 0, fin: false, unidirectional: false, headers };
        Encoder::new().encode(&syn, &mut bomb).unwrap();
        assert!(bomb.len() < 16 * 1024 * 2);
        for bytes in [
            &b"GET /pods HTTP/1.1\r\nhost: n\r\n\r\n"[..],
            &bomb,
            b"\0\0\0\x01\0\xff\xff\xff",
            b"\x80\x03\0\x01\0\xff\xff\xff",
        ] {
            let (_, _, stream) = world.ask("POST", paths[0].0, &upgrade(paths[0].1)).await;
            say(stream, bytes).await;
        }
        world.until("all commands to end", |c| c.running.load(Ordering::SeqCst) == 0).await;
        until_released(before).await;
        let client = Client::open(&world, "/exec/ns/p/c?command=echo&command=hi&output=1", "v4.channel.k8s.io").await;
        let (_error, mut out) = (client.stream("error").await, client.stream("stdout").await);
        let mut text = String::new();
        timeout(MOMENT, out.read_to_string(&mut text)).await.unwrap().unwrap();
        assert_eq!(text, "hi");
    });
}

#[test]
fn hostile_websocket_clients_get_nowhere_and_leave_nothing_behind() {
    alone(async {
        let world = World::new().await;
        let mut random = StdRng::seed_from_u64(2);
        let paths = [
            ("/exec/ns/p/c?command=cat&input=1&output=1&error=1", "v5.channel.k8s.io"),
            ("/exec/ns/p/c?command=cat&input=1&output=1", "base64.channel.k8s.io"),
            ("/attach/ns/p/c?input=1&output=1&tty=1", "v4.channel.k8s.io"),
            ("/portForward/ns/p?port=7,9", "v4.channel.k8s.io"),
            ("/portForward/ns/p", "SPDY/3.1+portforward.k8s.io"),
        ];
        let before = held();
        for round in 0..rounds() {
            let (path, protocol) = paths[round % paths.len()];
            let headers =
                format!("connection: upgrade\r\nupgrade: websocket\r\n{KEY}sec-websocket-protocol: {protocol}\r\n");
            let (status, head, stream) = world.ask("GET", path, &headers).await;
            assert_eq!(status, 101, "{head}");
            let mut bytes = Vec::new();
            for _ in 0..random.random_range(1..8) {
                let content: Vec<u8> = match random.random_range(0..4) {
                    0 => vec![255; random.random_range(0..4)],
                    1 => (0..random.random_range(0..200)).map(|_| random.random()).collect(),
                    2 => [vec![random.random_range(0..6)], vec![1; random.random_range(0..70_000)]].concat(),
                    _ => damaged_frames(&mut random),
                };
                // FIN and reserved bits, opcode; a mask or none; a length that is true or not.
                bytes.push([0x82, 0x81, 0x02, 0x80, 0x88, 0x89, 0xf2, 0x8b][random.random_range(0..8)]);
                let masked = if random.random_range(0..10) > 0 { 0x80 } else { 0 };
                match content.len() {
                    n @ 0..126 if random.random_range(0..8) > 0 => bytes.push(masked | n as u8),
                    n if random.random_range(0..8) > 0 => {
                        bytes.push(masked | 126);
                        bytes.extend((n as u16).to_be_bytes());
                    }
                    _ => {
                        bytes.push(masked | 127);
                        bytes.extend(random.random::<u64>().to_be_bytes());
                    }
                }
                if masked > 0 {
                    bytes.extend([0; 4]);
                }
                bytes.extend(content);
            }
            say(stream, &bytes).await;
        }
        world.until("all commands to end", |c| c.running.load(Ordering::SeqCst) == 0).await;
        until_released(before).await;
        let mut socket = open(&world, "/exec/ns/p/c?command=echo&command=hi&output=1", "v5.channel.k8s.io").await;
        assert_eq!(drain(&mut socket, false).await[&1], b"hi");
    });
}

#[test]
fn hostile_upgrades_are_refused_and_leave_nothing_behind() {
    alone(async {
        let streams = StreamOptions { idle_timeout: Duration::from_secs(2), ..Default::default() };
        let world = World::with(KubeletOptions { streams, ..Default::default() }).await;
        let mut random = StdRng::seed_from_u64(3);
        let parts = [
            "connection: upgrade\r\n",
            "connection: keep-alive\r\n",
            "upgrade: websocket\r\n",
            "upgrade: SPDY/3.1\r\n",
            "upgrade: h2c\r\n",
            "sec-websocket-version: 13\r\n",
            "sec-websocket-version: 12\r\n",
            "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            "sec-websocket-key: short\r\n",
            "sec-websocket-protocol: v5.channel.k8s.io, ,,\r\n",
            "sec-websocket-protocol: \u{7f}\r\n",
            "x-stream-protocol-version: v4.channel.k8s.io\r\n",
            "x-stream-protocol-version: ,\r\n",
            "content-length: 5\r\n",
            "transfer-encoding: chunked\r\n",
            "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        ];
        let paths = [
            "/exec/ns/p/c?command=sleep&output=1",
            "/exec/ns/p/c/?command=sleep&output=1",
            "/exec/ns/%2e%2e/c?command=sleep&output=1",
            "/attach/ns/p/c?output=1&input=1&tty=1",
            "/portForward/ns/p?port=7&port=,",
            "/portForward/ns/p",
            "/run/ns/p/c?cmd=sleep",
            "/exec",
        ];
        let before = held();
        for _ in 0..rounds() {
            let headers: String =
                (0..random.random_range(0..8)).map(|_| parts[random.random_range(0..parts.len())]).collect();
            let path = paths[random.random_range(0..paths.len())];
            let method = ["GET", "POST", "PUT", "CONNECT", "OPTIONS"][random.random_range(0..5)];
            let mut stream = world.connect().await;
            let request =
                format!("{method} {path} HTTP/1.1\r\nhost: n\r\nauthorization: Bearer admin\r\n{headers}\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            say(stream, b"5\r\nhello\r\n0\r\n\r\n").await;
        }
        world.until("all commands to end", |c| c.running.load(Ordering::SeqCst) == 0).await;
        until_released(before).await;
        assert_eq!(world.ask("GET", "/healthz", "").await.0, 200);
    });
}

#[test]
fn hostile_http_clients_get_nothing_and_leave_nothing_behind() {
    alone(async {
        let world = World::new().await;
        let mut random = StdRng::seed_from_u64(4);
        let long = "x".repeat(40_000);
        let many = "a: b\r\n".repeat(2_000);
        let paths = [
            "/containerLogs/ns/../../etc/passwd",
            "/containerLogs/ns/p/..%2f..%2fetc%2fpasswd",
            "/containerLogs/ns/p/c/../../..",
            "//pods",
            "/./pods",
            "/%70ods",
            "/logs/../../../etc/shadow",
            "/pods\0",
            "*",
            "http://elsewhere/pods",
            "/pods HTTP/1.1\r\nhost: x\r\n\r\nGET /pods",
        ];
        let heads = [
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: -1\r\n",
            "content-length: 5\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: chunked, identity\r\n",
            "transfer-encoding : chunked\r\n",
            " folded: x\r\n",
            "authorization: Bearer admin\r\nauthorization: Bearer nobody\r\n",
            "authorization: Basic YWRtaW46\r\n",
            "authorization: Bearer\r\n",
            "x-remote-user: admin\r\nx-remote-group: system:masters\r\n",
            "impersonate-user: admin\r\n",
            "x\0y: z\r\n",
            &*many,
            &format!("x: {long}\r\n"),
            &format!("authorization: Bearer {long}\r\n"),
        ];
        let before = held();
        for round in 0..rounds() {
            let mut stream = world.connect().await;
            let bytes: Vec<u8> = match round % 4 {
                0 => (0..random.random_range(1..3000)).map(|_| random.random()).collect(),
                // HTTP/2 to a server that was not asked for it, and half of a request.
                1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..random.random_range(1..33)].to_vec(),
                _ => {
                    let path = paths[random.random_range(0..paths.len())];
                    let head: String =
                        (0..random.random_range(0..4)).map(|_| heads[random.random_range(0..heads.len())]).collect();
                    format!("GET {path} HTTP/1.1\r\nhost: n\r\n{head}\r\n").into_bytes()
                }
            };
            let _ = stream.write_all(&bytes).await;
            let mut answer = [0; 4096];
            let read = timeout(Duration::from_millis(5), stream.read(&mut answer)).await;
            let said = String::from_utf8_lossy(&answer[..read.ok().and_then(Result::ok).unwrap_or(0)]).into_owned();
            assert!(!said.starts_with("HTTP/1.1 2") && !said.contains("PodList"), "{bytes:?}: {said}");
        }
        // Handshakes that are none, and that never end.
        let mut silent = Vec::new();
        for round in 0..rounds() {
            let mut stream = TcpStream::connect(world.addr).await.unwrap();
            let garbage: Vec<u8> = (0..random.random_range(0..600)).map(|_| random.random()).collect();
            let _ = stream.write_all(if round % 2 == 0 { &garbage } else { b"\x16\x03\x01\x02\0\x01" }).await;
            if round % 10 == 0 {
                silent.push(stream);
            }
        }
        assert_eq!(world.ask("GET", "/healthz", "").await.0, 200, "others are served meanwhile");
        drop(silent);
        until_released(before).await;
        for user in ["nobody", "expired"] {
            assert_eq!(world.ask_as(user, "GET", "/pods", "").await.0, 403, "{user}");
        }
    });
}
