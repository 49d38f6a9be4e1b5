use std::time::Duration;

use std::io;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::Connection;
use crate::codec::{Decoder, Encoder, Limits};
use crate::frame::{Frame, GoAwayStatus, RstStatus};
use crate::state::OUT_STUCK;

const MOMENT: Duration = Duration::from_secs(20);

fn options() -> Options {
    Options { max_streams: 64, stream_buffer: 64 * 1024, session_buffer: 256 * 1024, ..Options::default() }
}

type Ended = JoinHandle<Result<(), Error>>;

/// Two ends that talk to each other through a pipe of this size.
fn ends(pipe: usize) -> ((Session, Ended), (Session, Ended)) {
    let (a, b) = tokio::io::duplex(pipe);
    let (client, client_connection): (Session, Connection<DuplexStream>) = crate::client(a, options());
    let (server, server_connection) = crate::server(b, options());
    ((client, tokio::spawn(client_connection)), (server, tokio::spawn(server_connection)))
}

fn kind(kind: &str) -> Headers {
    Headers::from([("kind", kind)])
}

/// A peer that speaks in frames and keeps no windows, as those of Kubernetes.
struct Raw {
    io: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
    input: BytesMut,
}

impl Raw {
    fn new(io: DuplexStream) -> Self {
        Self { io, encoder: Encoder::new(), decoder: Decoder::new(Limits::default()), input: BytesMut::new() }
    }

    async fn send(&mut self, frame: Frame) {
        let mut out = BytesMut::new();
        self.encoder.encode(&frame, &mut out).unwrap();
        self.io.write_all(&out).await.unwrap();
    }

    async fn open(&mut self, id: u32) {
        let frame =
            Frame::SynStream { id, associated: 0, priority: 0, fin: false, unidirectional: false, headers: kind("x") };
        self.send(frame).await;
    }

    /// The next frame that says more than how the peer would like to be treated.
    async fn next(&mut self) -> Option<Frame> {
        timeout(MOMENT, async {
            loop {
                match self.decoder.decode(&mut self.input).unwrap() {
                    Some(Frame::Settings(_) | Frame::WindowUpdate { .. }) => {}
                    Some(frame) => return Some(frame),
                    None if self.io.read_buf(&mut self.input).await.unwrap_or(0) == 0 => return None,
                    None => {}
                }
            }
        })
        .await
        .expect("a frame")
    }
}

fn with_raw() -> (Raw, Session, Ended) {
    let (near, far) = tokio::io::duplex(16 * 1024);
    let (session, connection) = crate::server(near, options());
    (Raw::new(far), session, tokio::spawn(connection))
}

