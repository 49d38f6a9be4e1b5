//! Header blocks are compressed, all those of one direction as one zlib stream.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::codec::CodecError;
use crate::dictionary::{DICTIONARY, DICTIONARY_ID};

/// The dictionary and a little more: a larger window would cost each session a quarter of a megabyte.
const WINDOW_BITS: u8 = 11;
/// Room that is made at a time.
const STEP: usize = 1024;

/// One direction's compressor.
pub(crate) struct Deflater(Compress);

impl Deflater {
    pub(crate) fn new() -> Self {
        let mut zlib = Compress::new_with_window_bits(Compression::default(), true, WINDOW_BITS);
        // It is only refused in the middle of a stream; a peer would refuse the first block without it.
        let set = zlib.set_dictionary(DICTIONARY);
        debug_assert!(set.is_ok());
        Self(zlib)
    }

    /// Compresses a block so that the peer can read all of it at once.
    pub(crate) fn block(&mut self, block: &[u8]) -> Result<Vec<u8>, CodecError> {
        let mut out = Vec::with_capacity(block.len() / 2 + 64);
        let start = self.0.total_in();
        loop {
            let done = usize::try_from(self.0.total_in() - start).unwrap_or(block.len());
            if out.capacity() - out.len() < 64 {
                out.reserve(STEP);
            }
            self.0
                .compress_vec(&block[done..], &mut out, FlushCompress::Sync)
                .map_err(|_| CodecError::Headers("they cannot be compressed"))?;
            let taken = usize::try_from(self.0.total_in() - start).unwrap_or(block.len());
            // Room that is left means that nothing is held back.
            if taken == block.len() && out.len() < out.capacity() {
                return Ok(out);
            }
        }
    }
}

/// One direction's decompressor.
pub(crate) struct Inflater(Decompress);

impl Inflater {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Decompresses a block of at most `max` bytes.
    pub(crate) fn block(&mut self, block: &[u8], max: usize) -> Result<Vec<u8>, CodecError> {
        let bad = CodecError::Headers;
        let mut out = Vec::new();
        let start = self.0.total_in();
        loop {
            if out.len() == out.capacity() {
                out.reserve_exact(STEP.min(max + 1 - out.len()));
            }
            let (before, written) = (self.0.total_in(), out.len());
            let rest = &block[usize::try_from(before - start).unwrap_or(block.len())..];
            match self.0.decompress_vec(rest, &mut out, FlushDecompress::Sync) {
                Ok(Status::Ok | Status::BufError) => {}
                // The streams of a session share one zlib stream, so that its end is nobody's to declare.
                Ok(Status::StreamEnd) => return Err(bad("the compressed stream has ended")),
                Err(error) => {
                    if error.needs_dictionary() != Some(DICTIONARY_ID) {
                        return Err(bad("they cannot be decompressed"));
                    }
                    self.0.set_dictionary(DICTIONARY).map_err(|_| bad("they cannot be decompressed"))?;
                    continue;
                }
            }
            if out.len() > max {
                return Err(bad("they are too long"));
            }
            let taken = usize::try_from(self.0.total_in() - start).unwrap_or(block.len());
            if taken == block.len() && out.len() < out.capacity() {
                return Ok(out);
            }
            if self.0.total_in() == before && out.len() == written && out.len() < out.capacity() {
                return Err(bad("they cannot be decompressed"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_share_one_stream_in_each_direction() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let mut sizes = Vec::new();
        for n in 0..1000 {
            let block = format!("streamtype data port 8080 requestid {n}").into_bytes();
            let small = deflater.block(&block).unwrap();
            sizes.push(small.len());
            assert_eq!(inflater.block(&small, 100).unwrap(), block);
        }
        assert!(sizes[999] < sizes[0], "{sizes:?}");
        let long: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
        let small = deflater.block(&long).unwrap();
        assert_eq!(inflater.block(&small, long.len()).unwrap(), long);
    }

    #[test]
    fn a_block_that_expands_beyond_the_limit_is_refused_early() {
        let small = Deflater::new().block(&vec![0; 10_000_000]).unwrap();
        assert!(small.len() < 20_000);
        assert!(Inflater::new().block(&small, 32 * 1024).is_err());
        let exact = Deflater::new().block(&[1; 4096]).unwrap();
        assert!(Inflater::new().block(&exact, 4096).is_ok());
        assert!(Inflater::new().block(&exact, 4095).is_err());
    }

    #[test]
    fn another_dictionary_none_or_rubbish_is_refused() {
        let mut other = Compress::new(Compression::default(), true);
        other.set_dictionary(b"another dictionary").unwrap();
        let mut out = Vec::with_capacity(100);
        other.compress_vec(b"hello", &mut out, FlushCompress::Sync).unwrap();
        assert!(Inflater::new().block(&out, 100).is_err());
        for bad in [&b"rubbish"[..], &[0xff; 64], &[0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2, 0xff, 0xff]] {
            assert!(Inflater::new().block(bad, 100).is_err(), "{bad:?}");
        }
    }
}
