//! How what is made at an engine is named and marked, so that it is found again.
//!
//! Names are made of the pod's uid, so that a name is never that of something else; labels say the rest.

use std::collections::HashMap;

use crate::provider::PodRef;
use crate::provider::runtime::ContainerRef;

/// The uid of the VirtualNode: what does not carry it is not ours.
pub(super) const NODE: &str = "vnode.dev/node-uid";
/// On the container that holds a pod's network: the pod's volumes that are the engine's, with commas between.
pub(super) const SANDBOX: &str = "vnode.dev/sandbox";
/// On the same: what of the engine's machine the pod's containers are to see, and what of each other.
pub(super) const SHARING: &str = "vnode.dev/sharing";
/// The image as the pod names it.
pub(super) const IMAGE: &str = "vnode.dev/image";
/// As in [`Image::id`](crate::provider::runtime::Image::id).
pub(super) const IMAGE_ID: &str = "vnode.dev/image-id";
/// Where the container writes its last words.
pub(super) const MESSAGE_PATH: &str = "vnode.dev/termination-message-path";
/// The engine's id of the container whose processes this one sees: it cannot be removed before this one.
pub(super) const TARGET: &str = "vnode.dev/target";
pub(super) const ATTEMPT: &str = "vnode.dev/attempt";
pub(super) const NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(super) const POD: &str = "io.kubernetes.pod.name";
pub(super) const UID: &str = "io.kubernetes.pod.uid";
pub(super) const CONTAINER: &str = "io.kubernetes.container.name";

pub(super) type Labels = HashMap<String, String>;

/// The container's name at the engine.
pub(super) fn container(c: &ContainerRef) -> String {
    format!("vnode_{}_{}_{}_{}_{}", c.name, c.pod.name, c.pod.namespace, c.pod.uid, c.attempt)
}

/// The name of the container that holds a pod's network. No container of a pod has capitals in its name.
pub(super) fn sandbox(pod: &PodRef) -> String {
    format!("vnode_POD_{}_{}_{}", pod.name, pod.namespace, pod.uid)
}

/// The name of a pod's volume that is the engine's.
pub(super) fn volume(pod: &PodRef, volume: &str) -> String {
    format!("vnode_{}_{volume}", pod.uid)
}

/// Where a pod's network holder sees a volume of the engine.
pub(super) fn volume_path(volume: &str) -> String {
    format!("/vnode/volumes/{volume}")
}

/// The labels of all that belongs to a pod.
pub(super) fn labels(node: &str, pod: &PodRef) -> Labels {
    let pairs = [(NODE, node), (NAMESPACE, &pod.namespace), (POD, &pod.name), (UID, &pod.uid)];
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Whose a thing with these labels is.
pub(super) fn pod(labels: &Labels) -> Option<PodRef> {
    let get = |key| labels.get(key).map(|v| v.as_str().into());
    Some(PodRef { namespace: get(NAMESPACE)?, name: get(POD)?, uid: get(UID)? })
}

/// Which container of which pod has these labels; `None` for network holders.
pub(super) fn container_of(labels: &Labels, id: &str) -> Option<ContainerRef> {
    Some(ContainerRef {
        pod: pod(labels)?,
        name: labels.get(CONTAINER)?.as_str().into(),
        attempt: labels.get(ATTEMPT)?.parse().ok()?,
        id: id.to_owned(),
    })
}

/// `filters=` for what has all these labels, ready for a path.
pub(super) fn filter(labels: &[(&str, &str)], more: &[(&str, &str)]) -> String {
    let mut filters: HashMap<&str, Vec<String>> = HashMap::new();
    filters.insert("label", labels.iter().map(|(k, v)| format!("{k}={v}")).collect());
    for (key, value) in more {
        filters.entry(key).or_default().push((*value).to_owned());
    }
    let json = serde_json::to_string(&filters).unwrap_or_default();
    format!("filters={}", encode(&json))
}

/// Percent-encodes all but what is plain in a query.
pub(super) fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, b| {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(char::from(b)),
            _ => out.push_str(&format!("%{b:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_into_labels_is_read_again() {
        let pod_ref = PodRef { namespace: "default".into(), name: "a.b".into(), uid: "0c0f".into() };
        let mut all = labels("node", &pod_ref);
        assert_eq!(pod(&all), Some(pod_ref.clone()));
        assert_eq!(container_of(&all, "id"), None, "the network holder is no container of the pod");
        all.extend([(CONTAINER.to_owned(), "main".to_owned()), (ATTEMPT.to_owned(), "3".to_owned())]);
        let found = container_of(&all, "id").unwrap();
        assert_eq!(
            (&*found.name, found.attempt, container(&found)),
            ("main", 3, "vnode_main_a.b_default_0c0f_3".into())
        );
        assert_eq!(filter(&[("a", "b")], &[]), "filters=%7B%22label%22%3A%5B%22a%3Db%22%5D%7D");
    }
}
