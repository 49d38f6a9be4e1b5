//! Containers of which only is known that they are no more.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Their exit code, as kubelet's (`pkg/kubelet/kubelet_pods.go`).
const LOST: i32 = 137;

/// Ends a container, unless it is known how it ended.
pub(crate) fn lose(status: &mut ContainerStatus, reason: &str, message: &str, now: Timestamp) {
    status.ready = false;
    status.started = Some(false);
    let state = status.state.take().unwrap_or_default();
    status.state = Some(match state {
        ContainerState { terminated: Some(_), .. } => state,
        ContainerState { running, .. } => ContainerState {
            terminated: Some(ContainerStateTerminated {
                container_id: status.container_id.clone(),
                exit_code: LOST,
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                started_at: running.and_then(|r| r.started_at),
                finished_at: Some(Time(now)),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        },
    });
}
