//! The pods of a Job, and the finalizer that keeps each until it is counted. KEP-2307.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::super::workload::{delete, pod_from};
use super::super::world::{World, gone_is_fine};

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// The label with the Job's name.
pub(super) const NAME: &str = "batch.kubernetes.io/job-name";
const FINALIZER: &str = "batch.kubernetes.io/job-tracking";

pub(super) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    pod.annotations().get(INDEX)?.parse().ok()
}

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|f| f == FINALIZER)
}

/// When the last container ended, as far as is known.
pub(super) fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    statuses.filter_map(|c| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0)).max()
}

/// A pod for a Job; with its index, if the Job counts them.
pub(super) fn pod_of(job: &Job, spec: &JobSpec, index: Option<i32>) -> Pod {
    let mut pod = pod_from(job, &spec.template);
    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.into());
    let uid = job.uid().unwrap_or_default();
    let labels = pod.metadata.labels.get_or_insert_default();
    for prefix in ["", "batch.kubernetes.io/"] {
        labels.insert(format!("{prefix}job-name"), job.name_any());
        labels.insert(format!("{prefix}controller-uid"), uid.clone());
    }
    let Some(index) = index else { return pod };
    labels.insert(INDEX.into(), index.to_string());
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.into(), index.to_string());
    pod.metadata.generate_name = Some(format!("{}-{index}-", job.name_any()));
    let Some(spec) = &mut pod.spec else { return pod };
    spec.hostname.get_or_insert_with(|| format!("{}-{index}", job.name_any()));
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let field_ref = ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{INDEX}']") };
        container.env.get_or_insert_default().push(EnvVar {
            name: "JOB_COMPLETION_INDEX".into(),
            value: None,
            value_from: Some(EnvVarSource { field_ref: Some(field_ref), ..EnvVarSource::default() }),
        });
    }
    pod
}

/// Lets go of pods: they are counted, or nobody will.
pub(super) async fn release(world: &World, pods: &[Arc<Pod>]) -> Result<(), kube::Error> {
    for pod in pods.iter().filter(|pod| is_tracked(pod)) {
        let body = json!({"metadata": {"uid": pod.uid(), "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        let api = world.api::<Pod>(&pod.namespace().unwrap_or_default());
        let patch = Patch::Strategic(body);
        gone_is_fine(api.patch(&pod.name_any(), &PatchParams::default(), &patch).await.map(drop))?;
    }
    Ok(())
}

/// Deletes pods that count neither way; their uids.
pub(super) async fn discard(world: &World, pods: Vec<Arc<Pod>>) -> Result<Vec<String>, kube::Error> {
    release(world, &pods).await?;
    delete(world, pods).await
}
