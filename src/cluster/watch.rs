//! How long a broken watch waits before it is taken up again.

use std::time::Duration;

use kube::runtime::utils::Backoff;
use kube::runtime::watcher::DefaultBackoff;

/// The library's waits, at a sixth of their length: from 0.13 s to 5 s, with jitter. A fleet that learns of its
/// cluster's return after half a minute has lost its nodes by then, and a process has but a handful of watches.
#[derive(Default)]
pub struct WatchBackoff(DefaultBackoff);

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|wait| wait / 6)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_never_given_up_nor_waited_for_longer_than_some_seconds() {
        let mut backoff = WatchBackoff::default();
        let waits: Vec<_> = backoff.by_ref().take(20).collect();
        assert_eq!(waits.len(), 20);
        assert!(waits.iter().all(|w| *w <= Duration::from_secs(10)), "{waits:?}");
        assert!(waits[19] >= Duration::from_secs(5), "an API server that is down is not stormed: {waits:?}");
        backoff.reset();
        assert!(backoff.next().is_some_and(|w| w < Duration::from_millis(500)));
    }
}
