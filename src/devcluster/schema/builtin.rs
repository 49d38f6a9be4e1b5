//! The definitions of the built-in kinds, generated once from the typed API.

use std::collections::HashMap;
use std::sync::OnceLock;

use k8s_openapi::api as k;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as extensions;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as aggregation;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::Value;

use super::parse::Parser;
use super::{Link, Node, Schema};

#[derive(Debug)]
struct Definitions {
    names: HashMap<String, usize>,
    nodes: Vec<Node>,
}

macro_rules! add {
    ($generator:ident; $($kind:ty),+ $(,)?) => { $( drop($generator.subschema_for::<$kind>()); )+ };
}

fn generate() -> serde_json::Map<String, Value> {
    let mut g = SchemaGenerator::new(SchemaSettings::draft2020_12());
    add!(g; k::core::v1::Binding, k::core::v1::ConfigMap, k::core::v1::Endpoints, k::core::v1::Event,
        k::core::v1::LimitRange, k::core::v1::Namespace, k::core::v1::Node, k::core::v1::PersistentVolume,
        k::core::v1::PersistentVolumeClaim, k::core::v1::Pod, k::core::v1::PodTemplate,
        k::core::v1::ReplicationController, k::core::v1::ResourceQuota, k::core::v1::Secret, k::core::v1::Service,
        k::core::v1::ServiceAccount);
    add!(g; k::apps::v1::ControllerRevision, k::apps::v1::DaemonSet, k::apps::v1::Deployment,
        k::apps::v1::ReplicaSet, k::apps::v1::StatefulSet, k::autoscaling::v1::Scale,
        k::autoscaling::v2::HorizontalPodAutoscaler, k::batch::v1::CronJob, k::batch::v1::Job,
        k::coordination::v1::Lease, k::discovery::v1::EndpointSlice, k::events::v1::Event,
        k::node::v1::RuntimeClass, k::policy::v1::Eviction, k::policy::v1::PodDisruptionBudget,
        k::scheduling::v1::PriorityClass, k::certificates::v1::CertificateSigningRequest);
    add!(g; k::networking::v1::Ingress, k::networking::v1::IngressClass, k::networking::v1::NetworkPolicy,
        k::networking::v1::IPAddress, k::networking::v1::ServiceCIDR, k::storage::v1::CSIDriver,
        k::storage::v1::CSINode, k::storage::v1::CSIStorageCapacity, k::storage::v1::StorageClass,
        k::storage::v1::VolumeAttachment, k::rbac::v1::ClusterRole, k::rbac::v1::ClusterRoleBinding,
        k::rbac::v1::Role, k::rbac::v1::RoleBinding, k::admissionregistration::v1::MutatingWebhookConfiguration,
        k::admissionregistration::v1::ValidatingWebhookConfiguration,
        k::admissionregistration::v1::ValidatingAdmissionPolicy,
        k::admissionregistration::v1::ValidatingAdmissionPolicyBinding);
    add!(g; k::authentication::v1::TokenRequest, k::authentication::v1::TokenReview,
        k::authentication::v1::SelfSubjectReview, k::authorization::v1::LocalSubjectAccessReview,
        k::authorization::v1::SelfSubjectAccessReview, k::authorization::v1::SelfSubjectRulesReview,
        k::authorization::v1::SubjectAccessReview, extensions::CustomResourceDefinition, aggregation::APIService,
        meta::DeleteOptions, meta::Status, meta::ObjectMeta, meta::ListMeta);
    g.take_definitions(true)
}

fn definitions() -> &'static Definitions {
    static DEFINITIONS: OnceLock<Definitions> = OnceLock::new();
    DEFINITIONS.get_or_init(|| {
        let sources = generate();
        let names = sources.keys().enumerate().map(|(index, name)| (name.clone(), index)).collect();
        let parser = Parser { definitions: &names, custom: false };
        let nodes = sources.iter().map(|(name, source)| parser.node(source, name)).collect();
        Definitions { names, nodes }
    })
}

/// The node of a definition, by its place.
pub(super) fn node(index: usize) -> &'static Node {
    &definitions().nodes[index]
}

/// The schema of a built-in definition, as in `io.k8s.api.core.v1.Pod`.
pub(crate) fn builtin(definition: &str) -> Option<Schema> {
    definitions().names.get(definition).map(|index| Schema(Link::Definition(*index)))
}

/// What a field of a built-in definition says of itself.
pub(crate) fn describe(definition: &str, field: &str) -> Option<&'static str> {
    let all = definitions();
    let node = &all.nodes[*all.names.get(definition)?];
    node.source["properties"][field]["description"].as_str()
}

/// The built-in definitions by name, as JSON schemas that refer to each other below `#/$defs/`.
pub(crate) fn sources() -> impl Iterator<Item = (&'static str, &'static Value)> {
    let all = definitions();
    all.names.iter().map(|(name, index)| (name.as_str(), &all.nodes[*index].source))
}
