//! `kubectl vnode drain`: cordons a node and evicts its pods, with what `kubectl drain` asks flags for decided.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Session;
use super::fleet::{self, within};
use super::output::{self, Progress};

/// Evictions under way at a time.
const AT_A_TIME: usize = 16;
/// How soon a pod that a budget holds back is asked again, and how often the node is looked at. There is no watch of
/// budgets that says when an eviction would pass.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Arguments of `drain`.
#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// The node.
    node: String,
    /// Give up after this time, in seconds or as in 90s, 10m.
    #[arg(long, default_value = "10m", value_parser = super::super::operator::duration, value_name = "TIME")]
    timeout: Duration,
    /// Only say which pods would go.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Drained {
    node: String,
    evicted: Vec<String>,
    /// Pods that stay: those of DaemonSets, and those that are over.
    left: Vec<String>,
}

pub(super) async fn run(session: &Session, args: &DrainArgs) -> Result<()> {
    // Only nodes of the fleet: for the others there is kubectl drain.
    fleet::virtual_nodes(&session.client, std::slice::from_ref(&args.node)).await?;
    let client = &session.client;
    let (mut going, staying): (Vec<Pod>, Vec<Pod>) =
        fleet::pods_on(client, &args.node).await?.into_iter().partition(must_go);
    let left: Vec<String> = staying.iter().map(full_name).collect();
    let mut evicted: Vec<String> = going.iter().map(full_name).collect();
    if args.dry_run {
        let plan = Drained { node: args.node.clone(), evicted, left };
        return output::print(session.format, &plan, |_| {
            plan.evicted.iter().map(|p| format!("{p} would be evicted\n")).collect()
        });
    }
    cordon(client, &args.node).await?;
    let progress = Progress::new(session.format, going.len(), "pods are gone");
    let end = Instant::now() + args.timeout;
    let mut held: BTreeMap<String, String> = BTreeMap::new();
    while !going.is_empty() {
        if Instant::now() >= end {
            let why = held.iter().map(|(pod, why)| format!("\n  {pod}: {why}")).collect::<String>();
            bail!("{} pods are still on {} after {} s{why}", going.len(), args.node, args.timeout.as_secs());
        }
        held = evict(client, &going).await;
        sleep(LOOK_AGAIN.min(end.saturating_duration_since(Instant::now()))).await;
        going = fleet::pods_on(client, &args.node).await?.into_iter().filter(must_go).collect();
        for pod in &going {
            let name = full_name(pod);
            if !evicted.contains(&name) {
                evicted.push(name);
            }
        }
        let why = match held.len() {
            0 => String::new(),
            held => format!(", {held} held back by a PodDisruptionBudget"),
        };
        progress.show(evicted.len() - going.len(), evicted.len(), why);
    }
    progress.end();
    let done = Drained { node: args.node.clone(), evicted, left };
    output::print(session.format, &done, |paint| {
        let mut out: String = done.evicted.iter().map(|p| format!("{p} evicted\n")).collect();
        out.push_str(&paint.good(&format!("{} is drained", done.node)));
        if !done.left.is_empty() {
            out.push_str(&format!("; {} pods of DaemonSets, or over, stay", done.left.len()));
        }
        out.push('\n');
        out
    })
}

/// Neither over nor a DaemonSet's, which would come back at once, nor a static pod's mirror.
fn must_go(pod: &Pod) -> bool {
    let of_daemon_set = pod.owner_references().iter().any(|o| o.kind == "DaemonSet" && o.controller == Some(true));
    let mirror = pod.annotations().contains_key("kubernetes.io/config.mirror");
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    !of_daemon_set && !mirror && !matches!(phase, "Succeeded" | "Failed")
}

fn full_name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

async fn cordon(client: &Client, node: &str) -> Result<()> {
    let patch = json!({"spec": {"unschedulable": true}});
    let params = PatchParams { field_manager: Some("kubectl-vnode".into()), ..PatchParams::default() };
    let nodes: Api<Node> = Api::all(client.clone());
    within(nodes.patch(node, &params, &Patch::Merge(patch))).await.with_context(|| format!("cordoning node {node}"))?;
    Ok(())
}

/// Asks the pods to go; what holds which of them back.
async fn evict(client: &Client, pods: &[Pod]) -> BTreeMap<String, String> {
    let asked = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()).map(|pod| async move {
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        let preconditions = Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        let delete = DeleteParams { preconditions, ..DeleteParams::default() };
        let params = EvictParams { delete_options: Some(delete), ..EvictParams::default() };
        match within(api.evict(&pod.name_any(), &params)).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => None,
            Err(kube::Error::Api(status)) => Some((full_name(pod), status.message.clone())),
            Err(error) => Some((full_name(pod), error.to_string())),
            Ok(_) => None,
        }
    });
    stream::iter(asked).buffer_unordered(AT_A_TIME).filter_map(std::future::ready).collect().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_daemon_sets_and_those_that_are_over_stay() {
        let pod = |owner: &str, phase: &str| -> Pod {
            let owners = json!([{"apiVersion": "apps/v1", "kind": owner, "name": "o", "uid": "u", "controller": true}]);
            let owners = if owner.is_empty() { json!([]) } else { owners };
            serde_json::from_value(
                json!({"metadata": {"name": "p", "ownerReferences": owners}, "status": {"phase": phase}}),
            )
            .unwrap()
        };
        assert!(must_go(&pod("ReplicaSet", "Running")));
        assert!(must_go(&pod("", "Pending")));
        assert!(!must_go(&pod("DaemonSet", "Running")));
        assert!(!must_go(&pod("Job", "Succeeded")));
    }
}
