//! Port-forward: connections to a pod's ports, many of them over one connection of the client.
//!
//! Each has a stream for its bytes and one on which the client is told why it failed. Over SPDY the two
//! are opened by the client and belong together by their request's number; over WebSocket channels
//! there is one connection for each port that the request names.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use vnode_spdy::{Incoming, Session, Stream};

use super::channels::{Channels, End};
use super::command::FAREWELL;
use super::framing::Framing;
use super::{StreamOptions, Target};

/// What is copied at a time.
const CHUNK: usize = 16 * 1024;
/// Bytes that wait for one connection: the more, the later one that is stuck holds up the others.
const STREAM_BUFFER: u32 = 1 << 20;
/// How long a provider may take to reach a port.
const CONNECT: Duration = Duration::from_secs(30);

/// Connects `data` to a port of the pod until both sides have closed it, or only the pod's when the client
/// has no way to.
async fn forward(
    target: &Target,
    port: u16,
    mut data: impl AsyncRead + AsyncWrite + Unpin,
    mut error: impl AsyncWrite + Unpin,
    half_close: bool,
) {
    let connected = timeout(CONNECT, target.provider.port_forward(&target.pod, port)).await;
    let why = match connected {
        Ok(Ok(mut pod)) => {
            let copied = if half_close {
                tokio::io::copy_bidirectional_with_sizes(&mut data, &mut pod, CHUNK, CHUNK).await.map(|_| ())
            } else {
                until_pod_closes(&mut data, &mut pod).await
            };
            if let Err(error) = copied {
                // One side has hung up, as it may: kubectl resets every stream when it is done with it.
                tracing::trace!(%error, node = target.backend.name(), pod = %target.pod, port, "a forwarded connection broke");
            }
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the provider did not answer in time".to_owned(),
    };
    tracing::debug!(why, node = target.backend.name(), pod = %target.pod, port, "a port could not be reached");
    let message = format!("error forwarding port {port} to pod {}, uid {}: {why}", target.pod.name, target.pod.uid);
    // The client may be gone, and then nobody is left to tell.
    if error.write_all(message.as_bytes()).await.is_ok() {
        let _ = error.shutdown().await;
    }
}

async fn until_pod_closes(
    data: &mut (impl AsyncRead + AsyncWrite + Unpin),
    pod: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<()> {
    let ((mut from_client, mut to_client), (mut from_pod, mut to_pod)) = (split(data), split(pod));
    let up = async {
        copy(&mut from_client, &mut to_pod).await?;
        to_pod.shutdown().await?;
        std::future::pending().await
    };
    tokio::select! {
        ended = up => ended,
        copied = copy(&mut from_pod, &mut to_client) => copied.map(|_| ()),
    }
}

/// A stream that waits for the other one of its request.
struct Half {
    stream: Stream,
    is_data: bool,
    port: u16,
}

/// Streams on their way to being pairs.
struct Pairs {
    halves: HashMap<String, Half>,
    /// Requests by the time they were begun, the oldest first, with the number of their first stream.
    begun: VecDeque<(Instant, String, u32)>,
    patience: Duration,
}

impl Pairs {
    fn new(patience: Duration) -> Self {
        Self { halves: HashMap::new(), begun: VecDeque::new(), patience }
    }

    /// Takes a new stream. Gives port, data and error stream when that completes a pair.
    fn add(&mut self, incoming: Incoming) -> Option<(u16, Stream, Stream)> {
        let headers = incoming.headers();
        let is_data = match headers.get("streamtype") {
            Some("data") => true,
            Some("error") => false,
            // Dropping it refuses it.
            _ => return None,
        };
        let port = headers.get("port").and_then(|p| p.parse::<u16>().ok()).filter(|p| *p > 0)?;
        let id = incoming.id();
        let request = match headers.get("requestid").filter(|r| !r.is_empty()) {
            Some(request) => format!("r{request}"),
            // Clients that number no requests open the error stream first and the data stream next.
            None => format!("s{}", if is_data { id.saturating_sub(2) } else { id }),
        };
        let half = Half { stream: incoming.accept(), is_data, port };
        match self.halves.remove(&request) {
            None => {
                self.begun.push_back((Instant::now() + self.patience, request.clone(), id));
                self.halves.insert(request, half);
                None
            }
            Some(other) if other.is_data == is_data => {
                // Twice the same is a mistake of the client; the first one goes on waiting.
                self.halves.insert(request, other);
                None
            }
            Some(other) => {
                let (data, error) = if is_data { (half, other) } else { (other, half) };
                Some((data.port, data.stream, error.stream))
            }
        }
    }

    /// Waits for the next request to be given up.
    async fn expired(&mut self) {
        loop {
            match self.begun.front() {
                Some((_, request, id)) if self.halves.get(request).is_none_or(|h| h.stream.id() != *id) => {
                    self.begun.pop_front();
                }
                Some((deadline, ..)) => {
                    sleep_until(*deadline).await;
                    if let Some((_, request, _)) = self.begun.pop_front() {
                        // The stream is reset as it is dropped.
                        self.halves.remove(&request);
                        tracing::debug!(
                            request,
                            "a client did not open both streams of a forwarded connection in time"
                        );
                    }
                }
                None => std::future::pending().await,
            }
        }
    }
}

/// Port-forward over SPDY, which may itself be inside of a WebSocket.
pub(super) async fn over_spdy<T: AsyncRead + AsyncWrite + Unpin>(io: T, target: Target, options: &StreamOptions) {
    let limits = vnode_spdy::Options {
        max_streams: options.max_streams,
        stream_buffer: STREAM_BUFFER,
        ..vnode_spdy::Options::default()
    };
    let (session, connection) = vnode_spdy::server(io, limits);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, node = target.backend.name(), pod = %target.pod, "a port-forward session broke");
            }
        }
        () = accept(&session, &target, options) => {
            session.close();
            let _ = timeout(FAREWELL, connection).await;
        }
    }
}

