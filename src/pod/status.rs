//! Pure: from an observation to `status`. The rules are kubelet's (`pkg/kubelet/kubelet_pods.go`,
//! `pkg/kubelet/status/generate.go`), the input is whatever a provider knows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP, Pod,
    PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use super::quantity::nano;
use crate::provider::PodObservation;
use crate::provider::lost::lose;

const RESIZE_PENDING: &str = "PodResizePending";
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

/// What the status tells.
#[derive(Clone, Copy, Debug)]
pub enum Story<'a> {
    /// What the provider sees.
    Observed(&'a PodObservation),
    /// It does not run yet: reason and message for each container.
    Waiting(&'a str, &'a str),
    /// It does not run yet since these containers cannot be configured, for these reasons; or, when there are
    /// none, since its volumes are not there.
    Unresolved(&'a BTreeMap<String, String>),
    /// It is not for this node to run: reason and message.
    Held(&'a str, &'a str),
    /// The provider refused it for good: reason and message.
    Refused(&'a str, &'a str),
    /// The provider has lost it.
    Vanished,
}

/// All that a status is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The status as it is.
    pub base: &'a PodStatus,
    /// What there is to tell.
    pub story: Story<'a>,
    /// The node's address, for when the provider does not know better.
    pub host_ip: IpAddr,
    /// The time.
    pub now: Timestamp,
    /// Whether the provider follows a change of its resources.
    pub resize: Resize,
}

/// What is known of a change of a pod's resources while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resize {
    /// Nothing; or the provider does it.
    #[default]
    Unknown,
    /// The pod has what it was made with.
    Unchanged,
    /// They were changed, and the provider cannot follow.
    Refused,
}

