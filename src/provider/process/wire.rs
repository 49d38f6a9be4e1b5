//! What is said over a supervisor's socket: one line of JSON that asks, one that answers, then frames.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio_util::codec::{Decoder, Encoder};

/// The socket's name in a container's folder.
pub(super) const SOCKET: &str = "ctl.sock";
/// A line longer than this is nobody's.
const MAX_LINE: u64 = 1 << 20;
/// Bytes of output in one frame.
pub(super) const CHUNK: usize = 32 * 1024;

/// The first line of a connection.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Keep the connection open until the container has ended.
    Watch,
    /// As `Watch`, with a frame whenever something was written to the log.
    Follow,
    /// Send a signal by its name; KILL goes to every process of the container.
    Signal(String),
    /// Join the main process.
    Attach { stdin: bool },
    /// Run a command beside the main process. It is killed when the connection ends.
    Exec { command: Vec<String>, stdin: bool, tty: bool },
    /// From the process that is to become the main one: what follows says why it could not.
    Launch,
}

/// The line that answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Done,
    Failed(String),
}

/// What follows for attach, exec and follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Stdin(Bytes),
    StdinEnd,
    Resize {
        width: u16,
        height: u16,
    },
    Stdout(Bytes),
    Stderr(Bytes),
    Exit(i32),
    /// The log has grown.
    Grown,
}

/// A kind, a length, the bytes.
pub(super) struct Frames;

impl Encoder<Frame> for Frames {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> io::Result<()> {
        let mut number = BytesMut::new();
        let (kind, data) = match frame {
            Frame::Stdin(data) => (0, data),
            Frame::StdinEnd => (1, Bytes::new()),
            Frame::Resize { width, height } => {
                number.put_u16(width);
                number.put_u16(height);
                (2, number.freeze())
            }
            Frame::Stdout(data) => (3, data),
            Frame::Stderr(data) => (4, data),
            Frame::Exit(code) => {
                number.put_i32(code);
                (5, number.freeze())
            }
            Frame::Grown => (6, Bytes::new()),
        };
        out.put_u8(kind);
        // A frame is made of one read, which is far shorter.
        out.put_u32(u32::try_from(data.len()).map_err(io::Error::other)?);
        out.put(data);
        Ok(())
    }
}

impl Decoder for Frames {
    type Item = Frame;
    type Error = io::Error;

    fn decode(&mut self, src: &mut BytesMut) -> io::Result<Option<Frame>> {
        if src.len() < 5 {
            return Ok(None);
        }
        let length = u32::from_be_bytes([src[1], src[2], src[3], src[4]]) as usize;
        if length as u64 > MAX_LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
        }
        if src.len() < 5 + length {
            return Ok(None);
        }
        let kind = src[0];
        src.advance(5);
        let mut data = src.split_to(length).freeze();
        let short = || io::Error::new(io::ErrorKind::InvalidData, "a frame is too short");
        Ok(Some(match kind {
            0 => Frame::Stdin(data),
            1 => Frame::StdinEnd,
            2 if data.len() >= 4 => Frame::Resize { width: data.get_u16(), height: data.get_u16() },
            3 => Frame::Stdout(data),
            4 => Frame::Stderr(data),
            5 if data.len() >= 4 => Frame::Exit(data.get_i32()),
            6 => Frame::Grown,
            2 | 5 => return Err(short()),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of an unknown kind")),
        }))
    }
}

/// Writes one line of JSON.
pub(super) async fn say(out: &mut (impl AsyncWrite + Unpin), what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    out.write_all(&line).await?;
    out.flush().await
}

/// Reads one line of JSON. What was read beyond it stays in the reader.
pub(super) async fn hear<T: for<'de> Deserialize<'de>>(from: &mut BufReader<impl AsyncRead + Unpin>) -> io::Result<T> {
    let mut line = Vec::new();
    from.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_way() {
        let all = [
            Frame::Stdin("in".into()),
            Frame::StdinEnd,
            Frame::Resize { width: 80, height: 24 },
            Frame::Stdout("out".into()),
            Frame::Stderr(Bytes::new()),
            Frame::Exit(-3),
            Frame::Grown,
        ];
        let mut wire = BytesMut::new();
        for frame in all.clone() {
            Frames.encode(frame, &mut wire).unwrap();
        }
        let mut part = BytesMut::new();
        let mut seen = Vec::new();
        for byte in wire {
            part.put_u8(byte);
            seen.extend(Frames.decode(&mut part).unwrap());
        }
        assert_eq!(seen, all);
        assert!(Frames.decode(&mut BytesMut::from(&[9, 0, 0, 0, 0][..])).is_err());
        assert!(Frames.decode(&mut BytesMut::from(&[3, 255, 0, 0, 0][..])).is_err());
    }
}
