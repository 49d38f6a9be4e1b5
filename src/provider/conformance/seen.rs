//! Reading what is reported of a pod.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus};

use super::super::{PodObservation, ProviderError, Result};
use super::suite::Failure;

pub(super) fn is_running(o: &PodObservation) -> bool {
    !o.containers.is_empty() && o.containers.iter().all(runs)
}

pub(super) fn is_not_found<T>(result: &Result<T>) -> bool {
    matches!(result, Err(ProviderError::NotFound(_)))
}

pub(super) fn names(o: &PodObservation) -> Vec<&str> {
    o.containers.iter().map(|c| c.name.as_str()).collect()
}

/// The container of a name, of whatever kind it is.
pub(super) fn find<'o>(o: &'o PodObservation, name: &str) -> Option<&'o ContainerStatus> {
    let all = o.containers.iter().chain(&o.init_containers).chain(&o.ephemeral_containers);
    all.into_iter().find(|c| c.name == name)
}

/// The same where there must be one.
pub(super) fn container<'o>(o: &'o PodObservation, name: &str) -> Result<&'o ContainerStatus, Failure> {
    find(o, name).ok_or_else(|| Failure::new(format!("container {name} is not reported: {o:?}")))
}

/// True when there is such a container and this is so of it.
pub(super) fn of(o: &PodObservation, name: &str, holds: impl Fn(&ContainerStatus) -> bool) -> bool {
    find(o, name).is_some_and(holds)
}

pub(super) fn runs(c: &ContainerStatus) -> bool {
    c.state.as_ref().is_some_and(|s| s.running.is_some())
}

/// It runs or has run.
pub(super) fn began(c: &ContainerStatus) -> bool {
    runs(c) || end(c).is_some_and(|t| t.started_at.is_some()) || c.restart_count > 0
}

/// True when the first time is not after the second one, as far as can be told: a provider that reads the clock of a
/// machine far away is as exact as the way there.
pub(super) fn in_order(first: Option<Timestamp>, second: Option<Timestamp>) -> bool {
    const EXACT: SignedDuration = SignedDuration::from_secs(2);
    first.zip(second).is_none_or(|(first, second)| first.duration_since(second) <= EXACT)
}

/// When a container that is over ended.
pub(super) fn finished_at(c: &ContainerStatus) -> Option<Timestamp> {
    end(c).and_then(|t| t.finished_at.as_ref()).map(|t| t.0)
}

pub(super) fn started_at(c: &ContainerStatus) -> Option<Timestamp> {
    c.state.as_ref()?.running.as_ref()?.started_at.as_ref().map(|t| t.0)
}

fn ended(state: Option<&ContainerState>) -> Option<&ContainerStateTerminated> {
    state?.terminated.as_ref()
}

/// How it has ended.
pub(super) fn end(c: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    ended(c.state.as_ref())
}

/// How its run before has ended.
pub(super) fn end_before(c: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    ended(c.last_state.as_ref())
}

/// Its exit code, once it has ended.
pub(super) fn code(c: &ContainerStatus) -> Option<i32> {
    end(c).map(|t| t.exit_code)
}

/// The exit code of the first container, once it has ended.
pub(super) fn exit_code(o: &PodObservation) -> Option<i32> {
    o.containers.first().and_then(code)
}

/// Why it does not run yet, or not again.
pub(super) fn waits_for(c: &ContainerStatus) -> Option<&str> {
    c.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}
