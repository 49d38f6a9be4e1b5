#![no_main]
//! SPDY frames: whatever comes, in whatever pieces, is decoded to the same or refused, within the limits, and what was
//! decoded can be said again.

use bytes::BytesMut;
use vnode_spdy::codec::{Decoder, Encoder, Limits};
use vnode_spdy::frame::Frame;

/// The frames and whether an error ended them; the pieces of data joined.
fn decode(data: &[u8], step: usize) -> (Vec<Frame>, bool) {
    let (mut decoder, mut input, mut frames) = (Decoder::new(Limits::default()), BytesMut::new(), Vec::new());
    for part in data.chunks(step) {
        input.extend_from_slice(part);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

/// Without the bytes of data, whose pieces depend on how they came.
fn shape(frames: &[Frame]) -> Vec<&Frame> {
    frames.iter().filter(|f| !matches!(f, Frame::Data { .. })).collect()
}

fn bytes(frames: &[Frame]) -> Vec<u8> {
    let of = |f: &Frame| if let Frame::Data { bytes, .. } = f { bytes.to_vec() } else { Vec::new() };
    frames.iter().flat_map(of).collect()
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((step, data)) = data.split_first() else { return };
    let (whole, failed) = decode(data, data.len().max(1));
    let (parts, failed_too) = decode(data, usize::from(*step).max(1));
    assert_eq!(failed, failed_too);
    assert_eq!(shape(&whole), shape(&parts));
    assert_eq!(bytes(&whole), bytes(&parts));
    let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
    for frame in &whole {
        let _ = encoder.encode(frame, &mut out);
    }
});
