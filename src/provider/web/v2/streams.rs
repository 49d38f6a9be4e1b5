//! exec, attach and port-forward over WebSockets.
//!
//! Commands have channels: the first byte of each message says which, as in Kubernetes' `v5.channel.k8s.io`. Ports
//! have bytes, and an empty message where one side has no more of them.

use std::io;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Sink, SinkExt as _, Stream, StreamExt as _};
use http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::refusal;
use crate::provider::web::http::{Ask, Http};
use crate::provider::{Duplex, ExitStatus, ProviderError, Reader, Result, SessionIo, TerminalSize, Writer};

/// The protocol of commands.
pub(super) const CHANNELS: &str = "v5.channel.k8s.io";
/// The protocol of ports.
pub(super) const BYTES: &str = "bytes.vnode.dev";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

const BUFFER: usize = 32 << 10;
const MAX_MESSAGE: usize = 16 << 20;
/// How often the other side is asked for a sign of life.
const PING: Duration = Duration::from_secs(30);
/// How long it may give none.
const DEAD: Duration = Duration::from_secs(100);

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Opens a WebSocket that speaks this protocol.
pub(super) async fn open(http: &Http, ask: &Ask, protocol: &'static str, missing: &str) -> Result<Socket> {
    let key = generate_key();
    let asked = ask
        .clone()
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", &key)
        .header("sec-websocket-protocol", protocol);
    let what = ask.what();
    let (headers, stream) = match http.upgrade(asked).await? {
        Ok(upgraded) => upgraded,
        Err(answer) => return Err(refusal(&answer, missing)),
    };
    let is = |name, want: &str| headers.get(name).is_some_and(|v: &http::HeaderValue| v.as_bytes() == want.as_bytes());
    if !is(SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes())) || !is(SEC_WEBSOCKET_PROTOCOL, protocol) {
        let message = format!("{what}: the service must answer with a WebSocket of protocol {protocol}");
        return Err(ProviderError::unavailable(message));
    }
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    Ok(WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await)
}

fn broken(what: &str, why: impl std::fmt::Display) -> ProviderError {
    ProviderError::unavailable(format!("{what}: {why}"))
}

/// Carries a command's streams until the service says how it ended.
pub(super) async fn session(socket: Socket, what: &str, io: SessionIo) -> Result<ExitStatus> {
    let SessionIo { stdin, stdout, stderr, resize, .. } = io;
    let (to, from) = socket.split();
    tokio::select! {
        status = output(from, stdout, stderr, what) => status,
        // Input only ends by itself when the connection is broken.
        error = input(to, stdin, resize) => Err(broken(what, error)),
    }
}

async fn output(
    mut from: impl Stream<Item = Result<Message, WsError>> + Unpin,
    mut stdout: Option<Writer>,
    mut stderr: Option<Writer>,
    what: &str,
) -> Result<ExitStatus> {
    let status = loop {
        let message = match timeout(DEAD, from.next()).await {
            Ok(Some(Ok(Message::Binary(message)))) => message,
            Ok(Some(Ok(Message::Close(_))) | None) => {
                return Err(broken(what, "the service closed the session without saying how the command ended"));
            }
            Ok(Some(Ok(_))) => continue,
            Ok(Some(Err(error))) => return Err(broken(what, error)),
            Err(_) => return Err(broken(what, "the service gives no sign of life")),
        };
        let (to, bytes) = match message.split_first() {
            Some((&STDOUT, bytes)) => (&mut stdout, bytes),
            Some((&STDERR, bytes)) => (&mut stderr, bytes),
            Some((&STATUS, bytes)) => break ended(bytes, what),
            _ => continue,
        };
        if let Some(writer) = to {
            let written = async {
                writer.write_all(bytes).await?;
                writer.flush().await
            };
            // A client that closes one of its streams may want the rest.
            if written.await.is_err() {
                *to = None;
            }
        }
    };
    for mut writer in [stdout, stderr].into_iter().flatten() {
        // A client that is gone does not matter any more.
        let _ = writer.shutdown().await;
    }
    status
}

