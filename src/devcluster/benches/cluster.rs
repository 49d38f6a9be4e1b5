//! What the cluster costs: `cargo bench -p vnode-devcluster --bench cluster [-- WHAT]`.
//!
//! The server runs in a process of its own with one worker thread, so that its CPU time and memory can be told from
//! the client's. "per CPU second" is what one core can do; the other columns also depend on what else the machine does.

#[allow(dead_code, reason = "the bench uses a part of it")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use serde_json::{Value, json};
use support::Client;
use vnode_devcluster::{DevCluster, Options};

/// As in the binary `vnode`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONNECTIONS: usize = 8;
const MEASURE: Duration = Duration::from_secs(4);
const SERVE: &str = "--serve-for-the-benchmark";
/// Clock ticks a second in /proc, the same on every Linux.
const TICKS: f64 = 100.0;

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

fn main() {
    let what: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if what.first().is_some_and(|argument| argument == SERVE) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        return runtime.block_on(async {
            let cluster = DevCluster::start(Options { controllers: false, ..Options::default() }).await.unwrap();
            println!("{}", cluster.admin_kubeconfig().unwrap().replace('\n', ""));
            std::future::pending::<()>().await;
        });
    }
    let chosen = |name: &str| what.is_empty() || what.iter().any(|wanted| name.contains(wanted.as_str()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        println!("{:<44}{:>12}{:>14}{:>12}", "", "per second", "per CPU sec", "target");
        if chosen("reads") {
            reads(&Server::start()).await;
        }
        if chosen("leases") {
            leases(&Server::start()).await;
        }
        if chosen("statuses") {
            statuses(&Server::start()).await;
        }
        if chosen("watchers") {
            watchers(&Server::start()).await;
        }
        println!("\n{:<44}{:>12}{:>14}{:>12}", "", "seconds", "CPU seconds", "MiB grown");
        if chosen("list") {
            // Making 100,000 pods takes half a minute, so they come only when asked for.
            list(&Server::start(), if what.is_empty() { 10_000 } else { 100_000 }).await;
        }
        if chosen("idle") {
            idle(&Server::start()).await;
        }
    });
}

/// The server's process.
struct Server {
    process: Child,
    client: Client,
}

impl Server {
    fn start() -> Self {
        let program = std::env::current_exe().unwrap();
        let mut process = Command::new(program).arg(SERVE).stdout(Stdio::piped()).spawn().unwrap();
        let mut kubeconfig = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut kubeconfig).unwrap();
        Self { process, client: Client::new(&kubeconfig) }
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.process.id())).unwrap()
    }

    /// CPU seconds, user and system.
    fn cpu(&self) -> f64 {
        let stat = self.proc("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS
    }

    /// MiB of `VmRSS` or `VmHWM`.
    fn memory(&self, which: &str) -> f64 {
        let status = self.proc("status");
        let line = status.lines().find(|line| line.starts_with(which)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    async fn make(&self, path: &str, object: &Value) {
        let answer = self.client.post(path, object).await;
        assert_eq!(answer.code, 201, "{}", answer.text());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn request(
    connection: &mut SendRequest<Full<Bytes>>,
    method: &str,
    path: &str,
    media: &str,
    body: String,
) -> (u16, Bytes) {
    let request = http::Request::builder().method(method).uri(path).header("host", "c").header("content-type", media);
    connection.ready().await.unwrap();
    let answer = connection.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
    let code = answer.status().as_u16();
    (code, answer.into_body().collect().await.unwrap().to_bytes())
}

/// The version of the object in an answer.
fn version(answer: &[u8]) -> String {
    const FIELD: &[u8] = b"\"resourceVersion\":\"";
    let at = answer.windows(FIELD.len()).position(|window| window == FIELD).unwrap() + FIELD.len();
    answer[at..].iter().take_while(|byte| byte.is_ascii_digit()).map(|byte| char::from(*byte)).collect()
}

/// Stands in a body for the version that the last answer told.
const VERSION: &str = "$version";

/// Sends what `make` says from all connections for a while and prints a line.
async fn measure(
    server: &Server,
    name: &str,
    target: u64,
    make: impl Fn(usize, u64) -> (&'static str, String, &'static str, String),
) {
    let make = &make;
    let done = AtomicU64::new(0);
    let done = &done;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(server.client.open().await.unwrap());
    }
    let (begun, cpu) = (Instant::now(), server.cpu());
    let senders = connections.into_iter().enumerate().map(|(i, mut connection)| async move {
        let (mut n, mut last) = (0, Bytes::new());
        while begun.elapsed() < MEASURE {
            let (method, path, media, body) = make(i, n);
            let body = if body.contains(VERSION) {
                if last.is_empty() {
                    last = request(&mut connection, "GET", &path, media, String::new()).await.1;
                }
                body.replace(VERSION, &version(&last))
            } else {
                body
            };
            let code;
            (code, last) = request(&mut connection, method, &path, media, body).await;
            assert!(code == 200 || code == 201, "{method} {path}: {code}");
            done.fetch_add(1, Ordering::Relaxed);
            n += 1;
        }
    });
    futures::future::join_all(senders).await;
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), server.cpu() - cpu);
    let done = done.load(Ordering::Relaxed) as f64;
    println!(
        "{name:<44}{:>12.0}{:>14.0}{:>12}",
        done / seconds,
        done / cpu,
        if target > 0 { target.to_string() } else { String::new() }
    );
}

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn lease(name: &str, renewed: u64) -> Value {
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40,
            "renewTime": format!("2026-01-01T{:02}:{:02}:{:02}.{:06}Z", renewed / 3600 % 24, renewed / 60 % 60, renewed % 60, renewed % 1_000_000)}})
}

