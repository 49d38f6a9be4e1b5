//! Pure: what can be believed of what a service says of a pod.
//!
//! A service outside of this process may be wrong in every way. What it says is mended where the mending is
//! obvious and left out where it is not; each time a sentence says what was wrong, for those who can put it right.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::provider::{PodObservation, PodRef};

/// Clocks that differ by less are not worth a word.
const SKEW: SignedDuration = SignedDuration::from_secs(60);
/// The longest text of a status; kubelet's limit for termination messages.
const MAX_TEXT: usize = 4096;

/// Something that a service said and that was not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// One CamelCase word, for events.
    pub reason: &'static str,
    /// What was said, why it is wrong, and what would be right.
    pub message: String,
}

/// When a pod's containers are started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Restarts {
    /// Whenever they end, or it is not known.
    #[default]
    Always,
    /// When they fail.
    OnFailure,
    /// Never.
    Never,
}

/// What is known of a pod before the service says something of it.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// Which pod it is.
    pub pod: PodRef,
    /// The names in its spec: init containers, containers, ephemeral ones. `None` for one that was only found.
    pub names: Option<[BTreeSet<String>; 3]>,
    /// From its spec.
    pub restarts: Restarts,
    /// The service was asked to stop it.
    pub stopping: bool,
    /// What was last believed.
    pub last: Option<PodObservation>,
}

impl Known {
    /// A pod that is found at the service.
    pub fn found(pod: PodRef) -> Self {
        Self { pod, names: None, restarts: Restarts::Always, stopping: false, last: None }
    }

    /// Notes what the pod's spec says.
    pub fn learn(&mut self, pod: &Pod) {
        let Some(spec) = &pod.spec else { return };
        self.names = Some([
            spec.init_containers.iter().flatten().map(|c| c.name.clone()).collect(),
            spec.containers.iter().map(|c| c.name.clone()).collect(),
            spec.ephemeral_containers.iter().flatten().map(|c| c.name.clone()).collect(),
        ]);
        self.restarts = match spec.restart_policy.as_deref() {
            Some("Never") => Restarts::Never,
            Some("OnFailure") => Restarts::OnFailure,
            _ => Restarts::Always,
        };
    }

    /// True when the pod has ended for good, so that nothing of it can run again.
    fn is_over(&self) -> bool {
        let Some(last) = self.last.as_ref().filter(|l| l.is_terminated()) else { return false };
        let code = |c: &ContainerStatus| c.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code);
        self.stopping
            || match self.restarts {
                Restarts::Never => true,
                Restarts::OnFailure => last.containers.iter().all(|c| code(c) == Some(0)),
                Restarts::Always => false,
            }
    }
}

/// What of an observation can be believed, and what was wrong with it. `None`: nothing; what was known before holds.
pub(crate) fn sane(
    mut said: PodObservation,
    known: &Known,
    now: Timestamp,
) -> (Option<PodObservation>, Vec<Complaint>) {
    let mut complaints = Vec::new();
    let mut complain = |reason, message| complaints.push(Complaint { reason, message });
    if (&said.pod.namespace, &said.pod.name) != (&known.pod.namespace, &known.pod.name) {
        let message = format!(
            "the provider's service reports pod {} under the uid of {}; the report is ignored",
            said.pod, known.pod
        );
        complain("ForeignPodStatus", message);
        return (None, complaints);
    }
    if known.is_over() && !said.is_terminated() {
        let message = "the provider's service reports running containers of a pod that has ended; the report is \
                       ignored: containers that have ended for good must stay so"
            .to_owned();
        complain("PodCameBack", message);
        return (known.last.clone(), complaints);
    }
    let mut strangers = Vec::new();
    let lists = [&mut said.init_containers, &mut said.containers, &mut said.ephemeral_containers];
    for (n, list) in lists.into_iter().enumerate() {
        let mut seen = BTreeSet::new();
        list.retain(|c| {
            let wanted = known.names.as_ref().is_none_or(|names| names[n].contains(&c.name));
            if !wanted {
                strangers.push(c.name.clone());
            }
            wanted && seen.insert(c.name.clone())
        });
    }
    if !strangers.is_empty() {
        strangers.truncate(4);
        let message = format!(
            "the provider's service reports containers that the pod does not have, which is ignored: {}",
            strangers.join(", ").chars().take(200).collect::<String>()
        );
        complain("UnknownContainerStatus", message);
    }
    let ahead = mend_times(&mut said, now);
    if ahead > SKEW {
        let message = format!(
            "the provider's service reports times that are {} s ahead of the operator's clock; set one of the two right",
            ahead.as_secs()
        );
        complain("ClockSkew", message);
    }
    mend_texts(&mut said);
    if let Some(last) = &known.last {
        keep_counts(&mut said, last);
    }
    (Some(said), complaints)
}

