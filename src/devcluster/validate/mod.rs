//! Defaults and validation of the built-in kinds, beyond what their schemas say.
//!
//! A write goes through [`Rules::default`] and then [`Rules::validate`]. Both are pure; what needs other objects
//! (admission, addresses, uniqueness) and the rules of `metadata` are the server's.

mod certificate;
mod core;
mod fields;
mod node;
mod pod;
mod rbac;
mod workload;

use serde_json::Value;

use crate::status::FieldError;

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
        ("", "Service") => (core::default_service, core::validate_service),
        ("coordination.k8s.io", "Lease") => (nothing, node::validate_lease),
        ("apps", "Deployment") => (workload::default_deployment, workload::validate),
        ("apps", "ReplicaSet") => (workload::default_replica_set, workload::validate),
        ("apps", "DaemonSet") => (workload::default_daemon_set, workload::validate),
        ("apps", "StatefulSet") => (workload::default_stateful_set, workload::validate),
        ("batch", "Job") => (workload::default_job, workload::validate_job),
        ("certificates.k8s.io", "CertificateSigningRequest") => (nothing, certificate::validate),
        ("rbac.authorization.k8s.io", "Role") => (nothing, rbac::validate_role),
        ("rbac.authorization.k8s.io", "ClusterRole") => (nothing, rbac::validate_cluster_role),
        ("rbac.authorization.k8s.io", "RoleBinding") => (rbac::default_binding, rbac::validate_role_binding),
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => {
            (rbac::default_binding, rbac::validate_cluster_role_binding)
        }
        _ => (nothing, fine),
    };
    Rules { default, validate }
}

fn nothing(_: &mut Value) {}

fn fine(_: &Value, _: Option<&Value>) -> Vec<FieldError> {
    Vec::new()
}
