//! What is asked over the socket. Only the owner of the container's folder can connect.

use std::io;
use std::rc::Rc;

use futures::{SinkExt as _, StreamExt as _};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, FramedWrite};

use super::child::{self, Child, Input, Output};
use super::{Shared, kill_all};
use crate::provider::LogSource;
use crate::provider::process::proc;
use crate::provider::process::wire::{Frame, Frames, Reply, Request, hear, say};
use crate::provider::runtime;

/// Connections at a time: each is somebody's session, probe or look at the log.
const CONNECTIONS: usize = 256;
/// What a process that is launched may have to say.
const MAX_ERROR: u64 = 4096;

pub(super) async fn serve(listener: UnixListener, shared: Rc<Shared>) {
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Out of descriptors, most likely: some will be given back.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let shared = shared.clone();
        tokio::task::spawn_local(async move {
            // The client sees how it ended.
            let _ = answer(stream, &shared).await;
            drop(place);
        });
    }
}

async fn answer(stream: UnixStream, shared: &Rc<Shared>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    match hear(&mut read).await? {
        Request::Launch => {
            let mut text = String::new();
            read.take(MAX_ERROR).read_to_string(&mut text).await?;
            let _ = shared.launched.try_send(text);
            Ok(())
        }
        Request::Watch => {
            say(&mut write, &Reply::Done).await?;
            let mut ended = shared.ended.subscribe();
            let mut byte = [0];
            tokio::select! {
                _ = ended.wait_for(Option::is_some) => {}
                _ = read.read(&mut byte) => {}
            }
            Ok(())
        }
        Request::Follow => {
            // What is written from here on is told.
            let (mut grown, mut ended) = (shared.grown.subscribe(), shared.ended.subscribe());
            say(&mut write, &Reply::Done).await?;
            let mut frames = FramedWrite::new(write, Frames);
            loop {
                tokio::select! {
                    changed = grown.changed() => {
                        if changed.is_err() {
                            return Ok(());
                        }
                        frames.send(Frame::Grown).await?;
                    }
                    _ = ended.wait_for(Option::is_some) => return Ok(()),
                }
            }
        }
        Request::Signal(name) => {
            let reply = match signal(shared, &name) {
                Ok(()) => Reply::Done,
                Err(error) => Reply::Failed(error.to_string()),
            };
            say(&mut write, &reply).await
        }
        Request::Attach { stdin } => attach(read, write, shared, stdin).await,
        Request::Exec { command, stdin, tty } => exec(read, write, shared, command, stdin, tty).await,
    }
}

fn signal(shared: &Shared, name: &str) -> io::Result<()> {
    let wanted = runtime::Signal(name.to_owned());
    if wanted.is_kill() {
        kill_all(rustix::process::getpid().as_raw_pid());
        return Ok(());
    }
    let main = shared.main.borrow().as_ref().map(|m| m.pid);
    let Some(pid) = main.filter(|_| shared.ended.borrow().is_none()).and_then(Pid::from_raw) else { return Ok(()) };
    let number = wanted.number().and_then(Signal::from_named_raw);
    let number = number.ok_or_else(|| io::Error::other(format!("unknown signal {name}")))?;
    // The main process leads a group of its own: a shell's children should hear of it as well. We have not
    // waited for it yet, so nobody else has its number.
    match rustix::process::kill_process_group(pid, number) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => Ok(other?),
    }
}

