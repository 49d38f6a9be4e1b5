//! The fleet page: plain HTML, CSS and one ES module, embedded in the program.
//!
//! The files themselves hold nothing secret and are given to everybody; what they show comes from `/fleet/nodes` and
//! `/fleet/stream`, which ask the cluster who may see it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use futures::{Stream, stream};
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::health::Served;
use super::view::{FleetView, NodeRow, Wish};

/// How often an open page is told what has changed. Changes of a thousand nodes come together in one message.
const EVERY: Duration = Duration::from_secs(1);
/// Something is sent at least every so many ticks, so that both ends notice a broken connection.
const SILENT_TICKS: u32 = 15;
/// Nothing but our own files, whoever finds a way to write into the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes() -> Router<Served> {
    Router::new()
        .route("/", get(async || Redirect::temporary("/fleet")))
        .route("/fleet", get(async || file("text/html; charset=utf-8", include_str!("page/index.html"))))
        .route("/fleet/style.css", get(async || file("text/css; charset=utf-8", include_str!("page/style.css"))))
        .route("/fleet/page.js", get(async || file("text/javascript; charset=utf-8", include_str!("page/page.js"))))
        .route("/fleet/grid.js", get(async || file("text/javascript; charset=utf-8", include_str!("page/grid.js"))))
        .route("/fleet/list.js", get(async || file("text/javascript; charset=utf-8", include_str!("page/list.js"))))
        .route("/fleet/stream", get(changes))
        .route("/fleet/nodes/{name}", get(node))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text).into_response()
}

async fn node(State(served): State<Served>, headers: HeaderMap, Path(name): Path<String>) -> Response {
    let view = match served.allow(&headers, Wish::SeeFleet).await {
        Ok(view) => view,
        Err(refusal) => return refusal,
    };
    match view.node(&name) {
        Some(node) => ([(header::CONTENT_TYPE, "application/json")], node.to_string()).into_response(),
        None => (StatusCode::NOT_FOUND, "there is no such VirtualNode\n").into_response(),
    }
}

async fn changes(State(served): State<Served>, headers: HeaderMap) -> Response {
    let view = match served.allow(&headers, Wish::SeeFleet).await {
        Ok(view) => view,
        Err(refusal) => return refusal,
    };
    let Ok(permit) = served.streams.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many open pages\n").into_response();
    };
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(events(view, permit))).into_response()
}

struct Open {
    view: Arc<dyn FleetView>,
    known: HashMap<String, NodeRow>,
    ticks: Interval,
    silent: u32,
    first: bool,
    _permit: OwnedSemaphorePermit,
}

fn events(view: Arc<dyn FleetView>, permit: OwnedSemaphorePermit) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let open = Open { view, known: HashMap::new(), ticks, silent: 0, first: true, _permit: permit };
    stream::unfold(open, async |mut open| {
        loop {
            open.ticks.tick().await;
            let rows = open.view.nodes();
            let change = diff(&mut open.known, rows);
            let text = if open.first {
                open.first = false;
                message("all", &change)
            } else if !change.is_empty() {
                message("change", &change)
            } else if open.silent >= SILENT_TICKS {
                // A comment, by the format of event streams.
                ":\n\n".to_owned()
            } else {
                open.silent += 1;
                continue;
            };
            open.silent = 0;
            return Some((Ok(text.into()), open));
        }
    })
}

/// What has changed since the last message.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Change {
    set: Vec<NodeRow>,
    gone: Vec<String>,
}

impl Change {
    fn is_empty(&self) -> bool {
        self.set.is_empty() && self.gone.is_empty()
    }
}

fn diff(known: &mut HashMap<String, NodeRow>, rows: Vec<NodeRow>) -> Change {
    let mut gone: std::collections::HashSet<String> = known.keys().cloned().collect();
    let mut set = Vec::new();
    for row in rows {
        gone.remove(&row.name);
        if known.get(&row.name) != Some(&row) {
            known.insert(row.name.clone(), row.clone());
            set.push(row);
        }
    }
    let mut gone: Vec<String> = gone.into_iter().collect();
    gone.sort();
    gone.iter().for_each(|name| drop(known.remove(name)));
    Change { set, gone }
}

fn message(event: &str, change: &Change) -> String {
    // Rows of strings and numbers always serialise, and JSON has no line breaks of its own.
    format!("event: {event}\ndata: {}\n\n", serde_json::to_string(change).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::view::NodeState;

    fn row(name: &str, state: NodeState) -> NodeRow {
        NodeRow {
            name: name.into(),
            state,
            reason: String::new(),
            provider: "mock",
            shard: "a".into(),
            zone: String::new(),
            endpoint: String::new(),
            cordoned: false,
            pods: Default::default(),
            ours: true,
        }
    }

    #[test]
    fn only_what_has_changed_is_sent() {
        let mut known = HashMap::new();
        let (a, b) = (row("a", NodeState::Ready), row("b", NodeState::Ready));
        assert_eq!(diff(&mut known, vec![a.clone(), b.clone()]).set.len(), 2);
        assert!(diff(&mut known, vec![a.clone(), b.clone()]).is_empty());
        let ill = row("b", NodeState::NotReady);
        assert_eq!(diff(&mut known, vec![a, ill.clone()]), Change { set: vec![ill.clone()], gone: vec![] });
        assert_eq!(diff(&mut known, vec![ill]), Change { set: vec![], gone: vec!["a".into()] });
        assert_eq!(message("all", &Change::default()), "event: all\ndata: {\"set\":[],\"gone\":[]}\n\n");
    }
}