/// True for Succeeded and Failed.
pub fn is_terminal(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// The status that the pod should have.
pub fn status(s: &Situation<'_>) -> PodStatus {
    let mut new = s.base.clone();
    let generation = s.pod.metadata.generation;
    new.observed_generation = generation.or(new.observed_generation);
    match s.story {
        Story::Observed(observation) => observed(s, observation, &mut new),
        Story::Waiting(reason, message) if !is_terminal(s.base) => {
            new.phase = Some("Pending".into());
            let wait = |c: &Container| waiting(c, s.base, reason, message);
            set_containers(&mut new, s.pod, wait);
            hosts(&mut new, s.host_ip);
        }
        Story::Unresolved(failed) if !is_terminal(s.base) => {
            new.phase = Some("Pending".into());
            let initialising =
                s.pod.spec.as_ref().is_some_and(|s| s.init_containers.as_ref().is_some_and(|i| !i.is_empty()));
            let otherwise = if initialising { "PodInitializing" } else { "ContainerCreating" };
            set_containers(&mut new, s.pod, |c| match failed.get(&c.name) {
                Some(message) => waiting(c, s.base, "CreateContainerConfigError", message),
                None => waiting(c, s.base, otherwise, ""),
            });
            hosts(&mut new, s.host_ip);
        }
        Story::Held(reason, message) if !is_terminal(s.base) => {
            new.phase = Some("Pending".into());
            new.reason = Some(reason.to_owned());
            new.message = Some(message.to_owned());
        }
        Story::Refused(reason, message) if !is_terminal(s.base) => {
            new.phase = Some("Failed".into());
            new.reason = Some(reason.to_owned());
            new.message = Some(message.to_owned());
            new.start_time = new.start_time.or(Some(Time(s.now)));
            new.container_statuses = None;
            new.init_container_statuses = None;
        }
        Story::Vanished if !is_terminal(s.base) => {
            new.phase = Some("Failed".into());
            new.reason = Some("NotFound".into());
            new.message = Some("the provider no longer has this pod; it may have been deleted there".into());
            let lose = |c: &Container| lost(c, s.base, s.now);
            set_containers(&mut new, s.pod, lose);
        }
        Story::Waiting(..) | Story::Unresolved(_) | Story::Held(..) | Story::Refused(..) | Story::Vanished => {}
    }
    new.qos_class = new.qos_class.or_else(|| Some(qos(s.pod).to_owned()));
    conditions(s, &mut new);
    new
}

/// The quality of service, for pods whose API server has not set it. Kubernetes: `qos.GetPodQOS`.
fn qos(pod: &Pod) -> &'static str {
    let spec = pod.spec.as_ref();
    let containers = spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let (mut any, mut guaranteed) = (false, true);
    for container in containers {
        let resources = container.resources.as_ref();
        for name in ["cpu", "memory"] {
            let amount =
                |map: Option<&BTreeMap<String, Quantity>>| map.and_then(|m| m.get(name)).and_then(|q| nano(&q.0));
            let limit = amount(resources.and_then(|r| r.limits.as_ref())).filter(|n| *n > 0);
            let request = amount(resources.and_then(|r| r.requests.as_ref())).filter(|n| *n > 0).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn observed(s: &Situation<'_>, o: &PodObservation, new: &mut PodStatus) {
    let was_terminal = is_terminal(s.base);
    // A pod that is over stays over, whatever the provider thinks later.
    if !was_terminal || o.is_terminated() {
        let list = |all: &Vec<ContainerStatus>| (!all.is_empty()).then(|| all.clone());
        new.container_statuses = list(&o.containers).or(new.container_statuses.take());
        new.init_container_statuses = list(&o.init_containers).or(new.init_container_statuses.take());
        new.ephemeral_container_statuses = list(&o.ephemeral_containers).or(new.ephemeral_container_statuses.take());
    }
    resources(s, new);
    new.start_time = new.start_time.take().or_else(|| o.start_time.map(Time));
    hosts(new, o.host_ip.unwrap_or(s.host_ip));
    if let Some(first) = o.pod_ips.first() {
        new.pod_ip = Some(first.to_string());
        new.pod_ips = Some(o.pod_ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect());
    }
    if !was_terminal {
        new.phase = Some(phase(s.pod, o).to_owned());
        new.reason = o.reason.clone();
        new.message = o.message.clone();
    }
}

/// What each container was given, from its spec; while a resize is refused, what it was given before. KEP-1287.
fn resources(s: &Situation<'_>, new: &mut PodStatus) {
    let Some(spec) = &s.pod.spec else { return };
    let wanted = |name: &str| {
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        all.into_iter().find(|c| c.name == name).and_then(|c| c.resources.as_ref())
    };
    let statuses = new.container_statuses.iter_mut().chain(&mut new.init_container_statuses).flatten();
    for status in statuses.filter(|status| status.resources.is_none()) {
        let before = found(s.base, &status.name).filter(|_| s.resize == Resize::Refused);
        if let Some(before) = before.filter(|b| b.resources.is_some()) {
            status.resources.clone_from(&before.resources);
            status.allocated_resources.clone_from(&before.allocated_resources);
        } else if let Some(wanted) = wanted(&status.name).filter(|r| r.requests.is_some() || r.limits.is_some()) {
            status.allocated_resources.clone_from(&wanted.requests);
            status.resources = Some(wanted.clone());
        }
    }
}

/// Whether a container runs that has not been given yet what it is to have by now. KEP-1287.
fn resizing(s: &Situation<'_>) -> bool {
    let (Story::Observed(o), Some(spec)) = (s.story, &s.pod.spec) else { return false };
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    all.into_iter().any(|wanted| {
        let has = o.containers.iter().find(|c| c.name == wanted.name);
        let has = has.filter(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()));
        let (Some(has), Some(wanted)) = (has.and_then(|c| c.resources.as_ref()), &wanted.resources) else {
            return false;
        };
        [(&has.requests, &wanted.requests), (&has.limits, &wanted.limits)].into_iter().any(|(has, wanted)| {
            let amount =
                |of: &Option<BTreeMap<String, Quantity>>, name| of.as_ref()?.get(name).and_then(|q| nano(&q.0));
            ["cpu", "memory"].into_iter().any(|name| amount(has, name) != amount(wanted, name))
        })
    })
}

fn hosts(new: &mut PodStatus, ip: IpAddr) {
    new.host_ip = Some(ip.to_string());
    new.host_ips = Some(vec![HostIP { ip: ip.to_string() }]);
}

fn set_containers(new: &mut PodStatus, pod: &Pod, make: impl Fn(&Container) -> ContainerStatus) {
    let Some(spec) = &pod.spec else { return };
    new.container_statuses = Some(spec.containers.iter().map(&make).collect());
    new.init_container_statuses = spec.init_containers.as_ref().map(|all| all.iter().map(&make).collect());
}

fn found<'a>(base: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let all = base.container_statuses.iter().chain(&base.init_container_statuses).flatten();
    all.into_iter().find(|c| c.name == name)
}

fn waiting(c: &Container, base: &PodStatus, reason: &str, message: &str) -> ContainerStatus {
    let message = (!message.is_empty()).then(|| message.to_owned());
    ContainerStatus {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        restart_count: found(base, &c.name).map_or(0, |c| c.restart_count),
        started: Some(false),
        state: Some(ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
            ..ContainerState::default()
        }),
        ..ContainerStatus::default()
    }
}

