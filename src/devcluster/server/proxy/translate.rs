//! WebSocket clients and nodes that are spoken to in SPDY/3.1, as every API server before 1.36 does it and later ones do
//! with nodes that do not list `ExtendWebSocketsToKubelet` among their declared features.
//!
//! Channels of exec and attach become streams of a SPDY session; a port-forward is a SPDY session already, only inside
//! of WebSocket messages. apiserver: `StreamTranslatorHandler`, `TunnelingHandler`.

mod session;

use futures::FutureExt;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use vnode_spdy::tunnel::Tunnel;

use super::{SWITCH_DEADLINE, dial, tunnel};
use crate::cluster::KubeletStreams;
use crate::server::http::{Answer, full};
use crate::server::{Api, Call};
use crate::status::{ApiError, Result};

/// Channels of exec and attach whose standard input can be closed.
const CHANNELS: &str = "v5.channel.k8s.io";
/// SPDY inside of WebSocket messages.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// The versions of exec and attach that are offered to a node, as kube-apiserver offers them.
const SESSION_VERSIONS: [&str; 5] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// The largest message that is taken: some clients send all of their input as one.
const MESSAGE: usize = 16 << 20;
const REFUSAL: usize = 16 << 10;

/// What a WebSocket client is to be given instead of its own protocol passed on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Translation {
    Session,
    Tunnel,
}

/// Whether this request is translated: the client speaks one of the two protocols that can be, and the node must not
/// be spoken to in WebSocket.
pub(super) fn wanted(
    streams: KubeletStreams,
    subresource: &str,
    headers: &HeaderMap,
    node: &Value,
) -> Option<Translation> {
    let extended = || {
        let features = node["status"]["declaredFeatures"].as_array().into_iter().flatten();
        features.into_iter().any(|feature| feature == "ExtendWebSocketsToKubelet")
    };
    let pass = match streams {
        KubeletStreams::WebSocket => true,
        KubeletStreams::Spdy => false,
        KubeletStreams::Declared => extended(),
    };
    let websocket = headers.get(UPGRADE).is_some_and(|asked| asked.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if pass || !websocket {
        return None;
    }
    let asked = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let mut asked = asked.flat_map(|v| v.split(',')).map(str::trim);
    match subresource {
        "portforward" => asked.any(|protocol| protocol == TUNNEL).then_some(Translation::Tunnel),
        _ => asked.any(|protocol| protocol == CHANNELS).then_some(Translation::Session),
    }
}

pub(super) async fn translate(
    api: &Api,
    call: &Call,
    peer: dial::Peer,
    parts: Parts,
    path: String,
    translation: Translation,
) -> Result<Answer> {
    let slot = api.kubelets.slot()?;
    let protocol = if translation == Translation::Tunnel { TUNNEL } else { CHANNELS };
    let answer = switching(&parts, protocol)?;
    let on_upgrade = parts.extensions.get::<OnUpgrade>().cloned();
    let on_upgrade = on_upgrade.ok_or_else(|| ApiError::bad_request("this connection cannot switch protocols"))?;
    let client = async move {
        let switched = tokio::time::timeout(SWITCH_DEADLINE, on_upgrade).await.ok()?.ok()?;
        let config = WebSocketConfig::default().max_message_size(Some(MESSAGE)).max_frame_size(Some(MESSAGE));
        Some(WebSocketStream::from_raw_socket(TokioIo::new(switched), Role::Server, Some(config)).await)
    };
    let work = match translation {
        // A client learns of a session's failure inside of it.
        Translation::Session => {
            let wanted = session::Wanted::of(&call.options);
            async move {
                if let Some(client) = client.await {
                    let node = node(&peer, &path, &SESSION_VERSIONS);
                    session::run(client, node, wanted, &peer.url(&path)).await;
                }
            }
            .boxed()
        }
        Translation::Tunnel => {
            let node = match node(&peer, &path, &["portforward.k8s.io"]).await {
                Ok(node) => node,
                Err(refused) => return refused.into_answer(),
            };
            async move {
                if let Some(client) = client.await {
                    let messages = Tunnel::new(client);
                    let ended = tunnel::join(messages, node, tunnel::Limits::default()).await;
                    tracing::debug!(?ended, "a port-forward ended");
                }
            }
            .boxed()
        }
    };
    let stopping = api.stopping.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = work => {}
        }
        drop(slot);
    });
    Ok(answer)
}

