//! What streams cost: `cargo bench --bench streams -- [--mebibytes 1024] [--listeners 10000]`.
//!
//! One exec stream at a time goes through TLS, out of a provider that writes and into one that reads, over SPDY and
//! WebSocket; the measure is a plain copy through the same TLS in the same run. Both ends of each connection are in
//! this process, so that the memory is that of both. Prints a table for one core and one for two.

#[allow(dead_code)]
#[path = "../tests/streams/clients.rs"]
mod clients;
#[allow(dead_code)]
#[path = "../tests/streams/world.rs"]
mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use vnode::tls::ServingCerts;

use clients::{Client, open};
use world::World;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Options {
    bytes: u64,
    listeners: usize,
}

fn options() -> Options {
    let mut options = Options { bytes: 1024 << 20, listeners: 10_000 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|w| w.parse::<u64>().ok()).expect("a number must follow");
        match word.as_str() {
            "--mebibytes" => options.bytes = number() << 20,
            "--listeners" => options.listeners = usize::try_from(number()).expect("a number of listeners"),
            "--bench" => {} // cargo adds it
            other => panic!("unknown option {other}; there are --mebibytes and --listeners"),
        }
    }
    options
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
}

/// Processor time of this process so far. proc(5): utime and stime in ticks of 10 ms.
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|n| fields.get(*n)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn row(what: &str, value: impl std::fmt::Display) {
    println!("| {what:<58} | {value:>16} |");
}

/// Runs something that moves so many bytes; prints how fast, by the clock and by the processor time of both ends.
async fn throughput(what: &str, bytes: u64, work: impl Future<Output = ()> + Send + 'static) -> f64 {
    let (before, most, done) = (resident(), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let watcher = {
        let (most, done) = (most.clone(), done.clone());
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(resident(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        })
    };
    let (start, used) = (Instant::now(), processor());
    // On one of the runtime's threads as everything else, not on one more.
    tokio::spawn(work).await.expect("it works");
    let (took, used) = (start.elapsed().as_secs_f64(), (processor() - used).as_secs_f64().max(0.01));
    done.store(true, Ordering::Relaxed);
    watcher.join().expect("the watcher ends");
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    let grown = most.load(Ordering::Relaxed).saturating_sub(before) as f64 / f64::from(1 << 20);
    row(what, format!("{:.0} MiB/s", mebibytes / took));
    row("    by processor time of both ends", format!("{:.0} MiB/s", mebibytes / used));
    row("    memory at most", format!("+{grown:.1} MiB"));
    mebibytes / took
}

/// A plain copy through the same TLS: what cannot be beaten.
async fn plain(bytes: u64) -> f64 {
    let certs = ServingCerts::self_signed(&["127.0.0.1"]).expect("a certificate");
    let leaf = certs.of_node("n", &Arc::default()).expect("a certificate");
    let config = ServingCerts::serve_with(&certs.server_config().expect("TLS"), &leaf);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client");
        stream.set_nodelay(true).expect("a socket");
        let mut stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await.expect("a handshake");
        let mut left = bytes;
        let zeros = vec![0; 64 * 1024];
        while left > 0 {
            let n = stream.write(&zeros[..zeros.len().min(left as usize)]).await.expect("a reader");
            left -= n as u64;
        }
        stream.shutdown().await.expect("a reader");
    });
    let mut stream = world::connect_to(addr, &certs).await;
    let speed = throughput("plain TLS copy", bytes, async move {
        assert_eq!(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.expect("an end"), bytes);
    });
    let speed = speed.await;
    server.await.expect("the server ends");
    speed
}

