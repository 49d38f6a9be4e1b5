//! Which protocol a connection changes to.
//!
//! The client names the protocols it speaks in the order of its liking; the first one that is spoken
//! here is taken. What is said here is all that is agreed on: a request that asks for no change of
//! protocol, or for one that is not known, is refused before the connection is touched.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::framing::Framing;
use super::status::StatusForm;
use crate::kubelet::connection::{AnswerBody, empty};
use crate::kubelet::handler::Refusal;
use crate::kubelet::route::SessionKind;

/// Names the version of the streaming protocol inside of SPDY.
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// SPDY inside of WebSocket messages.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Port-forward over SPDY.
const PORT_FORWARD: &str = "portforward.k8s.io";

/// Exec and attach over SPDY: name, how it tells of the end, whether it has a stream for resizing.
const COMMAND_VERSIONS: [(&str, StatusForm, bool); 5] = [
    ("v5.channel.k8s.io", StatusForm::Json, true),
    ("v4.channel.k8s.io", StatusForm::Json, true),
    ("v3.channel.k8s.io", StatusForm::Text, true),
    ("v2.channel.k8s.io", StatusForm::Text, false),
    ("channel.k8s.io", StatusForm::Text, false),
];

/// What was agreed on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// SPDY/3.1.
    Spdy(SpdyVersion),
    /// WebSocket.
    WebSocket(WebSocketVersion),
}

/// A streaming protocol over SPDY.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SpdyVersion {
    pub(super) protocol: &'static str,
    pub(super) status: StatusForm,
    pub(super) resize: bool,
}

/// A streaming protocol over WebSocket.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WebSocketVersion {
    /// `None` when the client named none.
    protocol: Option<&'static str>,
    accept: String,
    pub(super) content: Content,
}

/// What WebSocket messages carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Channels.
    Channels(Framing, StatusForm),
    /// A SPDY session.
    Tunnel,
}

/// Decides on the protocol.
pub(super) fn negotiate(method: &Method, headers: &HeaderMap, kind: SessionKind) -> Result<Upgrade, Refusal> {
    let bad = |message: &str| Refusal::new(StatusCode::BAD_REQUEST, format!("unable to upgrade: {message}\n"));
    if !tokens(headers, header::CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade")) {
        return Err(bad("the request does not ask to change the protocol"));
    }
    let wants = |protocol: &str| tokens(headers, header::UPGRADE).any(|t| t.eq_ignore_ascii_case(protocol));
    if wants("websocket") {
        return websocket(method, headers, kind).map(Upgrade::WebSocket);
    }
    if wants("SPDY/3.1") {
        return spdy(headers, kind).map(Upgrade::Spdy);
    }
    Err(bad("only SPDY/3.1 and websocket are spoken here"))
}

fn spdy(headers: &HeaderMap, kind: SessionKind) -> Result<SpdyVersion, Refusal> {
    let known: &[(&'static str, StatusForm, bool)] = match kind {
        SessionKind::PortForward => &[(PORT_FORWARD, StatusForm::Text, false)],
        _ => &COMMAND_VERSIONS,
    };
    let mut asked = tokens(headers, PROTOCOL_VERSION).peekable();
    if asked.peek().is_none() {
        let message = format!("unable to upgrade: {PROTOCOL_VERSION} header is required\n");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    }
    asked
        .find_map(|name| known.iter().find(|(known, ..)| *known == name))
        .map(|&(protocol, status, resize)| SpdyVersion { protocol, status, resize })
        .ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|(name, ..)| *name).collect();
            let names = names.join(", ");
            let message = format!("unable to upgrade: unable to negotiate the protocol: it must be one of {names}\n");
            Refusal::new(StatusCode::FORBIDDEN, message)
        })
}

fn websocket(method: &Method, headers: &HeaderMap, kind: SessionKind) -> Result<WebSocketVersion, Refusal> {
    let bad = |message: &str| Refusal::new(StatusCode::BAD_REQUEST, format!("unable to upgrade: {message}\n"));
    if *method != Method::GET {
        return Err(bad("a WebSocket begins with GET"));
    }
    if only(headers, header::SEC_WEBSOCKET_VERSION) != Some("13") {
        return Err(bad("the version of WebSocket must be 13"));
    }
    let key = only(headers, header::SEC_WEBSOCKET_KEY).unwrap_or_default();
    if !STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16) {
        return Err(bad("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    let accept = derive_accept_key(key.as_bytes());
    let mut asked = tokens(headers, header::SEC_WEBSOCKET_PROTOCOL).peekable();
    if asked.peek().is_none() {
        let content = Content::Channels(Framing::BINARY, StatusForm::Text);
        return Ok(WebSocketVersion { protocol: None, accept, content });
    }
    match asked.find_map(|name| content_of(name, kind)) {
        Some((protocol, content)) => Ok(WebSocketVersion { protocol: Some(protocol), accept, content }),
        None => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "unable to upgrade: none of the protocols in Sec-WebSocket-Protocol is spoken here\n",
        )),
    }
}

