//! Condition types and the one way to set one.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The roll-up: all of the others hold.
pub const READY: &str = "Ready";
/// The spec is valid and the Node's name is not taken.
pub const ACCEPTED: &str = "Accepted";
/// The credentials Secret is there and the provider could use it.
pub const CREDENTIALS_READY: &str = "CredentialsReady";
/// The provider answers.
pub const PROVIDER_REACHABLE: &str = "ProviderReachable";
/// The Node exists and is ours.
pub const REGISTERED: &str = "Registered";
/// The kubelet API listens with a valid certificate.
pub const KUBELET_SERVING: &str = "KubeletServing";

/// No pod is left that had to go. Only there while the node is being emptied or is to stay empty.
pub const DRAINED: &str = "Drained";
/// Nothing is changed at the node. Only there while it is so.
pub const PAUSED: &str = "Paused";

/// The conditions that [`READY`] rolls up, in the order in which they come true.
pub const PARTS: [&str; 5] = [ACCEPTED, CREDENTIALS_READY, PROVIDER_REACHABLE, REGISTERED, KUBELET_SERVING];

/// Sets a condition; its transition time moves only when its status does.
pub fn set(
    conditions: &mut Vec<Condition>,
    kind: &str,
    status: bool,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = if status { "True" } else { "False" };
    let new = Condition {
        type_: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(old) => {
            let since = if old.status == status { old.last_transition_time.clone() } else { Time(now) };
            *old = Condition { last_transition_time: since, ..new };
        }
        None => conditions.push(new),
    }
}

/// True when the condition is there and `True`.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    conditions.iter().any(|c| c.type_ == kind && c.status == "True")
}
