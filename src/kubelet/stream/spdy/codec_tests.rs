use proptest::prelude::*;

use super::*;
use crate::frame::{GoAwayStatus, RstStatus};

fn id() -> impl Strategy<Value = u32> {
    1..=ID_MASK
}

fn headers() -> impl Strategy<Value = Headers> {
    proptest::collection::vec(("[a-z0-9:-]{1,20}", "\\PC{0,40}"), 0..8).prop_map(|pairs| {
        let mut headers = Headers::new();
        pairs.iter().for_each(|(n, v)| headers.set(n, v));
        headers
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (id(), 0..=ID_MASK, 0..8_u8, any::<bool>(), any::<bool>(), headers()).prop_map(
            |(id, associated, priority, fin, unidirectional, headers)| Frame::SynStream {
                id,
                associated,
                priority,
                fin,
                unidirectional,
                headers
            }
        ),
        (id(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::SynReply { id, fin, headers }),
        (id(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::Headers { id, fin, headers }),
        (id(), 1..20_u32).prop_map(|(id, s)| Frame::RstStream { id, status: RstStatus::from(s) }),
        proptest::collection::vec((0..0x00ff_ffff_u32, any::<u32>()), 0..5).prop_map(Frame::Settings),
        (1..u32::MAX).prop_map(Frame::Ping),
        (0..=ID_MASK, 0..5_u32).prop_map(|(last, s)| Frame::GoAway { last, status: GoAwayStatus::from(s) }),
        (0..=ID_MASK, id()).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
        (id(), any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(id, fin, bytes)| Frame::Data { id, fin, bytes: bytes.into() }),
    ]
}

/// All frames in these bytes, fed in pieces that end where `cuts` says; the pieces of a data frame joined.
fn decode(bytes: &[u8], cuts: &[usize]) -> Result<Vec<Frame>, CodecError> {
    let mut ends: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).chain([bytes.len()]).collect();
    ends.sort_unstable();
    let (mut decoder, mut input, mut frames) = (Decoder::new(Limits::default()), BytesMut::new(), Vec::new());
    let (mut at, mut within) = (0, false);
    for end in ends {
        input.extend_from_slice(&bytes[at..end]);
        at = end;
        while let Some(frame) = decoder.decode(&mut input)? {
            match (frames.last_mut(), frame) {
                (Some(Frame::Data { fin, bytes, .. }), Frame::Data { fin: f, bytes: more, .. }) if within => {
                    *fin = f;
                    *bytes = [&bytes[..], &more[..]].concat().into();
                }
                (_, frame) => frames.push(frame),
            }
            within = decoder.data.is_some();
        }
    }
    assert!(input.is_empty() || decoder.data.is_none());
    Ok(frames)
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_however_the_bytes_are_split(
        frames in proptest::collection::vec(frame(), 0..12),
        cuts in proptest::collection::vec(any::<usize>(), 0..40),
    ) {
        let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
        for frame in &frames {
            encoder.encode(frame, &mut out).unwrap();
        }
        prop_assert_eq!(decode(&out, &cuts).unwrap(), frames);
    }

    #[test]
    fn any_bytes_decode_the_same_however_they_are_split(
        bytes in proptest::collection::vec(prop_oneof![Just(0_u8), Just(3), Just(0x80), any::<u8>()], 0..200),
        cuts in proptest::collection::vec(any::<usize>(), 0..40),
    ) {
        prop_assert_eq!(decode(&bytes, &cuts), decode(&bytes, &[]));
    }

    #[test]
    fn a_damaged_session_never_panics(
        frames in proptest::collection::vec(frame(), 1..6),
        damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6),
    ) {
        let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
        for frame in &frames {
            encoder.encode(frame, &mut out).unwrap();
        }
        for (at, byte) in damage {
            let at = at % out.len();
            out[at] = byte;
        }
        let _ = decode(&out, &[]);
    }
}

#[test]
fn malformed_frames_are_refused() {
    for (bytes, why) in [
        (&b"\0\0\0\0\0\0\0\0"[..], "data on stream zero"),
        (b"\x80\x02\0\x01\0\0\0\x0a", "another version"),
        (b"\x80\x03\0\x01\0\xff\xff\xff", "a control frame of 16 MiB"),
        (b"\x80\x03\0\x06\0\0\0\x05\0\0\0\x01\0", "a ping of five bytes"),
        (b"\x80\x03\0\x06\0\0\0\x04\0\0\0\0", "a ping of zero"),
        (b"\x80\x03\0\x03\0\0\0\x08\0\0\0\x01\0\0\0\0", "a reset without a reason"),
        (b"\x80\x03\0\x03\0\0\0\x08\0\0\0\0\0\0\0\x05", "a reset of no stream"),
        (b"\x80\x03\0\x04\0\0\0\x04\xff\xff\xff\xff", "more settings than there are"),
        (b"\x80\x03\0\x09\0\0\0\x08\0\0\0\x01\0\0\0\0", "a window that grows by nothing"),
        (b"\x80\x03\0\x01\0\0\0\x09\0\0\0\x01\0\0\0\0\0", "a stream without all of its fields"),
        (b"\x80\x03\0\x02\0\0\0\x08\0\0\0\x01rubb", "headers that are not compressed"),
        (b"\x80\x03\0\x02\0\0\0\x04\0\0\0\x01", "headers without a block"),
    ] {
        assert!(decode(bytes, &[]).is_err(), "{why}");
    }
}

#[test]
fn frames_of_an_unknown_type_are_passed_over() {
    let mut bytes = b"\x80\x03\0\x0a\0\0\0\x03abc\x80\x03\0\x05\0\0\0\0".to_vec();
    bytes.extend_from_slice(b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x07");
    for cuts in [&[][..], &[9], &[3, 10, 13]] {
        assert_eq!(decode(&bytes, cuts).unwrap(), [Frame::Ping(7)]);
    }
}

#[test]
fn more_data_than_fits_one_frame_becomes_several() {
    let all = Frame::Data { id: 1, fin: true, bytes: vec![7; MAX_LENGTH + 5].into() };
    let mut out = BytesMut::new();
    Encoder::new().encode(&all, &mut out).unwrap();
    let mut decoder = Decoder::new(Limits::default());
    let Ok(Some(Frame::Data { fin: false, bytes, .. })) = decoder.decode(&mut out) else { panic!() };
    assert_eq!(bytes.len(), MAX_LENGTH);
    let Ok(Some(Frame::Data { fin: true, bytes, .. })) = decoder.decode(&mut out) else { panic!() };
    assert_eq!(bytes.len(), 5);
}

/// All that kubectl 1.32 sends for `exec -i p -- cat` with "hi there" as its input.
const KUBECTL_EXEC: &str = "80030001000000290000000100000000000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff80\
     0300010000001700000003000000000000c22e555c92929907000000ffff800300010000001900000005000000000000c22a\
     c5565c92925f5a02000000ffff800300010000001500000007000000000000c229975a5404000000ffff0000000300000009\
     68692074686572650a0000000301000000800300030000000800000001000000058003000300000008000000050000000580\
     03000300000008000000070000000580030007000000080000000000000000";

#[test]
fn a_recorded_session_of_kubectl_is_read() {
    let hex = KUBECTL_EXEC.as_bytes();
    let bytes: Vec<u8> =
        hex.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
    let open = |id, kind| Frame::SynStream {
        id,
        associated: 0,
        priority: 0,
        fin: false,
        unidirectional: false,
        headers: Headers::from([("streamtype", kind)]),
    };
    let data = |fin, bytes: &'static [u8]| Frame::Data { id: 3, fin, bytes: Bytes::from_static(bytes) };
    let cancel = |id| Frame::RstStream { id, status: RstStatus::Cancel };
    let want = [
        open(1, "error"),
        open(3, "stdin"),
        open(5, "stdout"),
        open(7, "stderr"),
        data(false, b"hi there\n"),
        data(true, b""),
        cancel(1),
        cancel(5),
        cancel(7),
        Frame::GoAway { last: 0, status: GoAwayStatus::Ok },
    ];
    assert_eq!(decode(&bytes, &[]).unwrap(), want);
    let every_byte: Vec<usize> = (0..bytes.len()).collect();
    assert_eq!(decode(&bytes, &every_byte).unwrap(), want);
}

#[test]
fn the_first_block_names_the_dictionary() {
    let mut out = BytesMut::new();
    let headers = Headers::from([("streamtype", "error")]);
    let frame = Frame::SynStream { id: 1, associated: 0, priority: 0, fin: false, unidirectional: false, headers };
    Encoder::new().encode(&frame, &mut out).unwrap();
    // The head of a zlib stream: the method, that there is a dictionary, and its checksum.
    assert_eq!((out[18] & 0x0f, out[19] & 0x20), (8, 0x20));
    assert_eq!(&out[20..24], &crate::dictionary::DICTIONARY_ID.to_be_bytes());
}

/// What kubectl 1.32 said after the upgrade, as it was recorded between it and an API server.
const RECORDED: [(&str, &[u8]); 3] = [
    ("exec -i POD -- cat, with a line on standard input", include_bytes!("testdata/kubectl_exec.bin")),
    ("exec POD -- sh -c 'exit 3'", include_bytes!("testdata/kubectl_exit.bin")),
    ("port-forward, with one HTTP request through it", include_bytes!("testdata/kubectl_forward.bin")),
];

/// A frame in one line: what it is, its stream, its headers or bytes.
fn line(frame: &Frame) -> String {
    let pairs = |headers: &Headers| headers.iter().map(|(n, v)| format!(" {n}={v}")).collect::<String>();
    match frame {
        Frame::SynStream { id, fin, headers, .. } => format!("syn {id} fin={fin}{}", pairs(headers)),
        Frame::Data { id, fin, bytes } => format!("data {id} fin={fin} {:?}", String::from_utf8_lossy(bytes)),
        other => format!("{other:?}"),
    }
}

#[test]
fn what_kubectl_says_is_understood_however_it_arrives() {
    let want: [&[&str]; 3] = [
        &[
            "syn 1 fin=false streamtype=error",
            "syn 3 fin=false streamtype=stdin",
            "syn 5 fin=false streamtype=stdout",
            "syn 7 fin=false streamtype=stderr",
            "data 3 fin=false \"hello from stdin\\n\"",
            "data 3 fin=true \"\"",
            "GoAway { last: 0, status: Ok }",
        ],
        &[
            "syn 1 fin=false streamtype=error",
            "syn 3 fin=false streamtype=stdout",
            "syn 5 fin=false streamtype=stderr",
            "GoAway { last: 0, status: Ok }",
        ],
        &[
            "syn 1 fin=false streamtype=error port=80 requestid=0",
            "data 1 fin=true \"\"",
            "syn 3 fin=false streamtype=data port=80 requestid=0",
            "data 3 fin=false \"GET / HTTP/1.1\\r\\nHost: 127.0.0.1:18445\\r\\nUser-Agent: curl/7.88.1\\r\\nAccept: */*\\r\\n\\r\\n\"",
            "RstStream { id: 3, status: Cancel }",
            "Ping(1)",
        ],
    ];
    for ((what, bytes), want) in RECORDED.iter().zip(want) {
        let frames = decode(bytes, &[]).unwrap();
        let lines: Vec<_> = frames.iter().map(line).collect();
        assert_eq!(lines, want, "{what}");
        let every: Vec<usize> = (0..bytes.len()).collect();
        assert_eq!(decode(bytes, &every).unwrap(), frames, "{what}, byte by byte");
    }
}
