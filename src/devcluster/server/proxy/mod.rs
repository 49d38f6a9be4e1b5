//! From here to where pods run: the API server's own paths to kubelets, pods and services.
//!
//! [`log`] shows logs; [`stream`] joins exec, attach and port-forward to the node's kubelet,
//! which [`translate`] speaks to in SPDY when it must; [`forward`] proxies any
//! request to a node, a pod or a service. [`dial`] opens the connections, [`tunnel`] carries bytes both ways once
//! both sides have switched protocols, [`locate`] decides (pure) which container, path and address a request means.

mod dial;
pub(crate) mod forward;
mod locate;
pub(crate) mod log;
pub(crate) mod stream;
mod translate;
mod tunnel;

pub(crate) use dial::{Kubelets, Peer, send, text};

use std::time::Duration;

use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::http::{Answer, full};
use super::{Api, Call};
use crate::status::{ApiError, Result};

/// How long a client may take to take up the protocol that it asked for.
const SWITCH_DEADLINE: Duration = Duration::from_secs(10);
/// Headers of one connection, which end at this server.
const HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The kubelet of a node.
pub(crate) fn kubelet(api: &Api, name: &str) -> Result<Peer> {
    let node = api.get("", "nodes", "", name).ok_or_else(|| ApiError::not_found("nodes", "", name))?;
    let (host, port) = locate::kubelet_of(&node.value())?;
    Ok(Peer { host, port, tls: Some(api.kubelets.as_api_server.clone()) })
}

/// The kubelet of the node that a pod is bound to; a node that is gone is told as Kubernetes tells it.
fn kubelet_of_pod(api: &Api, call: &Call, node: &str) -> Result<Peer> {
    kubelet(api, node).map_err(|error| match error.code {
        404 => ApiError::not_found(&call.kind.plural, "", node),
        _ => error,
    })
}

/// Whether a request asks to switch protocols.
fn wants_upgrade(headers: &HeaderMap) -> bool {
    let tokens = headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    headers.contains_key(UPGRADE) && tokens.into_iter().any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// The headers of a client's request that another server may see: no credentials, nothing of this connection.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let private = |name: &HeaderName| {
        let name = name.as_str();
        HOP.contains(&name) || matches!(name, "authorization" | "host") || name.starts_with("impersonate-")
    };
    headers.iter().filter(|(name, _)| !private(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Sends a request that asks for another protocol, gives the client the answer, and when that is 101 joins both.
async fn upgrade(api: &Api, peer: &Peer, mut parts: Parts, path: &str) -> Result<Answer> {
    let slot = api.kubelets.slot()?;
    let on_upgrade = parts.extensions.remove::<OnUpgrade>();
    let mut request = http::Request::builder().method(parts.method.clone()).uri(path).body(full(""));
    if let Ok(request) = &mut request {
        *request.headers_mut() = passed_on(&parts.headers);
        request.headers_mut().insert(CONNECTION, http::HeaderValue::from_static("Upgrade"));
        for asked in parts.headers.get_all(UPGRADE) {
            request.headers_mut().append(UPGRADE, asked.clone());
        }
    }
    let request = request.map_err(|_| ApiError::bad_request("the path cannot be proxied"))?;
    let failed = |error: dial::DialError| ApiError::new(500, "", format!("error dialing backend: {error}"));
    let mut answer = dial::send(peer, request, dial::ANSWER_DEADLINE).await.map_err(failed)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(dial::streamed(answer));
    }
    let Some(on_upgrade) = on_upgrade else {
        return Err(ApiError::bad_request("this connection cannot switch protocols"));
    };
    let of_node = hyper::upgrade::on(&mut answer);
    let stopping = api.stopping.clone();
    tokio::spawn(async move {
        let switched = tokio::time::timeout(SWITCH_DEADLINE, futures::future::try_join(on_upgrade, of_node)).await;
        let (client, node) = match switched {
            Ok(Ok(both)) => both,
            Ok(Err(error)) => return tracing::debug!(%error, "a stream ended before it began"),
            Err(_) => return tracing::debug!("a client did not switch protocols in time"),
        };
        let joined = tunnel::join(TokioIo::new(client), TokioIo::new(node), tunnel::Limits::default());
        tokio::select! {
            () = stopping.cancelled() => {}
            ended = joined => tracing::debug!(?ended, "a stream ended"),
        }
        drop(slot);
    });
    let (parts, _) = answer.into_parts();
    Ok(Answer::from_parts(parts, full("")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_hop_headers_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("impersonate-user", "jane"),
            ("impersonate-extra-x", "y"),
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "k"),
            ("host", "api"),
            ("accept", "*/*"),
        ] {
            headers.insert(HeaderName::from_static(name), http::HeaderValue::from_static(value));
        }
        assert!(wants_upgrade(&headers));
        let passed = passed_on(&headers);
        let mut names: Vec<_> = passed.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "sec-websocket-key"]);
        assert!(!wants_upgrade(&passed));
    }
}
