//! A followed log goes on with the container's next run, for as long as there will be one.
//!
//! A provider's stream ends with the run that it is of. Whoever follows wants to see how the next one fares, without
//! asking again at the right moment.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::time::{sleep, timeout};

use crate::kubelet::NodeBackend;
use crate::provider::runtime::machine::plan::{Group, Plan};
use crate::provider::{LogLine, LogOptions, LogStream, PodRef};

/// How long a container may be said to run after its log has ended. What ended the log was something else, then.
const LAG: Duration = Duration::from_secs(10);

/// What follows the end of a container's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing.
    Nothing,
    /// As far as is known the container runs as before.
    Unknown,
    /// It will run again.
    Later,
    /// It has run again: how often it was restarted.
    Now(i32),
}

/// How often a container was restarted, as the pod's status has it.
pub(super) fn restarts(pod: &Pod, container: &str) -> i32 {
    status_of(pod, container).map_or(0, |s| s.restart_count)
}

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = [&status.init_container_statuses, &status.container_statuses];
    all.into_iter().flatten().flatten().find(|c| c.name == container)
}

/// What follows the log of a container that was restarted `seen` times.
fn next(pod: &Pod, container: &str, seen: i32) -> Next {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let status = status_of(pod, container);
    let state = status.and_then(|s| s.state.as_ref());
    let (restarted, waits) =
        (status.is_some_and(|s| s.restart_count > seen), state.is_none_or(|s| s.waiting.is_some()));
    if restarted && !waits {
        return Next::Now(restarts(pod, container));
    }
    let plan = Plan::of(pod).containers.into_iter().find(|c| c.name == container);
    let Some(plan) = plan.filter(|c| c.group != Group::Ephemeral && c.may_restart()) else { return Next::Nothing };
    if pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed")) {
        return Next::Nothing;
    }
    match state.and_then(|s| s.terminated.as_ref()) {
        Some(ended) if plan.restarts_after(ended.exit_code) => Next::Later,
        Some(_) => Next::Nothing,
        None if status.is_some() && waits => Next::Later,
        None => Next::Unknown,
    }
}

/// Waits for a container's next run; how often it was restarted then.
async fn next_run(backend: &Arc<dyn NodeBackend>, pod: &PodRef, container: &str, seen: i32) -> Option<i32> {
    let mut lag = std::pin::pin!(sleep(LAG));
    loop {
        // Listening before looking, so that nothing is missed in between.
        let mut changed = backend.changed();
        let listening = futures::poll!(&mut changed) == Poll::Pending;
        let now = backend.find(&pod.namespace, &pod.name);
        let now = now.filter(|p| p.metadata.uid.as_deref().unwrap_or_default() == &*pod.uid)?;
        match next(&now, container, seen) {
            Next::Nothing => return None,
            Next::Now(restarts) => return Some(restarts),
            Next::Later if listening => changed.await,
            Next::Unknown if listening => tokio::select! {
                () = changed => {}
                () = lag.as_mut() => return None,
            },
            Next::Later | Next::Unknown => tokio::task::yield_now().await,
        }
    }
}

/// A log that is followed through a container's runs.
struct Runs {
    lines: LogStream,
    backend: Arc<dyn NodeBackend>,
    pod: PodRef,
    container: String,
    /// How often the container was restarted when the run of `lines` began.
    restarts: i32,
    /// When the last line was written.
    last: Option<Timestamp>,
    /// What was already seen is left out: the status may have told of a run later than its log began.
    again: bool,
    patience: Duration,
}

/// Goes on with later runs where a stream ends. `restarts` is how often the container was restarted when `lines` was
/// asked for, `patience` how long a provider may take for each of them.
pub(super) fn through_runs(
    lines: LogStream,
    backend: Arc<dyn NodeBackend>,
    (pod, container): (PodRef, String),
    restarts: i32,
    patience: Duration,
) -> LogStream {
    let runs = Runs { lines, backend, pod, container, restarts, last: None, again: false, patience };
    stream::unfold(runs, async |mut runs| {
        loop {
            match runs.lines.next().await {
                Some(Ok(line)) if runs.again && Some(line.time) <= runs.last => {}
                Some(Ok(line)) => {
                    (runs.again, runs.last) = (false, Some(line.time));
                    return Some((Ok::<LogLine, _>(line), runs));
                }
                Some(Err(error)) => return Some((Err(error), runs)),
                None => runs.go_on().await?,
            }
        }
    })
    .boxed()
}

impl Runs {
    /// Takes up the next run. `None` when there is none, or when the provider does not tell of it.
    async fn go_on(&mut self) -> Option<()> {
        self.restarts = next_run(&self.backend, &self.pod, &self.container, self.restarts).await?;
        let options = LogOptions { follow: true, previous: false, tail: None, since: self.last };
        let provider = self.backend.provider();
        let lines = timeout(self.patience, provider.logs(&self.pod, &self.container, &options)).await;
        self.lines = lines.ok()?.ok()?;
        self.again = true;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(policy: &str, phase: &str, deleted: bool, restarts: i32, state: Value) -> Pod {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "deletionTimestamp": deleted},
            "spec": {
                "restartPolicy": policy, "containers": [{"name": "c"}],
                "initContainers": [{"name": "before"}],
                "ephemeralContainers": [{"name": "look"}],
            },
            "status": {"phase": phase,
                "initContainerStatuses": [{"name": "before", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "state": {"terminated": {"exitCode": 0}}}],
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
                    "restartCount": restarts, "state": state}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_log_goes_on_as_long_as_its_container_will() {
        let (runs, waits) = (json!({"running": {}}), json!({"waiting": {"reason": "CrashLoopBackOff"}}));
        let ended = |code: i32| json!({"terminated": {"exitCode": code}});
        for (policy, phase, deleted, restarts, state, want) in [
            ("Always", "Running", false, 2, runs.clone(), Next::Unknown),
            ("Always", "Running", false, 2, ended(0), Next::Later),
            ("Always", "Running", false, 2, waits.clone(), Next::Later),
            ("Always", "Running", false, 3, waits.clone(), Next::Later),
            ("Always", "Running", false, 3, runs.clone(), Next::Now(3)),
            ("Always", "Running", false, 5, ended(1), Next::Now(5)),
            ("Always", "Running", true, 2, ended(0), Next::Nothing),
            ("Always", "Failed", false, 2, waits, Next::Nothing),
            ("OnFailure", "Running", false, 2, ended(0), Next::Nothing),
            ("OnFailure", "Running", false, 2, ended(7), Next::Later),
            // Whatever is known of it, it does not run again.
            ("Never", "Running", false, 2, runs, Next::Nothing),
            // But what it did is told.
            ("OnFailure", "Succeeded", false, 3, ended(0), Next::Now(3)),
        ] {
            let pod = pod(policy, phase, deleted, restarts, state);
            assert_eq!(next(&pod, "c", 2), want, "{policy} {phase} {deleted} {restarts} {:?}", pod.status);
        }
        let pod = pod("Always", "Running", false, 0, json!({"running": {}}));
        assert_eq!(next(&pod, "before", 0), Next::Nothing);
        assert_eq!(next(&pod, "look", 0), Next::Nothing);
    }
}
