//! `kubectl vnode events`

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde::Serialize;

use super::output::{self, age, table};
use super::{Session, fleet};

/// Arguments of `events`.
#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// The node. All virtual nodes without it.
    node: Option<String>,
    /// Only what went wrong.
    #[arg(long)]
    warnings: bool,
    /// Not those of pods.
    #[arg(long)]
    no_pods: bool,
    /// The newest so many.
    #[arg(long, default_value_t = 50, value_name = "NUMBER")]
    tail: usize,
}

#[derive(Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Row {
    last_seen: Option<Timestamp>,
    kind: String,
    reason: String,
    object: String,
    message: String,
    count: i32,
}

pub(super) async fn run(session: &Session, args: &EventsArgs) -> Result<()> {
    let names: Vec<String> = args.node.iter().cloned().collect();
    let nodes: HashSet<String> =
        fleet::virtual_nodes(&session.client, &names).await?.iter().map(ResourceExt::name_any).collect();
    let (all_events, every) = (Api::<Event>::all(session.client.clone()), ListParams::default());
    let events = fleet::list(&all_events, &every);
    let pods = async {
        if args.no_pods {
            return Ok(HashSet::new());
        }
        let pods: Api<Pod> = Api::all(session.client.clone());
        let params = match &args.node {
            Some(node) => ListParams::default().fields(&format!("spec.nodeName={node}")),
            None => ListParams::default(),
        };
        let all = fleet::list(&pods, &params).await?;
        let ours = all
            .iter()
            .filter(|p| p.spec.as_ref().and_then(|s| s.node_name.as_ref()).is_some_and(|n| nodes.contains(n)));
        Ok(ours.filter_map(|p| p.metadata.uid.clone()).collect())
    };
    let (events, pods) = tokio::try_join!(events, pods).context("listing events")?;
    let mut rows: Vec<Row> = events.iter().filter(|e| concerns(e, &nodes, &pods)).map(row).collect();
    rows.retain(|r| !args.warnings || r.kind == "Warning");
    rows.sort_by_key(|r| r.last_seen);
    let rows = rows.split_off(rows.len().saturating_sub(args.tail));
    let now = Timestamp::now();
    output::print(session.format, &rows, |paint| {
        if rows.is_empty() {
            return "No events.\n".into();
        }
        let cells = rows.iter().map(|r| {
            let kind = if r.kind == "Warning" { paint.careful(&r.kind) } else { r.kind.clone() };
            let message = if r.count > 1 { format!("{} (x{})", r.message, r.count) } else { r.message.clone() };
            vec![age(r.last_seen, now), kind, r.reason.clone(), r.object.clone(), message]
        });
        table(&["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"], &cells.collect::<Vec<_>>())
    })
}

fn concerns(event: &Event, nodes: &HashSet<String>, pods: &HashSet<String>) -> bool {
    let object = &event.involved_object;
    let name = object.name.as_deref().unwrap_or_default();
    match object.kind.as_deref() {
        Some("VirtualNode" | "Node") => nodes.contains(name),
        Some("Pod") => object.uid.as_ref().is_some_and(|uid| pods.contains(uid)),
        _ => false,
    }
}

fn row(event: &Event) -> Row {
    let series = event.series.as_ref();
    let last_seen = series
        .and_then(|s| s.last_observed_time.as_ref().map(|t| t.0))
        .or(event.last_timestamp.as_ref().map(|t| t.0))
        .or(event.event_time.as_ref().map(|t| t.0))
        .or(event.metadata.creation_timestamp.as_ref().map(|t| t.0));
    let object = &event.involved_object;
    let namespace = object.namespace.as_ref().map(|n| format!("{n}/")).unwrap_or_default();
    let kind = object.kind.as_deref().unwrap_or_default().to_lowercase();
    Row {
        last_seen,
        kind: event.type_.clone().unwrap_or_default(),
        reason: event.reason.clone().unwrap_or_default(),
        object: format!("{kind}/{namespace}{}", object.name.as_deref().unwrap_or_default()),
        message: event.message.as_deref().unwrap_or_default().trim().replace('\n', " "),
        count: series.and_then(|s| s.count).or(event.count).unwrap_or(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_of_the_fleet_are_told_from_others() {
        let event = |kind: &str, name: &str, uid: &str| -> Event {
            serde_json::from_value(json!({"metadata": {"name": "e"},
                "involvedObject": {"kind": kind, "name": name, "uid": uid, "namespace": "default"},
                "series": {"count": 3, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}, "message": "two\nlines"}))
            .unwrap()
        };
        let (nodes, pods) = (HashSet::from(["a".to_owned()]), HashSet::from(["u1".to_owned()]));
        for (kind, name, uid, want) in [
            ("VirtualNode", "a", "", true),
            ("Node", "a", "", true),
            ("Node", "other", "", false),
            ("Pod", "p", "u1", true),
            ("Pod", "p", "u2", false),
            ("Deployment", "a", "u1", false),
        ] {
            assert_eq!(concerns(&event(kind, name, uid), &nodes, &pods), want, "{kind} {name}");
        }
        let row = row(&event("Pod", "p", "u1"));
        assert_eq!((row.object.as_str(), row.message.as_str(), row.count), ("pod/default/p", "two lines", 3));
    }
}
