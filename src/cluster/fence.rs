//! Whether this process may still act, by its own clock.
//!
//! A replica that was paused or cut off does not know what the others have done meanwhile. It may act only for a
//! while after it last proved to be alive, and the others wait longer than that before they take over. A break in
//! that proof begins a new term, in which every node must be confirmed anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The proof of life of this process.
#[derive(Debug)]
pub struct Fence {
    base: Instant,
    /// Milliseconds after `base`.
    until: AtomicU64,
    term: AtomicU64,
}

impl Fence {
    /// Not proven yet.
    pub fn closed() -> Arc<Self> {
        Arc::new(Self { base: Instant::now(), until: AtomicU64::new(0), term: AtomicU64::new(0) })
    }

    /// Never ends: for a process that shares its nodes with nobody.
    pub fn open() -> Arc<Self> {
        Arc::new(Self { base: Instant::now(), until: AtomicU64::new(u64::MAX), term: AtomicU64::new(1) })
    }

    /// The term under way; `None` while this process may not act.
    pub fn term(&self) -> Option<u64> {
        let now = millis(self.base.elapsed());
        (now < self.until.load(Ordering::Acquire)).then(|| self.term.load(Ordering::Acquire))
    }

    /// A proof that was sent at `sent` and accepted holds for `duration` from then on. True when a new term begins.
    /// Called by one task only.
    pub fn extend(&self, sent: Instant, duration: Duration) -> bool {
        let until = millis(sent.duration_since(self.base) + duration);
        let now = millis(self.base.elapsed());
        if now >= until {
            return false;
        }
        let new = now >= self.until.load(Ordering::Acquire);
        if new {
            self.term.fetch_add(1, Ordering::AcqRel);
        }
        self.until.fetch_max(until, Ordering::AcqRel);
        new
    }

    /// Ends the term.
    pub fn close(&self) {
        self.until.store(0, Ordering::Release);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The right to act for one node: its Lease was ours at some time in this term.
#[derive(Debug)]
pub struct Hold {
    fence: Arc<Fence>,
    /// The term in which it was last confirmed, 0 for none.
    term: AtomicU64,
}

impl Hold {
    /// Not confirmed yet.
    pub fn new(fence: Arc<Fence>) -> Arc<Self> {
        Arc::new(Self { fence, term: AtomicU64::new(0) })
    }

    /// Always valid.
    pub fn always() -> Arc<Self> {
        Arc::new(Self { fence: Fence::open(), term: AtomicU64::new(1) })
    }

    /// Whether writes and calls may be made for the node at this moment.
    pub fn is_valid(&self) -> bool {
        self.fence.term().is_some_and(|term| term == self.term.load(Ordering::Acquire))
    }

    /// The Lease was found to be ours by a request that was sent in `term`. True when the hold was not valid before.
    pub fn confirm(&self, term: u64) -> bool {
        self.term.swap(term, Ordering::AcqRel) != term
    }

    /// The node is not ours any more.
    pub fn revoke(&self) {
        self.term.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_break_in_the_proof_of_life_ends_every_hold() {
        let fence = Fence::closed();
        let hold = Hold::new(fence.clone());
        assert_eq!(fence.term(), None);
        assert!(fence.extend(Instant::now(), S * 8));
        assert!(hold.confirm(fence.term().unwrap()) && hold.is_valid());
        tokio::time::advance(S * 5).await;
        assert!(!fence.extend(Instant::now(), S * 8), "the term goes on");
        assert!(hold.is_valid());
        tokio::time::advance(S * 8).await;
        assert!(!hold.is_valid());
        assert!(!fence.extend(Instant::now() - S * 9, S * 8), "the proof came too late");
        assert_eq!(fence.term(), None);
        assert!(fence.extend(Instant::now(), S * 8), "another term");
        assert!(!hold.is_valid(), "the node must be confirmed anew");
        hold.confirm(fence.term().unwrap());
        assert!(hold.is_valid());
        hold.revoke();
        assert!(!hold.is_valid());
    }
}
