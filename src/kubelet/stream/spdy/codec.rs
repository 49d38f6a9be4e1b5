//! Frames as bytes.
//!
//! A control frame begins with a 1 bit, the version and its type; a data frame with a 0 bit and its stream.
//! Then come eight flags and a length of 24 bits. Numbers are in network order.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::Headers;
use crate::frame::Frame;
use crate::zlib::{Deflater, Inflater};

const VERSION: u16 = 3;
const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;
const ID_MASK: u32 = 0x7fff_ffff;
/// The largest length that a frame can tell.
const MAX_LENGTH: usize = 0x00ff_ffff;
/// What every frame begins with.
const HEAD: usize = 8;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Bytes that are no frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Another version of the protocol.
    #[error("version {0} is not spoken")]
    Version(u16),
    /// A frame of known type that cannot be so.
    #[error("a frame is malformed: {0}")]
    Frame(&'static str),
    /// A header block that cannot be read.
    #[error("headers cannot be read: {0}")]
    Headers(&'static str),
}

/// Limits of single frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a control frame, its headers still compressed.
    pub control_frame: usize,
    /// Bytes of a header block once it is decompressed.
    pub header_block: usize,
    /// Headers of one block.
    pub headers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { control_frame: 16 * 1024, header_block: 32 * 1024, headers: 64 }
    }
}

/// Reads frames.
pub struct Decoder {
    limits: Limits,
    inflater: Inflater,
    /// The data frame whose bytes are coming: stream, bytes left, FIN.
    data: Option<(u32, usize, bool)>,
    /// Bytes left of a control frame that nobody here knows.
    skip: usize,
}

impl Decoder {
    /// Expects the beginning of a session.
    pub fn new(limits: Limits) -> Self {
        Self { limits, inflater: Inflater::new(), data: None, skip: 0 }
    }

    /// Takes the next frame, or the next piece of a data frame, from the front of `input`. `None` when more
    /// bytes are needed.
    ///
    /// # Errors
    /// The bytes are no frame; nothing after them can be read either.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        loop {
            if self.skip > 0 {
                let n = self.skip.min(input.len());
                input.advance(n);
                self.skip -= n;
                if self.skip > 0 {
                    return Ok(None);
                }
            }
            if let Some((id, left, fin)) = self.data {
                if input.is_empty() {
                    return Ok(None);
                }
                let bytes = input.split_to(left.min(input.len())).freeze();
                let left = left - bytes.len();
                self.data = (left > 0).then_some((id, left, fin));
                return Ok(Some(Frame::Data { id, fin: fin && left == 0, bytes }));
            }
            let Some(head) = input.first_chunk::<HEAD>() else { return Ok(None) };
            let (mut first, flags) = (&head[..4], head[4]);
            let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
            let word = first.get_u32();
            if word & !ID_MASK == 0 {
                input.advance(HEAD);
                let (id, fin) = (nonzero(word)?, flags & FIN != 0);
                if length == 0 {
                    return Ok(Some(Frame::Data { id, fin, bytes: Bytes::new() }));
                }
                self.data = Some((id, length, fin));
                continue;
            }
            // Both are 16 bits wide by the shifts.
            let (version, kind) = ((word >> 16 & 0x7fff) as u16, (word & 0xffff) as u16);
            if version != VERSION {
                return Err(CodecError::Version(version));
            }
            if !matches!(kind, SYN_STREAM..=SETTINGS | PING..=WINDOW_UPDATE) {
                input.advance(HEAD);
                self.skip = length;
                continue;
            }
            if length > self.limits.control_frame {
                return Err(CodecError::Frame("it is too long"));
            }
            if input.len() < HEAD + length {
                return Ok(None);
            }
            input.advance(HEAD);
            let body = input.split_to(length);
            return self.control(kind, flags, &body).map(Some);
        }
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: &[u8]) -> Result<Frame, CodecError> {
        let exact = match kind {
            RST_STREAM | GOAWAY | WINDOW_UPDATE => body.len() == 8,
            PING => body.len() == 4,
            SYN_STREAM => body.len() >= 10,
            _ => body.len() >= 4,
        };
        if !exact {
            return Err(CodecError::Frame("its length does not fit its type"));
        }
        let fin = flags & FIN != 0;
        let first = body.get_u32();
        Ok(match kind {
            SYN_STREAM => {
                let associated = body.get_u32() & ID_MASK;
                let priority = body.get_u8() >> 5;
                let _credential_slot = body.get_u8();
                Frame::SynStream {
                    id: nonzero(first & ID_MASK)?,
                    associated,
                    priority,
                    fin,
                    unidirectional: flags & UNIDIRECTIONAL != 0,
                    headers: self.headers(body)?,
                }
            }
            SYN_REPLY => Frame::SynReply { id: nonzero(first & ID_MASK)?, fin, headers: self.headers(body)? },
            HEADERS => Frame::Headers { id: nonzero(first & ID_MASK)?, fin, headers: self.headers(body)? },
            RST_STREAM => Frame::RstStream { id: nonzero(first & ID_MASK)?, status: nonzero(body.get_u32())?.into() },
            SETTINGS => {
                if body.len() != (first as usize).saturating_mul(8) {
                    return Err(CodecError::Frame("its length does not fit its number of settings"));
                }
                let pairs = body.chunks_exact(8).map(|mut pair| (pair.get_u32() & 0x00ff_ffff, pair.get_u32()));
                Frame::Settings(pairs.collect())
            }
            PING => Frame::Ping(nonzero(first)?),
            GOAWAY => Frame::GoAway { last: first & ID_MASK, status: body.get_u32().into() },
            _ => Frame::WindowUpdate { id: first & ID_MASK, delta: nonzero(body.get_u32() & ID_MASK)? },
        })
    }

    fn headers(&mut self, compressed: &[u8]) -> Result<Headers, CodecError> {
        let block = self.inflater.block(compressed, self.limits.header_block)?;
        Headers::from_block(&block, self.limits.headers)
    }
}

