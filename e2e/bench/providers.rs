//! What a call costs by provider type, over loopback, in one run:
//! `cargo bench --bench providers -- [--calls 2000] [--nodes 1000]`.
//!
//! Behind each type is the same simulator, so that what differs is the way to it; `ssh` starts processes, and fewer of
//! them. A type is one line in `subjects`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use vnode::api::{MockConfig, ProviderSpec};
use vnode::provider::registry::Registry;
use vnode::provider::{
    PodNotifier, PodObservation, Provider, ProviderContext, ResolvedContainer, ResolvedPod, Result as Provided,
};

#[cfg(feature = "grpc")]
#[path = "providers/grpc.rs"]
mod grpc;
#[cfg(feature = "ssh")]
#[path = "providers/ssh.rs"]
mod ssh;
#[path = "providers/web.rs"]
mod web;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Calls under way at a time.
const AT_ONCE: usize = 64;

/// One provider type: makes the provider of a node by its number.
struct Subject {
    name: &'static str,
    node: Box<dyn Fn(usize) -> Provided<Arc<dyn Provider>>>,
    /// The most that it is asked, and the most nodes that it is given.
    calls: usize,
    nodes: usize,
}

impl Subject {
    /// One without bounds, and without nodes yet.
    fn new(name: &'static str) -> Self {
        let none = |_| Err(vnode::provider::ProviderError::unavailable("there are no nodes"));
        Self { name, node: Box::new(none), calls: usize::MAX, nodes: usize::MAX }
    }
}

async fn subjects() -> Result<Vec<Subject>> {
    let mut all = vec![in_process()];
    #[cfg(feature = "grpc")]
    all.push(grpc::subject().await?);
    all.push(web::v2().await?);
    all.push(web::v1().await?);
    #[cfg(feature = "ssh")]
    all.extend(ssh::subject()?);
    Ok(all)
}

struct Deaf;

impl PodNotifier for Deaf {
    fn changed(&self, _: PodObservation) {}
}

fn context(node: &str, notifier: Arc<dyn PodNotifier>) -> ProviderContext {
    let node_uid = format!("uid-of-{node}").into();
    ProviderContext { node: node.into(), node_uid, epoch: 1, notifier, credentials: None }
}

/// The simulator of a node, as it is behind every provider.
fn simulator(registry: &Registry, node: &str, notifier: Arc<dyn PodNotifier>) -> Provided<Arc<dyn Provider>> {
    registry.build(&ProviderSpec::mock(MockConfig::default()), context(node, notifier))
}

/// A simulator for each node that calls a service.
#[derive(Clone, Default)]
struct Simulators {
    registry: Arc<Registry>,
    nodes: Arc<Mutex<HashMap<String, Arc<dyn Provider>>>>,
}

impl Simulators {
    fn of(&self, node: &str) -> Provided<Arc<dyn Provider>> {
        // A map of whole entries, so a panic leaves it sound.
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = nodes.get(node) {
            return Ok(known.clone());
        }
        let made = simulator(&self.registry, node, Arc::new(Deaf))?;
        nodes.insert(node.to_owned(), made.clone());
        Ok(made)
    }
}

/// What is seen of a pod, as Kubernetes writes it.
fn status(o: PodObservation) -> PodStatus {
    PodStatus {
        start_time: o.start_time.map(Time),
        pod_ips: Some(o.pod_ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        container_statuses: Some(o.containers),
        ..PodStatus::default()
    }
}

fn in_process() -> Subject {
    let registry = Registry::default();
    let node = move |n| simulator(&registry, &format!("node-{n}"), Arc::new(Deaf));
    Subject { node: Box::new(node), ..Subject::new("mock, in process") }
}

fn pod(n: usize) -> Result<ResolvedPod> {
    let json = serde_json::json!({
        "metadata": {"namespace": "default", "name": format!("pod-{n}"), "uid": format!("uid-{n}")},
        "spec": {"containers": [{"name": "main", "image": "app:1", "env": [{"name": "A", "value": "1"}]}]},
    });
    let containers = [("main".to_owned(), ResolvedContainer::default())].into();
    Ok(ResolvedPod { pod: Arc::new(serde_json::from_value(json)?), containers, ..ResolvedPod::default() })
}

/// Of sorted values.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = ((sorted.len() as f64 - 1.0) * share).round().max(0.0) as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn micros(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (percentile(times, 0.5), percentile(times, 0.99))
}