#[tokio::test]
async fn streams_carry_headers_bytes_and_their_ends_in_both_directions() {
    for pipe in [1, 7, 64 * 1024] {
        let ((client, client_ended), (server, server_ended)) = ends(pipe);
        let serving = tokio::spawn(async move {
            while let Some(incoming) = server.accept().await {
                if incoming.headers().get("kind") == Some("unwanted") {
                    incoming.refuse();
                    continue;
                }
                let mut stream = incoming.accept();
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).await.unwrap();
                    all.reverse();
                    stream.write_all(&all).await.unwrap();
                    stream.shutdown().await.unwrap();
                });
            }
        });
        let unwanted = client.open(kind("unwanted")).unwrap();
        assert!(matches!(unwanted.replied().await, Err(Error::Reset(RstStatus::RefusedStream))));
        drop(unwanted);
        let mut streams: Vec<Stream> = (0..10).map(|_| client.open(kind("echo")).unwrap()).collect();
        for (n, stream) in streams.iter_mut().enumerate() {
            stream.replied().await.unwrap();
            stream.write_all(&vec![n as u8; 1000 + n]).await.unwrap();
            stream.write_all(b"end").await.unwrap();
            stream.shutdown().await.unwrap();
            assert!(stream.write(b"more").await.is_err());
        }
        for (n, stream) in streams.iter_mut().enumerate() {
            let mut all = Vec::new();
            timeout(MOMENT, stream.read_to_end(&mut all)).await.unwrap().unwrap();
            assert_eq!(all, [&b"dne"[..], &vec![n as u8; 1000 + n]].concat());
        }
        drop(streams);
        assert_eq!(client.streams(), 0);
        client.close();
        timeout(MOMENT, serving).await.unwrap().unwrap();
        timeout(MOMENT, client_ended).await.unwrap().unwrap().unwrap();
        timeout(MOMENT, server_ended).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn between_two_ends_that_keep_windows_an_unread_stream_stops_only_itself() {
    let ((client, _c), (server, _s)) = ends(16 * 1024);
    let mut stuck = client.open(kind("stuck")).unwrap();
    let unread = server.accept().await.unwrap().accept();
    stuck.replied().await.unwrap();
    let filling = tokio::spawn(async move {
        let mut written = 0;
        while let Ok(Ok(n)) = timeout(Duration::from_millis(300), stuck.write(&[0; 4096])).await {
            written += n;
        }
        (written, stuck)
    });
    let (written, stuck) = filling.await.unwrap();
    // The window that was there before the peer told its own may have been larger.
    assert!(written <= 128 * 1024, "{written}");
    let mut other = client.open(kind("other")).unwrap();
    let mut reader = timeout(MOMENT, server.accept()).await.unwrap().unwrap().accept();
    other.replied().await.unwrap();
    let (sent, read) = tokio::join!(
        async {
            for _ in 0..300 {
                other.write_all(&[1; 4096]).await.unwrap();
            }
            other.shutdown().await.unwrap();
        },
        async {
            let mut all = Vec::new();
            timeout(MOMENT, reader.read_to_end(&mut all)).await.unwrap().unwrap();
            all.len()
        }
    );
    assert_eq!(((), 300 * 4096), (sent, read));
    drop((stuck, unread));
}

