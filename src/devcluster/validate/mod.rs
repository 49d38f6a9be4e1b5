//! Defaults and validation of the built-in kinds, beyond what their schemas say.
//!
//! A write goes through [`Rules::default`] and then [`Rules::validate`]. Both are pure; what needs other objects
//! (admission, addresses, uniqueness) and the rules of `metadata` are the server's.

mod certificate;
mod core;
pub(crate) mod definition;
mod event;
mod fields;
mod limits;
mod node;
mod plain;
mod pod;
pub(crate) mod quantity;
mod rbac;
pub(crate) mod schedule;
mod service;
mod warnings;
mod workload;

use serde_json::Value;

use crate::status::FieldError;

pub(crate) use fields::too_long;
pub(crate) use pod::{MAY_CHANGE, resize, validate_ephemeral, validate_status};
pub(crate) use warnings::warnings;

type Validate = fn(&Value, Option<&Value>) -> Vec<FieldError>;

/// The rules of one kind.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    /// Fills in what the client left out. Doing it twice changes nothing.
    pub(crate) default: fn(&mut Value),
    /// What is wrong with an object that is about to be written; `old` is what it replaces.
    pub(crate) validate: Validate,
}

/// The rules of a kind; a kind without any accepts all.
pub(crate) fn rules(group: &str, kind: &str) -> Rules {
    let (default, validate): (fn(&mut Value), Validate) = match (group, kind) {
        ("", "Pod") => (pod::default, pod::validate),
        ("", "Node") => (node::default_node, node::validate),
        ("", "Secret") => (core::default_secret, core::validate_secret),
        ("", "ConfigMap") => (nothing, core::validate_config_map),
        ("", "Service") => (core::default_service, service::validate),
        ("coordination.k8s.io", "Lease") => (node::default_lease, node::validate_lease),
        ("", "Event") => (nothing, event::validate_core),
        ("events.k8s.io", "Event") => (nothing, event::validate_events),
        ("", "Namespace") => (core::default_namespace, plain::validate_namespace),
        ("", "Endpoints") => (core::default_endpoints, plain::validate_endpoints),
        ("", "PersistentVolumeClaim") => (core::default_claim, plain::validate_claim),
        ("", "PersistentVolume") => (core::default_volume, plain::validate_volume),
        ("", "ReplicationController") => (workload::default_replication_controller, fine),
        ("batch", "CronJob") => (workload::default_cron_job, workload::job::validate_cron_job),
        ("networking.k8s.io", "NetworkPolicy") => (core::default_network_policy, plain::validate_network_policy),
        ("scheduling.k8s.io", "PriorityClass") => (core::default_priority_class, plain::validate_priority_class),
        ("storage.k8s.io", "StorageClass") => (core::default_storage_class, plain::validate_storage_class),
        ("discovery.k8s.io", "EndpointSlice") => (core::default_endpoint_slice, plain::validate_slice),
        ("node.k8s.io", "RuntimeClass") => (nothing, plain::validate_runtime_class),
        ("networking.k8s.io", "Ingress") => (nothing, plain::validate_ingress),
        ("networking.k8s.io", "IngressClass") => (core::default_ingress_class, plain::validate_ingress_class),
        ("", "LimitRange") => (limits::default_limit_range, limits::validate_limit_range),
        ("", "ResourceQuota") => (nothing, limits::validate_quota),
        ("storage.k8s.io", "CSIDriver") => (core::default_csi_driver, fine),
        ("apps", "Deployment") => (workload::default_deployment, workload::validate),
        ("apps", "ReplicaSet") => (workload::default_replica_set, workload::validate),
        ("apps", "DaemonSet") => (workload::default_daemon_set, workload::validate),
        ("apps", "StatefulSet") => (workload::default_stateful_set, workload::validate),
        ("batch", "Job") => (workload::default_job, workload::job::validate),
        ("policy", "PodDisruptionBudget") => (nothing, core::validate_budget),
        ("certificates.k8s.io", "CertificateSigningRequest") => (nothing, certificate::validate),
        ("rbac.authorization.k8s.io", "Role") => (nothing, rbac::validate_role),
        ("rbac.authorization.k8s.io", "ClusterRole") => (nothing, rbac::validate_cluster_role),
        ("rbac.authorization.k8s.io", "RoleBinding") => (rbac::default_binding, rbac::validate_role_binding),
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => {
            (rbac::default_binding, rbac::validate_cluster_role_binding)
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => (definition::default, fine),
        _ => (nothing, fine),
    };
    Rules { default, validate }
}

fn nothing(_: &mut Value) {}

fn fine(_: &Value, _: Option<&Value>) -> Vec<FieldError> {
    Vec::new()
}