/// What a subprotocol of WebSocket means for this kind of session.
fn content_of(name: &str, kind: SessionKind) -> Option<(&'static str, Content)> {
    use StatusForm::{Json, Text};
    let channels = |name, framing, status| Some((name, Content::Channels(framing, status)));
    if kind == SessionKind::PortForward {
        return match name {
            TUNNEL => Some((TUNNEL, Content::Tunnel)),
            "v4.channel.k8s.io" => channels("v4.channel.k8s.io", Framing::BINARY, Text),
            "v4.base64.channel.k8s.io" => channels("v4.base64.channel.k8s.io", Framing::BASE64, Text),
            PORT_FORWARD => channels(PORT_FORWARD, Framing::BINARY, Text),
            _ => None,
        };
    }
    match name {
        "v5.channel.k8s.io" => channels("v5.channel.k8s.io", Framing::BINARY.with_close(), Json),
        "v4.channel.k8s.io" => channels("v4.channel.k8s.io", Framing::BINARY, Json),
        "v3.channel.k8s.io" => channels("v3.channel.k8s.io", Framing::BINARY, Text),
        "v2.channel.k8s.io" => channels("v2.channel.k8s.io", Framing::BINARY, Text),
        "channel.k8s.io" => channels("channel.k8s.io", Framing::BINARY, Text),
        "v5.base64.channel.k8s.io" => channels("v5.base64.channel.k8s.io", Framing::BASE64.with_close(), Json),
        "v4.base64.channel.k8s.io" => channels("v4.base64.channel.k8s.io", Framing::BASE64, Json),
        "v3.base64.channel.k8s.io" => channels("v3.base64.channel.k8s.io", Framing::BASE64, Text),
        "v2.base64.channel.k8s.io" => channels("v2.base64.channel.k8s.io", Framing::BASE64, Text),
        "base64.channel.k8s.io" => channels("base64.channel.k8s.io", Framing::BASE64, Text),
        _ => None,
    }
}

/// The comma-separated words of all headers of a name.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim).filter(|t| !t.is_empty())
}

/// The value of a header that must not be repeated.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value.trim())
}

impl WebSocketVersion {
    /// How channels are written; only port-forward has anything else.
    pub(super) fn channels(&self) -> (Framing, StatusForm) {
        match self.content {
            Content::Channels(framing, form) => (framing, form),
            Content::Tunnel => (Framing::BINARY, StatusForm::Text),
        }
    }
}

impl Upgrade {
    /// True when the streams of a port-forward say which port they are for, so that the request need not.
    pub(super) fn names_ports(&self) -> bool {
        match self {
            Self::Spdy(_) => true,
            Self::WebSocket(version) => version.content == Content::Tunnel,
        }
    }

    /// The two protocols, for people.
    pub(super) fn names(&self) -> (&'static str, &'static str) {
        match self {
            Self::Spdy(version) => ("SPDY/3.1", version.protocol),
            Self::WebSocket(version) => ("websocket", version.protocol.unwrap_or_default()),
        }
    }

    /// The answer that changes the protocol.
    pub(super) fn response(&self) -> Result<Response<AnswerBody>, Refusal> {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        match self {
            Self::Spdy(version) => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                headers.insert(PROTOCOL_VERSION, HeaderValue::from_static(version.protocol));
            }
            Self::WebSocket(version) => {
                let accept = HeaderValue::from_str(&version.accept)
                    .map_err(|_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "unable to upgrade\n"))?;
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
                if let Some(protocol) = version.protocol {
                    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
                }
            }
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    const WS: [(&str, &str); 4] =
        [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13"), KEY];
    const SPDY: [(&str, &str); 2] = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];

