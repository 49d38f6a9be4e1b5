//! Two byte streams joined: what one sends the other gets, no faster than it reads, until both are done.
//!
//! When one side has sent its last byte, the other is told so and may still answer for as long as it keeps talking.
//! Dropping the future cuts both.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

const BUFFER: usize = 16 << 10;

/// How long silence is borne.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// While both sides are open.
    idle: Duration,
    /// Once one of them has ended.
    linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // A kubelet ends streams that were silent for four hours; let it be the one to say so.
        Self { idle: Duration::from_secs(4 * 3600 + 600), linger: Duration::from_secs(10) }
    }
}

/// How a tunnel ended.
#[derive(Debug, PartialEq)]
pub(super) enum Ended {
    /// Both sides have sent all they had.
    Done,
    /// Nothing was sent for too long.
    Silent,
    /// One side broke.
    Broken(io::ErrorKind),
}

struct Activity {
    since: Instant,
    last: AtomicU64,
}

impl Activity {
    fn note(&self) {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Returns when nothing has happened for `limit`.
    async fn silence(&self, limit: Duration) {
        loop {
            let until = self.since + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// Carries bytes between `a` and `b` until both ends, an error or a silence.
pub(super) async fn join<A, B>(a: A, b: B, limits: Limits) -> Ended
where
    A: AsyncRead + AsyncWrite + Send,
    B: AsyncRead + AsyncWrite + Send,
{
    let activity = Activity { since: Instant::now(), last: AtomicU64::new(0) };
    let (mut a_reads, mut a_writes) = tokio::io::split(a);
    let (mut b_reads, mut b_writes) = tokio::io::split(b);
    let mut there = std::pin::pin!(pump(&mut a_reads, &mut b_writes, &activity));
    let mut back = std::pin::pin!(pump(&mut b_reads, &mut a_writes, &activity));
    let first = tokio::select! {
        () = activity.silence(limits.idle) => return Ended::Silent,
        ended = &mut there => ended.map(|()| true),
        ended = &mut back => ended.map(|()| false),
    };
    let there_ended = match first {
        Ok(there_ended) => there_ended,
        Err(error) => return Ended::Broken(error.kind()),
    };
    activity.note();
    let rest = async { if there_ended { back.await } else { there.await } };
    tokio::select! {
        () = activity.silence(limits.linger) => Ended::Silent,
        ended = rest => ended.map_or_else(|error| Ended::Broken(error.kind()), |()| Ended::Done),
    }
}

async fn pump<R, W>(from: &mut R, to: &mut W, activity: &Activity) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        activity.note();
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        activity.note();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { idle: Duration::from_secs(100), linger: Duration::from_secs(5) };

    #[tokio::test(start_paused = true)]
    async fn bytes_go_both_ways_and_an_end_on_one_side_leaves_the_other_open() {
        let ((client, a), (node, b)) = (tokio::io::duplex(8), tokio::io::duplex(8));
        let tunnel = tokio::spawn(join(a, b, LIMITS));
        let (mut client, mut node) = (client, node);
        client.write_all(b"ping").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        node.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"ping");
        heard.clear();
        let answer = async {
            node.write_all(b"pong, and more than fits into one buffer").await.unwrap();
            drop(node);
        };
        let (_, read) = tokio::join!(answer, client.read_to_end(&mut heard));
        read.unwrap();
        assert_eq!(heard, b"pong, and more than fits into one buffer");
        assert_eq!(tunnel.await.unwrap(), Ended::Done);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_holds_the_writer_back() {
        let ((mut client, a), (_node, b)) = (tokio::io::duplex(8), tokio::io::duplex(8));
        let _tunnel = tokio::spawn(join(a, b, LIMITS));
        let flood = vec![0; 1 << 20];
        let wrote = tokio::time::timeout(Duration::from_secs(1), client.write_all(&flood)).await;
        assert!(wrote.is_err(), "a megabyte went nowhere");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_tunnel_late_and_sooner_once_half_closed() {
        let ((_client, a), (_node, b)) = (tokio::io::duplex(8), tokio::io::duplex(8));
        let began = Instant::now();
        assert_eq!(join(a, b, LIMITS).await, Ended::Silent);
        assert!(began.elapsed() >= LIMITS.idle);

        let ((mut client, a), (_node, b)) = (tokio::io::duplex(8), tokio::io::duplex(8));
        client.shutdown().await.unwrap();
        let began = Instant::now();
        assert_eq!(join(a, b, LIMITS).await, Ended::Silent);
        assert!(began.elapsed() >= LIMITS.linger && began.elapsed() < LIMITS.idle);
    }

    #[tokio::test(start_paused = true)]
    async fn talk_postpones_the_end() {
        let ((mut client, a), (mut node, b)) = (tokio::io::duplex(8), tokio::io::duplex(8));
        let tunnel = tokio::spawn(join(a, b, LIMITS));
        for _ in 0..5 {
            tokio::time::sleep(LIMITS.idle / 2).await;
            client.write_all(b"x").await.unwrap();
            assert_eq!(node.read_u8().await.unwrap(), b'x');
        }
        assert!(!tunnel.is_finished());
    }
}
