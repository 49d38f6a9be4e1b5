//! Pure: from a resolved pod to the JSON that a service gets, and from its JSON to what the agent knows.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    EnvVar, Pod, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::provider::lost::lose;
use crate::provider::{PodObservation, PodRef, ResolvedPod};

/// The annotation that says whose a pod is; services keep it with the pod.
pub(super) const MARK: &str = "vnode.dev/node-uid";

/// Whose a pod at the service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// It carries this node's mark.
    Ours,
    /// It may be this node's, but carries no mark.
    Unmarked,
    /// It is another node's.
    Foreign,
}

/// Tells whose a pod is.
pub(super) fn whose(pod: &Pod, node: &str, node_uid: &str) -> Whose {
    let mark = pod.metadata.annotations.as_ref().and_then(|a| a.get(MARK));
    let bound = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty());
    match (mark, bound) {
        (Some(mark), _) if mark == node_uid => Whose::Ours,
        (Some(_), _) => Whose::Foreign,
        (None, Some(bound)) if bound != node => Whose::Foreign,
        (None, _) => Whose::Unmarked,
    }
}

/// The pod as the service gets it: with its environment, commands and arguments as values.
///
/// A new pod has no status: services keep what they are given, and would tell it as their own.
pub(super) fn outgoing(resolved: &ResolvedPod, node_uid: &str, new: bool) -> Pod {
    let mut pod = Pod::clone(&resolved.pod);
    if new {
        pod.status = None;
    }
    pod.metadata.annotations.get_or_insert_default().insert(MARK.into(), node_uid.into());
    let Some(spec) = &mut pod.spec else { return pod };
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let Some(values) = resolved.containers.get(&container.name) else { continue };
        let variable = |v: &crate::provider::EnvVar| EnvVar {
            name: v.name.clone(),
            value: Some(v.value.clone()),
            value_from: None,
        };
        container.env = Some(values.env.iter().map(variable).collect());
        container.env_from = None;
        container.command = Some(values.command.clone()).filter(|c| !c.is_empty());
        container.args = Some(values.args.clone()).filter(|a| !a.is_empty());
    }
    pod
}

/// What the service's pod comes to. What it leaves out is made up from the phase, or taken from what was known.
pub(super) fn observation(
    reference: PodRef,
    pod: &Pod,
    last: Option<&PodObservation>,
    now: Timestamp,
) -> PodObservation {
    let nothing = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&nothing);
    let said = |list: &Option<Vec<ContainerStatus>>| list.clone().unwrap_or_default();
    let mut containers = said(&status.container_statuses);
    let mut init = said(&status.init_container_statuses);
    let phase = status.phase.as_deref().unwrap_or_default();
    let start_time = status.start_time.as_ref().map(|t| t.0).or(last.and_then(|l| l.start_time)).unwrap_or(now);
    if containers.is_empty() {
        if let Some(last) = last.filter(|_| phase.is_empty()) {
            // A service that says nothing of its state has not changed it.
            return last.clone();
        }
        let spec = pod.spec.as_ref();
        let made = Made { phase, start_time, message: status.message.as_deref(), now };
        let before = |name: &str| {
            let mut all = last.into_iter().flat_map(|l| l.containers.iter().chain(&l.init_containers));
            all.find(|c| c.name == name)
        };
        containers = spec.iter().flat_map(|s| &s.containers).map(|c| made.status(c, before(&c.name), false)).collect();
        if init.is_empty() {
            let all = spec.iter().flat_map(|s| s.init_containers.iter().flatten());
            let sidecar = |c: &Container| c.restart_policy.as_deref() == Some("Always");
            init = all.map(|c| made.status(c, before(&c.name), !sidecar(c))).collect();
        }
    }
    for container in containers.iter_mut().chain(&mut init) {
        let before = last.into_iter().flat_map(|l| l.containers.iter().chain(&l.init_containers));
        date_end(container, before.into_iter().find(|c| c.name == container.name), now);
    }
    let ips = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    let mut pod_ips: Vec<IpAddr> = Vec::new();
    for ip in ips.filter_map(|ip| ip.parse().ok()) {
        if !pod_ips.contains(&ip) {
            pod_ips.push(ip);
        }
    }
    // A word with a phase that is none of a failure says why the pod waits, and is none of its end.
    let failed = phase == "Failed";
    PodObservation {
        pod: reference,
        start_time: Some(start_time),
        pod_ips,
        host_ip: status.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
        init_containers: init,
        containers,
        ephemeral_containers: said(&status.ephemeral_container_statuses),
        reason: status.reason.clone().filter(|r| failed && !r.is_empty()),
        message: status.message.clone().filter(|m| failed && !m.is_empty()),
    }
}

