//! The Lease in `kube-node-lease` that says a node is alive (KEP-589).

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use crate::api::names;

fn owner(node: &str, node_uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.into(),
        uid: node_uid.into(),
        ..OwnerReference::default()
    }
}

/// A new Lease, owned by its Node so that it goes with it.
pub fn create(node: &str, node_uid: &str, holder: &str, now: Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(node.into()),
            namespace: Some(names::LEASE_NAMESPACE.into()),
            owner_references: Some(vec![owner(node, node_uid)]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(names::LEASE_DURATION.as_secs() as i32),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

/// The merge patch that takes over a Lease that is there.
pub fn adopt(node: &str, node_uid: &str, holder: &str, now: Timestamp) -> Value {
    json!({
        "metadata": {"ownerReferences": [owner(node, node_uid)]},
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": names::LEASE_DURATION.as_secs(),
            "renewTime": MicroTime(now),
        },
    })
}

/// The merge patch that renews it.
pub fn renew(now: Timestamp) -> Value {
    json!({"spec": {"renewTime": MicroTime(now)}})
}