/// No time is in the future, and nothing ends before it starts. Returns by how much the furthest was ahead.
fn mend_times(said: &mut PodObservation, now: Timestamp) -> SignedDuration {
    let mut ahead = SignedDuration::ZERO;
    let mut clamp = |time: &mut Timestamp| {
        if *time > now {
            ahead = ahead.max(time.duration_since(now));
            *time = now;
        }
    };
    said.start_time.iter_mut().for_each(&mut clamp);
    for status in statuses(said) {
        for state in [&mut status.state, &mut status.last_state].into_iter().flatten() {
            let ContainerState { running, terminated, .. } = state;
            if let Some(Time(time)) = running.as_mut().and_then(|r| r.started_at.as_mut()) {
                clamp(time);
            }
            let Some(ended) = terminated else { continue };
            for Time(time) in [&mut ended.started_at, &mut ended.finished_at].into_iter().flatten() {
                clamp(time);
            }
            if let (Some(start), Some(end)) = (&ended.started_at, &mut ended.finished_at)
                && *end < *start
            {
                *end = start.clone();
            }
        }
    }
    ahead
}

fn statuses(said: &mut PodObservation) -> impl Iterator<Item = &mut ContainerStatus> {
    said.init_containers.iter_mut().chain(&mut said.containers).chain(&mut said.ephemeral_containers)
}

/// No text is longer than a status can bear.
fn mend_texts(said: &mut PodObservation) {
    let cut = |text: &mut String| {
        if text.len() > MAX_TEXT {
            let end = (0..=MAX_TEXT).rev().find(|n| text.is_char_boundary(*n)).unwrap_or_default();
            text.truncate(end);
        }
    };
    said.reason.iter_mut().chain(&mut said.message).for_each(cut);
    for status in statuses(said) {
        for state in [&mut status.state, &mut status.last_state].into_iter().flatten() {
            if let Some(waiting) = &mut state.waiting {
                waiting.reason.iter_mut().chain(&mut waiting.message).for_each(cut);
            }
            if let Some(ended) = &mut state.terminated {
                ended.reason.iter_mut().chain(&mut ended.message).for_each(cut);
            }
        }
    }
}