/// How a command ended. Kubernetes: `remotecommand.v4`.
fn ended(status: &[u8], what: &str) -> Result<ExitStatus> {
    let status: Status = serde_json::from_slice(status).map_err(|e| broken(what, format!("how it ended: {e}")))?;
    if status.status.as_deref() == Some("Success") {
        return Ok(ExitStatus { code: 0 });
    }
    let causes = status.details.and_then(|d| d.causes).unwrap_or_default();
    let code = causes.iter().find(|c| c.reason.as_deref() == Some("ExitCode"));
    if let Some(code) = code.and_then(|c| c.message.as_ref()?.parse().ok()) {
        return Ok(ExitStatus { code });
    }
    let message = status.message.unwrap_or_else(|| "the command failed".into());
    Err(match status.reason.as_deref() {
        Some("NotFound") => ProviderError::NotFound(message),
        _ => broken(what, message),
    })
}

async fn input(
    mut to: impl Sink<Message, Error = WsError> + Unpin,
    mut stdin: Option<Reader>,
    mut resize: Option<mpsc::Receiver<TerminalSize>>,
) -> WsError {
    let mut pings = interval_at(Instant::now() + PING, PING);
    let mut buffer = BytesMut::with_capacity(BUFFER);
    loop {
        let message = tokio::select! {
            read = read_some(&mut stdin, &mut buffer) => match read {
                Ok(n) if n > 0 => Message::binary(channel(STDIN, &buffer.split())),
                _ => {
                    stdin = None;
                    Message::binary(vec![CLOSE, STDIN])
                }
            },
            size = latest(&mut resize) => match size {
                Some(TerminalSize { width, height }) => {
                    let size = serde_json::json!({"Width": width, "Height": height});
                    Message::binary(channel(RESIZE, size.to_string().as_bytes()))
                }
                None => {
                    resize = None;
                    continue;
                }
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        if let Err(error) = to.send(message).await {
            return error;
        }
    }
}

fn channel(channel: u8, bytes: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel);
    message.put_slice(bytes);
    message.freeze()
}

async fn read_some(stdin: &mut Option<Reader>, buffer: &mut BytesMut) -> io::Result<usize> {
    match stdin {
        Some(stdin) => {
            buffer.reserve(BUFFER);
            stdin.read_buf(buffer).await
        }
        None => std::future::pending().await,
    }
}

async fn latest(resize: &mut Option<mpsc::Receiver<TerminalSize>>) -> Option<TerminalSize> {
    let Some(sizes) = resize else { return std::future::pending().await };
    let mut size = sizes.recv().await?;
    while let Ok(newer) = sizes.try_recv() {
        size = newer;
    }
    Some(size)
}

/// A WebSocket as bytes. What carries them ends with either side.
pub(super) fn bytes(socket: Socket) -> Box<dyn Duplex> {
    let (near, far) = tokio::io::duplex(BUFFER * 2);
    tokio::spawn(async move {
        if let Err(error) = pump(socket, far).await {
            tracing::debug!(%error, "a forwarded port's connection broke");
        }
    });
    Box::new(near)
}

async fn pump(socket: Socket, far: tokio::io::DuplexStream) -> io::Result<()> {
    let (mut to, mut from) = socket.split();
    let (mut read, mut write) = tokio::io::split(far);
    let outward = async {
        let mut pings = interval_at(Instant::now() + PING, PING);
        let mut buffer = BytesMut::with_capacity(BUFFER);
        let mut open = true;
        loop {
            let message = tokio::select! {
                n = read.read_buf(&mut buffer), if open => {
                    open = n? > 0;
                    let message = Message::binary(buffer.split().freeze());
                    buffer.reserve(BUFFER);
                    message
                }
                _ = pings.tick() => Message::Ping(Bytes::new()),
            };
            to.send(message).await.map_err(io::Error::other)?;
        }
    };
    let inward = async {
        loop {
            let next = timeout(DEAD, from.next()).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            match next {
                Some(Ok(Message::Binary(bytes))) if bytes.is_empty() => write.shutdown().await?,
                Some(Ok(Message::Binary(bytes))) => write.write_all(&bytes).await?,
                Some(Ok(Message::Close(_))) | None => return write.shutdown().await,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(io::Error::other(error)),
            }
        }
    };
    tokio::select! {
        done = outward => done,
        done = inward => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_command_ended_is_read_from_its_status() {
        let code = br#"{"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}}"#;
        assert_eq!(ended(code, "x").unwrap().code, 3);
        assert_eq!(ended(br#"{"status": "Success"}"#, "x").unwrap().code, 0);
        let missing = ended(br#"{"status": "Failure", "reason": "NotFound", "message": "no sh"}"#, "x");
        assert!(matches!(missing, Err(ProviderError::NotFound(m)) if m == "no sh"));
        assert!(ended(br#"{"status": "Failure"}"#, "x").is_err() && ended(b"<html>", "x").is_err());
    }
}
