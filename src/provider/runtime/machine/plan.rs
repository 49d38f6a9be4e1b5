//! What a pod's spec asks for, read once: everything that decisions need, and nothing else.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod, Probe};

use crate::provider::PodRef;
use crate::provider::runtime::engine::Signal;

/// Kubernetes' default for `terminationGracePeriodSeconds`.
const DEFAULT_GRACE: i64 = 30;

/// A pod as the machine sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub pod: PodRef,
    pub grace: Duration,
    pub deadline: Option<Duration>,
    /// Init containers in order, then the others. The order never changes in a pod's life.
    pub containers: Vec<ContainerPlan>,
}

/// When a container takes its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Runs to its end before the next begins.
    Init,
    /// An init container that stays.
    Sidecar,
    /// One of `spec.containers`.
    Main,
}

/// What follows an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    Always,
    OnFailure,
    Never,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerPlan {
    pub name: String,
    pub group: Group,
    pub image: String,
    pub restart: Restart,
    rules: Vec<ContainerRestartRule>,
    pub startup: Option<ProbePlan>,
    pub readiness: Option<ProbePlan>,
    pub liveness: Option<ProbePlan>,
    pub post_start: bool,
    pub pre_stop: bool,
    pub stop_signal: Signal,
    /// `spec.containers{name}`, for events.
    pub field: String,
}

/// When to probe, and what to make of the answers. What is asked is the runner's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProbePlan {
    pub initial_delay: Duration,
    pub period: Duration,
    pub success: u32,
    pub failure: u32,
    pub grace: Option<Duration>,
}

fn seconds(value: i64) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}

impl ProbePlan {
    fn of(probe: &Probe) -> Self {
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        Self {
            initial_delay: seconds(probe.initial_delay_seconds.unwrap_or(0).into()),
            period: Duration::from_secs(count(probe.period_seconds, 10).into()),
            success: count(probe.success_threshold, 1),
            failure: count(probe.failure_threshold, 3),
            grace: probe.termination_grace_period_seconds.map(seconds),
        }
    }
}

impl Plan {
    /// Reads a pod.
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let pod_restart = match spec.and_then(|s| s.restart_policy.as_deref()) {
            Some("Never") => Restart::Never,
            Some("OnFailure") => Restart::OnFailure,
            _ => Restart::Always,
        };
        let init = spec.iter().flat_map(|s| s.init_containers.iter().flatten());
        let main = spec.iter().flat_map(|s| &s.containers);
        let init = init.map(|c| ContainerPlan::of(c, true, pod_restart));
        Self {
            pod: PodRef::of(pod),
            grace: seconds(spec.and_then(|s| s.termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE)),
            deadline: spec.and_then(|s| s.active_deadline_seconds).map(seconds),
            containers: init.chain(main.map(|c| ContainerPlan::of(c, false, pod_restart))).collect(),
        }
    }

    /// True when something comes before the containers.
    pub fn has_init(&self) -> bool {
        self.containers.iter().any(|c| c.group != Group::Main)
    }

    /// Where a container is.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.containers.iter().position(|c| c.name == name)
    }
}

impl ContainerPlan {
    fn of(c: &Container, init: bool, pod_restart: Restart) -> Self {
        let own = c.restart_policy.as_deref();
        let group = match (init, own) {
            (true, Some("Always")) => Group::Sidecar,
            (true, _) => Group::Init,
            (false, _) => Group::Main,
        };
        let restart = match (own, group) {
            (Some("Always"), _) => Restart::Always,
            (Some("OnFailure"), _) => Restart::OnFailure,
            (Some("Never"), _) => Restart::Never,
            // An init container that has succeeded is done, whatever the pod's policy.
            (_, Group::Init) if pod_restart == Restart::Always => Restart::OnFailure,
            _ => pod_restart,
        };
        let lifecycle = c.lifecycle.as_ref();
        let part = if init { "initContainers" } else { "containers" };
        Self {
            name: c.name.clone(),
            group,
            image: c.image.clone().unwrap_or_default(),
            restart,
            rules: c.restart_policy_rules.clone().unwrap_or_default(),
            startup: c.startup_probe.as_ref().map(ProbePlan::of),
            readiness: c.readiness_probe.as_ref().map(ProbePlan::of),
            liveness: c.liveness_probe.as_ref().map(ProbePlan::of),
            post_start: lifecycle.is_some_and(|l| l.post_start.is_some()),
            pre_stop: lifecycle.is_some_and(|l| l.pre_stop.is_some()),
            stop_signal: lifecycle.and_then(|l| l.stop_signal.as_deref()).map_or_else(Signal::term, Signal::named),
            field: format!("spec.{part}{{{}}}", c.name),
        }
    }

    /// Whether a container that ended with `code` is to run again. KEP-5307: the first rule that matches
    /// decides, then the policy.
    pub fn restarts_after(&self, code: i32) -> bool {
        for rule in &self.rules {
            let Some(on) = &rule.exit_codes else { continue };
            let listed = on.values.iter().flatten().any(|v| *v == code);
            if listed == (on.operator == "In") {
                return rule.action.starts_with("Restart");
            }
        }
        match (self.restart, self.group) {
            (Restart::Never, _) => false,
            (Restart::OnFailure, _) => code != 0,
            (Restart::Always, Group::Init) => code != 0,
            (Restart::Always, _) => true,
        }
    }
}
