//! Exec, attach and port-forward: bytes in messages in both directions.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, Stream};
use futures::{FutureExt as _, SinkExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tokio_util::sync::PollSender;
use tonic::{Request, Response, Status, Streaming};
use vnode_proto::v1;
use vnode_proto::v1::session_input::Input;
use vnode_proto::v1::session_output::Output;

use super::connection::Client;
use super::{encode, failure};
use crate::provider::{Duplex, ExitStatus, ProviderError, Reader, Result, SessionIo, TerminalSize, Writer};

/// What is read at a time.
const BUFFER: usize = 32 << 10;
/// Messages that wait for the connection.
const QUEUE: usize = 4;

type Answers = BoxStream<'static, Result<Option<v1::SessionOutput>, Status>>;
/// What is sent, as a stream.
struct Requests<T>(mpsc::Receiver<T>);

impl<T> Stream for Requests<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_recv(cx)
    }
}

/// Who asks for a session.
pub(super) struct Caller {
    pub client: Client,
    /// What goes with the call.
    pub marks: Request<()>,
}

fn lost(call: &str, of: &str, why: &str) -> ProviderError {
    ProviderError::unavailable(format!("{call} of {of}: {why}"))
}

/// A queue with its first message in it.
fn begin<T>(first: T) -> Result<(mpsc::Sender<T>, mpsc::Receiver<T>)> {
    let (send, queue) = mpsc::channel(QUEUE);
    // There is room: the queue is new.
    send.try_send(first).map_err(|_| ProviderError::unavailable("a new queue has no room"))?;
    Ok((send, queue))
}

/// The answers to a call. Its headers may come with the first of them, when a command has something to say, so there is
/// no deadline: the connection is asked whether it still is one, and the client's end ends the call.
fn answers<R>(
    call: BoxFuture<'static, Result<Response<Streaming<R>>, Status>>,
    output: fn(R) -> Option<v1::SessionOutput>,
) -> Answers
where
    R: Send + 'static,
{
    call.map_ok(Response::into_inner).try_flatten_stream().map_ok(output).boxed()
}

/// Runs a command to its end.
pub(super) async fn exec(
    of: String,
    start: v1::ExecStart,
    Caller { mut client, marks }: Caller,
    io: SessionIo,
) -> Result<ExitStatus> {
    use v1::exec_request::Message;
    let (send, queue) = begin(v1::ExecRequest { message: Some(Message::Start(start)) })?;
    let request = marks.map(|()| Requests(queue));
    let answers = answers(async move { client.exec(request).await }.boxed(), |answer| answer.output);
    let wrap = |input| v1::ExecRequest { message: Some(Message::Input(v1::SessionInput { input: Some(input) })) };
    carry("Exec", &of, io, send, wrap, answers).await
}

/// Joins a process until it ends.
pub(super) async fn attach(
    of: String,
    start: v1::AttachStart,
    Caller { mut client, marks }: Caller,
    io: SessionIo,
) -> Result<ExitStatus> {
    use v1::attach_request::Message;
    let (send, queue) = begin(v1::AttachRequest { message: Some(Message::Start(start)) })?;
    let request = marks.map(|()| Requests(queue));
    let answers = answers(async move { client.attach(request).await }.boxed(), |answer| answer.output);
    let wrap = |input| v1::AttachRequest { message: Some(Message::Input(v1::SessionInput { input: Some(input) })) };
    carry("Attach", &of, io, send, wrap, answers).await
}

/// Carries a session until its process or its client ends.
async fn carry<T>(
    call: &str,
    of: &str,
    io: SessionIo,
    send: mpsc::Sender<T>,
    wrap: fn(Input) -> T,
    answers: Answers,
) -> Result<ExitStatus> {
    let SessionIo { stdin, stdout, stderr, resize, .. } = io;
    let input = async {
        tokio::join!(type_in(stdin, &send, wrap), follow_size(resize, &send, wrap));
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = write_out(call, of, answers, stdout, stderr) => ended,
        // It never ends: the process goes on when nothing more is typed.
        () = input => Err(lost(call, of, "the input ended the session")),
    }
}