async fn attach(
    read: BufReader<OwnedReadHalf>,
    mut write: OwnedWriteHalf,
    shared: &Rc<Shared>,
    stdin: bool,
) -> io::Result<()> {
    let (mut output, mut ended) = (shared.output.subscribe(), shared.ended.subscribe());
    let input = shared.main.borrow().as_ref().and_then(|m| m.stdin.clone());
    let once = shared.run.stdin_once;
    say(&mut write, &Reply::Done).await?;
    let mut frames = FramedWrite::new(write, Frames);
    let mut incoming = FramedRead::new(read, Frames);
    loop {
        tokio::select! {
            biased;
            frame = output.recv() => match frame {
                Ok(frame) => frames.send(frame).await?,
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return Ok(()),
            },
            code = ended.wait_for(Option::is_some) => {
                let code = code.map(|c| *c).unwrap_or_default();
                while let Ok(frame) = output.try_recv() {
                    frames.send(frame).await?;
                }
                return frames.send(Frame::Exit(code.unwrap_or_default())).await;
            }
            frame = incoming.next() => {
                let Some(frame) = frame.transpose()? else {
                    if once && stdin {
                        end(shared, input.as_ref()).await;
                    }
                    return Ok(());
                };
                match (frame, &input) {
                    (Frame::StdinEnd, _) if once && stdin => end(shared, input.as_ref()).await,
                    // Without stdinOnce the next session goes on typing.
                    (Frame::StdinEnd, _) => {}
                    (frame, Some(input)) => feed(input, frame, stdin).await,
                    (_, None) => {}
                }
            }
        }
    }
}

async fn end(shared: &Shared, input: Option<&mpsc::Sender<Input>>) {
    if let Some(input) = input {
        let _ = input.send(Input::End).await;
    }
    if let Some(main) = shared.main.borrow_mut().as_mut() {
        main.stdin = None;
    }
}

/// Fails when the process does not read any more, which is its own affair.
async fn feed(input: &mpsc::Sender<Input>, frame: Frame, stdin: bool) {
    let _ = match frame {
        Frame::Stdin(data) if stdin => input.send(Input::Data(data)).await,
        Frame::StdinEnd if stdin => input.send(Input::End).await,
        Frame::Resize { width, height } => input.send(Input::Resize { width, height }).await,
        _ => Ok(()),
    };
}

async fn exec(
    read: BufReader<OwnedReadHalf>,
    mut write: OwnedWriteHalf,
    shared: &Rc<Shared>,
    command: Vec<String>,
    stdin: bool,
    tty: bool,
) -> io::Result<()> {
    let _session = shared.sessions.subscribe();
    let mut child = match Child::spawn(shared, command, tty, stdin, false) {
        Ok(child) => child,
        Err(error) => return say(&mut write, &Reply::Failed(error.to_string())).await,
    };
    say(&mut write, &Reply::Done).await?;
    let mut frames = FramedWrite::new(write, Frames);
    let mut incoming = FramedRead::new(read, Frames);
    let mut gone = false;
    let mut status = None;
    let piece = |Output { source, data }| match source {
        LogSource::Stdout => Frame::Stdout(data),
        LogSource::Stderr => Frame::Stderr(data),
    };
    // Output goes on as long as somebody holds its end; the command's end is what counts, as with kubelet's
    // runtimes, after what it wrote itself.
    loop {
        tokio::select! {
            output = child.output.recv() => match output {
                Some(output) => {
                    if frames.send(piece(output)).await.is_err() {
                        gone = true;
                    }
                }
                None => break,
            },
            ended = child::status(&mut child.process, shared), if status.is_none() => {
                status = Some(ended?);
                while let Ok(Some(output)) =
                    tokio::time::timeout(std::time::Duration::from_millis(50), child.output.recv()).await
                {
                    if frames.send(piece(output)).await.is_err() {
                        gone = true;
                    }
                }
                break;
            }
            frame = incoming.next() => match frame {
                Some(Ok(frame)) => {
                    if let Some(input) = &child.stdin {
                        feed(input, frame, stdin || tty).await;
                    }
                }
                Some(Err(_)) | None => gone = true,
            },
        }
        if gone {
            kill_session(child.pid);
            break;
        }
    }
    let (code, _) = match status {
        Some(status) => status,
        None => child::status(&mut child.process, shared).await?,
    };
    if gone { Ok(()) } else { frames.send(Frame::Exit(code)).await }
}

/// The command and what it started in the same session.
fn kill_session(pid: i32) {
    let family = proc::family(&proc::table(), pid);
    proc::kill(family.into_iter().chain([pid]));
}
