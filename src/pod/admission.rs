//! Pure: whether a node takes a pod, with kubelet's words when it does not.
//! Kubernetes: `pkg/kubelet/lifecycle/predicate.go`, `pkg/scheduler/scheduler.go` (`AdmissionCheck`).
//!
//! The scheduler has looked at all of this already, but pods can be bound by hand, by another scheduler, or to
//! a node that has changed since.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, ResourceRequirements, Toleration,
};

use super::facts::NodeFacts;
use super::quantity::{milli, whole};

/// What a pod takes of its node: processors in thousandths, the rest in whole units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    pub amounts: BTreeMap<String, i64>,
    /// Address, protocol and number of each port of the host.
    pub ports: Vec<(String, String, i32)>,
}

/// Why a node does not take a pod: a reason for its status and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub reason: String,
    pub message: String,
}

impl Rejection {
    fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }

    fn predicate(name: &str, why: &str) -> Self {
        Self::new(name, format!("Predicate {name} failed: {why}"))
    }
}

/// True for pods that a node made itself and only shows to the API server.
pub(crate) fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let of = |key: &str| annotations.and_then(|a| a.get(key));
    of("kubernetes.io/config.mirror").is_some() || of("kubernetes.io/config.source").is_some_and(|s| s != "api")
}

/// True for pods that a DaemonSet controls.
pub(crate) fn is_of_daemon_set(pod: &Pod) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|o| o.controller == Some(true) && o.kind == "DaemonSet")
}

fn amounts(resources: Option<&ResourceRequirements>) -> BTreeMap<String, i64> {
    let Some(resources) = resources else { return BTreeMap::new() };
    let mut all = resources.limits.clone().unwrap_or_default();
    // Only what the API server did not default: a limit stands for a request that is not there.
    all.extend(resources.requests.clone().unwrap_or_default());
    let read = |(name, q): (String, k8s_openapi::apimachinery::pkg::api::resource::Quantity)| {
        let amount = if name == "cpu" { milli(&q.0) } else { whole(&q.0) };
        Some((name, amount?))
    };
    all.into_iter().filter_map(read).collect()
}

fn add(into: &mut BTreeMap<String, i64>, more: &BTreeMap<String, i64>) {
    for (name, amount) in more {
        let sum = into.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn most(into: &mut BTreeMap<String, i64>, other: &BTreeMap<String, i64>) {
    for (name, amount) in other {
        let slot = into.entry(name.clone()).or_default();
        *slot = (*slot).max(*amount);
    }
}

/// What the pod takes: all its containers together with its sidecars, or the largest of its init containers
/// with the sidecars before it, if that is more. Kubernetes: `resourcehelper.PodRequests`.
pub(crate) fn requests(pod: &Pod) -> Requests {
    let Some(spec) = &pod.spec else { return Requests::default() };
    let of = |c: &Container| amounts(c.resources.as_ref());
    let (mut sidecars, mut init) = (BTreeMap::new(), BTreeMap::new());
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &of(container));
            most(&mut init, &sidecars);
        } else {
            let mut with = sidecars.clone();
            add(&mut with, &of(container));
            most(&mut init, &with);
        }
    }
    let mut total = sidecars;
    for container in &spec.containers {
        add(&mut total, &of(container));
    }
    most(&mut total, &init);
    // Resources of the pod as a whole stand above those of its containers.
    total.extend(amounts(spec.resources.as_ref()));
    let overhead = ResourceRequirements { requests: spec.overhead.clone(), ..ResourceRequirements::default() };
    add(&mut total, &amounts(Some(&overhead)));
    Requests { amounts: total, ports: host_ports(spec) }
}

fn host_ports(spec: &PodSpec) -> Vec<(String, String, i32)> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let port = |p: &k8s_openapi::api::core::v1::ContainerPort| {
        let number = p.host_port.filter(|n| *n > 0)?;
        let ip = p.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
        Some((ip, p.protocol.clone().unwrap_or_else(|| "TCP".into()), number))
    };
    ports.filter_map(port).collect()
}