fn lost(c: &Container, base: &PodStatus, now: Timestamp) -> ContainerStatus {
    let mut status = found(base, &c.name).cloned().unwrap_or_else(|| waiting(c, base, "", ""));
    lose(&mut status, "NotFound", "the provider no longer has this container", now);
    status
}

fn terminated(c: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    c.state.as_ref()?.terminated.as_ref()
}

fn is_sidecar(pod: &Pod, name: &str) -> bool {
    let init = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten());
    init.into_iter().any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
}

/// True when the init container does not hold up the pod.
fn is_initialized(pod: &Pod, c: &ContainerStatus) -> bool {
    match is_sidecar(pod, &c.name) {
        true => c.started == Some(true) || terminated(c).is_some(),
        false => terminated(c).is_some_and(|t| t.exit_code == 0),
    }
}

/// The phase, from the containers' states and the restart policy.
pub fn phase(pod: &Pod, o: &PodObservation) -> &'static str {
    // Ended by the provider of its own accord, as past its deadline: nothing runs again, whatever the policy.
    if o.reason.is_some() && o.is_terminated() {
        return "Failed";
    }
    let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
    let deleting = pod.metadata.deletion_timestamp.is_some();
    let (mut running, mut waiting, mut stopped, mut succeeded, mut restarting) = (0, 0, 0, 0, 0);
    for c in &o.containers {
        let state = c.state.as_ref();
        if state.is_some_and(|s| s.running.is_some()) {
            running += 1;
        } else if let Some(end) = terminated(c) {
            stopped += 1;
            succeeded += usize::from(end.exit_code == 0);
        } else if c.last_state.as_ref().is_some_and(|s| s.terminated.is_some()) {
            stopped += 1;
            restarting += 1;
        } else {
            waiting += 1;
        }
    }
    let expected = pod.spec.as_ref().map_or(0, |s| s.containers.len());
    let unknown = expected.saturating_sub(o.containers.len());
    let over = deleting && stopped == o.containers.len() && o.is_terminated();
    let failed_init =
        |c: &ContainerStatus| !is_sidecar(pod, &c.name) && terminated(c).is_some_and(|t| t.exit_code != 0);
    if policy == "Never" && o.init_containers.iter().any(failed_init) {
        return "Failed";
    }
    // Words for a pod that was ended by its deletion: whatever the policy, nothing starts again.
    if over && unknown == 0 {
        return if succeeded == stopped { "Succeeded" } else { "Failed" };
    }
    if !o.init_containers.iter().all(|c| is_initialized(pod, c)) && running == 0 && stopped == 0 {
        return "Pending";
    }
    if waiting > 0 || unknown > 0 {
        return "Pending";
    }
    match (running, stopped, policy) {
        (1.., _, _) => "Running",
        (0, 0, _) => "Pending",
        (0, _, "Always") => "Running",
        // By a rule of its own, whatever the pod's policy. KEP-5307.
        _ if restarting > 0 => "Running",
        _ if stopped == succeeded => "Succeeded",
        (0, _, "Never") => "Failed",
        _ => "Running",
    }
}

