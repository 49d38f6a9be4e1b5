//! What the agent is told: each container's status as kubelet writes it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Machine;
use super::plan::{ContainerPlan, Group};
use super::state::{End, Run, Stage};
use crate::provider::PodObservation;

impl Machine {
    /// The pod as it is. `scheme` goes before container IDs.
    pub fn observation(&self, scheme: &str) -> PodObservation {
        let idle = if self.plan.has_init() { "PodInitializing" } else { "ContainerCreating" };
        let of = |groups: &[Group]| {
            let all = self.plan.containers.iter().zip(&self.state.containers);
            all.filter(|(plan, _)| groups.contains(&plan.group))
                .map(|(plan, run)| run.status(plan, scheme, idle, self.state.renewing))
                .collect()
        };
        PodObservation {
            pod: self.plan.pod.clone(),
            start_time: Some(self.state.start_time),
            pod_ips: self.state.ips.clone(),
            host_ip: None,
            init_containers: of(&[Group::Init, Group::Sidecar]),
            containers: of(&[Group::Main]),
            ephemeral_containers: of(&[Group::Ephemeral]),
            reason: self.state.ended.as_ref().map(|(reason, _)| reason.clone()),
            message: self.state.ended.as_ref().map(|(_, message)| message.clone()),
        }
    }
}

impl Run {
    fn status(&self, plan: &ContainerPlan, scheme: &str, idle: &str, renewing: bool) -> ContainerStatus {
        // What has ended is about to begin again, with all the others.
        let renewed = match &self.stage {
            Stage::Exited(end) if renewing && plan.group != Group::Ephemeral => Some(end),
            _ => None,
        };
        let id = |id: &str| (!id.is_empty()).then(|| format!("{scheme}://{id}"));
        let waiting = |reason: &str, message: Option<&String>| ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message: message.cloned() }),
            ..ContainerState::default()
        };
        let state = match &self.stage {
            // The run is not the pod's business until its hook has succeeded.
            Stage::Waiting { .. } | Stage::Pulling | Stage::Starting | Stage::Hooked { .. } => match &self.shown {
                Some((reason, message)) => waiting(reason, Some(message)),
                None => waiting(idle, None),
            },
            Stage::Held { reason, message, .. } | Stage::BackOff { reason, message, .. } => {
                waiting(reason, Some(message))
            }
            Stage::Running { since } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(Time(*since)) }),
                ..ContainerState::default()
            },
            Stage::Exited(_) if renewed.is_some() => waiting(idle, None),
            Stage::Exited(end) => end.state(scheme),
        };
        let done = plan.group == Group::Init && renewed.is_none() && self.end().is_some_and(|end| end.exit.code == 0);
        let differs = self.given.as_ref().filter(|given| self.is_alive() && **given != plan.resources);
        ContainerStatus {
            name: self.name.clone(),
            image: plan.image.clone(),
            image_id: self.image_id.clone(),
            container_id: id(&self.id),
            ready: (self.ready && self.is_alive() && plan.group != Group::Ephemeral) || done,
            started: Some(self.started && self.is_alive()),
            restart_count: i32::try_from(self.attempt()).unwrap_or(i32::MAX),
            last_state: Some(renewed.or(self.last.as_ref()).map(|end| end.state(scheme)).unwrap_or_default()),
            state: Some(state),
            // Otherwise they are those of its spec.
            allocated_resources: differs.and_then(|given| given.requests.clone()),
            resources: differs.cloned(),
            ..ContainerStatus::default()
        }
    }
}

impl End {
    fn state(&self, scheme: &str) -> ContainerState {
        let reason = self.exit.reason.clone().unwrap_or_else(|| {
            let word = match self.exit.code {
                _ if self.exit.oom_killed => "OOMKilled",
                0 => "Completed",
                _ => "Error",
            };
            word.to_owned()
        });
        ContainerState {
            terminated: Some(ContainerStateTerminated {
                container_id: (!self.id.is_empty()).then(|| format!("{scheme}://{}", self.id)),
                exit_code: self.exit.code,
                signal: self.exit.signal,
                // Runtimes say so of what never started.
                started_at: self
                    .exit
                    .started_at
                    .or((reason == "StartError").then_some(Timestamp::UNIX_EPOCH))
                    .map(Time),
                reason: Some(reason),
                message: self.message.clone(),
                finished_at: Some(Time(self.exit.finished_at)),
            }),
            ..ContainerState::default()
        }
    }
}
