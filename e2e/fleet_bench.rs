//! What a fleet costs: `cargo bench --bench fleet -- [--nodes 1000] [--pods 10000] [--idle-seconds 60]`.
//!
//! The cluster and the operator are processes of their own, so that each one's memory and processor time can
//! be told apart. With `VNODE_E2E_KUBECONFIG` the cluster is the one that the file names. Prints one table.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client, Config};
use serde_json::json;
use vnode::api::VirtualNode;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

struct Options {
    nodes: usize,
    pods: usize,
    idle: Duration,
}

fn options() -> Result<Options> {
    let mut options = Options { nodes: 1_000, pods: 10_000, idle: Duration::from_secs(60) };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().ok_or("a number must follow")?.parse::<usize>().map_err(|e| e.to_string());
        match word.as_str() {
            "--nodes" => options.nodes = number()?,
            "--pods" => options.pods = number()?,
            "--idle-seconds" => options.idle = Duration::from_secs(number()? as u64),
            "--bench" => {} // cargo adds it
            other => return Err(format!("unknown option {other}; there are --nodes, --pods and --idle-seconds").into()),
        }
    }
    Ok(options)
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Resident memory in MiB.
    fn rss(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|l| l.split_whitespace().next());
        kib.and_then(|k| k.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
    }

    /// Processor time used so far, in seconds. proc(5): utime and stime in ticks of 10 ms.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default();
        let ticks = |n: usize| after.split_whitespace().nth(n).and_then(|t| t.parse::<f64>().ok()).unwrap_or(f64::NAN);
        (ticks(11) + ticks(12)) / 100.0
    }
}

fn start_cluster(kubeconfig: &PathBuf) -> Result<Process> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vnode"));
    command.args(["dev", "--cluster-only", "--listen", "127.0.0.1:0", "--kubeconfig-out"]).arg(kubeconfig);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("piped")?).lines();
    lines
        .by_ref()
        .map_while(std::result::Result::ok)
        .find(|l| l.contains("https://"))
        .ok_or("the cluster did not start")?;
    std::thread::spawn(move || lines.for_each(drop));
    Ok(Process(child))
}

fn start_operator(kubeconfig: &PathBuf, metrics: &str) -> Result<Process> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vnode"));
    command.arg("operator").arg("--kubeconfig").arg(kubeconfig).args(["--kubelet-ports", "20000-29999"]);
    command.args(["--node-ip", "127.0.0.1", "--kubelet-bind-address", "127.0.0.1", "--metrics-addr", metrics]);
    Ok(Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
}

/// The sum of a counter over its labels.
fn counter(metrics: &str, name: &str) -> f64 {
    let text = Command::new("curl").args(["-s", "-m", "10", &format!("http://{metrics}/metrics")]).output();
    let text = text.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let value = |l: &str| l.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok());
    text.lines().filter(|l| l.starts_with(name)).filter_map(value).sum()
}

fn free_address() -> Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = ((sorted.len() as f64 - 1.0) * share).round().max(0.0) as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn row(what: &str, value: String, target: &str) {
    println!("| {what:<58} | {value:>12} | {target:>10} |");
}

async fn nodes_ready(client: &Client, nodes: usize) -> Result<Duration> {
    let api: Api<VirtualNode> = Api::all(client.clone());
    let start = Instant::now();
    let watching = api.clone();
    let ready = tokio::spawn(async move {
        let mut ready = std::collections::HashSet::new();
        let mut version = "0".to_owned();
        while ready.len() < nodes {
            let params = WatchParams::default().timeout(290);
            let Ok(events) = watching.watch(&params, &version).await else { continue };
            let mut events = events.boxed();
            while let Ok(Some(event)) = events.try_next().await {
                if let WatchEvent::Added(vn) | WatchEvent::Modified(vn) = event {
                    version = vn.metadata.resource_version.clone().unwrap_or_default();
                    let conditions = vn.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
                    if vnode::api::conditions::is_true(conditions, "Ready") {
                        ready.insert(vn.metadata.name.unwrap_or_default());
                    }
                    if ready.len() >= nodes {
                        return;
                    }
                }
            }
        }
    });
    stream::iter(0..nodes)
        .map(|n| {
            let api = api.clone();
            async move {
                let vn = serde_json::from_value(json!({
                    "apiVersion": "vnode.dev/v1alpha1", "kind": "VirtualNode",
                    "metadata": {"name": format!("bench-{n}")},
                    "spec": {"provider": {"type": "mock", "mock": {}}, "capacity": {"pods": "250", "cpu": "64"}},
                }))?;
                api.create(&PostParams::default(), &vn).await?;
                Ok::<_, Box<dyn std::error::Error>>(())
            }
        })
        .buffer_unordered(32)
        .try_collect::<Vec<()>>()
        .await?;
    tokio::time::timeout(Duration::from_secs(600), ready).await??;
    Ok(start.elapsed())
}