/// Restarts are counted, never taken back.
fn keep_counts(said: &mut PodObservation, last: &PodObservation) {
    for status in statuses(said) {
        let mut before = last.init_containers.iter().chain(&last.containers).chain(&last.ephemeral_containers);
        let before = before.find(|c| c.name == status.name).map_or(0, |c| c.restart_count);
        status.restart_count = status.restart_count.max(before).max(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn reference(name: &str) -> PodRef {
        PodRef { namespace: "ns".into(), name: name.into(), uid: "u".into() }
    }

    fn known(policy: &str, stopping: bool, last: Option<Value>) -> Known {
        let mut known = Known::found(reference("a"));
        let spec = json!({"restartPolicy": policy, "containers": [{"name": "main"}, {"name": "side"}]});
        known.learn(&serde_json::from_value(json!({"spec": spec})).unwrap());
        known.stopping = stopping;
        known.last = last.map(|state| observation(&[("main", state.clone()), ("side", state)]));
        known
    }

    fn observation(states: &[(&str, Value)]) -> PodObservation {
        let status = |(name, state): &(&str, Value)| {
            let status =
                json!({"name": name, "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": state});
            serde_json::from_value(status).unwrap()
        };
        PodObservation {
            pod: reference("a"),
            start_time: None,
            pod_ips: Vec::new(),
            host_ip: None,
            init_containers: Vec::new(),
            containers: states.iter().map(status).collect(),
            ephemeral_containers: Vec::new(),
            reason: None,
            message: None,
        }
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn what_has_ended_for_good_does_not_run_again() {
        let ended = |code| json!({"terminated": {"exitCode": code}});
        let both = |state: Value| observation(&[("main", state.clone()), ("side", state)]);
        for (claim, known, believed) in [
            ("one that never restarts", known("Never", false, Some(ended(1))), false),
            ("one that succeeded", known("OnFailure", false, Some(ended(0))), false),
            ("one that failed and is tried again", known("OnFailure", false, Some(ended(1))), true),
            ("one that always restarts", known("Always", false, Some(ended(0))), true),
            ("unless it was asked to stop", known("Always", true, Some(ended(0))), false),
            ("one that still ran", known("Never", true, Some(json!({"running": {}}))), true),
        ] {
            let said = both(json!({"running": {}}));
            let (got, complaints) = sane(said.clone(), &known, now());
            assert_eq!(got == Some(said), believed, "{claim}");
            assert_eq!(complaints.is_empty(), believed, "{claim}: {complaints:?}");
            assert!(believed || (got == known.last && complaints[0].reason == "PodCameBack"), "{claim}");
        }
    }

    #[test]
    fn a_report_of_another_pod_is_not_believed() {
        let said = PodObservation { pod: reference("b"), ..observation(&[]) };
        let (got, complaints) = sane(said, &known("Always", false, None), now());
        assert_eq!((got, complaints[0].reason), (None, "ForeignPodStatus"));
        assert!(complaints[0].message.contains("ns/b") && complaints[0].message.contains("ns/a"), "{complaints:?}");
    }

    #[test]
    fn containers_that_the_pod_does_not_have_are_left_out() {
        let state = json!({"running": {}});
        let said = observation(&[("main", state.clone()), ("main", state.clone()), ("other", state.clone())]);
        let (got, complaints) = sane(said.clone(), &known("Always", false, None), now());
        assert_eq!(got, Some(observation(&[("main", state)])));
        assert!(complaints.len() == 1 && complaints[0].message.ends_with(": other"), "{complaints:?}");
        let (got, complaints) = sane(said, &Known::found(reference("a")), now());
        assert_eq!((got.unwrap().containers.len(), complaints), (2, vec![]), "a pod whose spec is not known");
    }

    #[test]
    fn no_time_is_in_the_future_and_a_clock_that_is_far_ahead_is_told() {
        for (ahead, told) in [(5, false), (3600, true)] {
            let later = now() + SignedDuration::from_secs(ahead);
            let mut said = observation(&[("main", json!({"running": {"startedAt": later.to_string()}}))]);
            said.start_time = Some(later);
            let (got, complaints) = sane(said, &known("Always", false, None), now());
            let got = got.unwrap();
            assert_eq!(got.start_time, Some(now()));
            let started = got.containers[0].state.clone().unwrap().running.unwrap().started_at;
            assert_eq!(started, Some(Time(now())));
            assert_eq!(complaints.iter().any(|c| c.reason == "ClockSkew" && c.message.contains("3600 s")), told);
        }
        let state = json!({"terminated": {"exitCode": 0, "startedAt": "2025-01-01T00:00:00Z", "finishedAt": "2024-01-01T00:00:00Z"}});
        let (got, _) = sane(observation(&[("main", state)]), &known("Always", false, None), now());
        let ended = got.unwrap().containers.remove(0).state.unwrap().terminated.unwrap();
        assert_eq!(ended.finished_at, ended.started_at, "nothing ends before it starts");
    }

    #[test]
    fn texts_are_cut_and_restarts_are_not_taken_back() {
        let text = "ä".repeat(5000);
        let mut said = observation(&[("main", json!({"waiting": {"message": text}}))]);
        said.message = Some(text);
        said.containers[0].restart_count = -1;
        let mut known = known("Always", false, Some(json!({"running": {}})));
        known.last.as_mut().unwrap().containers[0].restart_count = 3;
        let got = sane(said, &known, now()).0.unwrap();
        assert_eq!(got.message.as_ref().unwrap().len(), MAX_TEXT);
        assert_eq!(got.containers[0].state.clone().unwrap().waiting.unwrap().message.unwrap().len(), MAX_TEXT);
        assert_eq!(got.containers[0].restart_count, 3);
    }
}