fn pod(name: &str, node: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {"nodeName": format!("node-{node}"), "automountServiceAccountToken": false, "containers": [{
            "name": "main", "image": "registry.example.com/team/app:1.2.3", "args": ["--port=8080"],
            "env": [{"name": "A", "value": "b"}], "ports": [{"containerPort": 8080}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}]}})
}

fn status(n: u64) -> String {
    let time = format!("2026-01-01T{:02}:{:02}:{:02}Z", n / 3600 % 24, n / 60 % 60, n % 60);
    let condition = |kind: &str| json!({"type": kind, "status": if n.is_multiple_of(2) { "True" } else { "False" }, "lastTransitionTime": time});
    json!({"status": {"phase": "Running", "podIP": "10.0.0.1", "hostIP": "10.1.0.1", "startTime": "2026-01-01T00:00:00Z",
        "conditions": [condition("Ready"), condition("ContainersReady"), condition("Initialized"), condition("PodScheduled")],
        "containerStatuses": [{"name": "main", "image": "registry.example.com/team/app:1.2.3", "imageID": "", "ready": n.is_multiple_of(2),
            "restartCount": n, "started": true, "state": {"running": {"startedAt": time}}}]}})
    .to_string()
}

async fn service_account(server: &Server) {
    server
        .make(
            "/api/v1/namespaces/default/serviceaccounts",
            &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
        )
        .await;
}

async fn reads(server: &Server) {
    server.make(LEASES, &lease("l", 0)).await;
    measure(server, "small reads (a Lease)", 20_000, |_, _| ("GET", format!("{LEASES}/l"), "", String::new())).await;
}

async fn leases(server: &Server) {
    for i in 0..CONNECTIONS {
        server.make(LEASES, &lease(&format!("l{i}"), 0)).await;
    }
    measure(server, "lease updates (PUT)", 8_000, |i, n| {
        let mut lease = lease(&format!("l{i}"), n + 1);
        lease["metadata"]["resourceVersion"] = VERSION.into();
        ("PUT", format!("{LEASES}/l{i}"), "application/json", lease.to_string())
    })
    .await;
    measure(server, "lease updates (merge patch)", 0, |i, n| {
        let renewed = lease("", n + 2)["spec"]["renewTime"].clone();
        ("PATCH", format!("{LEASES}/l{i}"), MERGE, json!({"spec": {"renewTime": renewed}}).to_string())
    })
    .await;
}

async fn statuses(server: &Server) {
    service_account(server).await;
    for i in 0..CONNECTIONS {
        server.make(PODS, &pod(&format!("p{i}"), i)).await;
    }
    for (name, media, target) in
        [("pod status patches (strategic)", STRATEGIC, 5_000), ("pod status patches (merge)", MERGE, 0)]
    {
        measure(server, name, target, |i, n| ("PATCH", format!("{PODS}/p{i}/status"), media, status(n))).await;
    }
}

