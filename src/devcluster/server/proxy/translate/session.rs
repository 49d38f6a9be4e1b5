//! Exec and attach: the channels of a WebSocket client, each a stream of a SPDY session with the node.
//!
//! The first byte of a message names its channel. Nothing is buffered beyond a few messages: a client that does not
//! read stops the node's streams, a command that does not read its input stops the client.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use vnode_spdy::tunnel::goodbye;
use vnode_spdy::{Headers, Session, Stream};

use super::Refused;
use crate::server::options::Options;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// A message on this channel closes the one that it names.
const CLOSE: u8 = 255;

/// The largest message that is sent.
const MESSAGE: usize = 32 << 10;
/// Messages on their way to the client.
const PENDING: usize = 4;
/// Streams of a session, of which five have a meaning.
const STREAMS: usize = 16;
/// How long a node may take to accept the streams.
const CREATION: Duration = Duration::from_secs(30);
/// How long either side may take to hear of the end.
const FAREWELL: Duration = Duration::from_secs(5);

/// The streams that a client asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    pub(super) fn of(options: &Options) -> Self {
        let flag = |name| options.flag(name);
        // A terminal has one output.
        Self { stdin: flag("stdin"), stdout: flag("stdout"), stderr: flag("stderr") && !flag("tty"), tty: flag("tty") }
    }
}

type Sink<T> = SplitSink<WebSocketStream<T>, Message>;
type Source<T> = SplitStream<WebSocketStream<T>>;

/// Runs a session between a client and a node until either ends.
pub(super) async fn run<T, N>(
    client: WebSocketStream<T>,
    node: impl Future<Output = Result<N, Refused>>,
    wanted: Wanted,
    url: &str,
) where
    T: AsyncRead + AsyncWrite + Unpin,
    N: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, mut source) = client.split();
    let node = match node.await {
        Ok(node) => node,
        Err(refused) => return fail(&mut sink, &refused.text(url).await).await,
    };
    let limits = vnode_spdy::Options { max_streams: STREAMS, ..vnode_spdy::Options::default() };
    let (session, connection) = vnode_spdy::client(node, limits);
    let mut connection = std::pin::pin!(connection);
    let mut work = std::pin::pin!(async {
        match timeout(CREATION, Streams::open(&session, wanted)).await {
            Ok(Ok(streams)) => streams.carry(&mut sink, &mut source).await,
            Ok(Err(error)) => fail(&mut sink, &format!("error creating streams: {error}")).await,
            Err(_) => fail(&mut sink, "error creating streams: timed out").await,
        }
        session.close();
    });
    let mut over = false;
    loop {
        tokio::select! {
            ended = connection.as_mut(), if !over => {
                over = true;
                if let Err(error) = ended {
                    tracing::debug!(%error, "a session with a node broke");
                }
            }
            () = work.as_mut() => break,
        }
    }
    if !over {
        let _ = timeout(FAREWELL, connection).await;
    }
}

/// Tells a client that its session failed before it began.
async fn fail<T: AsyncRead + AsyncWrite + Unpin>(sink: &mut Sink<T>, error: &str) {
    let status = json!({"metadata": {}, "status": "Failure", "message": format!("Internal error occurred: {error}"),
        "reason": "InternalError", "details": {"causes": [{"message": error}]}, "code": 500});
    let mut message = BytesMut::new();
    message.put_u8(ERROR);
    message.put_slice(status.to_string().as_bytes());
    let tell = async {
        sink.send(Message::Binary(message.freeze())).await?;
        sink.send(Message::Close(Some(goodbye()))).await
    };
    let _ = timeout(FAREWELL, tell).await;
}

/// The streams of a session with a node.
struct Streams {
    error: Stream,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Streams {
    async fn open(session: &Session, wanted: Wanted) -> Result<Self, vnode_spdy::Error> {
        let open = |kind: &'static str, wanted: bool| async move {
            if !wanted {
                return Ok(None);
            }
            let stream = session.open(Headers::from([("streamtype", kind)]))?;
            stream.replied().await?;
            Ok::<_, vnode_spdy::Error>(Some(stream))
        };
        // In this order kube-apiserver opens them.
        let error = open("error", true).await?.ok_or(vnode_spdy::Error::Closed)?;
        Ok(Self {
            error,
            stdin: open("stdin", wanted.stdin).await?,
            stdout: open("stdout", wanted.stdout).await?,
            stderr: open("stderr", wanted.stderr).await?,
            resize: open("resize", wanted.tty).await?,
        })
    }

    async fn carry<T: AsyncRead + AsyncWrite + Unpin>(self, sink: &mut Sink<T>, source: &mut Source<T>) {
        let Self { error, stdin, stdout, stderr, resize } = self;
        let (messages, mut pending) = mpsc::channel::<Bytes>(PENDING);
        let outputs = async move {
            let pump = |stream: Option<Stream>, channel| read(stream, channel, messages.clone());
            tokio::join!(pump(stdout, STDOUT), pump(stderr, STDERR), pump(Some(error), ERROR));
        };
        let write = async {
            while let Some(message) = pending.recv().await {
                sink.send(Message::Binary(message)).await?;
            }
            sink.send(Message::Close(Some(goodbye()))).await
        };
        let mut input = std::pin::pin!(listen(source, stdin, resize));
        let mut output = std::pin::pin!(async {
            // Ends when all outputs have: each holds a sender.
            let ((), written) = tokio::join!(outputs, write);
            if let Err(error) = written {
                tracing::debug!(%error, "a client left before its session was over");
            }
        });
        let finished = tokio::select! {
            () = input.as_mut() => false,
            () = output.as_mut() => true,
        };
        if finished {
            // Until the client has closed too: cutting the connection could take its last bytes along.
            let _ = timeout(FAREWELL, input).await;
        }
    }
}

/// Sends what a stream says to the client.
async fn read(stream: Option<Stream>, channel: u8, messages: mpsc::Sender<Bytes>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(MESSAGE);
        buffer.put_u8(channel);
        let read = (&mut stream).take(MESSAGE as u64 - 1).read_buf(&mut buffer).await;
        if !matches!(read, Ok(1..)) || messages.send(buffer.split().freeze()).await.is_err() {
            return;
        }
    }
}

/// Gives the node what the client says, until the client leaves.
async fn listen<T>(source: &mut Source<T>, mut stdin: Option<Stream>, mut resize: Option<Stream>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = source.next().await {
        let message = match message {
            Message::Binary(message) => message,
            Message::Close(_) => return,
            _ => continue,
        };
        let Some((channel, content)) = message.split_first() else { continue };
        match *channel {
            CLOSE if content == [STDIN] => {
                if let Some(mut stdin) = stdin.take() {
                    let _ = stdin.shutdown().await;
                    // Kept open for reading: dropping it would reset it before the node has read all.
                    closed(stdin, source, resize).await;
                    return;
                }
            }
            channel @ (STDIN | RESIZE) => {
                let stream = if channel == STDIN { &mut stdin } else { &mut resize };
                if let Some(open) = stream
                    && open.write_all(content).await.is_err()
                {
                    // The command reads no more.
                    *stream = None;
                }
            }
            _ => {}
        }
    }
}

/// The rest of a session whose input is closed: only the terminal's size still matters.
async fn closed<T>(_stdin: Stream, source: &mut Source<T>, mut resize: Option<Stream>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = source.next().await {
        match message {
            Message::Close(_) => return,
            Message::Binary(message) if message.first() == Some(&RESIZE) => {
                if let Some(open) = &mut resize
                    && open.write_all(&message[1..]).await.is_err()
                {
                    resize = None;
                }
            }
            _ => {}
        }
    }
}