fn nonzero(number: u32) -> Result<u32, CodecError> {
    if number == 0 { Err(CodecError::Frame("a number must not be zero")) } else { Ok(number) }
}

/// Writes frames.
pub struct Encoder {
    deflater: Deflater,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// Stands at the beginning of a session.
    pub fn new() -> Self {
        Self { deflater: Deflater::new() }
    }

    /// Appends a frame to `out`. More data than fits one frame becomes several.
    ///
    /// # Errors
    /// Headers that are too long for a frame.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), CodecError> {
        match frame {
            Frame::SynStream { id, associated, priority, fin, unidirectional, headers } => {
                let flags = (u8::from(*fin) * FIN) | (u8::from(*unidirectional) * UNIDIRECTIONAL);
                let block = self.deflater.block(&headers.to_block())?;
                control(out, SYN_STREAM, flags, 10 + block.len())?;
                out.put_u32(id & ID_MASK);
                out.put_u32(associated & ID_MASK);
                out.put_u8(priority << 5);
                out.put_u8(0);
                out.put_slice(&block);
            }
            Frame::SynReply { id, fin, headers } => self.with_headers(out, SYN_REPLY, *id, *fin, headers)?,
            Frame::Headers { id, fin, headers } => self.with_headers(out, HEADERS, *id, *fin, headers)?,
            Frame::RstStream { id, status } => pair(out, RST_STREAM, id & ID_MASK, (*status).into())?,
            Frame::GoAway { last, status } => pair(out, GOAWAY, last & ID_MASK, (*status).into())?,
            Frame::WindowUpdate { id, delta } => pair(out, WINDOW_UPDATE, id & ID_MASK, delta & ID_MASK)?,
            Frame::Ping(id) => {
                control(out, PING, 0, 4)?;
                out.put_u32(*id);
            }
            Frame::Settings(pairs) => {
                control(out, SETTINGS, 0, 4 + 8 * pairs.len())?;
                // The length was just found to fit 24 bits.
                out.put_u32(pairs.len() as u32);
                for (id, value) in pairs {
                    out.put_u32(id & 0x00ff_ffff);
                    out.put_u32(*value);
                }
            }
            Frame::Data { id, fin, bytes } => {
                let mut chunks = bytes.chunks(MAX_LENGTH).peekable();
                if chunks.peek().is_none() {
                    data(*id, *fin, &[], out);
                }
                while let Some(chunk) = chunks.next() {
                    data(*id, *fin && chunks.peek().is_none(), chunk, out);
                }
            }
        }
        Ok(())
    }

    fn with_headers(
        &mut self,
        out: &mut BytesMut,
        kind: u16,
        id: u32,
        fin: bool,
        headers: &Headers,
    ) -> Result<(), CodecError> {
        let block = self.deflater.block(&headers.to_block())?;
        control(out, kind, u8::from(fin) * FIN, 4 + block.len())?;
        out.put_u32(id & ID_MASK);
        out.put_slice(&block);
        Ok(())
    }
}

/// Appends one data frame of at most 2^24 - 1 bytes.
pub(crate) fn data(id: u32, fin: bool, bytes: &[u8], out: &mut BytesMut) {
    debug_assert!(bytes.len() <= MAX_LENGTH);
    out.reserve(HEAD + bytes.len());
    out.put_u32(id & ID_MASK);
    out.put_u8(u8::from(fin) * FIN);
    out.put_uint(bytes.len() as u64, 3);
    out.put_slice(bytes);
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) -> Result<(), CodecError> {
    if length > MAX_LENGTH {
        return Err(CodecError::Frame("it is too long"));
    }
    out.reserve(HEAD + length);
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u8(flags);
    out.put_uint(length as u64, 3);
    Ok(())
}

fn pair(out: &mut BytesMut, kind: u16, first: u32, second: u32) -> Result<(), CodecError> {
    control(out, kind, 0, 8)?;
    out.put_u32(first);
    out.put_u32(second);
    Ok(())
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