async fn type_in<T>(stdin: Option<Reader>, send: &mpsc::Sender<T>, wrap: fn(Input) -> T) {
    let Some(mut stdin) = stdin else { return };
    let mut buffer = BytesMut::with_capacity(BUFFER);
    loop {
        buffer.reserve(BUFFER);
        let input = match stdin.read_buf(&mut buffer).await {
            Ok(1..) => Input::Stdin(buffer.split().freeze()),
            // A client that is gone types no more either.
            Ok(0) | Err(_) => Input::StdinClosed(v1::StdinClosed {}),
        };
        let last = matches!(input, Input::StdinClosed(_));
        if send.send(wrap(input)).await.is_err() || last {
            return;
        }
    }
}

async fn follow_size<T>(sizes: Option<mpsc::Receiver<TerminalSize>>, send: &mpsc::Sender<T>, wrap: fn(Input) -> T) {
    let Some(mut sizes) = sizes else { return };
    while let Some(mut size) = sizes.recv().await {
        while let Ok(newer) = sizes.try_recv() {
            size = newer;
        }
        if send.send(wrap(Input::Resize(encode::size(size)))).await.is_err() {
            return;
        }
    }
}

async fn write_out(
    call: &str,
    of: &str,
    mut answers: Answers,
    mut stdout: Option<Writer>,
    mut stderr: Option<Writer>,
) -> Result<ExitStatus> {
    let code = loop {
        let answer = answers.next().await.ok_or_else(|| lost(call, of, "the stream ended without an exit code"))?;
        let answer = answer.map_err(|status| failure::error(call, of, &status))?;
        // An output of a kind that is not known yet is none of ours.
        let (to, bytes) = match answer.and_then(|a| a.output) {
            Some(Output::Stdout(bytes)) => (&mut stdout, bytes),
            Some(Output::Stderr(bytes)) => (&mut stderr, bytes),
            Some(Output::ExitCode(code)) => break code,
            None => continue,
        };
        if let Some(to) = to {
            let written = async {
                to.write_all(&bytes).await?;
                to.flush().await
            };
            written.await.map_err(|_| lost(call, of, "the client is gone"))?;
        }
    };
    for mut to in [stdout, stderr].into_iter().flatten() {
        // A client that is gone needs no end.
        let _ = to.shutdown().await;
    }
    Ok(ExitStatus { code })
}

/// Connects to a port.
pub(super) async fn port_forward(
    of: String,
    start: v1::PortForwardStart,
    patience: Duration,
    Caller { mut client, marks }: Caller,
) -> Result<Box<dyn Duplex>> {
    use v1::port_forward_request::Message;
    use v1::port_forward_response::Message as Answer;
    const CALL: &str = "PortForward";
    let (send, queue) = begin(v1::PortForwardRequest { message: Some(Message::Start(start)) })?;
    let connected = async {
        let mut answers = client.port_forward(marks.map(|()| Requests(queue))).await?.into_inner();
        let first = answers.message().await?;
        Ok::<_, Status>((answers, first.and_then(|m| m.message)))
    };
    let connected = timeout(patience, connected).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("")));
    let answers = match connected.map_err(|status| failure::error(CALL, &of, &status))? {
        (answers, Some(Answer::Connected(_))) => answers,
        _ => return Err(lost(CALL, &of, "the service's first message must be `connected`")),
    };
    let data = answers.map_err(io::Error::other).try_filter_map(|answer| {
        std::future::ready(Ok(match answer.message {
            Some(Answer::Data(bytes)) => Some(bytes),
            _ => None,
        }))
    });
    let wrap = |data: Bytes| std::future::ready(Ok(v1::PortForwardRequest { message: Some(Message::Data(data)) }));
    let sink = PollSender::new(send).with(wrap).sink_map_err(|_: tokio_util::sync::PollSendError<_>| {
        io::Error::new(io::ErrorKind::BrokenPipe, "the connection to the pod is closed")
    });
    let read: Pin<Box<dyn tokio::io::AsyncRead + Send>> = Box::pin(StreamReader::new(data.boxed()));
    Ok(Box::new(tokio::io::join(read, SinkWriter::new(CopyToBytes::new(sink)))))
}
