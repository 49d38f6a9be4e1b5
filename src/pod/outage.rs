//! Work that failed because somebody did not answer, to be done again as soon as they do.
//!
//! After a long outage each key's own back-off may have minutes to go. The first answer ends the wait of all of
//! them. A key that fails while others succeed keeps its back-off: it is only what was waiting through a time in
//! which nothing succeeded that is released.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Silence of this length is an outage; anything shorter is what a back-off is for.
const OUTAGE: Duration = Duration::from_secs(2);

struct State<K> {
    /// The first failure after the last success.
    since: Option<Instant>,
    waiting: HashSet<K>,
}

/// Whoever may not answer, and who waits for it.
pub(crate) struct Outage<K>(Mutex<State<K>>);

impl<K> Default for Outage<K> {
    fn default() -> Self {
        Self(Mutex::new(State { since: None, waiting: HashSet::new() }))
    }
}

impl<K: Eq + Hash> Outage<K> {
    /// There was no answer; `key` is to be tried again.
    pub fn failed(&self, key: K) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.since.get_or_insert_with(Instant::now);
        state.waiting.insert(key);
    }

    /// There was an answer. Returns what waited for it.
    pub fn answered(&self) -> HashSet<K> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.since.take() {
            None => HashSet::new(),
            Some(since) => {
                let waiting = std::mem::take(&mut state.waiting);
                if since.elapsed() >= OUTAGE { waiting } else { HashSet::new() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_releases_what_waited_and_a_hiccup_does_not() {
        let outage = Outage::default();
        assert!(outage.answered().is_empty());
        outage.failed("a");
        assert!(outage.answered().is_empty(), "others succeed at the same time");
        outage.failed("a");
        tokio::time::advance(OUTAGE * 3).await;
        outage.failed("b");
        assert_eq!(outage.answered(), ["a", "b"].into());
        assert!(outage.answered().is_empty());
    }
}
