//! `/debug`: the state of the process and its log level, for those who may.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode, header};
use serde_json::json;

use super::health::Served;
use super::logging;
use super::view::Wish;

/// A filter is a line; this is many of them.
const LONGEST_LEVEL: usize = 4096;

pub(super) fn routes() -> Router<Served> {
    Router::new().route("/debug", get(state)).route("/debug/flags/v", get(level).put(set_level))
}

async fn state(State(served): State<Served>, headers: HeaderMap) -> Response {
    let view = match served.allow(&headers, Wish::SeeProcess).await {
        Ok(view) => view,
        Err(refusal) => return refusal,
    };
    let runtime = tokio::runtime::Handle::current().metrics();
    let all = json!({
        "fleet": view.internals(),
        "tasks": {"workers": runtime.num_workers(), "alive": runtime.num_alive_tasks(), "queued": runtime.global_queue_depth()},
        "logLevel": logging::level().unwrap_or_default(),
    });
    ([(header::CONTENT_TYPE, "application/json")], format!("{all:#}\n")).into_response()
}

async fn level(State(served): State<Served>, headers: HeaderMap) -> Response {
    match served.allow(&headers, Wish::SeeProcess).await {
        Ok(_) => answer(logging::level()),
        Err(refusal) => refusal,
    }
}

async fn set_level(State(served): State<Served>, headers: HeaderMap, wanted: String) -> Response {
    if let Err(refusal) = served.allow(&headers, Wish::ChangeProcess).await {
        return refusal;
    }
    if wanted.len() > LONGEST_LEVEL {
        return (StatusCode::PAYLOAD_TOO_LARGE, "a log level is a line\n").into_response();
    }
    let done = logging::set_level(&wanted);
    if let Ok(level) = &done {
        tracing::warn!(%level, "the log level was changed by a request");
    }
    answer(done)
}

fn answer(level: Result<String, String>) -> Response {
    match level {
        Ok(level) => format!("{level}\n").into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}
