//! Channels in messages: the first byte of each says which one the rest belongs to.
//!
//! Pure, and free of the rest of the crate, so that it can be fuzzed alone.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::Message;

/// The channel of a message that closes another one.
const CLOSE: u8 = 255;

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Framing {
    /// Text messages: the channel as a digit, the content in base64.
    base64: bool,
    /// A message on channel 255 closes the channel that it names.
    close: bool,
}

impl Framing {
    pub(super) const BINARY: Self = Self { base64: false, close: false };
    pub(super) const BASE64: Self = Self { base64: true, close: false };

    pub(super) const fn with_close(self) -> Self {
        Self { close: true, ..self }
    }
}

/// What a message says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Bytes on a channel.
    Data(u8, Bytes),
    /// No more will come on a channel.
    Close(u8),
    /// Nothing.
    Nothing,
}

impl Framing {
    /// Reads a message.
    ///
    /// # Errors
    /// The message breaks the protocol.
    pub(super) fn read(self, mut message: Bytes) -> Result<Said, &'static str> {
        if message.is_empty() {
            return Ok(Said::Nothing);
        }
        let first = message.get_u8();
        let channel = if self.base64 { first.wrapping_sub(b'0') } else { first };
        if self.base64 {
            message = STANDARD.decode(&message).map_err(|_| "a message is not base64")?.into();
        }
        if self.close && channel == CLOSE {
            return match message[..] {
                [channel] => Ok(Said::Close(channel)),
                _ => Err("a message that closes a channel must name one"),
            };
        }
        Ok(if message.is_empty() { Said::Nothing } else { Said::Data(channel, message) })
    }

    /// Writes a message whose first byte is left for the channel.
    pub(super) fn write(self, channel: u8, mut message: BytesMut) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(message.len() / 3 * 4 + 8);
            text.push(char::from(channel.wrapping_add(b'0')));
            STANDARD.encode_string(&message[1..], &mut text);
            return Message::text(text);
        }
        if let Some(first) = message.first_mut() {
            *first = channel;
        }
        Message::binary(message.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut as _;

    #[test]
    fn a_message_names_its_channel_first() {
        let close = Framing::BINARY.with_close();
        for (framing, message, want) in [
            (Framing::BINARY, &b"\x00ls\n"[..], Ok(Said::Data(0, Bytes::from_static(b"ls\n")))),
            (Framing::BINARY, b"", Ok(Said::Nothing)),
            (Framing::BINARY, b"\x00", Ok(Said::Nothing)),
            (Framing::BINARY, b"\xff\x00", Ok(Said::Data(255, Bytes::from_static(b"\0")))),
            (close, b"\xff\x00", Ok(Said::Close(0))),
            (close, b"\xff", Err("a message that closes a channel must name one")),
            (close, b"\xff\x00\x00", Err("a message that closes a channel must name one")),
            (Framing::BASE64, b"0bHMK", Ok(Said::Data(0, Bytes::from_static(b"ls\n")))),
            (Framing::BASE64, b"0", Ok(Said::Nothing)),
            (Framing::BASE64, b"0b*", Err("a message is not base64")),
        ] {
            assert_eq!(framing.read(Bytes::copy_from_slice(message)), want, "{message:?}");
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        for framing in [Framing::BINARY, Framing::BASE64] {
            for content in [&b""[..], b"a", b"ab", b"abc", &[0xff; 1000]] {
                let mut message = BytesMut::from(&b"\0"[..]);
                message.put_slice(content);
                let read = framing.read(framing.write(2, message).into_data());
                let want = if content.is_empty() { Said::Nothing } else { Said::Data(2, content.to_vec().into()) };
                assert_eq!(read, Ok(want));
            }
        }
    }
}
