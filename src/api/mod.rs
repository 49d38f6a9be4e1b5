//! The custom resource types, their names and their rules. Nothing here does I/O.
//!
//! | module | holds |
//! |---|---|
//! | [`names`] | every fixed name: group, finalizer, labels, annotations, field managers |
//! | [`virtual_node`] | `VirtualNode` |
//! | [`provider`] | `spec.provider`: the union of the providers' configurations |
//! | [`conditions`] | condition types, reasons, and setting one without losing its transition time |

pub mod conditions;
pub mod names;
pub mod provider;
pub mod virtual_node;

pub use provider::{MockConfig, ProcessConfig, ProviderSpec, ProviderType};
pub use virtual_node::{VirtualNode, VirtualNodeSpec, VirtualNodeStatus};

/// The CRDs that this version serves, as `vnode crd` prints them.
pub fn crds() -> Vec<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> {
    use kube::CustomResourceExt as _;
    vec![VirtualNode::crd()]
}
