//! What pods cost: `cargo bench --bench pods -- [--pods 100] [--configs 1000] [--changes 20]`.
//!
//! Providers that run programs are measured on one node each, pod after pod; the resolving of environments on a simulated
//! node, so that nothing but the resolving is measured. Containers are those of a Podman of its own, where one can be
//! started. Prints one table.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use vnode::api::VirtualNode;

#[path = "common.rs"]
mod common;
#[cfg(feature = "docker")]
#[path = "../support/podman.rs"]
mod podman;
#[path = "table.rs"]
mod table;

use common::{Process, Result, counter, free_address, percentile, start_cluster, start_operator};
use table::{heading, row};

struct Options {
    pods: usize,
    configs: usize,
    changes: usize,
}

fn options() -> Result<Options> {
    let mut options = Options { pods: 100, configs: 1_000, changes: 20 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().ok_or("a number must follow")?.parse::<usize>().map_err(|e| e.to_string());
        match word.as_str() {
            "--pods" => options.pods = number()?,
            "--configs" => options.configs = number()?,
            "--changes" => options.changes = number()?,
            "--bench" => {} // cargo adds it
            other => return Err(format!("unknown option {other}; there are --pods, --configs and --changes").into()),
        }
    }
    Ok(options)
}

async fn node(client: &Client, name: &str, provider: Value) -> Result<()> {
    let api: Api<VirtualNode> = Api::all(client.clone());
    let vn = serde_json::from_value(json!({
        "apiVersion": "vnode.dev/v1alpha1", "kind": "VirtualNode", "metadata": {"name": name},
        "spec": {"provider": provider, "capacity": {"pods": "5000", "cpu": "1000", "memory": "10Ti"}},
    }))?;
    api.create(&PostParams::default(), &vn).await?;
    let ready = kube::runtime::wait::await_condition(api, name, |vn: Option<&VirtualNode>| {
        let conditions = vn.and_then(|vn| vn.status.as_ref()).map(|s| s.conditions.as_slice()).unwrap_or_default();
        vnode::api::conditions::is_true(conditions, "Ready")
    });
    tokio::time::timeout(Duration::from_secs(60), ready).await??;
    Ok(())
}

fn pod(name: &str, node: &str, container: &Value, volumes: &Value) -> Result<Pod> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [container], "volumes": volumes, "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0, "tolerations": [{"operator": "Exists"}]},
    }))?)
}

/// Creates pods, `at_a_time`, and returns how long each took to run, in ms and sorted, and how long all did.
async fn run(client: &Client, pods: Vec<Pod>, at_a_time: usize) -> Result<(Vec<f64>, Duration)> {
    let api: Api<Pod> = Api::namespaced(client.clone(), "default");
    let list = api.list_metadata(&ListParams::default().limit(1)).await?;
    let version = list.metadata.resource_version.unwrap_or_default();
    let wanted: HashMap<String, ()> = pods.iter().filter_map(|p| Some((p.metadata.name.clone()?, ()))).collect();
    let watching = api.clone();
    let running = tokio::spawn(async move {
        let (mut at, mut version) = (HashMap::new(), version);
        while at.len() < wanted.len() {
            let Ok(events) = watching.watch(&WatchParams::default().timeout(290), &version).await else { continue };
            let mut events = events.boxed();
            while let Ok(Some(event)) = events.try_next().await {
                let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else { continue };
                version = pod.metadata.resource_version.clone().unwrap_or_default();
                let name = pod.metadata.name.unwrap_or_default();
                if pod.status.and_then(|s| s.phase).as_deref() == Some("Running") && wanted.contains_key(&name) {
                    at.entry(name).or_insert_with(Instant::now);
                }
                if at.len() >= wanted.len() {
                    break;
                }
            }
        }
        at
    });
    let begin = Instant::now();
    // They are bound when they are made.
    let bound: HashMap<String, Instant> = stream::iter(pods)
        .map(|pod| {
            let api = api.clone();
            async move {
                let since = Instant::now();
                api.create(&PostParams::default(), &pod).await?;
                Ok::<_, kube::Error>((pod.metadata.name.unwrap_or_default(), since))
            }
        })
        .buffer_unordered(at_a_time)
        .try_collect()
        .await?;
    let at = tokio::time::timeout(Duration::from_secs(900), running).await??;
    let took = begin.elapsed();
    let since = |(name, at): (&String, &Instant)| Some((*at - *bound.get(name)?).as_secs_f64() * 1000.0);
    let mut latencies: Vec<f64> = at.iter().filter_map(since).collect();
    latencies.sort_by(f64::total_cmp);
    Ok((latencies, took))
}

