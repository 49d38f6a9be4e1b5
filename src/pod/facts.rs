//! What of a node decides which pods it takes and what they are told.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What of a node decides which pods it takes. What is empty decides nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    /// The provider's type, for messages.
    pub provider: Arc<str>,
    /// What pods may use, by resource name.
    pub allocatable: BTreeMap<String, Quantity>,
    /// The Node's labels as they are.
    pub labels: BTreeMap<String, String>,
    /// The Node's taints as they are.
    pub taints: Vec<Taint>,
    /// `linux` or `windows`.
    pub operating_system: String,
    /// Pods of DaemonSets run; otherwise they are left alone.
    pub daemon_set_pods: bool,
    /// A pod that uses a field that the provider cannot do is refused; otherwise it is told.
    pub reject_unsupported: bool,
}

impl Default for NodeFacts {
    fn default() -> Self {
        Self {
            provider: "unknown".into(),
            allocatable: BTreeMap::new(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            operating_system: String::new(),
            daemon_set_pods: true,
            reject_unsupported: false,
        }
    }
}
