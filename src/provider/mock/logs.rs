//! Log lines of simulated containers: computed from the seed and the time, kept nowhere.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use jiff::{SignedDuration, Timestamp};

use super::node::SimNode;
use super::settings::{Settings, draw};
use super::sim::{SimPod, State};
use crate::provider::{LogLine, LogOptions, LogSource, LogStream, PodRef, ProviderError, Result};

const VERBS: [&str; 8] = ["handled", "fetched", "stored", "checked", "queued", "routed", "cached", "synced"];
const NOUNS: [&str; 8] = ["request", "order", "record", "session", "message", "batch", "image", "token"];

/// One run of a container, with all that its lines follow from.
#[derive(Clone)]
struct Run {
    settings: Arc<Settings>,
    seed: u64,
    started: Timestamp,
    ended: Option<Timestamp>,
}

impl Run {
    /// The run that is wanted, if there was one.
    fn of(pod: &SimPod, container: &str, previous: bool) -> Result<Option<Self>> {
        let name = &pod.reference;
        let Some(c) = pod.container(container) else {
            return Err(ProviderError::NotFound(format!("container {container:?} of pod {name}")));
        };
        let run = |started: Timestamp, ended| {
            let seed = draw(pod.seed, container.as_bytes(), started.as_millisecond().unsigned_abs());
            Some(Self { settings: pod.settings.clone(), seed, started, ended })
        };
        let last = || c.last.and_then(|end| run(end.started?, Some(end.finished)));
        if previous {
            return match last() {
                Some(run) => Ok(Some(run)),
                None => {
                    Err(ProviderError::NotFound(format!("previous terminated container {container:?} in pod {name}")))
                }
            };
        }
        Ok(match c.state {
            State::Running { since, .. } => run(since, None),
            State::Terminated(end) => end.started.and_then(|started| run(started, Some(end.finished))),
            // The last run is the current one until the next begins.
            State::BackOff { .. } => last(),
            State::Waiting => None,
        })
    }

    /// Milliseconds between two lines; `None` when only the first is written.
    fn interval(&self) -> Option<f64> {
        (self.settings.log_lines_per_minute > 0).then(|| 60_000.0 / f64::from(self.settings.log_lines_per_minute))
    }

    fn time(&self, n: u64) -> Option<Timestamp> {
        let ms = if n == 0 { 0.0 } else { self.interval()? * n as f64 };
        self.started.checked_add(SignedDuration::from_millis(ms as i64)).ok()
    }

    /// How many lines were written before `at`.
    fn count_before(&self, at: Timestamp) -> u64 {
        let ms = at.duration_since(self.started).as_millis_f64();
        if ms <= 0.0 {
            return 0;
        }
        let mut n = self.interval().map_or(1, |step| (ms / step) as u64);
        while self.time(n).is_some_and(|t| t < at) {
            n += 1;
        }
        n
    }

    /// How many lines there are now.
    fn count(&self, now: Timestamp) -> u64 {
        let end = self.ended.unwrap_or(now).min(now);
        self.count_before(end.saturating_add(SignedDuration::from_nanos(1)).unwrap_or(end))
    }

    fn line(&self, n: u64) -> Option<LogLine> {
        let luck = draw(self.seed, b"log", n);
        let text = match (&self.settings.log_text, n) {
            (Some(text), _) => format!("{text}\n"),
            (None, 0) => "simulated container started\n".to_owned(),
            (None, n) => format!(
                "{} {} {} in {} ms\n",
                VERBS[(luck % 8) as usize],
                NOUNS[(luck >> 8) as usize % 8],
                n,
                1 + (luck >> 16) % 900
            ),
        };
        let source = if luck.is_multiple_of(16) && n > 0 { LogSource::Stderr } else { LogSource::Stdout };
        Some(LogLine { time: self.time(n)?, source, text: Bytes::from(text) })
    }
}

pub(super) fn open(node: &Arc<SimNode>, pod: &PodRef, container: &str, options: &LogOptions) -> Result<LogStream> {
    let run = node.with(pod, |sim| Run::of(sim, container, options.previous))??;
    let Some(run) = run else {
        return Err(ProviderError::NotFound(format!(
            "container {container:?} in pod {pod} is waiting to start: its log"
        )));
    };
    let count = run.count(node.core.now());
    let since = options.since.map_or(0, |since| run.count_before(since));
    let first = since.max(options.tail.map_or(0, |tail| count.saturating_sub(tail)));
    let past = run.clone();
    let existing = stream::iter((first..count).filter_map(move |n| past.line(n).map(Ok)));
    if !options.follow || run.ended.is_some() {
        return Ok(existing.boxed());
    }
    let follower =
        Follower { node: node.clone(), pod: pod.clone(), container: container.to_owned(), run, next: first.max(count) };
    let later = stream::unfold(follower, |mut f| async move { f.next().await.map(|line| (Ok(line), f)) });
    Ok(existing.chain(later).boxed())
}

struct Follower {
    node: Arc<SimNode>,
    pod: PodRef,
    container: String,
    run: Run,
    next: u64,
}

impl Follower {
    /// The next line once it is written; `None` when the container's run is over.
    async fn next(&mut self) -> Option<LogLine> {
        loop {
            let node = self.node.clone();
            let changed = node.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if self.run.ended.is_none() {
                let now_is = node
                    .with(&self.pod, |sim| Run::of(sim, &self.container, false))
                    .ok()
                    .and_then(Result::ok)
                    .flatten();
                match now_is {
                    Some(run) if run.started == self.run.started => self.run.ended = run.ended,
                    _ => self.run.ended = Some(node.core.now()),
                }
            }
            if self.next < self.run.count(node.core.now()) {
                self.next += 1;
                return self.run.line(self.next - 1);
            }
            if self.run.ended.is_some() {
                return None;
            }
            match self.run.time(self.next) {
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(node.core.instant(at)) => {}
                },
                None => changed.await,
            }
        }
    }
}
