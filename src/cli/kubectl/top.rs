//! `kubectl vnode top`

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http::Request;
use kube::ResourceExt as _;
use serde::{Deserialize, Serialize};

use super::output::{self, table};
use super::{Session, fleet};
use crate::api::VirtualNode;
use crate::pod::quantity::{milli, whole};

/// Arguments of `top`.
#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// The nodes. All without them.
    nodes: Vec<String>,
    /// What comes first.
    #[arg(long, default_value = "name", value_name = "COLUMN")]
    sort_by: SortBy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SortBy {
    Name,
    Cpu,
    Memory,
    Pods,
}

#[derive(Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Row {
    node: String,
    pods: u32,
    cpu_millicores: Option<i64>,
    cpu_percent: Option<i64>,
    memory_bytes: Option<i64>,
    memory_percent: Option<i64>,
}

#[derive(Deserialize)]
struct MetricsList {
    items: Vec<NodeMetrics>,
}

#[derive(Deserialize)]
struct NodeMetrics {
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    usage: HashMap<String, String>,
}

pub(super) async fn run(session: &Session, args: &TopArgs) -> Result<()> {
    let request = Request::get("/apis/metrics.k8s.io/v1beta1/nodes").body(Vec::new())?;
    let (nodes, metrics) = tokio::join!(
        fleet::virtual_nodes(&session.client, &args.nodes),
        fleet::within(session.client.request::<MetricsList>(request))
    );
    let metrics = match metrics {
        Ok(list) => list.items.into_iter().map(|m| (m.metadata.name.unwrap_or_default(), m.usage)).collect(),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            bail!("the cluster has no metrics API: install metrics-server")
        }
        Err(error) => return Err(error).context("asking the metrics API"),
    };
    let mut rows: Vec<Row> = nodes?.iter().map(|vn| row(vn, &metrics)).collect();
    match args.sort_by {
        SortBy::Name => {}
        SortBy::Cpu => rows.sort_by_key(|r| std::cmp::Reverse(r.cpu_millicores)),
        SortBy::Memory => rows.sort_by_key(|r| std::cmp::Reverse(r.memory_bytes)),
        SortBy::Pods => rows.sort_by_key(|r| std::cmp::Reverse(r.pods)),
    }
    output::print(session.format, &rows, |_| {
        let show = |value: Option<i64>, unit: &str| value.map_or("<unknown>".into(), |v| format!("{v}{unit}"));
        let cells = rows.iter().map(|r| {
            vec![
                r.node.clone(),
                r.pods.to_string(),
                show(r.cpu_millicores, "m"),
                show(r.cpu_percent, "%"),
                show(r.memory_bytes.map(|b| b / (1024 * 1024)), "Mi"),
                show(r.memory_percent, "%"),
            ]
        });
        table(&["NODE", "PODS", "CPU(cores)", "CPU%", "MEMORY(bytes)", "MEMORY%"], &cells.collect::<Vec<_>>())
    })
}

fn row(vn: &VirtualNode, metrics: &HashMap<String, HashMap<String, String>>) -> Row {
    let node = vn.name_any();
    let used = |resource: &str| metrics.get(&node).and_then(|usage| usage.get(resource));
    let status = vn.status.as_ref();
    let has = |resource: &str| status.and_then(|s| s.capacity.get(resource)).map(|q| q.0.as_str());
    let percent = |used: Option<i64>, has: Option<i64>| Some(used?.saturating_mul(100) / has.filter(|h| *h > 0)?);
    let cpu = used("cpu").and_then(|q| milli(q));
    let memory = used("memory").and_then(|q| whole(q));
    Row {
        pods: status.and_then(|s| s.pods).map_or(0, |p| p.total),
        cpu_percent: percent(cpu, has("cpu").and_then(milli)),
        memory_percent: percent(memory, has("memory").and_then(whole)),
        cpu_millicores: cpu,
        memory_bytes: memory,
        node,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn usage_is_told_in_absolute_figures_and_in_percent_of_the_capacity() {
        let vn: VirtualNode = serde_json::from_value(json!({
            "apiVersion": "vnode.dev/v1alpha1", "kind": "VirtualNode", "metadata": {"name": "a"},
            "spec": {"provider": {"type": "mock", "mock": {}}},
            "status": {"capacity": {"cpu": "4", "memory": "16Gi"}, "pods": {"total": 7, "running": 7, "pending": 0, "failed": 0}},
        }))
        .unwrap();
        let usage =
            HashMap::from([("cpu".to_owned(), "250000000n".to_owned()), ("memory".to_owned(), "4Gi".to_owned())]);
        let seen = row(&vn, &HashMap::from([("a".to_owned(), usage)]));
        assert_eq!(
            (seen.cpu_millicores, seen.cpu_percent, seen.memory_percent, seen.pods),
            (Some(250), Some(6), Some(25), 7)
        );
        assert_eq!(row(&vn, &HashMap::new()).cpu_millicores, None);
    }
}
