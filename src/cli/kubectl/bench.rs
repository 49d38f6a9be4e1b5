//! `kubectl vnode bench`: how fast this cluster and its operator are with simulated nodes and pods.
//!
//! Whatever it makes carries a label of its own run, by which it is removed again, also after an error or Ctrl-C.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource, ResourceExt};
use rand::Rng as _;
use rand::distr::Alphanumeric;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Session;
use super::fleet::{self, within};
use super::output::{self, Progress};
use crate::api::{VirtualNode, conditions};

/// What a run's objects are found by.
const LABEL: &str = "vnode-bench";
/// Requests under way at a time.
const AT_A_TIME: usize = 32;
/// What removing takes at the least before it is given up, however short `--timeout` is.
const REMOVAL: Duration = Duration::from_secs(60);

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// How many simulated nodes to make.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    nodes: u32,
    /// How many pods to make on them.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1_000_000), value_name = "N")]
    pods: u32,
    /// Where the pods are made.
    #[arg(long, short, default_value = "default", value_name = "NAME")]
    namespace: String,
    /// Give up after this time, in seconds or as in 90s, 10m.
    #[arg(long, default_value = "10m", value_parser = super::super::operator::duration, value_name = "TIME")]
    timeout: Duration,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    nodes: u32,
    /// From the first request until the last node was Ready.
    nodes_ready_seconds: f64,
    pods: u32,
    /// From the first request until the last pod ran.
    pods_running_seconds: f64,
    pods_per_second: f64,
    /// From the answer to a pod's creation until it was seen to run.
    pod_start_seconds: Quantiles,
    /// Until the last of both was gone.
    removed_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Quantiles {
    p50: f64,
    p90: f64,
    p99: f64,
}

/// One run.
struct Run<'a> {
    session: &'a Session,
    args: &'a BenchArgs,
    id: String,
    end: Instant,
}

pub(super) async fn run(session: &Session, args: &BenchArgs) -> Result<()> {
    let client = &session.client;
    // That there are VirtualNodes at all is told before anything is made.
    within(Api::<VirtualNode>::all(client.clone()).list(&ListParams::default().limit(1)))
        .await
        .map_err(fleet::without_crd)?;
    let id: String =
        rand::rng().sample_iter(Alphanumeric).take(6).map(|b| char::from(b).to_ascii_lowercase()).collect();
    let run = Run { session, args, id, end: Instant::now() + args.timeout };
    let made = run.measure().await;
    let begin = Instant::now();
    // A second Ctrl-C ends the program.
    let removed = run.remove().await.with_context(|| format!("removing what has the label {LABEL}={}", run.id));
    let (nodes_ready, pods_running, starts) = match (made, removed) {
        (Ok(made), removed) => removed.map(|()| made)?,
        (Err(error), Ok(())) => bail!("{error:#}. All that was made is removed"),
        (Err(error), Err(left)) => bail!("{error:#}; and {left:#}"),
    };
    let seconds = pods_running.as_secs_f64();
    let figures = Figures {
        nodes: args.nodes,
        nodes_ready_seconds: nodes_ready.as_secs_f64(),
        pods: args.pods,
        pods_running_seconds: seconds,
        pods_per_second: if seconds > 0.0 { f64::from(args.pods) / seconds } else { 0.0 },
        pod_start_seconds: quantiles(starts),
        removed_seconds: begin.elapsed().as_secs_f64(),
    };
    output::print(session.format, &figures, |_| draw(&figures))
}

fn draw(f: &Figures) -> String {
    let Quantiles { p50, p90, p99 } = f.pod_start_seconds;
    let mut rows = vec![vec![format!("{} nodes Ready after", f.nodes), format!("{:.1} s", f.nodes_ready_seconds)]];
    if f.pods > 0 {
        rows.push(vec![format!("{} pods Running after", f.pods), format!("{:.1} s", f.pods_running_seconds)]);
        rows.push(vec!["pods a second".into(), format!("{:.0}", f.pods_per_second)]);
        rows.push(vec!["start of a pod, p50 / p90 / p99".into(), format!("{p50:.2} / {p90:.2} / {p99:.2} s")]);
    }
    rows.push(vec!["all removed after".into(), format!("{:.1} s", f.removed_seconds)]);
    output::table(&["FIGURE", "MEASURED"], &rows)
}

fn quantiles(mut all: Vec<f64>) -> Quantiles {
    all.sort_by(f64::total_cmp);
    let at = |share: usize| all.get((all.len() * share / 100).min(all.len().saturating_sub(1))).copied().unwrap_or(0.0);
    Quantiles { p50: at(50), p90: at(90), p99: at(99) }
}

