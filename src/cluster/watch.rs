//! Following objects: what becomes of a watch that breaks, how long it waits, and whether that is news.

use std::fmt::Debug;
use std::future::ready;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Config, DefaultBackoff, Error, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// The changes of objects, for ever. A watch that breaks is taken up again after its wait, and its error is told; one that
/// only came to the end of the history that the API server keeps (410 Expired) begins anew, as every watch does now and
/// then, and that is no news.
pub fn watch<K>(api: Api<K>, config: Config) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher::watcher(api, config).backoff(WatchBackoff::default()).filter(|next| {
        let expired = next.as_ref().is_err_and(is_expired);
        if let (true, Err(error)) = (expired, next) {
            tracing::debug!(kind = std::any::type_name::<K>(), %error, "a watch begins anew");
        }
        ready(!expired)
    })
}

fn is_expired(error: &Error) -> bool {
    match error {
        Error::WatchError(status) => status.code == 410,
        Error::WatchStartFailed(kube::Error::Api(status)) | Error::InitialListFailed(kube::Error::Api(status)) => {
            status.code == 410
        }
        _ => false,
    }
}

/// The library's waits, at a sixth of their length: from 0.13 s to 5 s, with jitter. A fleet that learns of its
/// cluster's return after half a minute has lost its nodes by then, and a process has but a handful of watches.
#[derive(Default)]
struct WatchBackoff(DefaultBackoff);

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
    fn nothing_but_a_410_is_an_expired_watch() {
        let status = |code| Box::new(kube::core::Status::failure("no", "Reason").with_code(code));
        for (error, expired) in [
            (Error::WatchError(status(410)), true),
            (Error::WatchStartFailed(kube::Error::Api(status(410))), true),
            (Error::WatchError(status(500)), false),
            (Error::InitialListFailed(kube::Error::Api(status(403))), false),
            (Error::NoResourceVersion, false),
        ] {
            assert_eq!(is_expired(&error), expired, "{error}");
        }
    }

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
