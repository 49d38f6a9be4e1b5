//! Pods at rest: a typed `Pod` takes some twenty kilobytes, its JSON a tenth of that, which deflates to a third.
//!
//! Pods at rest are what a big fleet's memory is made of; a pod in motion is unpacked once for each step of its life. One
//! that has yet to start changes soon and often, so only those that have started are worth deflating.

mod deflate;

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cache::version;
use super::status::is_terminal;
use crate::provider::{PodObservation, PodRef};

/// JSON, in as little room as is worth it.
#[derive(PartialEq)]
enum Content {
    Plain(Box<[u8]>),
    Deflated { small: Box<[u8]>, length: u32 },
}

impl Content {
    fn new<T: Serialize>(what: &T, deflate: bool) -> Self {
        // Never fails: what is packed is made of strings, numbers, and maps with keys that are strings.
        let json = serde_json::to_vec(what).unwrap_or_default();
        let length = u32::try_from(json.len()).ok().filter(|_| deflate);
        match length.and_then(|length| Some((deflate::deflate(&json)?, length))) {
            Some((small, length)) => Self::Deflated { small, length },
            None => Self::Plain(json.into()),
        }
    }

    fn read<T: DeserializeOwned>(&self) -> Option<T> {
        match self {
            Self::Plain(json) => serde_json::from_slice(json).ok(),
            Self::Deflated { small, length } => {
                serde_json::from_slice(&deflate::inflate(small, usize::try_from(*length).ok()?)?).ok()
            }
        }
    }
}

/// A pod as the API server last had it.
pub(crate) struct PackedPod {
    content: Content,
    version: u64,
    generation: Option<i64>,
    phase: Phase,
    terminal: bool,
}

/// `status.phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl PackedPod {
    pub fn new(pod: &Pod) -> Self {
        let status = pod.status.as_ref();
        let phase = match status.and_then(|s| s.phase.as_deref()) {
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            _ => Phase::Pending,
        };
        Self {
            content: Content::new(pod, phase != Phase::Pending),
            version: version(pod),
            generation: pod.metadata.generation,
            phase,
            terminal: status.is_some_and(is_terminal),
        }
    }

    /// The pod itself, made anew by each call.
    pub fn unpack(&self) -> Arc<Pod> {
        // Never fails: these bytes were written from a Pod.
        Arc::new(self.content.read().unwrap_or_default())
    }

    /// When it was bound to its node. Only that is read of it.
    pub fn scheduled(&self) -> Option<Timestamp> {
        #[derive(serde::Deserialize)]
        struct Slim {
            status: Status,
        }
        #[derive(serde::Deserialize)]
        struct Status {
            conditions: Vec<Condition>,
        }
        #[derive(serde::Deserialize)]
        struct Condition {
            r#type: String,
            #[serde(rename = "lastTransitionTime")]
            since: Option<Timestamp>,
        }
        let slim: Slim = self.content.read()?;
        slim.status.conditions.into_iter().find(|c| c.r#type == "PodScheduled")?.since
    }

    /// `metadata.resourceVersion`; 0 when it is not a number.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn generation(&self) -> Option<i64> {
        self.generation
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether it has ended for good.
    pub fn terminal(&self) -> bool {
        self.terminal
    }
}

/// What a provider last said of a pod, but for which pod that is. Times of containers are kept to the second, as they
/// are in a pod's status.
#[derive(PartialEq)]
pub(crate) struct PackedObservation {
    content: Content,
    terminated: bool,
}

/// Start time, addresses, the host's address, statuses by kind of container, reason, message.
type Said = (
    Option<Timestamp>,
    Vec<IpAddr>,
    Option<IpAddr>,
    Vec<ContainerStatus>,
    Vec<ContainerStatus>,
    Vec<ContainerStatus>,
    Option<String>,
    Option<String>,
);

impl PackedObservation {
    pub fn new(o: &PodObservation) -> Self {
        let said = (
            &o.start_time,
            &o.pod_ips,
            &o.host_ip,
            &o.init_containers,
            &o.containers,
            &o.ephemeral_containers,
            &o.reason,
            &o.message,
        );
        Self { content: Content::new(&said, true), terminated: o.is_terminated() }
    }

    /// The observation of this pod.
    pub fn unpack(&self, pod: PodRef) -> Option<PodObservation> {
        let said: Said = self.content.read()?;
        let (start_time, pod_ips, host_ip, init_containers, containers, ephemeral_containers, reason, message) = said;
        Some(PodObservation {
            pod,
            start_time,
            pod_ips,
            host_ip,
            init_containers,
            containers,
            ephemeral_containers,
            reason,
            message,
        })
    }

    /// True when no container runs or will run again without being asked to.
    pub fn terminated(&self) -> bool {
        self.terminated
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_of_a_pod_is_lost_in_packing() {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u", "resourceVersion": "7", "generation": 3,
                "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"a": "é\"\\n"}},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "100m"}},
                "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": "http"}}}],
                "volumes": [{"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}}]},
            "status": {"phase": "Failed", "conditions": [{"type": "Ready", "status": "False"}]}
        }))
        .unwrap();
        let packed = PackedPod::new(&pod);
        assert_eq!(*packed.unpack(), pod);
        assert_eq!((packed.version(), packed.generation(), packed.phase()), (7, Some(3), Phase::Failed));
        assert!(packed.terminal());
        pod.status = None;
        let packed = PackedPod::new(&pod);
        assert_eq!((&*packed.unpack(), packed.phase()), (&pod, Phase::Pending));
    }

    #[test]
    fn nothing_of_an_observation_is_lost_in_packing() {
        let pod = PodRef { namespace: "a".into(), name: "b".into(), uid: "c".into() };
        let status = |value| serde_json::from_value::<ContainerStatus>(value).unwrap();
        let o = PodObservation {
            pod: pod.clone(),
            start_time: Some("2026-01-02T03:04:05.123456789Z".parse().unwrap()),
            pod_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            host_ip: Some("192.168.0.1".parse().unwrap()),
            init_containers: vec![status(json!({"name": "first", "ready": true, "restartCount": 0, "image": "",
                "imageID": "", "state": {"terminated": {"exitCode": 0, "finishedAt": "2026-01-02T03:04:05Z"}}}))],
            containers: vec![status(json!({"name": "main", "ready": true, "restartCount": 3, "image": "i",
                "imageID": "sha256:1", "started": true, "resources": {"limits": {"cpu": "1"}},
                "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}}}))],
            ephemeral_containers: Vec::new(),
            reason: Some("Why".into()),
            message: None,
        };
        let packed = PackedObservation::new(&o);
        assert!(!packed.terminated());
        assert!(packed == PackedObservation::new(&o));
        assert_eq!(packed.unpack(pod), Some(o.clone()));
        assert!(packed != PackedObservation::new(&PodObservation { message: Some("else".into()), ..o }));
    }
}