/// Serves pairs of streams until the client wants no more and the last one has ended.
///
/// A client that keeps no windows sends on for a connection that its pod does not read, and all others wait behind
/// that. Such a connection is given up after a while, and later when it is the only one that is known: whether the
/// client wants another is not seen either.
async fn accept(session: &Session, target: &Target, options: &StreamOptions) {
    let mut pairs = Pairs::new(options.creation_timeout);
    let mut forwards = FuturesUnordered::new();
    let mut stops: HashMap<u32, CancellationToken> = HashMap::new();
    let patience = options.stall_timeout;
    let mut among_others = pin!(session.held_up(patience));
    let mut alone = pin!(session.held_up(2 * patience));
    let mut open = true;
    while open || !forwards.is_empty() {
        tokio::select! {
            incoming = session.accept(), if open => match incoming {
                Some(incoming) => {
                    if let Some((port, data, error)) = pairs.add(incoming) {
                        let error = error.into_split().1;
                        let (id, stop) = (data.id(), CancellationToken::new());
                        stops.insert(id, stop.clone());
                        forwards.push(async move {
                            // Nothing goes to the error stream of one that is given up: kubectl would end all of them.
                            stop.run_until_cancelled_owned(forward(target, port, data, error, true)).await;
                            id
                        });
                    }
                }
                None => open = false,
            },
            Some(id) = forwards.next(), if !forwards.is_empty() => {
                stops.remove(&id);
            }
            id = among_others.as_mut(), if forwards.len() > 1 => {
                among_others.set(session.held_up(patience));
                give_up(target, &stops, id);
            }
            id = alone.as_mut() => {
                alone.set(session.held_up(2 * patience));
                give_up(target, &stops, id);
            }
            () = pairs.expired(), if open => {}
        }
    }
}

fn give_up(target: &Target, stops: &HashMap<u32, CancellationToken>, id: u32) {
    if let Some(stop) = stops.get(&id) {
        let (node, pod) = (target.backend.name(), &target.pod);
        tracing::info!(node, %pod, "a forwarded connection is closed: its pod does not read it, and others wait behind it");
        stop.cancel();
    }
}

/// Port-forward over WebSocket channels: two for each port, both of which begin with its number.
pub(super) async fn over_websocket<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    framing: Framing,
    target: Target,
    ports: Vec<u16>,
    options: &StreamOptions,
) {
    let mut channels = Channels::new(io, framing).await;
    let forwards = FuturesUnordered::new();
    // There are no more ports than there are channels.
    for (n, port) in (0..=u8::MAX).step_by(2).zip(ports) {
        let (data, error) = (channels.both(n), channels.outward(n + 1));
        for channel in [n, n + 1] {
            if channels.send(channel, &port.to_le_bytes()).await.is_err() {
                return;
            }
        }
        forwards.push(forward(&target, port, data, error, false));
    }
    let end = {
        let mut forwards = pin!(forwards.collect::<()>());
        let mut run = pin!(channels.run());
        let mut done = false;
        loop {
            tokio::select! {
                () = forwards.as_mut(), if !done => done = true,
                end = run.as_mut() => break end,
            }
        }
    };
    let patience = if end == End::Finished { options.finish_timeout } else { FAREWELL };
    let _ = timeout(patience, channels.finish()).await;
}