impl Run<'_> {
    /// How long the nodes took, how long the pods took, and each pod by itself in seconds.
    async fn measure(&self) -> Result<(Duration, Duration, Vec<f64>)> {
        let (args, client) = (self.args, &self.session.client);
        let begin = Instant::now();
        let nodes = (0..args.nodes).map(|n| self.virtual_node(n)).collect::<serde_json::Result<Vec<_>>>()?;
        let ready = |vn: &VirtualNode| {
            conditions::is_true(
                vn.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default(),
                conditions::READY,
            )
        };
        let hint = "`kubectl vnode doctor` says why";
        self.make(Api::all(client.clone()), nodes, "nodes are Ready", hint, ready).await?;
        let nodes_ready = begin.elapsed();

        let begin = Instant::now();
        let pods = (0..args.pods).map(|n| self.pod(n)).collect::<serde_json::Result<Vec<_>>>()?;
        let runs = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
        let hint = "`kubectl describe pod` says why";
        let starts =
            self.make(Api::namespaced(client.clone(), &args.namespace), pods, "pods are Running", hint, runs).await?;
        Ok((nodes_ready, begin.elapsed(), starts))
    }

    /// Creates the objects and waits until each is as it should be: how long each took. No request is under way any
    /// more when it returns, so that nothing comes into being behind the removal.
    async fn make<K>(
        &self,
        api: Api<K>,
        objects: Vec<K>,
        what: &str,
        hint: &str,
        holds: impl Fn(&K) -> bool,
    ) -> Result<Vec<f64>>
    where
        K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Serialize + Send + 'static,
        K::DynamicType: Default,
    {
        let all = objects.len();
        let progress = Progress::new(self.session.format, all, what);
        let (mut created, mut done): (HashMap<String, Instant>, HashMap<String, Instant>) = Default::default();
        let (to, params) = (&api, PostParams::default());
        let creates = objects.iter().map(async |object| {
            within(to.create(&params, object)).await.with_context(|| format!("creating {}", object.name_any()))?;
            anyhow::Ok((object.name_any(), Instant::now()))
        });
        let enough = CancellationToken::new();
        let creates = stream::iter(creates).take_until(enough.cancelled()).buffer_unordered(AT_A_TIME);
        let mut creates = std::pin::pin!(creates);
        let config = watcher::Config::default().labels(&format!("{LABEL}={}", self.id));
        let mut events = watcher(api.clone(), config).default_backoff().applied_objects().boxed();
        let outcome = loop {
            if done.len() == all && created.len() == all {
                break Ok(());
            }
            let next = timeout_at(self.end, async {
                tokio::select! {
                    () = self.session.shutdown.cancelled() => bail!("stopped"),
                    Some(made) = creates.next(), if created.len() < all => made.map(|(name, at)| { created.insert(name, at); }),
                    Some(seen) = events.next() => {
                        // The watch is taken up again by itself.
                        if let Ok(object) = seen && holds(&object) {
                            done.entry(object.name_any()).or_insert_with(Instant::now);
                        }
                        Ok(())
                    }
                    else => bail!("the watch ended"),
                }
            });
            match next.await {
                Ok(Ok(())) => progress.show(done.len(), all, ""),
                Ok(Err(error)) => break Err(error),
                Err(_) => {
                    let (seconds, done) = (self.args.timeout.as_secs(), done.len());
                    break Err(anyhow!("after {seconds} s only {done} of {all} {what}; {hint}"));
                }
            }
        };
        enough.cancel();
        while creates.next().await.is_some() {}
        progress.end();
        outcome?;
        let took = |(name, at): (&String, &Instant)| Some(done.get(name)?.saturating_duration_since(*at).as_secs_f64());
        Ok(created.iter().filter_map(took).collect())
    }

    /// Removes all that carries the run's label, and returns once it is gone.
    async fn remove(&self) -> Result<()> {
        let client = &self.session.client;
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.args.namespace);
        let grace = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::background() };
        self.remove_all(&pods, &grace).await?;
        self.remove_all(&Api::<VirtualNode>::all(client.clone()), &DeleteParams::background()).await
    }

    async fn remove_all<K>(&self, api: &Api<K>, how: &DeleteParams) -> Result<()>
    where
        K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
        K::DynamicType: Default,
    {
        let labels = format!("{LABEL}={}", self.id);
        within(api.delete_collection(how, &ListParams::default().labels(&labels))).await?;
        let (mut left, mut listed) = (HashSet::new(), false);
        let mut events = watcher(api.clone(), watcher::Config::default().labels(&labels)).default_backoff().boxed();
        let gone = async {
            while !listed || !left.is_empty() {
                match events.next().await {
                    Some(Ok(watcher::Event::Init)) => (listed, left) = (false, HashSet::new()),
                    Some(Ok(watcher::Event::InitApply(object))) => {
                        left.insert(object.name_any());
                    }
                    Some(Ok(watcher::Event::InitDone)) => listed = true,
                    Some(Ok(watcher::Event::Delete(object))) => {
                        left.remove(&object.name_any());
                    }
                    Some(Ok(watcher::Event::Apply(_)) | Err(_)) => {}
                    None => break,
                }
            }
        };
        let patience = self.args.timeout.max(REMOVAL);
        if timeout(patience, gone).await.is_err() {
            bail!("{} are still there after {} s", left.len(), patience.as_secs());
        }
        Ok(())
    }

    fn virtual_node(&self, n: u32) -> serde_json::Result<VirtualNode> {
        let capacity = self.args.pods.div_ceil(self.args.nodes).saturating_add(110).to_string();
        serde_json::from_value(json!({
            "metadata": {"name": format!("bench-{}-{n}", self.id), "labels": {LABEL: self.id}},
            "spec": {
                "provider": {"type": "mock", "mock": {}},
                "labels": {LABEL: self.id},
                "capacity": {"cpu": "1000", "memory": "1Ti", "pods": capacity},
            },
        }))
    }

    fn pod(&self, n: u32) -> serde_json::Result<Pod> {
        serde_json::from_value(json!({
            "metadata": {"name": format!("bench-{}-{n}", self.id), "labels": {LABEL: self.id}},
            "spec": {
                "nodeSelector": {LABEL: self.id},
                "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
                "automountServiceAccountToken": false,
                "containers": [{"name": "main", "image": "example/bench:1", "resources": {"requests": {"cpu": "1m"}}}],
            },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_measured() {
        let Quantiles { p50, p90, p99 } = quantiles((0..100).rev().map(f64::from).collect());
        assert_eq!((p50, p90, p99), (50.0, 90.0, 99.0));
        assert_eq!(quantiles(Vec::new()).p99, 0.0);
        assert_eq!(quantiles(vec![2.0]).p50, 2.0);
    }
}
