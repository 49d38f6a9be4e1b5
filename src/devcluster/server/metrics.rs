//! `metrics.k8s.io/v1beta1`: what nodes and pods use, read from the nodes' own `/metrics/resource`, as metrics-server
//! answers it.
//!
//! Nothing is scraped until somebody asks. A node's counters are kept for [`FRESH`]; usage of CPU is the difference of
//! two readings, so that the first question about a node takes [`BETWEEN`] longer. A node that does not answer in time
//! is left out and not asked again for a while.

mod reading;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::reading::{Reading, Usage};
use super::http::{Answer, Form, agree, full, json as answer_json};
use super::proxy;
use super::read::partial;
use super::{Api, Call, now};
use crate::selector::Selector;
use crate::status::{ApiError, Result};
use crate::store::{Key, Object, Range};

const FRESH: Duration = Duration::from_secs(15);
/// Readings further apart than this say nothing of the present.
const STALE: Duration = Duration::from_secs(120);
const BETWEEN: Duration = Duration::from_secs(1);
const NODE_DEADLINE: Duration = Duration::from_secs(5);
/// Nodes scraped at once.
const WIDTH: usize = 64;
/// What one node may answer: some 20,000 containers.
const LIMIT: usize = 16 << 20;

/// The latest readings of every node that was asked about.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    nodes: Mutex<HashMap<Box<str>, Arc<tokio::sync::Mutex<Sampled>>>>,
}

#[derive(Debug, Default)]
struct Sampled {
    before: Option<Arc<Reading>>,
    last: Option<Arc<Reading>>,
    /// When the node was asked last, whether it answered or not.
    asked: Option<Instant>,
}

impl Sampled {
    fn take(&mut self, reading: Option<Reading>) {
        self.asked = Some(Instant::now());
        match reading {
            Some(reading) => {
                // A node may answer twice from one reading of its own.
                if self.last.as_ref().is_none_or(|last| last.at < reading.at) {
                    self.before = self.last.take();
                    self.last = Some(Arc::new(reading));
                }
            }
            None => (self.before, self.last) = (None, None),
        }
    }
}

pub(crate) async fn answer(api: &Api, call: &Call) -> Result<Answer> {
    let form = agree(&call.headers)?.form;
    let nodes = &*call.kind.plural == "nodes";
    let kinds = api.registry.kinds();
    let measured = kinds
        .find("", "v1", if nodes { "nodes" } else { "pods" })
        .ok_or_else(|| ApiError::internal("what is measured is not served"))?;
    let resource = api.store.resource(&measured.storage);
    let name = call.target.name.as_str();
    let objects: Vec<Arc<Object>> = if name.is_empty() {
        let selector =
            Selector::parse(call.options.get("labelSelector"), call.options.get("fieldSelector"), &measured.fields)?;
        let range = Range { namespace: call.namespace(), ..Range::default() };
        resource.list(&api.store, &range, |object| selector.matches(object)).map(|p| p.objects).unwrap_or_default()
    } else {
        resource.get(&Key::new(&call.target.namespace, name)).into_iter().collect()
    };
    let items = if nodes { of_nodes(api, &objects).await } else { of_pods(api, &objects).await };
    if name.is_empty() {
        let meta = json!({});
        return Ok(match form {
            Form::Object => answer_json(
                200,
                &json!({"kind": &*call.kind.list_kind, "apiVersion": call.kind.api_version(), "metadata": meta,
                    "items": items}),
            ),
            Form::Partial => answer_json(
                200,
                &json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
                    "items": items.iter().map(partial).collect::<Vec<_>>()}),
            ),
            Form::Table => answer_json(200, &table(&items)),
        });
    }
    let Some(item) = items.first() else {
        let (kind, name) = match nodes {
            true => ("nodemetrics", name.to_owned()),
            false => ("podmetrics", format!("{}/{name}", call.target.namespace)),
        };
        return Err(ApiError::not_found(kind, &call.kind.group, &name));
    };
    Ok(match form {
        Form::Object => answer_json(200, item),
        Form::Partial => answer_json(200, &partial(item)),
        Form::Table => answer_json(200, &table(&items)),
    })
}

async fn of_nodes(api: &Api, nodes: &[Arc<Object>]) -> Vec<Value> {
    let names: Vec<Box<str>> = nodes.iter().map(|n| n.key.name.clone()).collect();
    let readings = readings(api, names).await;
    let measured = nodes.iter().filter_map(|node| {
        let (before, last) = readings.get(&node.key.name)?;
        let usage = last.node(before.as_deref()?)?;
        let window = last.since(before.as_deref()?);
        let mut item = head("NodeMetrics", &node.value(), last, window);
        item["usage"] = quantities(usage);
        Some(item)
    });
    measured.collect()
}

