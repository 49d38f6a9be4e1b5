//! A pod as the scheduler sees it: everything it needs to decide, worked out once.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    NodeSelectorTerm, Pod, PodAffinityTerm, PreferredSchedulingTerm, Toleration, TopologySpreadConstraint,
};
use kube::ResourceExt;

use super::resources::{Amounts, requests};
use crate::controllers::labels::{self, Labels};
use crate::controllers::world::claim_names;

/// A host port: protocol, address (empty for all) and number.
pub(crate) type HostPort = (String, String, i32);

/// A compiled pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodInfo {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) asks: Amounts,
    pub(crate) ports: Vec<HostPort>,
    pub(crate) priority: i32,
    pub(crate) created: Option<Timestamp>,
    pub(crate) node_selector: Labels,
    pub(crate) required: Option<Vec<NodeSelectorTerm>>,
    pub(crate) preferred: Vec<PreferredSchedulingTerm>,
    pub(crate) tolerations: Vec<Toleration>,
    pub(crate) near: Vec<PodAffinityTerm>,
    pub(crate) apart: Vec<PodAffinityTerm>,
    pub(crate) spread: Vec<TopologySpreadConstraint>,
    /// Names of PersistentVolumeClaims.
    pub(crate) claims: Vec<String>,
}

impl PodInfo {
    pub(crate) fn of(pod: &Pod) -> Arc<Self> {
        let mut info = Self {
            uid: pod.uid().unwrap_or_default(),
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            labels: pod.labels().clone(),
            asks: requests(pod),
            created: pod.creation_timestamp().map(|t| t.0),
            ..Self::default()
        };
        let Some(spec) = &pod.spec else { return Arc::new(info) };
        info.priority = spec.priority.unwrap_or_default();
        info.node_selector = spec.node_selector.clone().unwrap_or_default();
        info.tolerations = spec.tolerations.clone().unwrap_or_default();
        info.claims = claim_names(pod).map(str::to_owned).collect();
        info.spread = spec.topology_spread_constraints.clone().unwrap_or_default();
        for port in spec.containers.iter().flat_map(|c| c.ports.iter().flatten()) {
            if let Some(number) = port.host_port.filter(|p| *p > 0) {
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
                let ip = port.host_ip.clone().filter(|ip| ip != "0.0.0.0").unwrap_or_default();
                info.ports.push((protocol, ip, number));
            }
        }
        if let Some(affinity) = &spec.affinity {
            if let Some(node) = &affinity.node_affinity {
                info.required = node
                    .required_during_scheduling_ignored_during_execution
                    .as_ref()
                    .map(|s| s.node_selector_terms.clone());
                info.preferred = node.preferred_during_scheduling_ignored_during_execution.clone().unwrap_or_default();
            }
            if let Some(near) = &affinity.pod_affinity {
                info.near = near.required_during_scheduling_ignored_during_execution.clone().unwrap_or_default();
            }
            if let Some(apart) = &affinity.pod_anti_affinity {
                info.apart = apart.required_during_scheduling_ignored_during_execution.clone().unwrap_or_default();
            }
        }
        Arc::new(info)
    }
}

/// Whether an affinity term of a pod in `home` means a pod with this namespace and these labels.
pub(crate) fn term_matches(term: &PodAffinityTerm, home: &str, namespace: &str, labels: &Labels) -> bool {
    let listed = term.namespaces.as_deref().unwrap_or_default();
    // Namespace selectors other than "all" would need the namespaces' labels; they are read as "all".
    let there = match (&term.namespace_selector, listed.is_empty()) {
        (Some(_), _) => true,
        (None, true) => namespace == home,
        (None, false) => listed.iter().any(|n| n == namespace),
    };
    there && term.label_selector.as_ref().is_some_and(|s| labels::matches(s, labels))
}

/// Whether a toleration covers a taint.
pub(crate) fn tolerates(toleration: &Toleration, key: &str, value: &str, effect: &str) -> bool {
    let named = toleration.key.as_deref().unwrap_or_default();
    toleration.effect.as_deref().is_none_or(|e| e.is_empty() || e == effect)
        && (named.is_empty() || named == key)
        && match toleration.operator.as_deref() {
            Some("Exists") => true,
            _ => !named.is_empty() && toleration.value.as_deref().unwrap_or_default() == value,
        }
}