/// An end without a time is dated when it is first heard of.
fn date_end(container: &mut ContainerStatus, before: Option<&ContainerStatus>, now: Timestamp) {
    let Some(ended) = container.state.as_mut().and_then(|s| s.terminated.as_mut()) else { return };
    if ended.finished_at.is_none() {
        let known = before.filter(|b| b.restart_count == container.restart_count);
        let known = known.and_then(|b| b.state.as_ref()?.terminated.as_ref()?.finished_at.clone());
        ended.finished_at = known.or(Some(Time(now)));
    }
}

/// What a phase says of a container.
struct Made<'a> {
    phase: &'a str,
    start_time: Timestamp,
    message: Option<&'a str>,
    now: Timestamp,
}

impl Made<'_> {
    fn status(&self, c: &Container, before: Option<&ContainerStatus>, first: bool) -> ContainerStatus {
        let state = before.and_then(|b| b.state.as_ref());
        let started = state.and_then(|s| s.running.as_ref()).and_then(|r| r.started_at.clone());
        let started = started.or_else(|| state?.terminated.as_ref()?.started_at.clone());
        let started = started.unwrap_or(Time(self.start_time));
        let ended = |code: i32, reason: &str| {
            let finished = state.and_then(|s| s.terminated.as_ref()).and_then(|t| t.finished_at.clone());
            ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: code,
                    reason: Some(reason.into()),
                    message: self.message.filter(|_| code != 0).map(str::to_owned),
                    started_at: Some(started.clone()),
                    finished_at: finished.or(Some(Time(self.now))),
                    ..ContainerStateTerminated::default()
                }),
                ..ContainerState::default()
            }
        };
        let waiting = |reason: &str| ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason.into()),
                message: self.message.map(str::to_owned),
            }),
            ..ContainerState::default()
        };
        let state = match (self.phase, first) {
            ("Running" | "Succeeded", true) => ended(0, "Completed"),
            ("Running", false) => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(started.clone()) }),
                ..ContainerState::default()
            },
            ("Succeeded", false) => ended(0, "Completed"),
            ("Failed", _) => ended(1, "Error"),
            _ => waiting("ContainerCreating"),
        };
        let runs = state.running.is_some();
        ContainerStatus {
            name: c.name.clone(),
            image: c.image.clone().unwrap_or_default(),
            ready: runs || (first && state.terminated.is_some() && self.phase != "Failed"),
            started: Some(runs),
            restart_count: before.map_or(0, |b| b.restart_count),
            state: Some(state),
            ..ContainerStatus::default()
        }
    }
}

/// A pod that the service was asked to stop and has no more: its containers are over, and how is not known.
pub(super) fn ended(mut last: PodObservation, now: Timestamp) -> PodObservation {
    const WHY: &str = "the pod was deleted, and the provider's service did not say how it ended";
    for status in last.init_containers.iter_mut().chain(&mut last.containers).chain(&mut last.ephemeral_containers) {
        lose(status, "ContainerStatusUnknown", WHY, now);
    }
    last
}

