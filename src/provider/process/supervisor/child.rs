//! A command with pipes or a terminal, its output as one stream of pieces.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::process::Command;
use tokio::sync::mpsc;

use super::Shared;
use super::launch::Launch;
use crate::provider::LogSource;
use crate::provider::process::wire::CHUNK;

/// Pieces of output or input that wait.
const QUEUE: usize = 16;

/// A piece of output.
pub(super) struct Output {
    pub source: LogSource,
    pub data: Bytes,
}

/// Something for the standard input.
pub(super) enum Input {
    Data(Bytes),
    End,
    Resize { width: u16, height: u16 },
}

/// A command that runs.
pub(super) struct Child {
    pub pid: i32,
    pub process: tokio::process::Child,
    pub output: mpsc::Receiver<Output>,
    /// Also takes sizes of the terminal; `None` without stdin and terminal.
    pub stdin: Option<mpsc::Sender<Input>>,
}

impl Child {
    /// Starts a command in the container: its environment, user and mounts.
    pub fn spawn(shared: &Rc<Shared>, command: Vec<String>, tty: bool, stdin: bool, main: bool) -> io::Result<Self> {
        let launch = serde_json::to_string(&Launch { report: main, tty, command })?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("supervise").arg(".").arg("--launch").arg(launch);
        command.env_clear().envs(&shared.run.env).kill_on_drop(true);
        let (out, output) = mpsc::channel(QUEUE);
        let (into, input) = mpsc::channel(QUEUE);
        if tty {
            let terminal = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            rustix::pty::grantpt(&terminal)?;
            rustix::pty::unlockpt(&terminal)?;
            let peer = rustix::pty::ioctl_tiocgptpeer(
                &terminal,
                OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
            )?;
            command
                .stdin(Stdio::from(peer.try_clone()?))
                .stdout(Stdio::from(peer.try_clone()?))
                .stderr(Stdio::from(peer));
            let child = spawn(shared, &mut command)?;
            drop(command);
            let terminal = Arc::new(Terminal::new(terminal)?);
            tokio::task::spawn_local(read_terminal(terminal.clone(), out));
            tokio::task::spawn_local(write_terminal(terminal, input));
            return Ok(Self { pid: pid(&child)?, process: child, output, stdin: Some(into) });
        }
        command.stdin(if stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(shared, &mut command)?;
        for (source, pipe) in [
            (LogSource::Stdout, child.stdout.take().map(|p| Box::new(p) as Box<dyn AsyncRead + Unpin>)),
            (LogSource::Stderr, child.stderr.take().map(|p| Box::new(p) as Box<dyn AsyncRead + Unpin>)),
        ] {
            if let Some(pipe) = pipe {
                tokio::task::spawn_local(read_pipe(pipe, source, out.clone()));
            }
        }
        let stdin = child.stdin.take().map(|pipe| {
            tokio::task::spawn_local(write_pipe(pipe, input));
            into
        });
        Ok(Self { pid: pid(&child)?, process: child, output, stdin })
    }
}

/// A process's exit code, 128 + n when ended by signal n, and the signal.
pub(super) async fn status(process: &mut tokio::process::Child, shared: &Shared) -> io::Result<(i32, Option<i32>)> {
    let pid = pid(process).ok();
    let status = process.wait().await?;
    if let Some(pid) = pid {
        shared.known.borrow_mut().remove(&pid);
    }
    let signal = status.signal();
    Ok((status.code().unwrap_or_else(|| 128 + signal.unwrap_or(0)), signal))
}

fn spawn(shared: &Shared, command: &mut Command) -> io::Result<tokio::process::Child> {
    let child = command.spawn()?;
    shared.known.borrow_mut().insert(pid(&child)?);
    Ok(child)
}

fn pid(child: &tokio::process::Child) -> io::Result<i32> {
    child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(|| io::Error::other("it has ended already"))
}

async fn read_pipe(mut pipe: Box<dyn AsyncRead + Unpin>, source: LogSource, out: mpsc::Sender<Output>) {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    loop {
        buffer.reserve(CHUNK);
        match pipe.read_buf(&mut buffer).await {
            Ok(n) if n > 0 => {}
            _ => return,
        }
        if out.send(Output { source, data: buffer.split().freeze() }).await.is_err() {
            return;
        }
    }
}

async fn write_pipe(mut pipe: tokio::process::ChildStdin, mut input: mpsc::Receiver<Input>) {
    while let Some(input) = input.recv().await {
        match input {
            Input::Data(data) => {
                if pipe.write_all(&data).await.is_err() {
                    return;
                }
            }
            Input::End => return,
            Input::Resize { .. } => {}
        }
    }
}

/// The master side of a pseudo-terminal.
struct Terminal(AsyncFd<File>);

impl Terminal {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        // A file owns its descriptor for as long as it lives, which is what the replacement wants to be promised.
        #[allow(deprecated, reason = "its replacement is unsafe")]
        Ok(Self(AsyncFd::new(File::from(fd))?))
    }
}

async fn read_terminal(terminal: Arc<Terminal>, out: mpsc::Sender<Output>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = terminal.0.async_io(Interest::READABLE, |mut file| io::Read::read(&mut file, &mut buffer)).await;
        // EIO says that the last process has closed its side.
        let Ok(n @ 1..) = read else { return };
        let data = Bytes::copy_from_slice(&buffer[..n]);
        if out.send(Output { source: LogSource::Stdout, data }).await.is_err() {
            return;
        }
    }
}

async fn write_terminal(terminal: Arc<Terminal>, mut input: mpsc::Receiver<Input>) {
    /// Ctrl-D: how a terminal says that there is no more.
    const END: &[u8] = &[4];
    while let Some(input) = input.recv().await {
        let data = match input {
            Input::Data(data) => data,
            Input::End => Bytes::from_static(END),
            Input::Resize { width, height } => {
                let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
                // A terminal that is gone has no size.
                let _ = rustix::termios::tcsetwinsize(terminal.0.get_ref().as_fd(), size);
                continue;
            }
        };
        let mut rest = &data[..];
        while !rest.is_empty() {
            match terminal.0.async_io(Interest::WRITABLE, |mut file| io::Write::write(&mut file, rest)).await {
                Ok(n) => rest = &rest[n..],
                Err(_) => return,
            }
        }
    }
}
