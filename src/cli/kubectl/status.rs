//! `kubectl vnode status`

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde::Serialize;

use super::output::{self, Paint, age, table};
use super::{Session, fleet};
use crate::api::VirtualNode;

/// Problems that a person can read at once; the rest is counted.
const SHOWN: usize = 20;

/// The fleet in figures.
#[derive(Debug, Default, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Summary {
    nodes: Counts,
    pods: Pods,
    providers: BTreeMap<String, Counts>,
    shards: BTreeMap<String, Counts>,
    not_ready: Vec<NotReady>,
}

#[derive(Debug, Default, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Counts {
    total: usize,
    ready: usize,
    cordoned: usize,
}

#[derive(Debug, Default, Serialize, PartialEq)]
struct Pods {
    total: u64,
    running: u64,
    pending: u64,
    failed: u64,
}

#[derive(Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct NotReady {
    name: String,
    reason: String,
    message: String,
    since: Option<Timestamp>,
}

pub(super) async fn run(session: &Session) -> Result<()> {
    let (virtual_nodes, nodes) =
        tokio::try_join!(fleet::virtual_nodes(&session.client, &[]), fleet::nodes(&session.client))?;
    let cordoned =
        |name: &str| nodes.get(name).and_then(|n| n.spec.as_ref()).is_some_and(|s| s.unschedulable == Some(true));
    let summary = summarize(&virtual_nodes, cordoned);
    output::print(session.format, &summary, |paint| draw(&summary, paint, Timestamp::now()))
}

fn summarize(virtual_nodes: &[VirtualNode], cordoned: impl Fn(&str) -> bool) -> Summary {
    let mut sum = Summary::default();
    for vn in virtual_nodes {
        let name = vn.name_any();
        let problem = fleet::problem(vn);
        let shard = vn.status.as_ref().and_then(|s| s.shard.clone()).unwrap_or_else(|| "<none>".into());
        let provider = vn.spec.provider.kind.as_str().to_owned();
        let is_cordoned = cordoned(&name);
        let counts = [&mut sum.nodes, sum.providers.entry(provider).or_default(), sum.shards.entry(shard).or_default()];
        for counts in counts {
            counts.total += 1;
            counts.ready += usize::from(problem.is_none());
            counts.cordoned += usize::from(is_cordoned);
        }
        if let Some(pods) = vn.status.as_ref().and_then(|s| s.pods) {
            sum.pods.total += u64::from(pods.total);
            sum.pods.running += u64::from(pods.running);
            sum.pods.pending += u64::from(pods.pending);
            sum.pods.failed += u64::from(pods.failed);
        }
        if let Some((reason, message, since)) = problem {
            sum.not_ready.push(NotReady { name, reason, message, since });
        }
    }
    sum
}

fn draw(sum: &Summary, paint: Paint, now: Timestamp) -> String {
    let nodes = |c: &Counts| {
        let broken = c.total - c.ready;
        let mut text = format!("{} of {} ready", c.ready, c.total);
        if c.cordoned > 0 {
            // Writing to a String cannot fail.
            let _ = write!(text, ", {} cordoned", c.cordoned);
        }
        if broken == 0 { paint.good(&text) } else { paint.bad(&text) }
    };
    let mut out = format!("Nodes       {}\n", nodes(&sum.nodes));
    let pods = &sum.pods;
    let _ = write!(out, "Pods        {} running, {} pending", pods.running, pods.pending);
    if pods.failed > 0 {
        let _ = write!(out, ", {}", paint.careful(&format!("{} failed", pods.failed)));
    }
    out.push('\n');
    for (title, groups) in [("Providers", &sum.providers), ("Shards", &sum.shards)] {
        for (i, (name, counts)) in groups.iter().enumerate() {
            let title = if i == 0 { title } else { "" };
            let _ = writeln!(out, "{title:<11} {name}: {}", nodes(counts));
        }
    }
    if sum.nodes.total == 0 {
        out.push_str("\nThere is no VirtualNode yet: `kubectl apply -f config/samples/fleet.yaml` makes three.\n");
    }
    if !sum.not_ready.is_empty() {
        let rows = sum.not_ready.iter().take(SHOWN);
        let rows: Vec<_> =
            rows.map(|n| vec![n.name.clone(), n.reason.clone(), age(n.since, now), n.message.clone()]).collect();
        let _ = write!(out, "\n{}", table(&["NOT READY", "REASON", "SINCE", "MESSAGE"], &rows));
        if sum.not_ready.len() > SHOWN {
            let _ = writeln!(out, "… and {} more: -o json lists them", sum.not_ready.len() - SHOWN);
        }
        let _ = writeln!(out, "\n`kubectl vnode doctor {}` looks for the cause.", sum.not_ready[0].name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, ready: &str, shard: &str) -> VirtualNode {
        serde_json::from_value(json!({
            "apiVersion": "vnode.dev/v1alpha1", "kind": "VirtualNode", "metadata": {"name": name},
            "spec": {"provider": {"type": "mock", "mock": {}}},
            "status": {"shard": shard, "pods": {"total": 3, "running": 2, "pending": 1, "failed": 0}, "conditions": [{
                "type": "Ready", "status": ready, "reason": "ProviderUnreachable", "message": "it hangs",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        }))
        .unwrap()
    }

    #[test]
    fn the_fleet_is_counted_by_provider_and_shard_and_what_is_broken_is_listed() {
        let fleet = [node("a", "True", "one"), node("b", "False", "two"), node("c", "True", "two")];
        let sum = summarize(&fleet, |name| name == "c");
        assert_eq!(sum.nodes, Counts { total: 3, ready: 2, cordoned: 1 });
        assert_eq!(sum.shards["two"], Counts { total: 2, ready: 1, cordoned: 1 });
        assert_eq!(sum.pods.running, 6);
        assert_eq!(sum.not_ready.len(), 1);
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        let drawn = draw(&sum, Paint::stdout(), now);
        assert!(drawn.contains("2 of 3 ready, 1 cordoned"), "{drawn}");
        assert!(drawn.contains("b           ProviderUnreachable   10m     it hangs"), "{drawn}");
        assert!(drawn.contains("doctor b"), "{drawn}");
    }

    #[test]
    fn an_empty_fleet_says_what_to_do() {
        assert!(draw(&summarize(&[], |_| false), Paint::stdout(), Timestamp::now()).contains("kubectl apply"));
    }
}
