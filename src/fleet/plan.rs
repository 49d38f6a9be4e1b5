//! From what is known of a node to what its VirtualNode says.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::agent::Problems;
use super::drain::Progress;
use crate::api::conditions::{
    self, ACCEPTED, CREDENTIALS_READY, DRAINED, KUBELET_SERVING, PAUSED, PROVIDER_REACHABLE, READY, REGISTERED,
};
use crate::api::virtual_node::{KubeletStatus, PodCounts, ProviderStatus};
use crate::api::{VirtualNode, VirtualNodeStatus};
use crate::node::render::{Endpoint, Readiness};
use crate::provider::NodeDescription;

/// How long changed counts of pods wait for more of them.
pub const COUNTS_DELAY: Duration = Duration::from_secs(3);

/// Something that stands in the way.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// One CamelCase word.
    pub reason: &'static str,
    /// What is wrong and what would mend it.
    pub message: String,
}

impl Problem {
    /// A problem.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Whether a provider answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Reached {
    /// Not asked yet.
    #[default]
    Unknown,
    /// It answered when it was last asked.
    Yes,
    /// It did not; the error.
    No(String),
}

/// Everything that decides the status of a VirtualNode.
pub struct Known<'a> {
    /// The object.
    pub vn: &'a VirtualNode,
    /// What stands in the way.
    pub problems: &'a Problems,
    /// Whether the provider answers.
    pub reached: &'a Reached,
    /// What it said.
    pub description: Option<&'a NodeDescription>,
    /// The Node exists and is ours.
    pub registered: bool,
    /// Where the kubelet API listens.
    pub endpoint: Option<&'a Endpoint>,
    /// Until when its own certificate is valid, where it has one.
    pub certificate_until: Option<Timestamp>,
    /// The pods of the node.
    pub pods: PodCounts,
    /// What the provider can do, in words; empty while there is none.
    pub capabilities: Vec<String>,
    /// How far a drain has come, while there is one.
    pub(super) drained: Option<&'a Progress>,
    /// This replica.
    pub shard: &'a str,
}

/// The status that the VirtualNode should have.
pub fn status(known: &Known<'_>, now: Timestamp) -> VirtualNodeStatus {
    let vn = known.vn;
    let generation = vn.metadata.generation;
    let before = vn.status.clone().unwrap_or_default();
    let parts = parts(known);
    let mut all: Vec<Condition> = before.conditions;
    all.retain(|c| match &*c.type_ {
        READY => true,
        DRAINED => known.drained.is_some(),
        PAUSED => vn.spec.paused,
        part => conditions::PARTS.contains(&part),
    });
    // The first part that does not hold is the one to mend.
    let blocked = parts.iter().find(|(_, p)| p.is_some()).and_then(|(_, p)| p.clone());
    let (reason, message) = match &blocked {
        Some(p) => (p.reason, p.message.as_str()),
        None => ("NodeReady", "the node is registered and takes pods"),
    };
    conditions::set(&mut all, READY, blocked.is_none(), reason, message, generation, now);
    for (kind, problem) in &parts {
        let (good, text) = good(kind, known);
        let (reason, message) = problem.as_ref().map_or((good, &*text), |p| (p.reason, p.message.as_str()));
        conditions::set(&mut all, kind, problem.is_none(), reason, message, generation, now);
    }
    if let Some(drained) = known.drained {
        conditions::set(&mut all, DRAINED, drained.done, drained.reason, &drained.message, generation, now);
    }
    if vn.spec.paused {
        let message = "spec.paused: edits wait, and no pod is started, changed or stopped";
        conditions::set(&mut all, PAUSED, true, "Paused", message, generation, now);
    }
    VirtualNodeStatus {
        observed_generation: generation,
        conditions: all,
        reason: blocked.map(|p| p.reason.to_owned()),
        node_name: known.registered.then(|| vn.metadata.name.clone()).flatten(),
        kubelet: known.endpoint.map(kubelet).or(before.kubelet),
        provider: provider(known, before.provider),
        capacity: match known.description {
            Some(description) => crate::node::render::capacity(vn, Some(description)),
            None => before.capacity,
        },
        pods: Some(known.pods),
        shard: Some(known.shard.to_owned()),
    }
}