/// The text of a log: as it is, or out of one JSON string, which some services make of it.
pub(super) fn log_text(body: &[u8]) -> Vec<u8> {
    match serde_json::from_slice::<String>(body) {
        Ok(text) => text.into_bytes(),
        Err(_) => body.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn observed(status: Value, last: Option<&PodObservation>) -> PodObservation {
        let spec = json!({"initContainers": [{"name": "first"}], "containers": [{"name": "main", "image": "i"}]});
        let pod = pod(json!({"metadata": {"namespace": "a", "name": "b", "uid": "u"}, "spec": spec, "status": status}));
        observation(PodRef::of(&pod), &pod, last, "2026-01-01T00:00:00Z".parse().unwrap())
    }

    fn state(o: &PodObservation) -> String {
        let states = o.init_containers.iter().chain(&o.containers).map(|c| {
            let state = c.state.as_ref().unwrap();
            match (&state.running, &state.terminated) {
                (Some(_), _) => "running".to_owned(),
                (_, Some(ended)) => format!("exit {}", ended.exit_code),
                _ => "waiting".to_owned(),
            }
        });
        states.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_phase_alone_says_what_containers_do() {
        for (phase, want) in [
            ("Running", "exit 0, running"),
            ("Succeeded", "exit 0, exit 0"),
            ("Failed", "exit 1, exit 1"),
            ("Pending", "waiting, waiting"),
            ("Nonsense", "waiting, waiting"),
        ] {
            assert_eq!(state(&observed(json!({"phase": phase}), None)), want, "{phase}");
        }
        let running = observed(json!({"phase": "Running", "podIP": "10.0.0.1", "hostIP": "?"}), None);
        assert!(running.containers[0].ready && running.pod_ips.len() == 1 && running.host_ip.is_none());
        let started = |o: &PodObservation| o.containers[0].state.clone().unwrap().running.unwrap().started_at;
        let again = observed(json!({"phase": "Running", "startTime": "2026-02-01T00:00:00Z"}), Some(&running));
        assert_eq!(started(&again), started(&running), "a start is told once");
        let done = observed(json!({"phase": "Failed", "reason": "Evicted", "message": "full"}), Some(&running));
        assert_eq!((done.reason.as_deref(), done.message.as_deref()), (Some("Evicted"), Some("full")));
        assert_eq!(state(&observed(json!({}), Some(&running))), "exit 0, running", "nothing said is nothing changed");
        assert_eq!(state(&observed(json!({}), None)), "waiting, waiting");
    }

    #[test]
    fn what_the_service_says_of_containers_is_taken_as_it_is() {
        let statuses = json!([{"name": "main", "ready": false, "restartCount": 2, "image": "", "imageID": "",
            "state": {"terminated": {"exitCode": 3}}}]);
        let said = observed(json!({"phase": "Running", "containerStatuses": statuses}), None);
        assert_eq!((state(&said), said.containers[0].restart_count), ("exit 3".into(), 2));
        let ended = |o: &PodObservation| o.containers[0].state.clone().unwrap().terminated.unwrap().finished_at;
        assert_eq!(ended(&said), Some(Time("2026-01-01T00:00:00Z".parse().unwrap())), "first heard of");
    }

    #[test]
    fn a_pod_that_was_stopped_and_is_gone_has_ended() {
        let running = observed(json!({"phase": "Running"}), None);
        let ended = ended(running, Timestamp::now());
        assert!(ended.is_terminated());
        assert_eq!(state(&ended), "exit 0, exit 137", "what had ended before keeps its code");
    }

    #[test]
    fn a_pod_goes_out_with_values_and_a_mark_and_comes_back_as_ours() {
        let source = pod(json!({"metadata": {"name": "a"}, "status": {"phase": "Pending"}, "spec": {"nodeName": "n",
            "containers": [{"name": "main", "envFrom": [{}], "env": [{"name": "A", "valueFrom": {}}], "args": ["$(A)"]}]}}));
        let values = crate::provider::ResolvedContainer {
            env: vec![crate::provider::EnvVar { name: "A".into(), value: "1".into(), secret: true }],
            args: vec!["1".into()],
            ..Default::default()
        };
        let resolved = ResolvedPod {
            pod: source.into(),
            containers: [("main".to_owned(), values)].into(),
            ..ResolvedPod::default()
        };
        let out = outgoing(&resolved, "uid", true);
        assert_eq!(out.status, None);
        let sent = serde_json::to_value(&out).unwrap();
        assert_eq!(
            sent["spec"]["containers"][0],
            json!({"name": "main", "env": [{"name": "A", "value": "1"}], "args": ["1"]})
        );
        assert_eq!(whose(&out, "n", "uid"), Whose::Ours);
        assert_eq!(whose(&out, "n", "other"), Whose::Foreign);
        assert!(outgoing(&resolved, "uid", false).status.is_some());
        assert_eq!(whose(&resolved.pod, "n", "uid"), Whose::Unmarked);
        assert_eq!(whose(&resolved.pod, "m", "uid"), Whose::Foreign);
        assert_eq!(whose(&Pod::default(), "m", "uid"), Whose::Unmarked);
    }

    #[test]
    fn a_log_may_be_a_json_string() {
        assert_eq!(log_text(br#""a\nb\n""#), b"a\nb\n");
        assert_eq!(log_text(b"\"a\" said\n"), b"\"a\" said\n");
    }
}
