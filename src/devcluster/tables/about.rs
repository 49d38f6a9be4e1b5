//! What columns say of themselves: the words of the fields that they show, as the API's own types have them.

use crate::schema::describe;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Kind, column, and the definition below `io.k8s.api.` with its field.
#[rustfmt::skip]
const FIELDS: &[(&str, &str, &str, &str)] = &[
    ("CertificateSigningRequest", "RequestedDuration", "certificates.v1.CertificateSigningRequestSpec", "expirationSeconds"),
    ("CSIDriver", "AttachRequired", "storage.v1.CSIDriverSpec", "attachRequired"),
    ("CSIDriver", "Modes", "storage.v1.CSIDriverSpec", "volumeLifecycleModes"),
    ("CSIDriver", "PodInfoOnMount", "storage.v1.CSIDriverSpec", "podInfoOnMount"),
    ("CSIDriver", "RequiresRepublish", "storage.v1.CSIDriverSpec", "requiresRepublish"),
    ("CSIDriver", "StorageCapacity", "storage.v1.CSIDriverSpec", "storageCapacity"),
    ("CSIDriver", "TokenRequests", "storage.v1.CSIDriverSpec", "tokenRequests"),
    ("ConfigMap", "Data", "core.v1.ConfigMap", "data"),
    ("CronJob", "Active", "batch.v1.CronJobStatus", "active"),
    ("CronJob", "Last Schedule", "batch.v1.CronJobStatus", "lastScheduleTime"),
    ("CronJob", "Schedule", "batch.v1.CronJobSpec", "schedule"),
    ("CronJob", "Selector", "batch.v1.JobSpec", "selector"),
    ("CronJob", "Suspend", "batch.v1.CronJobSpec", "suspend"),
    ("CronJob", "Timezone", "batch.v1.CronJobSpec", "timeZone"),
    ("DaemonSet", "Available", "apps.v1.DaemonSetStatus", "numberAvailable"),
    ("DaemonSet", "Current", "apps.v1.DaemonSetStatus", "currentNumberScheduled"),
    ("DaemonSet", "Desired", "apps.v1.DaemonSetStatus", "desiredNumberScheduled"),
    ("DaemonSet", "Node Selector", "core.v1.PodSpec", "nodeSelector"),
    ("DaemonSet", "Ready", "apps.v1.DaemonSetStatus", "numberReady"),
    ("DaemonSet", "Selector", "apps.v1.DaemonSetSpec", "selector"),
    ("DaemonSet", "Up-to-date", "apps.v1.DaemonSetStatus", "updatedNumberScheduled"),
    ("Deployment", "Available", "apps.v1.DeploymentStatus", "availableReplicas"),
    ("Deployment", "Selector", "apps.v1.DeploymentSpec", "selector"),
    ("Deployment", "Up-to-date", "apps.v1.DeploymentStatus", "updatedReplicas"),
    ("EndpointSlice", "AddressType", "discovery.v1.EndpointSlice", "addressType"),
    ("EndpointSlice", "Endpoints", "discovery.v1.EndpointSlice", "endpoints"),
    ("EndpointSlice", "Ports", "discovery.v1.EndpointSlice", "ports"),
    ("Endpoints", "Endpoints", "core.v1.Endpoints", "subsets"),
    ("Event", "First Seen", "core.v1.Event", "firstTimestamp"),
    ("Event", "Last Seen", "core.v1.Event", "lastTimestamp"),
    ("Event", "Reason", "core.v1.Event", "reason"),
    ("Event", "Source", "core.v1.Event", "source"),
    ("Event", "Subobject", "core.v1.ObjectReference", "fieldPath"),
    ("Event", "Type", "core.v1.Event", "type"),
    ("Job", "Completions", "batch.v1.JobStatus", "succeeded"),
    ("Job", "Selector", "batch.v1.JobSpec", "selector"),
    ("Lease", "Holder", "coordination.v1.LeaseSpec", "holderIdentity"),
    ("NetworkPolicy", "Pod-Selector", "networking.v1.NetworkPolicySpec", "podSelector"),
    ("Node", "External-IP", "core.v1.NodeStatus", "addresses"),
    ("Node", "Internal-IP", "core.v1.NodeStatus", "addresses"),
    ("PersistentVolume", "Access Modes", "core.v1.PersistentVolumeSpec", "accessModes"),
    ("PersistentVolume", "Capacity", "core.v1.PersistentVolumeSpec", "capacity"),
    ("PersistentVolume", "Claim", "core.v1.PersistentVolumeSpec", "claimRef"),
    ("PersistentVolume", "Reason", "core.v1.PersistentVolumeStatus", "reason"),
    ("PersistentVolume", "Reclaim Policy", "core.v1.PersistentVolumeSpec", "persistentVolumeReclaimPolicy"),
    ("PersistentVolume", "Status", "core.v1.PersistentVolumeStatus", "phase"),
    ("PersistentVolume", "VolumeMode", "core.v1.PersistentVolumeSpec", "volumeMode"),
    ("PersistentVolumeClaim", "Access Modes", "core.v1.PersistentVolumeClaimStatus", "accessModes"),
    ("PersistentVolumeClaim", "VolumeMode", "core.v1.PersistentVolumeClaimSpec", "volumeMode"),
    ("Pod", "Node", "core.v1.PodSpec", "nodeName"),
    ("Pod", "Nominated Node", "core.v1.PodStatus", "nominatedNodeName"),
    ("Pod", "Readiness Gates", "core.v1.PodSpec", "readinessGates"),
    ("PriorityClass", "Global-Default", "scheduling.v1.PriorityClass", "globalDefault"),
    ("PriorityClass", "PreemptionPolicy", "scheduling.v1.PriorityClass", "preemptionPolicy"),
    ("PriorityClass", "Value", "scheduling.v1.PriorityClass", "value"),
    ("ReplicaSet", "Current", "apps.v1.ReplicaSetStatus", "replicas"),
    ("ReplicaSet", "Desired", "apps.v1.ReplicaSetSpec", "replicas"),
    ("ReplicaSet", "Ready", "apps.v1.ReplicaSetStatus", "readyReplicas"),
    ("ReplicaSet", "Selector", "apps.v1.ReplicaSetSpec", "selector"),
    ("ReplicationController", "Current", "core.v1.ReplicationControllerStatus", "replicas"),
    ("ReplicationController", "Desired", "core.v1.ReplicationControllerSpec", "replicas"),
    ("ReplicationController", "Ready", "core.v1.ReplicationControllerStatus", "readyReplicas"),
    ("ReplicationController", "Selector", "core.v1.ReplicationControllerSpec", "selector"),
    ("Secret", "Data", "core.v1.Secret", "data"),
    ("Secret", "Type", "core.v1.Secret", "type"),
    ("Service", "Cluster-IP", "core.v1.ServiceSpec", "clusterIP"),
    ("Service", "External-IP", "core.v1.ServiceSpec", "externalIPs"),
    ("Service", "Port(s)", "core.v1.ServiceSpec", "ports"),
    ("Service", "Selector", "core.v1.ServiceSpec", "selector"),
    ("Service", "Type", "core.v1.ServiceSpec", "type"),
    ("StorageClass", "AllowVolumeExpansion", "storage.v1.StorageClass", "allowVolumeExpansion"),
    ("StorageClass", "ReclaimPolicy", "storage.v1.StorageClass", "reclaimPolicy"),
    ("StorageClass", "VolumeBindingMode", "storage.v1.StorageClass", "volumeBindingMode"),
    ("VolumeAttachment", "Attached", "storage.v1.VolumeAttachmentStatus", "attached"),
    ("VolumeAttachment", "Attacher", "storage.v1.VolumeAttachmentSpec", "attacher"),
    ("VolumeAttachment", "Node", "storage.v1.VolumeAttachmentSpec", "nodeName"),
    ("VolumeAttachment", "PV", "storage.v1.VolumeAttachmentSource", "persistentVolumeName"),
];

/// The description of a built-in kind's column, when a field's own words are it.
pub(super) fn of_field(kind: &str, column: &str) -> Option<&'static str> {
    let found = FIELDS.iter().find(|(k, c, ..)| *k == kind && *c == column);
    let (_, _, definition, field) = found?;
    described(&format!("io.k8s.api.{definition}"), field)
}

/// What an object's name is.
pub(super) fn name() -> &'static str {
    described(META, "name").unwrap_or_default()
}

/// What the time of an object's birth is.
pub(super) fn age() -> &'static str {
    described(META, "creationTimestamp").unwrap_or_default()
}

fn described(definition: &str, field: &str) -> Option<&'static str> {
    describe(definition, field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_finds_its_words() {
        for (kind, column, ..) in FIELDS {
            assert!(of_field(kind, column).is_some_and(|text| !text.is_empty()), "{kind} {column}");
        }
        assert!(name().starts_with("Name must be unique") && age().starts_with("CreationTimestamp"));
    }
}