/// What is known of the provider; what was known before where it has not said it yet.
fn provider(known: &Known<'_>, before: Option<ProviderStatus>) -> Option<ProviderStatus> {
    let mut status = before.unwrap_or_default();
    if let Some(description) = known.description {
        status.version = description.version.clone();
    }
    if !known.capabilities.is_empty() {
        status.capabilities = known.capabilities.clone();
    }
    (status != ProviderStatus::default()).then_some(status)
}

fn kubelet(endpoint: &Endpoint) -> KubeletStatus {
    let socket = std::net::SocketAddr::new(endpoint.ip, endpoint.port);
    KubeletStatus { address: endpoint.ip.to_string(), port: endpoint.port.into(), endpoint: socket.to_string() }
}

/// Each part of `Ready` in order, with what stands in its way.
fn parts(known: &Known<'_>) -> [(&'static str, Option<Problem>); 5] {
    let problems = known.problems;
    let provider = problems.provider.clone().or_else(|| match known.reached {
        Reached::Yes => None,
        Reached::No(error) => Some(Problem::new("ProviderUnreachable", error.clone())),
        // After a restart or a takeover it says what it said until the provider has answered.
        Reached::Unknown if answered_before(known.vn) => None,
        Reached::Unknown => Some(Problem::new("NotYetKnown", "the provider has not answered yet")),
    });
    let registered = problems
        .registered
        .clone()
        .or_else(|| (!known.registered).then(|| Problem::new("NotRegistered", "the Node has not been created yet")));
    let kubelet = problems.kubelet.clone().or_else(|| {
        known.endpoint.is_none().then(|| Problem::new("NotListening", "the kubelet API does not listen yet"))
    });
    [
        (ACCEPTED, problems.accepted.clone()),
        (CREDENTIALS_READY, problems.credentials.clone()),
        (PROVIDER_REACHABLE, provider),
        // A port that cannot be had is why a Node is not there, so it is told first.
        (KUBELET_SERVING, kubelet),
        (REGISTERED, registered),
    ]
}

/// Whether the provider that the spec asks for answered when somebody last looked.
fn answered_before(vn: &VirtualNode) -> bool {
    let conditions = vn.status.iter().flat_map(|s| &s.conditions);
    let generation = vn.metadata.generation;
    conditions
        .filter(|c| c.type_ == PROVIDER_REACHABLE)
        .any(|c| c.status == "True" && c.observed_generation == generation)
}

fn good(kind: &str, known: &Known<'_>) -> (&'static str, Cow<'static, str>) {
    let (reason, text) = match (kind, known.certificate_until) {
        (ACCEPTED, _) => ("Valid", "the spec is valid and the name is free"),
        (CREDENTIALS_READY, _) => ("Available", "the provider has the credentials that it needs"),
        (PROVIDER_REACHABLE, _) => ("Answering", "the provider answers"),
        (REGISTERED, _) => ("NodeRegistered", "the Node exists and is ours"),
        (_, None) => ("Listening", "the kubelet API listens with a valid certificate"),
        (_, Some(until)) => {
            let text = format!("the kubelet API listens with a certificate that is valid until {until}");
            return ("Listening", text.into());
        }
    };
    (reason, text.into())
}

