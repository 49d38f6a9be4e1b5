//! Exec and attach: the provider's readers and writers on one side, a protocol's streams on the other.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Duration, timeout};

use super::channels::{Channels, End};
use super::framing::Framing;
use super::query::CommandOptions;
use super::status::{StatusForm, encode, status};
use super::upgrade::SpdyVersion;
use super::{StreamOptions, Target, resize};
use crate::provider::{ExitStatus, ProviderError, Reader, SessionIo, Writer};

/// Sizes on their way to a provider that is busy; older ones are passed over.
const SIZES: usize = 4;
/// How long a client that has gone may take to be told that this was heard.
pub(super) const FAREWELL: Duration = Duration::from_secs(5);

/// Streams of exec and attach over SPDY, of which five have a meaning.
const MAX_STREAMS: usize = 16;
/// Channels of exec and attach over WebSocket.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// The streams of a session, whichever protocol they come from.
pub(super) struct Streams {
    pub(super) stdin: Option<Reader>,
    pub(super) stdout: Option<Writer>,
    pub(super) stderr: Option<Writer>,
    /// Tells how the command ended.
    pub(super) error: Writer,
    /// JSON objects with a terminal's sizes.
    pub(super) resize: Option<Reader>,
}

/// Has the provider run the command on these streams and tells the client how it ended.
pub(super) async fn carry_out(target: &Target, wanted: &CommandOptions, streams: Streams, form: StatusForm) {
    let Streams { stdin, stdout, stderr, mut error, resize } = streams;
    let (sizes, received) = mpsc::channel(SIZES);
    let resize = resize.map(|from| resize::follow(from, sizes));
    let io = SessionIo { stdin, stdout, stderr, tty: wanted.tty, resize: resize.is_some().then_some(received) };
    let sizes = async {
        if let Some(follow) = resize {
            follow.await;
        }
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = run(target, wanted, io) => outcome,
        () = sizes => return,
    };
    if let Err(error) = &outcome {
        tracing::debug!(%error, node = target.backend.name(), pod = %target.pod, "a command could not be run");
    }
    let bytes = encode(&status(&outcome), form);
    // The client may be gone, and then nobody is left to tell.
    if error.write_all(&bytes).await.is_ok() {
        let _ = error.shutdown().await;
    }
}

async fn run(target: &Target, wanted: &CommandOptions, io: SessionIo) -> Result<ExitStatus, ProviderError> {
    let Target { provider, pod, container, .. } = target;
    match &wanted.command {
        Some(command) => provider.exec(pod, container, command, io).await,
        None => provider.attach(pod, container, io).await,
    }
}

/// Exec or attach over WebSocket channels.
pub(super) async fn over_websocket<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    framing: Framing,
    form: StatusForm,
    target: Target,
    wanted: CommandOptions,
    options: &StreamOptions,
) {
    let mut channels = Channels::new(io, framing).await;
    let streams = Streams {
        stdin: wanted.stdin.then(|| Box::pin(channels.inward(STDIN)) as Reader),
        resize: wanted.tty.then(|| Box::pin(channels.inward(RESIZE)) as Reader),
        stdout: wanted.stdout.then(|| Box::pin(channels.outward(STDOUT)) as Writer),
        stderr: wanted.stderr.then(|| Box::pin(channels.outward(STDERR)) as Writer),
        error: Box::pin(channels.last_outward(ERROR)),
    };
    // Clients wait for a first message to know that they are connected.
    let first = if wanted.stdout {
        STDOUT
    } else if wanted.stderr {
        STDERR
    } else {
        ERROR
    };
    if channels.send(first, b"").await.is_err() {
        return;
    }
    let end = {
        let mut work = std::pin::pin!(carry_out(&target, &wanted, streams, form));
        let mut run = std::pin::pin!(channels.run());
        let mut done = false;
        loop {
            tokio::select! {
                () = work.as_mut(), if !done => done = true,
                end = run.as_mut() => break end,
            }
        }
    };
    let patience = if end == End::Finished { options.finish_timeout } else { FAREWELL };
    if timeout(patience, channels.finish()).await.is_err() {
        tracing::debug!(node = target.backend.name(), pod = %target.pod, "a client did not close its session in time");
    }
}

/// Exec or attach over SPDY.
pub(super) async fn over_spdy<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    version: SpdyVersion,
    target: Target,
    wanted: CommandOptions,
    options: &StreamOptions,
) {
    let limits = vnode_spdy::Options { max_streams: MAX_STREAMS, ..vnode_spdy::Options::default() };
    let (session, connection) = vnode_spdy::server(io, limits);
    let mut connection = std::pin::pin!(connection);
    let work = async {
        match timeout(options.creation_timeout, gather(&session, &wanted, version.resize)).await {
            Ok(Some(streams)) => {
                carry_out(&target, &wanted, streams, version.status).await;
                // Closing at once would throw away what is still on its way to a client that reads slowly.
                if timeout(options.finish_timeout, session.peer_left()).await.is_err() {
                    tracing::debug!(node = target.backend.name(), pod = %target.pod, "a client did not close its session in time");
                }
            }
            Ok(None) => {}
            Err(_) => {
                tracing::debug!(node = target.backend.name(), pod = %target.pod, "a client did not open its streams in time");
            }
        }
        session.close();
    };
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, node = target.backend.name(), pod = %target.pod, "a session broke");
            }
        }
        () = work => {
            let _ = timeout(FAREWELL, connection).await;
        }
    }
}

/// The streams that the client opens for what it wants, once all are there. `None` when it goes before.
async fn gather(session: &vnode_spdy::Session, wanted: &CommandOptions, resize: bool) -> Option<Streams> {
    let (mut stdin, mut stdout, mut stderr, mut error, mut sizes) = (None, None, None, None, None);
    let resize = resize && wanted.tty;
    loop {
        let missing = error.is_none()
            || wanted.stdin && stdin.is_none()
            || wanted.stdout && stdout.is_none()
            || wanted.stderr && stderr.is_none()
            || resize && sizes.is_none();
        if !missing {
            break;
        }
        let incoming = session.accept().await?;
        let slot = match incoming.headers().get("streamtype") {
            Some("error") => &mut error,
            Some("stdin") if wanted.stdin => &mut stdin,
            Some("stdout") if wanted.stdout => &mut stdout,
            Some("stderr") if wanted.stderr => &mut stderr,
            Some("resize") if resize => &mut sizes,
            _ => {
                incoming.refuse();
                continue;
            }
        };
        if slot.is_some() {
            incoming.refuse();
        } else {
            *slot = Some(incoming.accept());
        }
    }
    // A reader keeps the whole stream: closing its other side would tell the client to stop writing.
    let read = |stream: vnode_spdy::Stream| Box::pin(stream) as Reader;
    let write = |stream: vnode_spdy::Stream| Box::pin(stream.into_split().1) as Writer;
    Some(Streams {
        stdin: stdin.map(read),
        resize: sizes.map(read),
        stdout: stdout.map(write),
        stderr: stderr.map(write),
        error: write(error?),
    })
}