/// A thousand watchers, each of one node's pods: what they add to the cost of a change.
async fn watchers(server: &Server) {
    const WATCHERS: usize = 1000;
    service_account(server).await;
    for i in 0..CONNECTIONS {
        server.make(PODS, &pod(&format!("p{i}"), i)).await;
    }
    let patch = |i: usize, n: u64| ("PATCH", format!("{PODS}/p{i}/status"), STRATEGIC, status(n));
    measure(server, "pod status patches, nobody watches", 0, patch).await;
    let seen = Arc::new(AtomicU64::new(0));
    for node in 0..WATCHERS {
        let mut connection = server.client.open().await.unwrap();
        let path = format!("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dnode-{node}");
        let watch = http::Request::builder().uri(path).header("host", "c").body(Full::default()).unwrap();
        let answer = connection.send_request(watch).await.unwrap();
        let seen = seen.clone();
        tokio::spawn(async move {
            let _connection = connection;
            let mut body = answer.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                let lines = frame.into_data().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
                seen.fetch_add(lines as u64, Ordering::Relaxed);
            }
        });
    }
    measure(server, "the same, 1,000 watchers, one for each pod", 0, patch).await;
    for i in 0..CONNECTIONS {
        server.make(PODS, &pod(&format!("elsewhere{i}"), WATCHERS + i)).await;
    }
    let before = seen.load(Ordering::Relaxed);
    measure(server, "the same, 1,000 watchers, none of these pods", 0, |i, n| {
        ("PATCH", format!("{PODS}/elsewhere{i}/status"), STRATEGIC, status(n))
    })
    .await;
    assert!(
        before > 0 && seen.load(Ordering::Relaxed) - before <= CONNECTIONS as u64,
        "watchers see their own pods alone"
    );
}

async fn list(server: &Server, objects: usize) {
    service_account(server).await;
    let template = pod("", 0);
    let (begun, cpu) = (Instant::now(), server.cpu());
    let fillers = (0..CONNECTIONS).map(|i| {
        let template = template.clone();
        async move {
            let mut connection = server.client.open().await.unwrap();
            for n in (i..objects).step_by(CONNECTIONS) {
                let mut pod = template.clone();
                pod["metadata"]["name"] = format!("pod-{n}").into();
                pod["spec"]["nodeName"] = format!("node-{}", n % 1000).into();
                assert_eq!(request(&mut connection, "POST", PODS, "application/json", pod.to_string()).await.0, 201);
            }
        }
    });
    futures::future::join_all(fillers).await;
    let filled = server.memory("VmRSS");
    println!(
        "{:<44}{:>12.1}{:>14.1}{:>12.0}",
        format!("creating {objects} pods"),
        begun.elapsed().as_secs_f64(),
        server.cpu() - cpu,
        filled
    );
    for (name, query) in [
        ("listing them", "?resourceVersion=0"),
        ("those of one node in 1,000", "?fieldSelector=spec.nodeName%3Dnode-7"),
    ] {
        let (begun, cpu, before) = (Instant::now(), server.cpu(), server.memory("VmHWM"));
        let mut connection = server.client.open().await.unwrap();
        let get = http::Request::builder()
            .uri(format!("/api/v1/pods{query}"))
            .header("host", "c")
            .body(Full::default())
            .unwrap();
        let mut body = connection.send_request(get).await.unwrap().into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame.unwrap().into_data().map_or(0, |data| data.len());
        }
        let grown = server.memory("VmHWM") - before;
        let line = format!("{name}, {} MiB", length >> 20);
        println!("{line:<44}{:>12.2}{:>14.2}{grown:>12.0}", begun.elapsed().as_secs_f64(), server.cpu() - cpu);
    }
}

async fn idle(server: &Server) {
    const IDLE: usize = 10_000;
    let (begun, cpu, before) = (Instant::now(), server.cpu(), server.memory("VmRSS"));
    let mut connections = Vec::with_capacity(IDLE);
    for n in 0..IDLE {
        match server.client.connect().await {
            Ok(connection) => connections.push(connection),
            Err(error) => {
                println!("stopped at {n} connections: {error} (is the limit on open files low?)");
                break;
            }
        }
    }
    let name = format!("opening {} connections and leaving them", connections.len());
    let (seconds, cpu, grown) = (begun.elapsed().as_secs_f64(), server.cpu() - cpu, server.memory("VmRSS") - before);
    println!("{name:<44}{seconds:>12.2}{cpu:>14.2}{grown:>12.0}");
    let (begun, cpu) = (Instant::now(), server.cpu());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let name = "leaving them alone";
    println!("{name:<44}{:>12.2}{:>14.2}{:>12}", begun.elapsed().as_secs_f64(), server.cpu() - cpu, "");
    assert_eq!(server.client.get("/healthz").await.code, 200);
    drop(connections);
}