fn conditions(s: &Situation<'_>, new: &mut PodStatus) {
    let phase = new.phase.as_deref().unwrap_or("Pending");
    let over = match phase {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    let list = |names: Vec<&str>| format!("[{}]", names.join(" "));
    let inits = new.init_container_statuses.as_deref().unwrap_or_default();
    let init_expected = s.pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten());
    let incomplete: Vec<&str> = init_expected
        .map(|c| c.name.as_str())
        .filter(|name| !inits.iter().any(|c| c.name == *name && is_initialized(s.pod, c)))
        .collect();
    let statuses = new.container_statuses.as_deref().unwrap_or_default();
    let sidecars = inits.iter().filter(|c| is_sidecar(s.pod, &c.name) && !c.ready).map(|c| c.name.as_str());
    let expected = s.pod.spec.iter().flat_map(|s| &s.containers).map(|c| c.name.as_str());
    let unready: Vec<&str> =
        expected.filter(|name| !statuses.iter().any(|c| c.name == *name && c.ready)).chain(sidecars).collect();

    let initialized = match over {
        Some("PodCompleted") => (true, Some("PodCompleted"), None),
        _ if incomplete.is_empty() => (true, None, None),
        _ => (
            false,
            Some("ContainersNotInitialized"),
            Some(format!("containers with incomplete status: {}", list(incomplete))),
        ),
    };
    let containers_ready = match over {
        Some(reason) => (false, Some(reason), None),
        None if unready.is_empty() => (true, None, None),
        None => (false, Some("ContainersNotReady"), Some(format!("containers with unready status: {}", list(unready)))),
    };
    let gates = s.pod.spec.iter().flat_map(|s| s.readiness_gates.iter().flatten());
    let base = new.conditions.as_deref().unwrap_or_default();
    let missing: Vec<String> = gates
        .filter_map(|gate| match base.iter().find(|c| c.type_ == gate.condition_type) {
            Some(c) if c.status == "True" => None,
            Some(c) => Some(format!(
                "the status of pod readiness gate {:?} is not \"True\", but {}",
                gate.condition_type, c.status
            )),
            None => {
                Some(format!("corresponding condition of pod readiness gate {:?} does not exist", gate.condition_type))
            }
        })
        .collect();
    let containers_ready = match s.story {
        Story::Held(reason, message) if over.is_none() => (false, Some(reason), Some(message.to_owned())),
        _ => containers_ready,
    };
    let ready = match (&containers_ready, missing.is_empty()) {
        ((true, ..), false) => (false, Some("ReadinessGatesNotReady"), Some(missing.join(", "))),
        _ => containers_ready.clone(),
    };
    let sandbox = over.is_none() && new.pod_ip.is_some() && new.start_time.is_some();
    let all = [
        ("PodReadyToStartContainers", (sandbox, None, None)),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", (true, None, None)),
    ];
    let mut conditions = new.conditions.take().unwrap_or_default();
    let infeasible = "the provider cannot change the resources of a running pod; delete it to apply them".to_owned();
    let resize =
        (s.resize == Resize::Refused).then_some((RESIZE_PENDING, (true, Some("Infeasible"), Some(infeasible))));
    if s.resize == Resize::Unchanged {
        conditions.retain(|c| c.type_ != RESIZE_PENDING);
    }
    let in_progress = resizing(s).then_some((RESIZE_IN_PROGRESS, (true, None, None)));
    if in_progress.is_none() {
        conditions.retain(|c| c.type_ != RESIZE_IN_PROGRESS);
    }
    for (kind, (holds, reason, message)) in all.into_iter().chain(resize).chain(in_progress) {
        let status = if holds { "True" } else { "False" }.to_owned();
        let old = conditions.iter().find(|c| c.type_ == kind);
        let since = old.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        let condition = PodCondition {
            type_: kind.to_owned(),
            status,
            reason: reason.map(str::to_owned),
            message,
            observed_generation: s.pod.metadata.generation,
            last_transition_time: since.or(Some(Time(s.now))),
            last_probe_time: None,
        };
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(slot) => *slot = condition,
            None => conditions.push(condition),
        }
    }
    new.conditions = Some(conditions);
}

/// The strategic merge patch that turns `old` into `new`; `None` when there is no difference.
///
/// Only what differs is in it, and of the conditions only those that do, so that what others write into
/// the status meanwhile is kept. The uid makes the API server refuse it for another pod of the same name.
pub fn patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let fields = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        // A status is a struct, so it is an object.
        _ => Map::new(),
    };
    let (mut old, new) = (fields(old), fields(new));
    let mut changes = Map::new();
    for (name, value) in new {
        let before = old.remove(&name);
        if before.as_ref() == Some(&value) {
            continue;
        }
        let value = match (name.as_str(), value, before) {
            ("conditions", Value::Array(now), before) => {
                let before = before.unwrap_or_default();
                let same = |c: &Value| before.as_array().is_some_and(|all| all.contains(c));
                let left = |c: &&Value| !now.iter().any(|n| n["type"] == c["type"]);
                let dropped: Vec<Value> = before
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(left)
                    .map(|c| json!({"type": c["type"], "$patch": "delete"}))
                    .collect();
                let changed = now.into_iter().filter(|c| !same(c)).map(|c| with_nulls(c, &before));
                let changed: Vec<Value> = changed.chain(dropped).collect();
                if changed.is_empty() {
                    continue;
                }
                Value::Array(changed)
            }
            // Merged by `ip`, so the old ones have to be sent away.
            ("podIPs" | "hostIPs", Value::Array(mut ips), Some(_)) => {
                ips.push(json!({"$patch": "replace"}));
                Value::Array(ips)
            }
            (_, value, _) => value,
        };
        changes.insert(name, value);
    }
    changes.extend(old.into_iter().map(|(name, _)| (name, Value::Null)));
    (!changes.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changes}))
}

/// A condition is merged into the one of its type, so fields that it has no more have to be said to be gone.
fn with_nulls(mut condition: Value, before: &Value) -> Value {
    let before = before.as_array().into_iter().flatten().find(|b| b["type"] == condition["type"]);
    if let (Some(Value::Object(before)), Value::Object(now)) = (before, &mut condition) {
        for name in before.keys() {
            now.entry(name.clone()).or_insert(Value::Null);
        }
    }
    condition
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