async fn streams(options: &Options) {
    let bytes = options.bytes;
    let best = plain(bytes).await;
    let world = World::new().await;
    let zeros = format!("/exec/ns/p/c?command=zeros&command={bytes}&output=1");
    let swallow = "/exec/ns/p/c?command=swallow&input=1&output=1";
    let mut worst = f64::MAX;

    let client = Client::open(&world, &zeros, "v4.channel.k8s.io").await;
    let _error = client.stream("error").await;
    let mut out = client.stream("stdout").await;
    let speed = throughput("exec over SPDY, output", bytes, async move {
        assert_eq!(tokio::io::copy(&mut out, &mut tokio::io::sink()).await.expect("an end"), bytes);
    });
    worst = worst.min(speed.await);

    let client = Client::open(&world, swallow, "v4.channel.k8s.io").await;
    let _error = client.stream("error").await;
    let (mut stdin, mut out) = (client.stream("stdin").await, client.stream("stdout").await);
    let speed = throughput("exec over SPDY, input", bytes, async move {
        let block = vec![7; 64 * 1024];
        for _ in 0..bytes / block.len() as u64 {
            stdin.write_all(&block).await.expect("a reader");
        }
        stdin.shutdown().await.expect("a reader");
        out.read_to_string(&mut String::new()).await.expect("an end");
    });
    worst = worst.min(speed.await);

    let mut socket = open(&world, &zeros, "v5.channel.k8s.io").await;
    let speed = throughput("exec over WebSocket, output", bytes, async move {
        let mut received = 0;
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(bytes) = message
                && bytes[0] == 1
            {
                received += bytes.len() as u64 - 1;
            }
        }
        assert_eq!(received, bytes);
    });
    worst = worst.min(speed.await);

    let mut socket = open(&world, swallow, "v5.channel.k8s.io").await;
    let speed = throughput("exec over WebSocket, input", bytes, async move {
        let message = Bytes::from(vec![0; 32 * 1024 + 1]);
        for _ in 0..bytes / (32 * 1024) {
            socket.feed(Message::Binary(message.clone())).await.expect("a reader");
        }
        socket.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.expect("a reader");
        clients::drain(&mut socket, false).await;
    });
    worst = worst.min(speed.await);
    row("slowest of them, of the plain copy", format!("{:.2}", worst / best));
}

/// How long a keystroke takes to come back while as much as can goes through another connection.
async fn latency() {
    let world = World::new().await;
    for load in [false, true] {
        let endless = format!("/exec/ns/p/c?command=zeros&command={}&output=1", u64::MAX);
        let busy = match load {
            true => Some(open(&world, &endless, "v5.channel.k8s.io").await),
            false => None,
        };
        let loading =
            busy.map(|mut socket| tokio::spawn(async move { while let Some(Ok(_)) = socket.next().await {} }));
        let client = Client::open(&world, "/exec/ns/p/c?command=cat&input=1&output=1", "v4.channel.k8s.io").await;
        let _error = client.stream("error").await;
        let (mut stdin, mut out) = (client.stream("stdin").await, client.stream("stdout").await);
        let mut times = Vec::new();
        for _ in 0..500 {
            let start = Instant::now();
            stdin.write_all(b"x").await.expect("a reader");
            out.read_exact(&mut [0]).await.expect("an echo");
            times.push(start.elapsed());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        times.sort_unstable();
        let what = if load { "keystroke and echo, beside a full stream" } else { "keystroke and echo" };
        for (name, share) in [("median", 0.5), ("99 %", 0.99)] {
            let at = times[(times.len() as f64 * share) as usize];
            row(&format!("{what}, {name}"), format!("{:.2} ms", at.as_secs_f64() * 1e3));
        }
        if let Some(loading) = loading {
            loading.abort();
        }
    }
}

async fn listeners(count: usize) {
    let world = World::new().await;
    let (before, start) = (resident(), Instant::now());
    let mut open = Vec::with_capacity(count);
    for _ in 0..count {
        match world.server.listen(world.node.clone(), SocketAddr::from(([127, 0, 0, 1], 0))).await {
            Ok(listening) => open.push(listening),
            Err(error) => {
                row("listeners: stopped early", error);
                break;
            }
        }
    }
    // The last one answers, so all of them are being listened to.
    if let Some(last) = open.last() {
        let addr = SocketAddr::from(([127, 0, 0, 1], last.port()));
        TcpStream::connect(addr).await.expect("it accepts");
        drop(world::connect_to(addr, &world.certs).await);
    }
    row(
        &format!("{} listeners: until the last one answers", open.len()),
        format!("{:.0} ms", start.elapsed().as_secs_f64() * 1e3),
    );
    let each = resident().saturating_sub(before) / open.len().max(1) as u64;
    row("    memory of each, sockets aside", format!("{each} bytes"));
}

fn main() {
    let options = options();
    for (cores, threads) in [("one core", 1), ("two cores", 2)] {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
            .expect("a runtime");
        println!("| {:<58} | {:>16} |\n|{:-<60}|{:->17}:|", format!("streams, on {cores}"), "", "", "");
        runtime.block_on(async {
            streams(&options).await;
            latency().await;
        });
        if threads > 1 {
            runtime.block_on(listeners(options.listeners));
        }
        println!();
    }
}
