//! The other end of a supervisor's socket.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, FramedWrite};

use super::wire::{CHUNK, Frame, Frames, Reply, Request, SOCKET, hear, say};
use crate::provider::{ExitStatus, ProviderError, Result, SessionIo};

const ANSWER: Duration = Duration::from_secs(10);

/// A connection on which the supervisor has agreed to something.
pub(super) struct Connection {
    pub read: BufReader<OwnedReadHalf>,
    pub write: OwnedWriteHalf,
}

/// Asks the supervisor of a container's folder; `None` when there is none any more.
pub(super) async fn ask(dir: &Path, request: &Request) -> io::Result<Option<Connection>> {
    // A socket's path may have 108 bytes, which ours are longer than.
    let folder = match std::fs::File::open(dir) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    let asked = async {
        let stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            // Reset, when it ends in this moment.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        let replied = async {
            say(&mut write, request).await?;
            hear(&mut read).await
        };
        match replied.await {
            Ok(Reply::Done) => Ok(Some(Connection { read, write })),
            Ok(Reply::Failed(message)) => Err(io::Error::other(message)),
            // It ended while we asked.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    };
    timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Returns when the supervisor has ended.
pub(super) async fn ended(mut connection: Connection) {
    let mut byte = [0; 64];
    while connection.read.read(&mut byte).await.is_ok_and(|n| n > 0) {}
    drop(connection.write);
}

/// Carries a session's streams until the process or the client ends.
pub(super) async fn session(connection: Connection, io: SessionIo) -> Result<ExitStatus> {
    let Connection { read, write } = connection;
    let mut incoming = FramedRead::new(read, Frames);
    let mut outgoing = FramedWrite::new(write, Frames);
    let SessionIo { mut stdin, mut stdout, mut stderr, mut resize, .. } = io;
    let broken = |error: io::Error| ProviderError::Unavailable {
        message: "carrying a session".into(),
        retry_after: None,
        source: Some(Box::new(error)),
    };
    let mut buffer = vec![0; CHUNK];
    let code = loop {
        tokio::select! {
            frame = incoming.next() => match frame {
                Some(Ok(Frame::Stdout(data))) => {
                    if let Some(out) = &mut stdout {
                        out.write_all(&data).await.map_err(broken)?;
                        out.flush().await.map_err(broken)?;
                    }
                }
                Some(Ok(Frame::Stderr(data))) => {
                    if let Some(out) = &mut stderr {
                        out.write_all(&data).await.map_err(broken)?;
                        out.flush().await.map_err(broken)?;
                    }
                }
                Some(Ok(Frame::Exit(code))) => break code,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(error)),
                // The container's end is the end of everything in it.
                None => break 137,
            },
            read = read_some(&mut stdin, &mut buffer), if stdin.is_some() => {
                let frame = match read {
                    Ok(n) if n > 0 => Frame::Stdin(bytes::Bytes::copy_from_slice(&buffer[..n])),
                    _ => {
                        stdin = None;
                        Frame::StdinEnd
                    }
                };
                // A process that has ended reads no more; its code is on the way.
                let _ = outgoing.send(frame).await;
            }
            size = next_size(&mut resize), if resize.is_some() => match size {
                Some(size) => {
                    let _ = outgoing.send(Frame::Resize { width: size.width, height: size.height }).await;
                }
                None => resize = None,
            },
        }
    };
    for out in [&mut stdout, &mut stderr].into_iter().flatten() {
        // The client may be gone, which does not change how the command ended.
        let _ = out.shutdown().await;
    }
    Ok(ExitStatus { code })
}

async fn read_some(stdin: &mut Option<crate::provider::Reader>, buffer: &mut [u8]) -> io::Result<usize> {
    match stdin {
        Some(stdin) => stdin.read(buffer).await,
        None => std::future::pending().await,
    }
}

async fn next_size(
    resize: &mut Option<tokio::sync::mpsc::Receiver<crate::provider::TerminalSize>>,
) -> Option<crate::provider::TerminalSize> {
    match resize {
        Some(resize) => resize.recv().await,
        None => std::future::pending().await,
    }
}
