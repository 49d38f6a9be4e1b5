//! How many statuses are written only because pods were counted.
//!
//! Counts are for people to look at. When ten thousand nodes get or lose a pod each at once, their counts are written
//! one after the other: the API server has something better to do in that moment.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Between two of them, once the first ones are through.
const INTERVAL: Duration = Duration::from_millis(5);
/// Those that need not wait for one another.
const AT_ONCE: u32 = 200;

/// Turns, in the order in which they are asked for.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// When whoever asks now may write: at once, or some time later.
    pub(super) fn turn(&self, now: Instant) -> Instant {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What was not used for a while may be used together, up to a limit.
        let earliest = now.checked_sub(INTERVAL * AT_ONCE).unwrap_or(now);
        let used = next.unwrap_or(earliest).max(earliest);
        *next = Some(used + INTERVAL);
        used.max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_go_at_once_and_many_one_after_the_other() {
        let (pace, start) = (Pace::default(), Instant::now() + Duration::from_secs(3600));
        let after = |turn: Instant| turn.duration_since(start);
        for n in 0..=AT_ONCE {
            assert_eq!(after(pace.turn(start)), Duration::ZERO, "{n}");
        }
        for n in 1..=1000 {
            assert_eq!(after(pace.turn(start)), INTERVAL * n);
        }
        // Whoever comes later waits behind them, and not for longer.
        let later = start + INTERVAL * 400;
        assert_eq!(after(pace.turn(later)), INTERVAL * 1001);
        let much_later = start + Duration::from_secs(60);
        for _ in 0..=AT_ONCE {
            assert_eq!(pace.turn(much_later), much_later);
        }
        assert_eq!(pace.turn(much_later), much_later + INTERVAL);
    }
}