/// The answer that makes a client switch to WebSocket.
fn switching(parts: &Parts, protocol: &'static str) -> Result<Answer> {
    let key = parts.headers.get(SEC_WEBSOCKET_KEY).filter(|_| parts.method == Method::GET);
    let key = key.ok_or_else(|| ApiError::bad_request("a WebSocket begins with GET and a Sec-WebSocket-Key"))?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    let mut answer = Answer::new(full(""));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept.map_err(|error| ApiError::internal(error.to_string()))?);
    Ok(answer)
}

/// Why a node is not spoken to.
enum Refused {
    /// It could not be reached.
    Unreached(String),
    /// It did not want to.
    Answered(Box<http::Response<hyper::body::Incoming>>),
}

impl Refused {
    fn into_answer(self) -> Result<Answer> {
        match self {
            Self::Unreached(error) => Err(ApiError::new(500, "", format!("error dialing backend: {error}"))),
            Self::Answered(answer) => Ok(dial::streamed(*answer)),
        }
    }

    async fn text(self, url: &str) -> String {
        match self {
            Self::Unreached(error) => format!("error sending request: Post {url:?}: {error}"),
            Self::Answered(answer) => {
                let text = dial::text(*answer, REFUSAL).await;
                format!("unable to upgrade connection: {}", text.trim_end())
            }
        }
    }
}

/// Asks a node to speak SPDY, in one of these versions of the protocol inside of it.
async fn node(peer: &dial::Peer, path: &str, versions: &[&'static str]) -> Result<TokioIo<Upgraded>, Refused> {
    let unreached = |error: &dyn std::fmt::Display| Refused::Unreached(error.to_string());
    let mut request = Request::post(path).header(CONNECTION, "Upgrade").header(UPGRADE, "SPDY/3.1");
    for version in versions {
        request = request.header("x-stream-protocol-version", *version);
    }
    let request = request.body(full("")).map_err(|error| unreached(&error))?;
    let mut answer = dial::send(peer, request, dial::ANSWER_DEADLINE).await.map_err(|error| unreached(&error))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refused::Answered(Box::new(answer)));
    }
    let switched = tokio::time::timeout(SWITCH_DEADLINE, hyper::upgrade::on(&mut answer)).await;
    let switched = switched.map_err(|error| unreached(&error))?.map_err(|error| unreached(&error))?;
    Ok(TokioIo::new(switched))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_can_be_translated_is_and_only_for_nodes_that_need_it() {
        let headers = |upgrade: &str, protocols: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(UPGRADE, upgrade.parse().unwrap());
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
            headers
        };
        let (old, new) = (json!({}), json!({"status": {"declaredFeatures": ["ExtendWebSocketsToKubelet"]}}));
        let channels = headers("websocket", "v5.channel.k8s.io, v4.channel.k8s.io");
        let tunnel = headers("WebSocket", TUNNEL);
        use KubeletStreams::{Declared, Spdy, WebSocket};
        for (streams, subresource, headers, node, translation) in [
            (Declared, "exec", &channels, &old, Some(Translation::Session)),
            (Declared, "attach", &channels, &new, None),
            (Spdy, "attach", &channels, &new, Some(Translation::Session)),
            (WebSocket, "exec", &channels, &old, None),
            (Declared, "portforward", &tunnel, &old, Some(Translation::Tunnel)),
            (Declared, "portforward", &channels, &old, None),
            (Spdy, "exec", &headers("websocket", "v4.channel.k8s.io"), &old, None),
            (Spdy, "exec", &headers("SPDY/3.1", "v5.channel.k8s.io"), &old, None),
        ] {
            assert_eq!(
                wanted(streams, subresource, headers, node),
                translation,
                "{streams:?} {subresource} {headers:?}"
            );
        }
    }
}
