//! A pod at rest: a typed `Pod` takes some twenty kilobytes, its JSON a tenth of that.
//!
//! Pods at rest are what a big fleet's memory is made of; a pod in motion is unpacked once for each step of its life.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::cache::version;
use super::status::is_terminal;

/// A pod as the API server last had it.
pub(crate) struct PackedPod {
    json: Box<[u8]>,
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
        Self {
            // Never fails: a Pod is made of strings, numbers and maps with keys that are strings.
            json: serde_json::to_vec(pod).unwrap_or_default().into(),
            version: version(pod),
            generation: pod.metadata.generation,
            phase: match status.and_then(|s| s.phase.as_deref()) {
                Some("Running") => Phase::Running,
                Some("Succeeded") => Phase::Succeeded,
                Some("Failed") => Phase::Failed,
                _ => Phase::Pending,
            },
            terminal: status.is_some_and(is_terminal),
        }
    }

    /// The pod itself, made anew by each call.
    pub fn unpack(&self) -> Arc<Pod> {
        // Never fails: these bytes were written from a Pod.
        Arc::new(serde_json::from_slice(&self.json).unwrap_or_default())
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_of_a_pod_is_lost_in_packing() {
        let pod: Pod = serde_json::from_value(json!({
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
    }
}
