//! What has arrived on a stream and waits to be read.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::ReadBuf;

/// Pieces smaller than this are copied together: each of them would keep all that it arrived with.
const SMALL: usize = 4 * 1024;

/// Bytes in the order of their arrival. Empty, it holds no memory.
#[derive(Default)]
pub(crate) struct Input {
    pieces: VecDeque<Bytes>,
    /// Small pieces that came after all of those.
    last: BytesMut,
    len: usize,
}

impl Input {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        if piece.len() < SMALL {
            self.last.extend_from_slice(&piece);
            return;
        }
        if !self.last.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.last).freeze());
        }
        self.pieces.push_back(piece);
    }

    /// Fills the buffer as far as it goes; says how many bytes that were.
    pub(crate) fn read(&mut self, buf: &mut ReadBuf<'_>) -> usize {
        let room = buf.remaining();
        while buf.remaining() > 0 {
            let Some(piece) = self.pieces.front_mut() else { break };
            let n = piece.len().min(buf.remaining());
            buf.put_slice(&piece.split_to(n));
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        let n = self.last.len().min(buf.remaining());
        buf.put_slice(&self.last[..n]);
        self.last.advance(n);
        let read = room - buf.remaining();
        self.len -= read;
        if self.len == 0 {
            *self = Self::default();
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_pushed_is_read_in_order_whatever_the_sizes(
            steps in proptest::collection::vec((any::<bool>(), 0_usize..3 * SMALL), 1..40),
        ) {
            let (mut input, mut sent, mut got) = (Input::default(), 0_usize, Vec::new());
            let mut read = |input: &mut Input, size: usize| {
                let mut room = vec![0; size];
                let mut buf = ReadBuf::new(&mut room);
                let n = input.read(&mut buf);
                got.extend_from_slice(buf.filled());
                n
            };
            for (push, size) in steps {
                if push {
                    input.push((sent..sent + size).map(|n| (n % 251) as u8).collect());
                    sent += size;
                } else {
                    let there = input.len();
                    prop_assert_eq!(read(&mut input, size), there.min(size));
                }
            }
            let left = input.len();
            prop_assert_eq!(read(&mut input, left + 1), left);
            prop_assert!(input.pieces.capacity() == 0 && input.last.capacity() == 0);
            prop_assert!(got.len() == sent && got.iter().enumerate().all(|(n, b)| *b == (n % 251) as u8));
        }
    }
}
