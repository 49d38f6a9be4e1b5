//! The bounded queue between a change and one of its watchers.
//!
//! The sender never waits. A receiver that falls too far behind loses everything that waits for it and hears that it
//! was cut off, so that what a stuck client holds in memory is gone at once and nobody else notices.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

#[derive(Debug)]
struct Waiting<T> {
    items: VecDeque<(T, usize)>,
    weight: usize,
}

impl<T> Waiting<T> {
    const fn new() -> Self {
        Self { items: VecDeque::new(), weight: 0 }
    }

    fn take(&mut self) -> Option<T> {
        let (item, weight) = self.items.pop_front()?;
        self.weight -= weight;
        Some(item)
    }
}

#[derive(Debug)]
struct Shared<T> {
    waiting: Mutex<Waiting<T>>,
    items: usize,
    weight: usize,
    closed: AtomicBool,
    more: Notify,
}

impl<T> Shared<T> {
    fn waiting(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        *self.waiting() = Waiting::new();
        self.more.notify_one();
    }
}

/// The end that events are put in at. Dropping it cuts the receiver off.
#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Shared<T>>);

/// The end that a watch reads from.
#[derive(Debug)]
pub(crate) struct Receiver<T>(Arc<Shared<T>>);

/// Nothing is waiting now.
#[derive(Debug)]
pub(crate) struct Empty;

/// A queue for so many items that together weigh so much; one item may weigh anything.
pub(crate) fn queue<T>(items: usize, weight: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        waiting: Mutex::new(Waiting::new()),
        items,
        weight,
        closed: AtomicBool::new(false),
        more: Notify::new(),
    });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Hands an item over; false when the receiver is gone or has just been cut off.
    pub(crate) fn send(&self, item: T, weight: usize) -> bool {
        if self.is_closed() {
            return false;
        }
        let mut waiting = self.0.waiting();
        let full = waiting.items.len() >= self.0.items || waiting.weight + weight > self.0.weight;
        if full && !waiting.items.is_empty() {
            drop(waiting);
            self.0.close();
            return false;
        }
        waiting.items.push_back((item, weight));
        waiting.weight += weight;
        // Only the first item finds a receiver that sleeps.
        let first = waiting.items.len() == 1;
        drop(waiting);
        if first {
            self.0.more.notify_one();
        }
        true
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // What waits may still be read: the end comes after it.
        self.0.closed.store(true, Ordering::Release);
        self.0.more.notify_one();
    }
}

impl<T> Receiver<T> {
    /// The next item; `None` after the end. Cancel safe.
    pub(crate) async fn recv(&mut self) -> Option<T> {
        loop {
            let more = pin!(self.0.more.notified());
            // Asked before looking, so that an end that comes in between is not missed.
            let closed = self.0.closed.load(Ordering::Acquire);
            if let Some(item) = self.0.waiting().take() {
                return Some(item);
            }
            if closed {
                return None;
            }
            more.await;
        }
    }

    /// An item that waits already.
    pub(crate) fn try_recv(&mut self) -> Result<T, Empty> {
        self.0.waiting().take().ok_or(Empty)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn items_arrive_in_order_and_the_end_comes_after_them() {
        let (sender, mut receiver) = queue(8, 100);
        let reader = tokio::spawn(async move {
            let mut seen = Vec::new();
            while let Some(item) = receiver.recv().await {
                seen.push(item);
            }
            seen
        });
        for item in 0..5 {
            assert!(sender.send(item, 1));
            tokio::task::yield_now().await;
        }
        drop(sender);
        assert_eq!(reader.await.unwrap(), [0, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_receiver_that_falls_behind_is_cut_off_and_holds_nothing() {
        let item = Arc::new(());
        let (sender, mut receiver) = queue(3, 100);
        for _ in 0..3 {
            assert!(sender.send(item.clone(), 1));
        }
        assert!(!sender.send(item.clone(), 1) && sender.is_closed());
        assert_eq!(Arc::strong_count(&item), 1, "what waited is gone");
        assert!(receiver.recv().await.is_none());
    }

    #[tokio::test]
    async fn what_waits_is_bounded_by_weight_too() {
        let (sender, mut receiver) = queue(100, 10);
        assert!(sender.send("heavy", 1000), "one item is never too heavy");
        assert_eq!(receiver.recv().await, Some("heavy"));
        assert!(sender.send("a", 6) && sender.send("b", 4));
        assert!(!sender.send("c", 1));
    }

    #[tokio::test]
    async fn a_sender_hears_that_its_receiver_is_gone() {
        let (sender, receiver) = queue(3, 100);
        drop(receiver);
        assert!(!sender.send(1, 1));
    }
}
