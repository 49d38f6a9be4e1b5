//! The Lease in `kube-node-lease` that says a node is alive (KEP-589), and which replica runs it.

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

/// A new Lease. It comes before its Node, being what entitles to create it; the Node owns it from the first renewal on.
pub fn create(node: &str, holder: &str, now: Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(node.into()),
            namespace: Some(names::LEASE_NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(names::LEASE_DURATION.as_secs() as i32),
            acquire_time: Some(MicroTime(now)),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

/// The merge patch that takes a Lease that is there, if it still has this version.
pub fn take(version: &str, holder: &str, transitions: i32, now: Timestamp) -> Value {
    json!({
        "metadata": {"resourceVersion": version},
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": names::LEASE_DURATION.as_secs(),
            "leaseTransitions": transitions,
            "acquireTime": MicroTime(now),
            "renewTime": MicroTime(now),
        },
    })
}

/// What a renewal says.
#[derive(Clone, Copy, Debug)]
pub struct Renewal<'a> {
    /// The version that the Lease must still have.
    pub version: &'a str,
    /// Name and uid of the Node that is to own it from now on, so that it goes with it.
    pub node: Option<(&'a str, &'a str)>,
}

/// The merge patch that renews it.
pub fn renew(renewal: &Renewal<'_>, now: Timestamp) -> Value {
    let mut metadata = json!({"resourceVersion": renewal.version});
    if let Some((name, uid)) = renewal.node {
        metadata["ownerReferences"] = json!([owner(name, uid)]);
    }
    json!({"metadata": metadata, "spec": {"renewTime": MicroTime(now)}})
}
