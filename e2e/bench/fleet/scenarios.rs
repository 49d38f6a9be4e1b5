//! The life of a fleet, one thing after the other.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use vnode::api::VirtualNode;

use super::common::{Result, counter, percentile};
use super::report::Report;
use super::watch::{Follower, Pods, api};
use super::{Bed, Options};

/// No step may take longer.
const PATIENCE: Duration = Duration::from_secs(900);
/// Requests of the benchmark under way at a time.
const AT_A_TIME: usize = 32;

/// Creates VirtualNodes with names from `first` on, and waits until they are Ready.
pub async fn nodes(client: &Client, bed: &Bed, options: &Options, nodes: usize, report: &mut Report) -> Result<()> {
    let empty = bed.rss();
    let start = Instant::now();
    let vns = api::<VirtualNode>(client, None);
    let ready = Follower::new(vns, |ready: &mut HashSet<String>, name, vn| {
        if vn.and_then(|v| v.status).is_some_and(|s| s.ready()) {
            ready.insert(name);
        }
    })
    .await?;
    let latency = options.provider_latency;
    each(nodes, |n| create_node(client, format!("bench-{n}"), json!({"startLatencyMs": latency}))).await?;
    ready.until("all nodes are ready", PATIENCE, |r| r.len() >= nodes).await?;
    report.note("VirtualNodes created → all Ready", "s", "≤ 10 (1,000), ≤ 60 (10,000)", start.elapsed().as_secs_f64());
    report.note("operator, processor time for it", "s", "", bed.cpu());
    report.note("cluster, processor time for it", "s", "", bed.cluster_cpu());
    report.note("operator, resident memory", "MiB", "≤ 200 (10,000)", bed.rss());
    report.note("operator, resident memory a node", "KiB", "≤ 20", (bed.rss() - empty) / nodes as f64 * 1024.0);
    Ok(())
}

pub async fn create_node(client: &Client, name: String, mock: serde_json::Value) -> Result<()> {
    let vn = serde_json::from_value(json!({
        "apiVersion": "vnode.dev/v1alpha1", "kind": "VirtualNode", "metadata": {"name": name},
        "spec": {"provider": {"type": "mock", "mock": mock}, "capacity": {"pods": "250", "cpu": "64"}},
    }))?;
    Api::<VirtualNode>::all(client.clone()).create(&PostParams::default(), &vn).await?;
    Ok(())
}

/// Runs `make` for all numbers, some at a time.
pub async fn each<F: Future<Output = Result<()>>>(count: usize, make: impl Fn(usize) -> F) -> Result<()> {
    stream::iter(0..count).map(make).buffer_unordered(AT_A_TIME).try_collect::<Vec<()>>().await?;
    Ok(())
}

pub async fn create_pod(client: &Client, name: String, node: String) -> Result<()> {
    let pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}], "tolerations": [{"operator": "Exists"}]},
    }))?;
    Api::<Pod>::namespaced(client.clone(), "default").create(&PostParams::default(), &pod).await?;
    Ok(())
}

/// What the fleet costs while nothing happens.
pub async fn idle(bed: &Bed, options: &Options, nodes: usize, report: &mut Report) {
    // Until what was begun is done.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let requests = || bed.metrics.iter().map(|m| counter(m, "vnode_api_requests_total")).sum::<f64>();
    let (cpu, before) = (bed.cpu(), requests());
    tokio::time::sleep(options.idle).await;
    let seconds = options.idle.as_secs_f64();
    let per_node = (requests() - before) / nodes as f64 / seconds * 60.0;
    report.note("idle: requests per node per minute", "", "≤ 6.5", per_node);
    report.note(
        "idle: operator, share of one processor",
        "%",
        "≤ 5 (1,000), ≤ 25 (10,000)",
        (bed.cpu() - cpu) / seconds * 100.0,
    );
}

/// Creates all pods as fast as the cluster takes them.
pub async fn fill(client: &Client, bed: &Bed, nodes: usize, pods: usize, report: &mut Report) -> Result<()> {
    let (cpu, cluster_cpu, start) = (bed.cpu(), bed.cluster_cpu(), Instant::now());
    let seen = Pods::follow(client, "fill-").await?;
    each(pods, |n| create_pod(client, format!("fill-{n}"), format!("bench-{}", n % nodes))).await?;
    seen.until("all pods run", PATIENCE, |p| p.running.len() >= pods).await?;
    let took = start.elapsed().as_secs_f64();
    let latencies = seen.look(Pods::latencies);
    report.note("pods created → all Running", "pods/s", "≥ 500 (1,000), ≥ 1,500", pods as f64 / took);
    report.note("the same: bind → Running, p50", "ms", "", percentile(&latencies, 0.5));
    report.note("the same: bind → Running, p99", "ms", "", percentile(&latencies, 0.99));
    report.note("operator, processor time for the pods", "s", "", bed.cpu() - cpu);
    report.note("cluster, processor time for the pods", "s", "", bed.cluster_cpu() - cluster_cpu);
    report.note("operator, resident memory with pods", "MiB", "≤ 100 (1,000), ≤ 800", bed.rss());
    Ok(())
}

/// Pods at a steady rate, and how long each takes to run; the latencies in order.
async fn steady(client: &Client, nodes: usize, options: &Options, begin: &'static str) -> Result<Vec<f64>> {
    let seen = Pods::follow(client, begin).await?;
    let count = options.rate * options.seconds;
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / options.rate as f64));
    let mut creating = tokio::task::JoinSet::new();
    for n in 0..count {
        ticks.tick().await;
        let (client, node) = (client.clone(), format!("bench-{}", n % nodes));
        creating
            .spawn(async move { create_pod(&client, format!("{begin}{n}"), node).await.map_err(|e| e.to_string()) });
    }
    while let Some(created) = creating.join_next().await {
        created??;
    }
    seen.until("all of them run", PATIENCE, |p| p.running.len() >= count).await?;
    Ok(seen.look(Pods::latencies))
}