/// Whether the node takes the pod beside those that it has: `used` is what they take and `pods` their number.
pub(crate) fn admit(
    pod: &Pod,
    wanted: &Requests,
    facts: &NodeFacts,
    used: &Requests,
    pods: usize,
) -> Result<(), Rejection> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let selector = spec.node_selector.as_ref();
    if let Some(os) = selector.and_then(|s| s.get("kubernetes.io/os"))
        && facts.labels.get("kubernetes.io/os").is_some_and(|have| have != os)
    {
        return Err(Rejection::new(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ));
    }
    if spec.os.as_ref().is_some_and(|os| !facts.operating_system.is_empty() && os.name != facts.operating_system) {
        return Err(Rejection::new("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"));
    }
    fits(wanted, facts, used, pods)?;
    if !facts.labels.is_empty() && !selected(spec, pod, facts) {
        let why = "node(s) didn't match Pod's node affinity/selector";
        return Err(Rejection::predicate("NodeAffinity", why));
    }
    if wanted.ports.iter().any(|port| used.ports.iter().any(|other| conflict(port, other))) {
        let why = "node(s) didn't have free ports for the requested pod ports";
        return Err(Rejection::predicate("NodePorts", why));
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let untolerated = |t: &&k8s_openapi::api::core::v1::Taint| {
        t.effect == "NoExecute" && !tolerations.iter().any(|toleration| tolerates(toleration, t))
    };
    if facts.taints.iter().find(untolerated).is_some() {
        let why = "node(s) had taints that the pod didn't tolerate";
        return Err(Rejection::predicate("TaintToleration", why));
    }
    Ok(())
}

fn fits(wanted: &Requests, facts: &NodeFacts, used: &Requests, pods: usize) -> Result<(), Rejection> {
    let short = |name: &str, requested: i64, used: i64, capacity: i64| {
        Rejection::new(
            &format!("OutOf{name}"),
            format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        )
    };
    let has = |name: &str| {
        let quantity = facts.allocatable.get(name)?;
        if name == "cpu" { milli(&quantity.0) } else { whole(&quantity.0) }
    };
    let pods = i64::try_from(pods).unwrap_or(i64::MAX);
    if let Some(capacity) = has("pods").filter(|capacity| pods >= *capacity) {
        return Err(short("pods", 1, pods, capacity));
    }
    // Kubelet's order; what the node knows nothing of is left to whoever provides it.
    let first = ["cpu", "memory", "ephemeral-storage"];
    let others = wanted.amounts.keys().map(String::as_str).filter(|name| !first.contains(name));
    for name in first.into_iter().chain(others) {
        let requested = wanted.amounts.get(name).copied().unwrap_or_default();
        let used = used.amounts.get(name).copied().unwrap_or_default();
        if let Some(capacity) = has(name).filter(|c| requested > 0 && requested > c.saturating_sub(used)) {
            return Err(short(name, requested, used, capacity));
        }
    }
    Ok(())
}

fn conflict(a: &(String, String, i32), b: &(String, String, i32)) -> bool {
    let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
    a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || any(&a.0) || any(&b.0))
}

fn tolerates(toleration: &Toleration, taint: &k8s_openapi::api::core::v1::Taint) -> bool {
    let empty = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
    if !empty(&toleration.effect) && toleration.effect.as_deref() != Some(&*taint.effect) {
        return false;
    }
    if !empty(&toleration.key) && toleration.key.as_deref() != Some(&*taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => {
            !empty(&toleration.key)
                && toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        operator => {
            let number = |text: &Option<String>| text.as_deref().and_then(|t| t.parse::<i64>().ok());
            match (number(&taint.value), number(&toleration.value), operator) {
                (Some(taint), Some(bound), "Gt") => taint > bound,
                (Some(taint), Some(bound), "Lt") => taint < bound,
                _ => false,
            }
        }
    }
}

/// `nodeSelector` and the required part of the node affinity.
fn selected(spec: &PodSpec, pod: &Pod, facts: &NodeFacts) -> bool {
    let has = |(key, value): (&String, &String)| facts.labels.get(key) == Some(value);
    if !spec.node_selector.iter().flatten().all(has) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let Some(required) = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) else {
        return true;
    };
    let name = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
    required.node_selector_terms.iter().any(|term| matches(term, name, &facts.labels))
}

fn matches(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let (expressions, fields) =
        (term.match_expressions.as_deref().unwrap_or_default(), term.match_fields.as_deref().unwrap_or_default());
    // An empty term selects nothing.
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| holds(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| r.key == "metadata.name" && holds(r, Some(name)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = |value: &str| values.iter().any(|v| v == value);
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |greater: bool| {
        let (Some(have), Some(bound)) = (value.and_then(number), values.first().and_then(|v| number(v))) else {
            return false;
        };
        if greater { have > bound } else { have < bound }
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(among),
        "NotIn" => !value.is_some_and(among),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(true),
        "Lt" => compare(false),
        _ => false,
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
