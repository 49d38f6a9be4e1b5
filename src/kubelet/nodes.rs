//! Whose port it is: one node's, or that of all nodes which share it.
//!
//! At a shared port a request finds its node by the pod that it names, or by `?node=`. Without either it is about all
//! of them, and needs the right to all of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::NodeBackend;
use super::route::Route;
use crate::tls::ServingCerts;
use crate::tls::leaf::Leaf;

/// Where pods were found before; the next one empties the lot.
const MAX_FOUND: usize = 4096;

/// The nodes behind a port.
pub(super) enum Nodes {
    One(Arc<dyn NodeBackend>),
    Shared(Shared),
}

/// Nodes that share a port.
#[derive(Default)]
pub(super) struct Shared {
    nodes: RwLock<BTreeMap<Arc<str>, Arc<dyn NodeBackend>>>,
    /// The node of each pod that was asked for, to be looked at first.
    found: Mutex<HashMap<(String, String), Arc<str>>>,
}

/// What a request is about.
#[derive(Clone)]
pub(super) enum Subject {
    One(Arc<dyn NodeBackend>),
    /// All nodes of a shared port.
    All(Vec<Arc<dyn NodeBackend>>),
    /// A pod or node that is not here.
    Nothing,
}

impl Subject {
    /// The name that the right must be for; empty is all nodes.
    ///
    /// Whoever asks for what is not here needs the right to everything, and else learns no more than somebody who
    /// asks for what they may not see.
    pub(super) fn node(&self) -> &str {
        match self {
            Self::One(node) => node.name(),
            Self::All(_) | Self::Nothing => "",
        }
    }
}

impl Nodes {
    /// Names the port in logs.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::One(node) => node.name(),
            Self::Shared(_) => "(shared)",
        }
    }

    /// What a request is about.
    pub(super) fn subject(&self, route: &Route<'_>, query: Option<&str>) -> Subject {
        let shared = match self {
            Self::One(node) => return Subject::One(node.clone()),
            Self::Shared(shared) => shared,
        };
        let one = |node: Option<Arc<dyn NodeBackend>>| node.map_or(Subject::Nothing, Subject::One);
        match route {
            Route::ContainerLogs { namespace, pod, .. } => one(shared.locate(namespace, pod)),
            Route::Session(session) => one(shared.locate(session.namespace, session.pod)),
            _ => match named(query) {
                Some(name) => one(shared.get(name)),
                None => Subject::All(shared.all()),
            },
        }
    }

    /// The certificate to serve with.
    pub(super) fn leaf(&self, certs: &ServingCerts) -> Option<Arc<Leaf>> {
        match self {
            Self::One(node) => certs.of_node(node.name(), &node.serving_names()),
            // All of them publish the address of this port.
            Self::Shared(shared) => {
                let nodes = shared.nodes.read().unwrap_or_else(PoisonError::into_inner);
                nodes.values().find_map(|node| certs.of_node(node.name(), &node.serving_names()))
            }
        }
    }
}

/// The node that a query names. Names of nodes need no percent-encoding.
fn named(query: Option<&str>) -> Option<&str> {
    query?.split('&').find_map(|pair| pair.strip_prefix("node=")).filter(|name| !name.is_empty())
}

impl Shared {
    pub(super) fn add(&self, node: Arc<dyn NodeBackend>) {
        self.nodes.write().unwrap_or_else(PoisonError::into_inner).insert(node.name().into(), node);
    }

    pub(super) fn remove(&self, name: &str) {
        self.nodes.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn get(&self, name: &str) -> Option<Arc<dyn NodeBackend>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn all(&self) -> Vec<Arc<dyn NodeBackend>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn locate(&self, namespace: &str, pod: &str) -> Option<Arc<dyn NodeBackend>> {
        let key = (namespace.to_owned(), pod.to_owned());
        let before = self.found.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let has = |node: &Arc<dyn NodeBackend>| node.find(namespace, pod).is_some();
        if let Some(node) = before.and_then(|name| self.get(&name)).filter(has) {
            return Some(node);
        }
        let node = self.all().into_iter().find(has)?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() >= MAX_FOUND {
            found.clear();
        }
        found.insert(key, node.name().into());
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_a_node_or_none() {
        for (query, want) in [
            (None, None),
            (Some(""), None),
            (Some("node="), None),
            (Some("node=edge-1"), Some("edge-1")),
            (Some("x=1&node=edge-1&node=edge-2"), Some("edge-1")),
            (Some("xnode=edge-1"), None),
        ] {
            assert_eq!(named(query), want, "{query:?}");
        }
    }
}