/// Memory of the supervisors below a folder, in MiB: resident, and their proportional share.
fn supervisors(state: &str) -> (usize, f64, f64) {
    let (mut count, mut resident, mut share) = (0, 0.0, 0.0);
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if !(line.contains("supervise") && line.contains(state)) {
            continue;
        }
        let rollup = std::fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
        let kib = |field: &str| {
            let found = rollup.lines().find_map(|l| l.strip_prefix(field)).and_then(|l| l.split_whitespace().next());
            found.and_then(|k| k.parse::<f64>().ok()).unwrap_or(f64::NAN)
        };
        count += 1;
        resident += kib("Rss:") / 1024.0;
        share += kib("Pss:") / 1024.0;
    }
    (count, resident, share)
}

/// How long changes of a ConfigMap take to be seen by a running process, in seconds and sorted.
async fn volume_updates(client: &Client, dir: &std::path::Path, changes: usize) -> Result<Vec<f64>> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let map = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "live"}, "data": {"key": value}});
    maps.create(&PostParams::default(), &serde_json::from_value(map("start"))?).await?;
    let seen = dir.join("seen");
    let script = format!(
        "while :; do cat $VNODE_CONTAINER_ROOT/live/key > {0}.part && mv {0}.part {0}; sleep 0.1; done",
        seen.display()
    );
    let container = json!({"name": "c", "image": "host", "command": ["sh", "-c", script], "volumeMounts": [{"name": "v", "mountPath": "/live"}]});
    run(
        client,
        vec![pod("live", "bench-process", &container, &json!([{"name": "v", "configMap": {"name": "live"}}]))?],
        1,
    )
    .await?;
    let mut took = Vec::new();
    for n in 0..changes {
        let value = format!("change-{n}");
        maps.patch("live", &PatchParams::default(), &Patch::Merge(json!({"data": {"key": value}}))).await?;
        let since = Instant::now();
        while std::fs::read_to_string(&seen).unwrap_or_default() != value {
            if since.elapsed() > Duration::from_secs(120) {
                return Err(format!("{value} was not seen within two minutes").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        took.push(since.elapsed().as_secs_f64());
    }
    took.sort_by(f64::total_cmp);
    Ok(took)
}

async fn environments(client: &Client, configs: usize) -> Result<(Vec<f64>, Duration)> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    stream::iter(0..configs)
        .map(|n| {
            let maps = maps.clone();
            async move {
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("env-{n}")},
                    "data": {"A": "1", "B": "2", "C": "3"}});
                maps.create(&PostParams::default(), &serde_json::from_value(map)?).await?;
                Ok::<_, Box<dyn std::error::Error>>(())
            }
        })
        .buffer_unordered(32)
        .try_collect::<Vec<()>>()
        .await?;
    let container = |n: usize| {
        json!({"name": "c", "image": "i", "envFrom": [{"configMapRef": {"name": format!("env-{n}")}}],
            "env": [{"name": "D", "value": "$(A)$(B)$(C)"}]})
    };
    let pods = (0..configs).map(|n| pod(&format!("env-{n}"), "bench-mock", &container(n), &json!([])));
    run(client, pods.collect::<Result<_>>()?, 32).await
}

fn latency(what: &str, sorted: &[f64], unit: &str) {
    let (p50, p99) = (percentile(sorted, 0.5), percentile(sorted, 0.99));
    let digits = usize::from(unit == "s");
    row(&format!("{what}, p50 / p99, {unit}"), format!("{p50:.digits$} / {p99:.digits$}"), "");
}

async fn clear(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    pods.delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default()).await?;
    while !pods.list_metadata(&ListParams::default()).await?.items.is_empty() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