async fn of_pods(api: &Api, pods: &[Arc<Object>]) -> Vec<Value> {
    let pods: Vec<Value> = pods.iter().map(|pod| pod.value()).collect();
    let node_of = |pod: &Value| pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    let mut names: Vec<Box<str>> = pods.iter().map(node_of).filter(|name| !name.is_empty()).map(Into::into).collect();
    names.sort();
    names.dedup();
    let readings = readings(api, names).await;
    let measured = pods.iter().filter_map(|pod| {
        let (before, last) = readings.get(node_of(pod).as_str())?;
        let text = |key: &str| pod["metadata"][key].as_str().unwrap_or_default();
        let usage = last.pod(before.as_deref(), text("namespace"), text("name"))?;
        let window = before.as_deref().map_or(BETWEEN, |before| last.since(before));
        let mut item = head("PodMetrics", pod, last, window);
        let containers = usage.into_iter().map(|(name, usage)| json!({"name": name, "usage": quantities(usage)}));
        item["containers"] = containers.collect();
        Some(item)
    });
    measured.collect()
}

fn head(kind: &str, of: &Value, last: &Reading, window: Duration) -> Value {
    let mut metadata = json!({"name": of["metadata"]["name"], "creationTimestamp": now()});
    for key in ["namespace", "labels"] {
        if !of["metadata"][key].is_null() {
            metadata[key] = of["metadata"][key].clone();
        }
    }
    let at = last.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({"kind": kind, "apiVersion": "metrics.k8s.io/v1beta1", "metadata": metadata, "timestamp": at,
        "window": format!("{}s", window.as_millis() as f64 / 1000.0)})
}

fn quantities(usage: Usage) -> Value {
    json!({"cpu": format!("{}n", usage.nano_cores), "memory": format!("{}Ki", usage.bytes / 1024)})
}

fn table(items: &[Value]) -> Value {
    let column = |name: &str, format: &str| {
        let about = if name == "Name" { "Name of the resource" } else { "" };
        json!({"name": name, "type": "string", "format": format, "description": about, "priority": 0})
    };
    let rows = items.iter().map(|item| {
        let sum = |key: &str, unit: char| {
            let own = std::iter::once(&item["usage"]);
            let parts = item["containers"].as_array().into_iter().flatten().map(|c| &c["usage"]);
            let number = |u: &Value| u[key].as_str()?.trim_end_matches(char::is_alphabetic).parse::<u64>().ok();
            own.chain(parts).filter_map(number).sum::<u64>().to_string() + if unit == 'n' { "n" } else { "Ki" }
        };
        json!({"cells": [item["metadata"]["name"], sum("cpu", 'n'), sum("memory", 'K'), item["window"]],
            "object": partial(item)})
    });
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "rows": rows.collect::<Vec<_>>(),
        "columnDefinitions": [column("Name", "name"), column("cpu", "quantity"), column("memory", "quantity"),
            column("Window", "duration")]})
}

/// The two latest readings of each node that answers.
async fn readings(api: &Api, names: Vec<Box<str>>) -> HashMap<Box<str>, (Option<Arc<Reading>>, Arc<Reading>)> {
    let one = |name: Box<str>| async move {
        let sampled = api.metrics.of(&name);
        // One question at a time a node; the others wait for its answer.
        let mut sampled = sampled.lock().await;
        if sampled.asked.is_none_or(|asked| asked.elapsed() >= FRESH) {
            if sampled.asked.is_some_and(|asked| asked.elapsed() >= STALE) {
                *sampled = Sampled::default();
            }
            sampled.take(scrape(api, &name).await);
            if sampled.last.is_some() && sampled.before.is_none() {
                tokio::time::sleep(BETWEEN).await;
                sampled.take(scrape(api, &name).await);
            }
        }
        let last = sampled.last.clone()?;
        Some((name, (sampled.before.clone(), last)))
    };
    let found = futures::stream::iter(names).map(one).buffer_unordered(WIDTH).filter_map(std::future::ready).collect();
    let found = found.await;
    api.metrics.forget(|name| api.get("", "nodes", "", name).is_some());
    found
}

impl Metrics {
    fn of(&self, name: &str) -> Arc<tokio::sync::Mutex<Sampled>> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.entry(name.into()).or_default().clone()
    }

    fn forget(&self, keep: impl Fn(&str) -> bool) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| keep(name));
    }
}

async fn scrape(api: &Api, node: &str) -> Option<Reading> {
    let ask = async {
        let peer = proxy::kubelet(api, node).ok()?;
        let request = http::Request::get("/metrics/resource").body(full("")).ok()?;
        let answer = proxy::send(&peer, request, NODE_DEADLINE).await;
        let answer = answer.map_err(|error| tracing::debug!(node, %error, "cannot read a node's usage")).ok()?;
        if answer.status() != http::StatusCode::OK {
            return None;
        }
        Some(Reading::parse(&proxy::text(answer, LIMIT).await, jiff::Timestamp::now()))
    };
    tokio::time::timeout(NODE_DEADLINE, ask).await.ok().flatten()
}
