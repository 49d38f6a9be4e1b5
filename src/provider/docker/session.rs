//! The streams of exec and attach over a connection that was taken over.
//!
//! With a terminal both directions are bare bytes. Without one the output comes in frames: a byte for the
//! stream, three of nothing, four for the length, and the bytes.

use std::io;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::provider::{SessionIo, TerminalSize, Writer};

const BUFFER: usize = 32 << 10;

/// Carries a session until its output ends or the client is gone; `resize` is told of new sizes.
pub(super) async fn carry<'a>(
    connection: impl AsyncRead + AsyncWrite + Send + Unpin,
    io: SessionIo,
    terminal: bool,
    resize: impl Fn(TerminalSize) -> BoxFuture<'a, ()>,
) -> io::Result<()> {
    let (read, mut write) = tokio::io::split(connection);
    let SessionIo { stdin, stdout, stderr, resize: sizes, .. } = io;
    let output = async {
        match terminal {
            true => copy_all(read, stdout).await,
            false => take_apart(read, stdout, stderr).await,
        }
    };
    let input = async {
        if let Some(mut stdin) = stdin {
            // What is typed into a process that has gone is nobody's.
            let _ = tokio::io::copy(&mut stdin, &mut write).await;
            let _ = write.shutdown().await;
        }
        std::future::pending::<()>().await;
    };
    let resizing = async {
        if let Some(mut sizes) = sizes {
            while let Some(size) = latest(&mut sizes).await {
                resize(size).await;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        done = output => done,
        () = input => Ok(()),
        () = resizing => Ok(()),
    }
}

async fn latest(sizes: &mut mpsc::Receiver<TerminalSize>) -> Option<TerminalSize> {
    let mut size = sizes.recv().await?;
    while let Ok(newer) = sizes.try_recv() {
        size = newer;
    }
    Some(size)
}

async fn copy_all(mut read: impl AsyncRead + Unpin, to: Option<Writer>) -> io::Result<()> {
    match to {
        Some(mut to) => {
            tokio::io::copy(&mut read, &mut to).await?;
            to.shutdown().await
        }
        None => tokio::io::copy(&mut read, &mut tokio::io::sink()).await.map(drop),
    }
}

async fn take_apart(
    mut read: impl AsyncRead + Unpin,
    mut stdout: Option<Writer>,
    mut stderr: Option<Writer>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut header = [0; 8];
    loop {
        match read.read_exact(&mut header).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            other => other?,
        };
        let to = if header[0] == 2 { &mut stderr } else { &mut stdout };
        let mut left = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        while left > 0 {
            let part = left.min(BUFFER);
            read.read_exact(&mut buffer[..part]).await?;
            if let Some(to) = to {
                to.write_all(&buffer[..part]).await?;
                to.flush().await?;
            }
            left -= part;
        }
    }
    for mut to in [stdout, stderr].into_iter().flatten() {
        to.shutdown().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_are_taken_apart_and_input_ends_with_the_clients() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut out, stdout) = tokio::io::duplex(1024);
        let (mut err, stderr) = tokio::io::duplex(1024);
        let io = SessionIo {
            stdin: Some(Box::pin(&b"typed"[..])),
            stdout: Some(Box::pin(stdout)),
            stderr: Some(Box::pin(stderr)),
            tty: false,
            resize: None,
        };
        let engine = async move {
            let mut typed = String::new();
            far.read_to_string(&mut typed).await.unwrap();
            for (stream, text) in [(1u8, "one"), (2, "two"), (1, "three")] {
                far.write_all(&[stream, 0, 0, 0, 0, 0, 0, text.len() as u8]).await.unwrap();
                far.write_all(text.as_bytes()).await.unwrap();
            }
            typed
        };
        let (typed, carried) = tokio::join!(engine, carry(near, io, false, |_| Box::pin(async {})));
        carried.unwrap();
        let (mut stdout, mut stderr) = (String::new(), String::new());
        out.read_to_string(&mut stdout).await.unwrap();
        err.read_to_string(&mut stderr).await.unwrap();
        assert_eq!((typed.as_str(), stdout.as_str(), stderr.as_str()), ("typed", "onethree", "two"));
    }
}
