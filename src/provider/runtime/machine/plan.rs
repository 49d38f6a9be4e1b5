//! What a pod's spec asks for, read once: everything that decisions need, and nothing else.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod, Probe, ResourceRequirements};

use crate::provider::PodRef;
use crate::provider::runtime::engine::Signal;
use crate::provider::runtime::spec;

/// Kubernetes' default for `terminationGracePeriodSeconds`.
const DEFAULT_GRACE: i64 = 30;

/// A pod as the machine sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub pod: PodRef,
    pub grace: Duration,
    pub deadline: Option<Duration>,
    /// Volumes that may hold only so much, and how much that is as the pod says it.
    pub limits: Vec<(String, String)>,
    /// Init containers in order, then the others, then the ephemeral ones. The order never changes in a pod's life;
    /// ephemeral ones are added at the end.
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
    /// One of `spec.ephemeralContainers`: starts at any time, once, and the pod's life does not depend on it.
    Ephemeral,
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
    pub resources: ResourceRequirements,
    /// `resizePolicy`: resources whose change takes a restart.
    restart_on: Vec<String>,
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
        let added = spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten());
        let added = added.map(|c| ContainerPlan::ephemeral(&spec::plain(c)));
        let limits = spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let limits =
            limits.filter_map(|v| Some((v.name.clone(), v.empty_dir.as_ref()?.size_limit.as_ref()?.0.clone())));
        Self {
            pod: PodRef::of(pod),
            grace: seconds(spec.and_then(|s| s.termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE)),
            deadline: spec.and_then(|s| s.active_deadline_seconds).map(seconds),
            limits: limits.collect(),
            containers: init.chain(main.map(|c| ContainerPlan::of(c, false, pod_restart))).chain(added).collect(),
        }
    }

    /// True when something comes before the containers.
    pub fn has_init(&self) -> bool {
        self.containers.iter().any(|c| matches!(c.group, Group::Init | Group::Sidecar))
    }

    /// Where a container is.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.containers.iter().position(|c| c.name == name)
    }
}

impl ContainerPlan {
    /// Reads a container of `initContainers` or `containers`.
    pub fn of(c: &Container, init: bool, pod_restart: Restart) -> Self {
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
            resources: c.resources.clone().unwrap_or_default(),
            restart_on: c
                .resize_policy
                .iter()
                .flatten()
                .filter(|p| p.restart_policy == "RestartContainer")
                .map(|p| p.resource_name.clone())
                .collect(),
            stop_signal: lifecycle.and_then(|l| l.stop_signal.as_deref()).map_or_else(Signal::term, Signal::named),
            field: format!("spec.{part}{{{}}}", c.name),
        }
    }

    fn ephemeral(c: &Container) -> Self {
        Self {
            group: Group::Ephemeral,
            restart: Restart::Never,
            field: format!("spec.ephemeralContainers{{{}}}", c.name),
            ..Self::of(c, false, Restart::Never)
        }
    }

    /// Whether the container has to run anew to have its resources in place of `given`. KEP-1287.
    pub fn restarts_for(&self, given: &ResourceRequirements) -> bool {
        let of = |r: &ResourceRequirements, name: &str| {
            let get = |m: &Option<std::collections::BTreeMap<String, _>>| m.as_ref().and_then(|m| m.get(name).cloned());
            (get(&r.requests), get(&r.limits))
        };
        self.restart_on.iter().any(|name| of(given, name) != of(&self.resources, name))
    }

    /// Whether all containers of the pod are to run again when this one ends with `code`. KEP-5532.
    pub fn restarts_all_after(&self, code: i32) -> bool {
        self.rule_for(code).is_some_and(|rule| rule.action == "RestartAllContainers")
    }

    fn rule_for(&self, code: i32) -> Option<&ContainerRestartRule> {
        self.rules.iter().find(|rule| {
            let Some(on) = &rule.exit_codes else { return false };
            on.values.iter().flatten().any(|v| *v == code) == (on.operator == "In")
        })
    }

    /// Whether there is an end after which the container runs again.
    pub fn may_restart(&self) -> bool {
        self.restart != Restart::Never || self.rules.iter().any(|rule| rule.action.starts_with("Restart"))
    }

    /// Whether a container that ended with `code` is to run again. KEP-5307: the first rule that matches
    /// decides, then the policy.
    pub fn restarts_after(&self, code: i32) -> bool {
        if let Some(rule) = self.rule_for(code) {
            return rule.action.starts_with("Restart");
        }
        match (self.restart, self.group) {
            (Restart::Never, _) => false,
            (Restart::OnFailure, _) => code != 0,
            (Restart::Always, Group::Init) => code != 0,
            (Restart::Always, _) => true,
        }
    }
}
