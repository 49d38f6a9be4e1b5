//! What is kept of a pod on disk, so that a restart changes nothing.

/// [`PodRef`](crate::provider::PodRef) as namespace, name and uid.
pub(crate) mod pod_ref {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::provider::PodRef;

    /// Writes it.
    pub(crate) fn serialize<S: Serializer>(pod: &PodRef, serializer: S) -> Result<S::Ok, S::Error> {
        (&*pod.namespace, &*pod.name, &*pod.uid).serialize(serializer)
    }

    /// Reads it.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PodRef, D::Error> {
        let (namespace, name, uid) = <(String, String, String)>::deserialize(deserializer)?;
        Ok(PodRef { namespace: namespace.into(), name: name.into(), uid: uid.into() })
    }
}