    fn ask(kind: SessionKind, base: &[(&'static str, &str)], more: &[(&'static str, &str)]) -> Result<Upgrade, u16> {
        let mut headers = HeaderMap::new();
        for (name, value) in base.iter().chain(more) {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        negotiate(&Method::GET, &headers, kind).map_err(|r| r.status.as_u16())
    }

    fn protocol(upgrade: &Upgrade) -> Option<&'static str> {
        match upgrade {
            Upgrade::Spdy(version) => Some(version.protocol),
            Upgrade::WebSocket(version) => version.protocol,
        }
    }

    #[test]
    fn the_first_protocol_of_the_client_that_is_known_is_taken() {
        use SessionKind::{Attach, Exec, PortForward};
        for (kind, base, name, asked, want) in [
            (Exec, &SPDY[..], "x-stream-protocol-version", "v4.channel.k8s.io, v3.channel.k8s.io", "v4.channel.k8s.io"),
            (Exec, &SPDY, "x-stream-protocol-version", "v9.channel.k8s.io,channel.k8s.io", "channel.k8s.io"),
            (PortForward, &SPDY, "x-stream-protocol-version", "portforward.k8s.io", "portforward.k8s.io"),
            (Attach, &WS, "sec-websocket-protocol", "v5.channel.k8s.io", "v5.channel.k8s.io"),
            (Exec, &WS, "sec-websocket-protocol", "x, base64.channel.k8s.io", "base64.channel.k8s.io"),
            (PortForward, &WS, "sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io", "SPDY/3.1+portforward.k8s.io"),
            (PortForward, &WS, "sec-websocket-protocol", "v4.base64.channel.k8s.io", "v4.base64.channel.k8s.io"),
        ] {
            let upgrade = ask(kind, base, &[(name, asked)]).unwrap();
            assert_eq!(protocol(&upgrade), Some(want), "{asked}");
            assert_eq!(upgrade.response().unwrap().status(), StatusCode::SWITCHING_PROTOCOLS);
        }
        let plain = ask(Exec, &WS, &[]).unwrap();
        assert_eq!(protocol(&plain), None);
        // The example of RFC 6455, section 1.3.
        assert_eq!(plain.response().unwrap().headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn each_version_tells_of_the_end_in_its_own_way() {
        let ask = |v: &str| match ask(SessionKind::Exec, &SPDY, &[("x-stream-protocol-version", v)]) {
            Ok(Upgrade::Spdy(version)) => (version.status, version.resize),
            other => panic!("{other:?}"),
        };
        assert_eq!(ask("v4.channel.k8s.io"), (StatusForm::Json, true));
        assert_eq!(ask("v3.channel.k8s.io"), (StatusForm::Text, true));
        assert_eq!(ask("v2.channel.k8s.io"), (StatusForm::Text, false));
        assert_eq!(ask("channel.k8s.io"), (StatusForm::Text, false));
    }

    #[test]
    fn what_is_not_agreed_on_is_refused() {
        use SessionKind::{Exec, PortForward};
        let version = ("x-stream-protocol-version", "v4.channel.k8s.io");
        for (kind, base, more, status) in [
            (Exec, &[][..], &[version][..], 400),
            (Exec, &[("upgrade", "SPDY/3.1")], &[version], 400),
            (Exec, &[("connection", "upgrade")], &[version], 400),
            (Exec, &[("connection", "upgrade"), ("upgrade", "h2c")], &[version], 400),
            (Exec, &[("connection", "upgrade"), ("upgrade", "SPDY/3")], &[version], 400),
            (Exec, &SPDY, &[], 400),
            (Exec, &SPDY, &[("x-stream-protocol-version", "v9.channel.k8s.io")], 403),
            (PortForward, &SPDY, &[version], 403),
            (Exec, &WS, &[("sec-websocket-protocol", "chat")], 403),
            (Exec, &WS, &[("sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io")], 403),
            (PortForward, &WS, &[("sec-websocket-protocol", "v5.channel.k8s.io")], 403),
            (Exec, &WS, &[KEY], 400),
            (Exec, &WS, &[("sec-websocket-version", "8")], 400),
            (Exec, &WS[..3], &[], 400),
            (Exec, &WS[..3], &[("sec-websocket-key", "c2hvcnQ=")], 400),
        ] {
            assert_eq!(ask(kind, base, more).map(|u| protocol(&u)), Err(status), "{base:?} {more:?}");
        }
        let mut headers = HeaderMap::new();
        for (name, value) in WS {
            headers.append(name, HeaderValue::from_static(value));
        }
        assert!(negotiate(&Method::POST, &headers, Exec).is_err());
    }
}