async fn pods_running(client: &Client, nodes: usize, pods: usize) -> Result<(Duration, Vec<f64>)> {
    let api: Api<Pod> = Api::namespaced(client.clone(), "default");
    let version =
        api.list_metadata(&ListParams::default().limit(1)).await?.metadata.resource_version.unwrap_or_default();
    let watching = api.clone();
    let start = Instant::now();
    let running = tokio::spawn(async move {
        let (mut bound, mut latencies, mut version) = (HashMap::new(), HashMap::new(), version);
        while latencies.len() < pods {
            let Ok(events) = watching.watch(&WatchParams::default().timeout(290), &version).await else { continue };
            let mut events = events.boxed();
            while let Ok(Some(event)) = events.try_next().await {
                if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event {
                    version = pod.metadata.resource_version.clone().unwrap_or_default();
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    if pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()) {
                        bound.entry(name.clone()).or_insert_with(Instant::now);
                    }
                    if pod.status.and_then(|s| s.phase).as_deref() == Some("Running")
                        && let Some(since) = bound.get(&name)
                    {
                        latencies.entry(name).or_insert_with(|| since.elapsed().as_secs_f64() * 1000.0);
                    }
                    if latencies.len() >= pods {
                        break;
                    }
                }
            }
        }
        latencies.into_values().collect::<Vec<_>>()
    });
    stream::iter(0..pods)
        .map(|n| {
            let api = api.clone();
            async move {
                let pod = serde_json::from_value(json!({
                    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("bench-{n}")},
                    "spec": {"nodeName": format!("bench-{}", n % nodes), "containers": [{"name": "c", "image": "i"}],
                        "tolerations": [{"operator": "Exists"}]},
                }))?;
                api.create(&PostParams::default(), &pod).await?;
                Ok::<_, Box<dyn std::error::Error>>(())
            }
        })
        .buffer_unordered(32)
        .try_collect::<Vec<()>>()
        .await?;
    let mut latencies = tokio::time::timeout(Duration::from_secs(900), running).await??;
    latencies.sort_by(f64::total_cmp);
    Ok((start.elapsed(), latencies))
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = options()?;
    let dir = tempfile::tempdir()?;
    let own = dir.path().join("kubeconfig");
    let (kubeconfig, cluster) = match std::env::var_os("VNODE_E2E_KUBECONFIG") {
        Some(file) => (PathBuf::from(file), None),
        None => (own.clone(), Some(start_cluster(&own)?)),
    };
    let metrics = free_address()?;
    let operator = start_operator(&kubeconfig, &metrics)?;
    let config =
        Config::from_custom_kubeconfig(kube::config::Kubeconfig::read_from(&kubeconfig)?, &Default::default()).await?;
    let client = Client::try_from(config)?;

    println!("| {:<58} | {:>12} | {:>10} |", "figure", "measured", "target");
    println!("|{:-<60}|{:->14}|{:->12}|", "", ":", ":");
    let empty = operator.rss();
    let took = nodes_ready(&client, options.nodes).await?;
    let nodes = options.nodes;
    row(&format!("{nodes} VirtualNodes created → all Ready, s"), format!("{:.1}", took.as_secs_f64()), "≤ 10");
    row("operator, resident memory before and with them, MiB", format!("{empty:.0} → {:.0}", operator.rss()), "");
    row("operator, processor time for it, s", format!("{:.1}", operator.cpu()), "");
    if let Some(cluster) = &cluster {
        row("cluster, processor time for it, s", format!("{:.1}", cluster.cpu()), "");
    }

    let (cpu, cluster_cpu) = (operator.cpu(), cluster.as_ref().map_or(0.0, Process::cpu));
    let (took, latencies) = pods_running(&client, nodes, options.pods).await?;
    row(
        &format!("{} pods created → all Running, pods/s", options.pods),
        format!("{:.0}", options.pods as f64 / took.as_secs_f64()),
        "≥ 500",
    );
    row(
        "bind → Running, p50 / p99, ms",
        format!("{:.0} / {:.0}", percentile(&latencies, 0.5), percentile(&latencies, 0.99)),
        "",
    );
    row("operator, resident memory with both, MiB", format!("{:.0}", operator.rss()), "≤ 100");
    row("operator, processor time for the pods, s", format!("{:.1}", operator.cpu() - cpu), "");
    if let Some(cluster) = &cluster {
        row("cluster, processor time for the pods, s", format!("{:.1}", cluster.cpu() - cluster_cpu), "");
        row("cluster, resident memory with both, MiB", format!("{:.0}", cluster.rss()), "");
    }

    // Until what the start left to do is done.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (cpu, requests) = (operator.cpu(), counter(&metrics, "vnode_api_requests_total"));
    tokio::time::sleep(options.idle).await;
    let seconds = options.idle.as_secs_f64();
    let per_node = (counter(&metrics, "vnode_api_requests_total") - requests) / nodes as f64 / seconds * 60.0;
    row("idle: requests per node per minute", format!("{per_node:.2}"), "≤ 7");
    row("idle: operator, share of one processor, %", format!("{:.1}", (operator.cpu() - cpu) / seconds * 100.0), "≤ 5");

    if cluster.is_none() {
        let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
        pods.delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default()).await?;
        Api::<VirtualNode>::all(client).delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    }
    Ok(())
}