async fn measure(
    client: &Client,
    operator: &Process,
    metrics: &str,
    state: &std::path::Path,
    o: &Options,
) -> Result<()> {
    heading();
    node(client, "bench-mock", json!({"type": "mock", "mock": {}})).await?;
    let (cpu, reads) = (operator.cpu(), counter(metrics, "vnode_api_requests_total"));
    let (latencies, took) = environments(client, o.configs).await?;
    latency(&format!("{} pods, a ConfigMap each: bind → Running", o.configs), &latencies, "ms");
    row("the same, pods/s", format!("{:.0}", o.configs as f64 / took.as_secs_f64()), "");
    row("the same, operator's processor time, s", format!("{:.2}", operator.cpu() - cpu), "");
    let requests = (counter(metrics, "vnode_api_requests_total") - reads) / o.configs as f64;
    row("the same, requests for each pod", format!("{requests:.1}"), "");
    clear(client).await?;

    let config = json!({"type": "process", "process": {"allowRoot": true, "podIP": "127.0.0.1"}});
    node(client, "bench-process", config).await?;
    let container = json!({"name": "c", "image": "host", "command": ["sleep", "100000"]});
    let pods = |prefix: &str, count: usize| -> Result<Vec<Pod>> {
        (0..count).map(|n| pod(&format!("{prefix}-{n}"), "bench-process", &container, &json!([]))).collect()
    };
    let (latencies, _) = run(client, pods("alone", 1)?, 1).await?;
    row("process: the first pod, bind → Running, ms", format!("{:.0}", percentile(&latencies, 0.5)), "");
    let mut one_by_one = Vec::new();
    for pod in pods("single", o.pods.min(20))? {
        one_by_one.extend(run(client, vec![pod], 1).await?.0);
    }
    one_by_one.sort_by(f64::total_cmp);
    latency("process, one after the other: bind → Running", &one_by_one, "ms");
    clear(client).await?;
    let (before, cpu) = (operator.rss(), operator.cpu());
    let (latencies, took) = run(client, pods("many", o.pods)?, 16).await?;
    latency(&format!("process, {} at the same time: bind → Running", o.pods), &latencies, "ms");
    row("the same, pods/s", format!("{:.1}", o.pods as f64 / took.as_secs_f64()), "");
    row(
        "the same, operator's processor time for each, ms",
        format!("{:.1}", (operator.cpu() - cpu) * 1000.0 / o.pods as f64),
        "",
    );
    let (count, resident, share) = supervisors(&state.display().to_string());
    let each = |mib: f64, count: usize| mib * 1024.0 / count.max(1) as f64;
    row(
        "memory of the operator for each running pod, KiB",
        format!("{:.0}", each(operator.rss() - before, o.pods)),
        "",
    );
    row(
        "memory of a supervisor, resident / share, KiB",
        format!("{:.0} / {:.0}", each(resident, count), each(share, count)),
        "",
    );
    clear(client).await?;

    let took = volume_updates(client, state, o.changes).await?;
    latency("a change of a ConfigMap → in the files of a process", &took, "s");
    clear(client).await
}

/// An engine is so much slower than all else that a few pods tell enough.
#[cfg(feature = "docker")]
async fn containers(client: &Client, o: &Options) -> Result<()> {
    const FEW: usize = 20;
    let Some(engine) = podman::Podman::start() else { return Ok(()) };
    let config = json!({"type": "docker", "docker": {
        "host": engine.host(), "sandboxImage": podman::IMAGE, "sandboxCommand": ["sleep", "1000000"]}});
    node(client, "bench-docker", config).await?;
    let container = json!({"name": "c", "image": podman::IMAGE, "command": ["sleep", "100000"]});
    let pods = |prefix: &str| -> Result<Vec<Pod>> {
        let names = (0..o.pods.min(FEW)).map(|n| format!("{prefix}-{n}"));
        names.map(|name| pod(&name, "bench-docker", &container, &json!([]))).collect()
    };
    let mut one_by_one = Vec::new();
    for pod in pods("container")? {
        one_by_one.extend(run(client, vec![pod], 1).await?.0);
    }
    one_by_one.sort_by(f64::total_cmp);
    latency("docker, one after the other: bind → Running", &one_by_one, "ms");
    clear(client).await?;
    let (latencies, took) = run(client, pods("containers")?, 8).await?;
    latency(&format!("docker, {} at the same time: bind → Running", latencies.len()), &latencies, "ms");
    row("the same, pods/s", format!("{:.1}", latencies.len() as f64 / took.as_secs_f64()), "");
    clear(client).await
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = options()?;
    let dir = tempfile::tempdir()?;
    let (kubeconfig, state) = (dir.path().join("kubeconfig"), dir.path().join("state"));
    let _cluster = start_cluster(&kubeconfig)?;
    let metrics = free_address()?;
    let text = state.display().to_string();
    let operator = start_operator(
        &kubeconfig,
        &metrics,
        "127.0.0.1",
        &["--allow-host-processes", "--allow-host-engine", "--state-dir", &text],
    )?;
    let client = vnode::cluster::client::connect(Some(&kubeconfig)).await?;
    let measured = measure(&client, &operator, &metrics, &state, &options).await;
    #[cfg(feature = "docker")]
    let measured = match measured {
        Ok(()) => containers(&client, &options).await,
        failed => failed,
    };
    // Whatever went wrong, no process is left.
    vnode::provider::process::remove_all(&state).await;
    measured
}