/// What the Node's own `Ready` condition should say.
///
/// A provider that was just lost keeps the node Ready for `grace`: a short outage evicts nobody. One that is not ready
/// already, as `was_ready` says, does not become so without an answer.
pub fn readiness(
    reached: &Reached,
    problem: Option<&Problem>,
    silent_for: Duration,
    grace: Duration,
    was_ready: Option<bool>,
) -> Readiness {
    if let Some(problem) = problem {
        return Readiness { ready: false, reason: problem.reason.into(), message: problem.message.clone() };
    }
    match reached {
        Reached::No(error) if silent_for >= grace || was_ready == Some(false) => {
            Readiness { ready: false, reason: "ProviderUnreachable".into(), message: error.clone() }
        }
        Reached::Unknown => Readiness {
            ready: false,
            reason: "NotYetKnown".into(),
            message: "the provider has not answered yet".into(),
        },
        _ => Readiness {
            ready: true,
            reason: "KubeletReady".into(),
            message: "the provider answers and the kubelet API listens".into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn virtual_node() -> VirtualNode {
        serde_json::from_value(json!({
            "apiVersion": "vnode.dev/v1alpha1", "kind": "VirtualNode",
            "metadata": {"name": "edge", "uid": "u", "generation": 3},
            "spec": {"provider": {"type": "mock", "mock": {}}},
        }))
        .unwrap()
    }

    fn known<'a>(
        vn: &'a VirtualNode,
        problems: &'a Problems,
        reached: &'a Reached,
        endpoint: Option<&'a Endpoint>,
    ) -> Known<'a> {
        Known {
            vn,
            problems,
            reached,
            description: None,
            registered: true,
            endpoint,
            certificate_until: None,
            pods: PodCounts::default(),
            capabilities: vec!["logs".into()],
            drained: None,
            shard: "me",
        }
    }

    #[test]
    fn ready_names_the_first_part_that_does_not_hold() {
        let vn = virtual_node();
        let endpoint = Endpoint { ip: [10, 0, 0, 1].into(), port: 20000 };
        let none = Problems::default();
        let secret = Problems { credentials: Some(Problem::new("SecretNotFound", "s")), ..none.clone() };
        let taken = Problems { accepted: Some(Problem::new("NameTaken", "n")), ..secret.clone() };
        let lost = Reached::No("refused".into());
        for (problems, reached, endpoint, want) in [
            (&none, &Reached::Yes, Some(&endpoint), None),
            (&none, &lost, Some(&endpoint), Some("ProviderUnreachable")),
            (&none, &Reached::Unknown, Some(&endpoint), Some("NotYetKnown")),
            (&none, &Reached::Yes, None, Some("NotListening")),
            (&secret, &lost, None, Some("SecretNotFound")),
            (&taken, &lost, None, Some("NameTaken")),
        ] {
            let status = status(&known(&vn, problems, reached, endpoint), Timestamp::UNIX_EPOCH);
            assert_eq!(status.reason.as_deref(), want);
            assert_eq!(conditions::is_true(&status.conditions, READY), want.is_none());
            assert_eq!(status.conditions.len(), 6);
            assert!(status.conditions.iter().all(|c| c.observed_generation == Some(3)));
        }
    }

    #[test]
    fn what_was_known_before_a_restart_is_not_forgotten() {
        let mut vn = virtual_node();
        let kubelet = KubeletStatus { address: "10.0.0.1".into(), port: 20007, endpoint: "10.0.0.1:20007".into() };
        vn.status = Some(VirtualNodeStatus { kubelet: Some(kubelet.clone()), ..Default::default() });
        let status = status(&known(&vn, &Problems::default(), &Reached::Unknown, None), Timestamp::UNIX_EPOCH);
        assert_eq!(status.kubelet, Some(kubelet), "the port is kept");
    }

    #[test]
    fn a_provider_that_answered_before_a_restart_is_not_said_to_be_silent() {
        let (mut vn, problems) = (virtual_node(), Problems::default());
        let endpoint = Endpoint { ip: [10, 0, 0, 1].into(), port: 20000 };
        let look = |vn: &VirtualNode, reached: &Reached| {
            status(&known(vn, &problems, reached, Some(&endpoint)), Timestamp::UNIX_EPOCH)
        };
        vn.status = Some(look(&vn, &Reached::Yes));
        assert_eq!(look(&vn, &Reached::Unknown), vn.status.clone().unwrap(), "nothing is to be written");
        // It was another provider, perhaps.
        vn.metadata.generation = Some(4);
        assert_eq!(look(&vn, &Reached::Unknown).reason.as_deref(), Some("NotYetKnown"));
        vn.metadata.generation = Some(3);
        vn.status = Some(look(&vn, &Reached::No("refused".into())));
        assert_eq!(look(&vn, &Reached::Unknown).reason.as_deref(), Some("NotYetKnown"));
    }

    #[test]
    fn a_short_outage_keeps_the_node_ready() {
        let (lost, grace) = (Reached::No("refused".into()), Duration::from_secs(20));
        assert!(readiness(&lost, None, Duration::from_secs(5), grace, Some(true)).ready);
        assert!(!readiness(&lost, None, Duration::from_secs(5), grace, Some(false)).ready, "after a restart");
        let after = readiness(&lost, None, Duration::from_secs(20), grace, Some(true));
        assert_eq!((after.ready, &*after.reason, &*after.message), (false, "ProviderUnreachable", "refused"));
        assert!(!readiness(&Reached::Unknown, None, Duration::ZERO, grace, None).ready);
        let port = Problem::new("PortTaken", "p");
        assert_eq!(readiness(&Reached::Yes, Some(&port), Duration::ZERO, grace, None).reason, "PortTaken");
    }
}
