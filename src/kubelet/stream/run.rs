//! `/run`: a command's output as plain text.
//!
//! A command that ends soon has its exit code in the answer's status: 200 or 500. One that writes more
//! than is kept back is sent as it writes, and its answer breaks off when it fails.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt, stream};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use tokio::io::DuplexStream;
use tokio::time::timeout;

use super::{OpenStream, Target};
use crate::kubelet::connection::text;
use crate::kubelet::handler::{Answered, TEXT};
use crate::provider::{ExitStatus, ProviderError, SessionIo};

/// What is kept back until it is known how the command ends, and what is sent at a time afterwards.
const KEPT: usize = 64 * 1024;

/// A command at work.
struct Running {
    command: Option<BoxFuture<'static, Result<ExitStatus, ProviderError>>>,
    outcome: Option<Result<ExitStatus, ProviderError>>,
    /// Standard output and standard error.
    pipes: [Option<DuplexStream>; 2],
    /// How long the command may write nothing: the client may have gone without anybody noticing.
    patience: Duration,
    _open: OpenStream,
}

impl Running {
    fn start(target: Target, command: Vec<String>, patience: Duration, open: OpenStream) -> Self {
        let (stdout, out) = tokio::io::duplex(KEPT);
        let (stderr, err) = tokio::io::duplex(KEPT);
        let io = SessionIo {
            stdin: None,
            stdout: Some(Box::pin(out)),
            stderr: Some(Box::pin(err)),
            tty: false,
            resize: None,
        };
        let run = async move { target.provider.exec(&target.pod, &target.container, &command, io).await };
        Self { command: Some(run.boxed()), outcome: None, pipes: [Some(stdout), Some(stderr)], patience, _open: open }
    }

    /// Appends what the command writes. Ready when the buffer is full or the command is over.
    fn poll_fill(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<()> {
        if let Some(command) = &mut self.command
            && let Poll::Ready(outcome) = command.poll_unpin(cx)
        {
            (self.command, self.outcome) = (None, Some(outcome));
        }
        let mut open = self.command.is_some();
        for pipe in &mut self.pipes {
            while let Some(from) = pipe {
                let room = KEPT.saturating_sub(buffer.len());
                if room == 0 {
                    return Poll::Ready(());
                }
                let mut limited = (&mut *buffer).limit(room);
                match tokio_util::io::poll_read_buf(Pin::new(from), cx, &mut limited) {
                    Poll::Ready(Ok(n)) if n > 0 => {}
                    Poll::Ready(_) => *pipe = None,
                    Poll::Pending => {
                        open = true;
                        break;
                    }
                }
            }
        }
        if open { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Gives up a command that is silent for too long.
    fn give_up(&mut self) {
        self.command = None;
        self.pipes = [None, None];
        self.outcome = Some(Err(ProviderError::unavailable("the command wrote nothing for too long")));
    }

    fn is_over(&self) -> bool {
        self.command.is_none() && self.pipes.iter().all(Option::is_none)
    }

    fn failure(&self) -> Option<String> {
        match self.outcome.as_ref()? {
            Ok(ExitStatus { code: 0 }) => None,
            Ok(ExitStatus { code }) => Some(format!("command terminated with exit code {code}\n")),
            Err(error) => Some(format!("{error}\n")),
        }
    }
}

/// Runs the command and answers with what it writes on both of its outputs.
pub(super) async fn answer(target: Target, command: Vec<String>, patience: Duration, open: OpenStream) -> Answered {
    let mut running = Running::start(target, command, patience, open);
    let mut buffer = BytesMut::new();
    if timeout(patience, poll_fn(|cx| running.poll_fill(cx, &mut buffer))).await.is_err() {
        running.give_up();
    }
    if !running.is_over() {
        return Ok(streaming(buffer.freeze(), running));
    }
    match running.failure() {
        None => Ok(text(StatusCode::OK, TEXT, buffer.freeze())),
        Some(why) => {
            buffer.extend_from_slice(why.as_bytes());
            Ok(text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, buffer.freeze()))
        }
    }
}

fn streaming(first: Bytes, running: Running) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
    let chunks = stream::unfold((first, Some(running)), async |(first, running)| {
        if !first.is_empty() {
            return Some((Ok(Frame::data(first)), (Bytes::new(), running)));
        }
        let mut running = running?;
        let patience = running.patience;
        let mut buffer = BytesMut::new();
        // What is there goes out; nothing waits for a full buffer.
        let filled = poll_fn(|cx| match running.poll_fill(cx, &mut buffer) {
            Poll::Pending if !buffer.is_empty() => Poll::Ready(()),
            polled => polled,
        });
        if timeout(patience, filled).await.is_err() {
            running.give_up();
        }
        if !buffer.is_empty() {
            return Some((Ok(Frame::data(buffer.freeze())), (Bytes::new(), Some(running))));
        }
        // The status line is long gone: breaking the answer is what is left to tell of a failure.
        running.failure().map(|why| (Err(io::Error::other(why)), (Bytes::new(), None)))
    });
    let mut response = Response::new(UnsyncBoxBody::new(StreamBody::new(chunks)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
