#![no_main]
//! WebSocket messages as channels: nothing panics, and what is understood is written the same again.

#[path = "../../src/kubelet/stream/framing.rs"]
#[allow(dead_code)]
mod framing;

use bytes::{Bytes, BytesMut};
use framing::{Framing, Said};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for framing in [Framing::BINARY, Framing::BASE64] {
        let _ = framing.with_close().read(Bytes::copy_from_slice(data));
        if let Ok(Said::Data(channel, content)) = framing.read(Bytes::copy_from_slice(data)) {
            let mut message = BytesMut::from(&[0][..]);
            message.extend_from_slice(&content);
            if framing == Framing::BINARY || channel < 10 {
                let written = framing.write(channel, message).into_data();
                assert_eq!(framing.read(written), Ok(Said::Data(channel, content)));
            }
        }
    }
});
