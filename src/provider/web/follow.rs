//! How news of pods come: over the change feed of a service that has one, else by asking for all pods now and then.
//!
//! Each node has a task for it: a feed is a connection of its own, and questions are at their own pace. It costs some
//! kilobytes, and nothing while nothing happens.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use rand::Rng as _;
use tokio::time::{Instant, sleep, timeout};

use super::settings::Poll;
use super::v2::feed::End;
use super::v2::wire::Notice;
use super::{Session, Shared};
use crate::provider::PodObservation;

/// Of a service that does not answer, or whose feed breaks.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A feed that held for so long broke by itself, and is taken up at once.
const HELD: Duration = Duration::from_secs(30);

/// Where news go.
pub(super) trait Sink: Send + Sync {
    /// A pod is as this says.
    fn pod(&self, observation: PodObservation, asked: Instant, sequence: Option<i64>);
    /// The service has the pod no more.
    fn gone(&self, uid: &str);
    /// Something is to be told at a pod.
    fn notice(&self, notice: Notice);
}

/// Tells of news until it is dropped.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        let error = match shared.session().await {
            Ok(session) => follow_session(&shared, &session, &mut failures).await,
            Err(error) => error,
        };
        if begun.elapsed() >= HELD {
            failures = 0;
        }
        let wait = backoff(failures).mul_f64(rand::rng().random_range(0.5..1.0));
        tracing::debug!(node = %shared.node, %error, ?wait, "news of pods are interrupted; they are taken up again");
        failures += 1;
        // What was done before says nothing of how the service is now.
        let _ = shared.poke.notified().now_or_never();
        shared.deaf.store(true, Ordering::Release);
        if timeout(wait, shared.poke.notified()).await.is_ok() {
            // It answers again. Or does so for others while its feed is broken, so not at once.
            sleep(BACKOFF.0).await;
        }
        shared.deaf.store(false, Ordering::Release);
    }
}

fn backoff(failures: u32) -> Duration {
    BACKOFF.0.saturating_mul(1 << failures.min(16)).min(BACKOFF.1)
}

/// Tells of news of one session until something goes wrong or there is another session.
async fn follow_session(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    failures: &mut u32,
) -> crate::provider::ProviderError {
    let mut wait = shared.settings().poll.min;
    let mut cursor = None;
    loop {
        if cursor.is_none() {
            match shared.list(session).await {
                Ok((listed, news)) => {
                    *failures = 0;
                    cursor = listed.cursor;
                    let unsettled = shared.guard.unsettled();
                    wait = next(wait, news, unsettled, shared.settings().poll);
                }
                Err(error) => return error,
            }
        }
        if let Session::V2(v2, about) = &**session
            && about.abilities.watch
            && cursor.is_some()
        {
            match v2.follow(&mut cursor, &**shared).await {
                End::Reset => cursor = None,
                End::Broken(error) if shared.is_current(session) && *failures == 0 => {
                    // Taken up where it broke off, once; then with the session's other errors.
                    *failures += 1;
                    tracing::debug!(node = %shared.node, %error, "the change feed broke");
                }
                End::Broken(error) => return error,
            }
            continue;
        }
        // Somebody did something: look soon.
        let spread = wait.mul_f64(rand::rng().random_range(0.9..1.1));
        if timeout(spread, shared.poke.notified()).await.is_ok() {
            wait = shared.settings().poll.min;
            sleep(wait).await;
        }
        cursor = None;
        if !shared.is_current(session) {
            return crate::provider::ProviderError::unavailable("the service has another interface now");
        }
    }
}

/// How long to wait before the next question: short while something changes, longer while nothing does, and not very
/// long while a pod is on its way.
fn next(before: Duration, news: bool, unsettled: bool, bounds: Poll) -> Duration {
    let longest = if unsettled { (bounds.min * 5).min(bounds.max) } else { bounds.max };
    if news { bounds.min } else { before.mul_f64(1.5).clamp(bounds.min, longest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_frequent_while_something_changes_and_stay_within_their_bounds() {
        let bounds = Poll { min: Duration::from_secs(1), max: Duration::from_secs(30) };
        let secs = Duration::from_secs;
        assert_eq!(next(secs(20), true, false, bounds), secs(1));
        assert_eq!(next(secs(2), false, false, bounds), secs(3));
        assert_eq!(next(secs(29), false, false, bounds), secs(30));
        assert_eq!(next(secs(29), false, true, bounds), secs(5));
        let tight = Poll { min: secs(4), max: secs(6) };
        assert_eq!(next(secs(1), false, true, tight), secs(4));
        assert_eq!(next(secs(9), false, true, tight), secs(6));
        assert_eq!(backoff(0), Duration::from_millis(500));
        assert_eq!(backoff(99), secs(30));
    }
}