async fn timed<T>(call: impl Future<Output = Provided<T>>) -> Result<f64> {
    let begin = Instant::now();
    call.await?;
    Ok(begin.elapsed().as_secs_f64() * 1e6)
}

async fn measure(subject: &Subject, calls: usize, nodes: usize) -> Result<()> {
    let (calls, nodes) = (calls.min(subject.calls), nodes.min(subject.nodes));
    // One node: how long a question takes, and how many are answered.
    let one = (subject.node)(0)?;
    one.ping().await?;
    let first = pod(0)?;
    let reference = first.pod_ref();
    one.create_pod(&first).await?;
    let mut alone = Vec::with_capacity(calls);
    for _ in 0..calls {
        alone.push(timed(one.get_pod(&reference)).await?);
    }
    let begin = Instant::now();
    let together = stream::iter(0..calls).map(|_| timed(one.get_pod(&reference))).buffer_unordered(AT_ONCE);
    let together: Vec<_> = together.collect().await;
    let per_second = calls as f64 / begin.elapsed().as_secs_f64();
    together.into_iter().collect::<Result<Vec<_>>>()?;
    let (p50, p99) = micros(&mut alone);

    // Many nodes: a pod is created on each, and all are removed again.
    let many = (1..=nodes).map(|n| (subject.node)(n)).collect::<Provided<Vec<_>>>()?;
    let pinged: Vec<_> = stream::iter(&many).map(|p| p.ping()).buffer_unordered(AT_ONCE).collect().await;
    pinged.into_iter().collect::<Provided<Vec<_>>>()?;
    let pods = (1..=nodes).map(pod).collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    let created = stream::iter(many.iter().zip(&pods)).map(|(p, pod)| timed(p.create_pod(pod)));
    let created: Vec<_> = created.buffer_unordered(AT_ONCE).collect().await;
    let rate = nodes as f64 / begin.elapsed().as_secs_f64();
    let (_, slow) = micros(&mut created.into_iter().collect::<Result<Vec<_>>>()?);
    let removed =
        stream::iter(many.iter().zip(&pods)).map(|(p, pod)| async move { p.remove_pod(&pod.pod_ref()).await });
    removed.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await.into_iter().collect::<Provided<Vec<_>>>()?;
    one.remove_pod(&reference).await?;
    println!(
        "| {:<18} | {p50:>10.0} | {p99:>10.0} | {per_second:>12.0} | {nodes:>6} | {rate:>12.0} | {:>12.1} |",
        subject.name,
        slow / 1e3
    );
    Ok(())
}

fn main() -> Result<()> {
    let (mut calls, mut nodes) = (2_000, 1_000);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().ok_or("a number must follow")?.parse::<usize>().map_err(|e| e.to_string());
        match word.as_str() {
            "--calls" => calls = number()?,
            "--nodes" => nodes = number()?,
            "--bench" => {} // cargo adds it
            other => return Err(format!("unknown option {other}; there are --calls and --nodes").into()),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let all = async {
        println!("GetPod on one node; {AT_ONCE} at a time where a rate is given; a pod on each of several nodes");
        println!(
            "| provider           | p50 in us  | p99 in us  | answers/s    | nodes  | creates/s    | p99 in ms    |"
        );
        println!(
            "|--------------------|-----------:|-----------:|-------------:|-------:|-------------:|-------------:|"
        );
        for subject in subjects().await? {
            tokio::time::timeout(Duration::from_secs(300), measure(&subject, calls, nodes)).await??;
        }
        Ok(())
    };
    runtime.block_on(all)
}