#[tokio::test]
async fn a_peer_without_windows_is_stopped_by_a_full_stream_and_goes_on_when_it_is_read() {
    let (mut raw, session, _ended) = with_raw();
    raw.open(1).await;
    let mut stream = session.accept().await.unwrap().accept();
    let sender = tokio::spawn(async move {
        let mut sent = 0;
        while sent < 1_000_000 {
            raw.send(Frame::Data { id: 1, fin: false, bytes: vec![9; 10_000].into() }).await;
            sent += 10_000;
        }
        raw.send(Frame::Data { id: 1, fin: true, bytes: Bytes::new() }).await;
        raw
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!sender.is_finished());
    assert!(session.shared.lock().waiting().0 <= 64 * 1024);
    let mut all = Vec::new();
    timeout(MOMENT, stream.read_to_end(&mut all)).await.unwrap().unwrap();
    assert_eq!(all.len(), 1_000_000);
    assert_eq!(session.shared.lock().waiting().0, 0);
    sender.await.unwrap();
}

#[tokio::test]
async fn a_peer_without_windows_is_sent_more_than_a_window_and_no_more_than_it_reads() {
    let (mut raw, session, _ended) = with_raw();
    raw.open(1).await;
    let mut stream = session.accept().await.unwrap().accept();
    let mut written = 0;
    while let Ok(Ok(n)) = timeout(Duration::from_millis(200), stream.write(&[0; 8192])).await {
        written += n;
    }
    assert!((64 * 1024..400 * 1024).contains(&written), "{written}");
    let mut received = 0;
    assert!(matches!(raw.next().await, Some(Frame::SynReply { id: 1, .. })));
    while received < written {
        let Some(Frame::Data { bytes, .. }) = raw.next().await else { panic!("data") };
        received += bytes.len();
    }
    timeout(MOMENT, stream.write_all(&[0; 8192])).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_dropped_stream_is_reset_and_what_still_comes_for_it_is_thrown_away() {
    let (mut raw, session, _ended) = with_raw();
    raw.open(1).await;
    drop(session.accept().await.unwrap().accept());
    assert!(matches!(raw.next().await, Some(Frame::SynReply { id: 1, .. })));
    assert_eq!(raw.next().await, Some(Frame::RstStream { id: 1, status: RstStatus::Cancel }));
    for _ in 0..100 {
        raw.send(Frame::Data { id: 1, fin: false, bytes: vec![0; 10_000].into() }).await;
    }
    // Half a stream: its writer goes and ends it, its reader goes and it is reset.
    raw.open(3).await;
    let (reader, mut writer) = session.accept().await.unwrap().accept().into_split();
    drop(reader);
    raw.send(Frame::Data { id: 3, fin: false, bytes: vec![0; 200_000].into() }).await;
    writer.write_all(b"bye").await.unwrap();
    drop(writer);
    assert!(matches!(raw.next().await, Some(Frame::SynReply { id: 3, .. })));
    assert_eq!(raw.next().await, Some(Frame::Data { id: 3, fin: false, bytes: Bytes::from_static(b"bye") }));
    assert_eq!(raw.next().await, Some(Frame::Data { id: 3, fin: true, bytes: Bytes::new() }));
    assert_eq!(raw.next().await, Some(Frame::RstStream { id: 3, status: RstStatus::Cancel }));
    raw.send(Frame::Ping(7)).await;
    assert_eq!(raw.next().await, Some(Frame::Ping(7)));
    let state = session.shared.lock();
    assert_eq!((state.waiting().0, state.stream_count()), (0, 0));
}

#[tokio::test]
async fn a_reset_is_seen_by_reader_and_writer_after_what_came_before_it() {
    let (mut raw, session, _ended) = with_raw();
    raw.open(1).await;
    let mut stream = session.accept().await.unwrap().accept();
    raw.send(Frame::Data { id: 1, fin: false, bytes: Bytes::from_static(b"last words") }).await;
    raw.send(Frame::RstStream { id: 1, status: RstStatus::Cancel }).await;
    let mut words = [0; 10];
    stream.read_exact(&mut words).await.unwrap();
    let error = timeout(MOMENT, stream.read(&mut words)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(stream.write(b"x").await.is_err());
    drop(stream);
    assert_eq!(session.streams(), 0);
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_refused_ones_leave_nothing_behind() {
    let (mut raw, session, _ended) = with_raw();
    for n in 0..66 {
        raw.open(2 * n + 1).await;
    }
    for id in [129, 131] {
        assert_eq!(raw.next().await, Some(Frame::RstStream { id, status: RstStatus::RefusedStream }));
    }
    for n in 0..64 {
        drop(session.accept().await.unwrap());
        assert_eq!(raw.next().await, Some(Frame::RstStream { id: 2 * n + 1, status: RstStatus::RefusedStream }));
    }
    assert_eq!(session.streams(), 0);
    // One that its own end has reset before it was looked at.
    raw.open(133).await;
    raw.send(Frame::RstStream { id: 133, status: RstStatus::Cancel }).await;
    raw.send(Frame::Ping(1)).await;
    assert_eq!(raw.next().await, Some(Frame::Ping(1)));
    drop(session.accept().await.unwrap());
    assert_eq!(session.streams(), 0);
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_told_and_everything_ends() {
    for frames in [vec![(2, false)], vec![(1, false), (1, false)], vec![(3, false), (1, false)], vec![(1, true)]] {
        let (mut raw, session, ended) = with_raw();
        for (id, rubbish) in frames {
            if rubbish {
                raw.io.write_all(&[0x80, 0x07, 0, 1, 0, 0, 0, 0]).await.unwrap();
            } else {
                raw.open(id).await;
            }
        }
        loop {
            match raw.next().await {
                Some(Frame::GoAway { status, .. }) => break assert_eq!(status, GoAwayStatus::ProtocolError),
                Some(_) => {}
                None => panic!("no goodbye"),
            }
        }
        assert!(timeout(MOMENT, ended).await.unwrap().unwrap().is_err());
        while session.accept().await.is_some() {}
        assert!(session.open(Headers::new()).is_err());
    }
}

#[tokio::test]
async fn a_peer_that_asks_and_does_not_read_the_answers_is_not_read_either() {
    let (mut raw, session, _ended) = with_raw();
    let mut out = BytesMut::new();
    raw.encoder.encode(&Frame::Ping(1), &mut out).unwrap();
    let pings = out.repeat(1000);
    let mut sent = 0_usize;
    while timeout(Duration::from_millis(300), raw.io.write_all(&pings)).await.is_ok() {
        sent += pings.len();
        assert!(sent < 4 << 20);
    }
    assert!(session.shared.lock().waiting().1 < 2 * OUT_STUCK);
    // It is heard again once it reads; its last write was cut off at some frame's border or within one.
    let mut buffer = vec![0; 64 * 1024];
    let mut received = 0;
    while let Ok(Ok(n @ 1..)) = timeout(Duration::from_millis(300), raw.io.read(&mut buffer)).await {
        received += n;
    }
    assert!(received >= sent, "{received} {sent}");
}

#[tokio::test(start_paused = true)]
async fn it_is_told_which_stream_holds_up_the_others_until_somebody_reads_it() {
    let (mut raw, session, _ended) = with_raw();
    raw.open(1).await;
    raw.open(3).await;
    let mut slow = session.accept().await.unwrap().accept();
    let mut other = session.accept().await.unwrap().accept();
    let flood = tokio::spawn(async move {
        for _ in 0..8 {
            raw.send(Frame::Data { id: 1, fin: false, bytes: vec![0; 32 * 1024].into() }).await;
        }
        raw.send(Frame::Data { id: 3, fin: true, bytes: Bytes::from_static(b"x") }).await;
        raw
    });
    assert_eq!(timeout(MOMENT, session.held_up(Duration::from_millis(50))).await.expect("to be told"), 1);
    // However little is read, it is not stuck.
    let reading = tokio::spawn(async move {
        while slow.read(&mut [0; 1000]).await.is_ok_and(|n| n > 0) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let patience = Duration::from_millis(400);
    assert!(timeout(Duration::from_secs(1), session.held_up(patience)).await.is_err());
    let mut text = String::new();
    timeout(MOMENT, other.read_to_string(&mut text)).await.expect("its turn").unwrap();
    assert_eq!(text, "x");
    drop(flood.await.unwrap());
    timeout(MOMENT, reading).await.expect("an end").unwrap();
}

#[tokio::test]
async fn when_the_connection_goes_nobody_waits_any_longer() {
    let ((client, client_ended), (server, server_ended)) = ends(1024);
    let mut stream = client.open(kind("x")).unwrap();
    let mut far = server.accept().await.unwrap().accept();
    stream.replied().await.unwrap();
    let reading = tokio::spawn(async move { stream.read(&mut [0; 1]).await });
    let writing = tokio::spawn(async move { while far.write(&[0; 1024]).await.is_ok() {} });
    let (accepting, leaving) = (server.clone(), server.clone());
    let accepting = tokio::spawn(async move { accepting.accept().await.is_none() });
    let leaving = tokio::spawn(async move { leaving.peer_left().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    client_ended.abort();
    let _ = timeout(MOMENT, reading).await.expect("the reader to end");
    timeout(MOMENT, writing).await.expect("the writer to end").unwrap();
    assert!(timeout(MOMENT, accepting).await.expect("the acceptor to end").unwrap());
    timeout(MOMENT, leaving).await.expect("the peer to have left").unwrap();
    let _ = timeout(MOMENT, server_ended).await.expect("the connection to end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_is_written_is_read_through_any_pipe(
        pipe in 1..40_000_usize,
        writes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5000), 0..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let ((client, _c), (server, _s)) = ends(pipe);
            let mut stream = client.open(Headers::new()).unwrap();
            let mut far = server.accept().await.unwrap().accept();
            stream.replied().await.unwrap();
            let want = writes.concat();
            let mut got = Vec::new();
            let sending = async {
                for write in &writes {
                    stream.write_all(write).await.unwrap();
                }
                stream.shutdown().await.unwrap();
            };
            tokio::join!(sending, async { far.read_to_end(&mut got).await.unwrap() });
            assert!(got == want);
        });
    }
}