/// Pods at a steady rate, alone and beside a node whose provider hangs.
pub async fn churn(client: &Client, nodes: usize, options: &Options, report: &mut Report) -> Result<()> {
    let alone = steady(client, nodes, options, "steady-").await?;
    report.note("steady rate: bind → Running, p50", "ms", "≤ 20", percentile(&alone, 0.5));
    report.note("steady rate: bind → Running, p99", "ms", "≤ 150", percentile(&alone, 0.99));
    create_node(client, "hanging".into(), json!({"fault": "hang"})).await?;
    each(100, |n| create_pod(client, format!("stuck-{n}"), "hanging".into())).await?;
    let beside = steady(client, nodes, options, "beside-").await?;
    report.note("the same beside a provider that hangs: p99", "ms", "within 10 %", percentile(&beside, 0.99));
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let now = DeleteParams::default().grace_period(0);
    each(100, |n| {
        let (pods, now) = (pods.clone(), now.clone());
        async move { Ok(pods.delete(&format!("stuck-{n}"), &now).await.map(drop)?) }
    })
    .await?;
    Api::<VirtualNode>::all(client.clone()).delete("hanging", &DeleteParams::default()).await?;
    Ok(())
}

/// The operator is killed and started again.
pub async fn restart(client: &Client, bed: &mut Bed, nodes: usize, report: &mut Report) -> Result<()> {
    let touched = Follower::new(api::<Pod>(client, Some("default")), |n: &mut usize, _, _| *n += 1).await?;
    bed.kill(0);
    let begun = jiff::Timestamp::now().to_string();
    let leases = api::<Lease>(client, Some("kube-node-lease"));
    let renewed = Follower::new(leases, move |renewed: &mut HashSet<String>, name, lease| {
        // Both are RFC 3339 in UTC, so their order is that of the text.
        if lease.and_then(|l| l.spec.renew_time).is_some_and(|t| t > begun) {
            renewed.insert(name);
        }
    })
    .await?;
    let start = Instant::now();
    bed.start(0)?;
    renewed.until("all leases are renewed", PATIENCE, |r| r.len() >= nodes).await?;
    report.note("killed and started again → all nodes served", "s", "≤ 30 (10,000)", start.elapsed().as_secs_f64());
    // What it would do wrong it does after it has compared pods with providers.
    tokio::time::sleep(Duration::from_secs(5)).await;
    report.note("the same: writes of pods", "", "0", touched.look(|n| *n as f64));
    Ok(())
}

/// One of several replicas is killed.
pub async fn takeover(client: &Client, bed: &mut Bed, report: &mut Report) -> Result<()> {
    let touched = Follower::new(api::<Pod>(client, Some("default")), |n: &mut usize, _, _| *n += 1).await?;
    let unready = Follower::new(api::<Node>(client, None), |unready: &mut HashSet<String>, name, node| {
        if node.is_some_and(|n| !n.status.is_some_and(|s| s.ready())) {
            unready.insert(name);
        }
    })
    .await?;
    let victim = bed.name(0);
    let all = api::<VirtualNode>(client, None).list(&ListParams::default()).await?.items;
    let of = |shard: Option<String>| shard.as_deref() == Some(victim.as_str());
    let held: HashSet<String> = all
        .into_iter()
        .filter(|v| of(v.status.clone().and_then(|s| s.shard)))
        .filter_map(|v| v.metadata.name)
        .collect();
    report.note("one replica of several: nodes that it holds", "", "", held.len() as f64);
    let (vns, lost) = (api::<VirtualNode>(client, None), held.len());
    let moved = Follower::new(vns, move |moved: &mut HashSet<String>, name, vn| {
        let shard = vn.and_then(|v| v.status).and_then(|s| s.shard);
        if held.contains(&name) && shard.is_some_and(|s| s != victim) {
            moved.insert(name);
        }
    })
    .await?;
    bed.kill(0);
    let took = moved.until("the others have its nodes", PATIENCE, |m| m.len() >= lost).await?;
    report.note("killed → the others have its nodes", "s", "≤ 20 (3,000)", took.as_secs_f64());
    // As long as the cluster takes to find a node lost.
    tokio::time::sleep(Duration::from_secs(50).saturating_sub(took)).await;
    report.note("the same: nodes that were not Ready", "", "0", unready.look(|u| u.len() as f64));
    report.note("the same: writes of pods (each has another hostIP)", "", "one each", touched.look(|n| *n as f64));
    Ok(())
}

/// All pods are deleted at once.
pub async fn clear(client: &Client, bed: &Bed, report: &mut Report) -> Result<()> {
    let count = api::<Pod>(client, Some("default")).list(&ListParams::default()).await?.items.len();
    let seen =
        Follower::new(api::<Pod>(client, Some("default")), |n: &mut usize, _, pod| *n += usize::from(pod.is_none()))
            .await?;
    let (cpu, cluster_cpu, start) = (bed.cpu(), bed.cluster_cpu(), Instant::now());
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    let asked = start.elapsed().as_secs_f64();
    seen.until("all pods are gone", PATIENCE, |n| *n >= count).await?;
    report.note("pods deleted → all gone", "pods/s", "≥ 1,500", count as f64 / start.elapsed().as_secs_f64());
    report.note("the same: until the API server had marked all", "s", "", asked);
    report.note("operator, processor time for the deletion", "s", "", bed.cpu() - cpu);
    report.note("cluster, processor time for the deletion", "s", "", bed.cluster_cpu() - cluster_cpu);
    Ok(())
}
