//! From a pod to all that its provider needs of it, with the help of the API server.
//!
//! Volumes come first, as on any node: a pod whose volumes cannot be set up has no containers yet. What was
//! used is noted on the way, so that the [`feed`](super::feed) knows what to keep an eye on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::facts::NodeFacts;
use super::objects::{Kind, Object, ObjectCache, ObjectKey};
use super::services::Services;
use super::volumes::tokens::Tokens;
use crate::cluster::identity::NodeClient;
use crate::provider::{Capabilities, ResolvedPod};

/// What all pods are resolved from.
pub(crate) struct Sources {
    pub client: NodeClient,
    pub objects: ObjectCache,
    pub services: Services,
    pub tokens: Tokens,
}

impl Sources {
    pub fn new(client: NodeClient) -> Self {
        Self {
            objects: ObjectCache::new(client.clone()),
            services: Services::default(),
            tokens: Tokens::new(client.clone()),
            client,
        }
    }
}

/// Something to tell at the pod: reason and message of a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remark {
    pub reason: &'static str,
    pub message: String,
}

/// What was used to resolve a pod.
#[derive(Default)]
pub(crate) struct Gathered {
    pub remarks: Vec<Remark>,
    /// The objects with their versions, `None` for what was missing; only those that may change.
    pub used: BTreeMap<ObjectKey, Option<String>>,
    /// When a token has to be renewed.
    pub renew_at: Option<Instant>,
    /// Something could not be asked for, which does not mean that it is missing.
    pub silence: bool,
}

/// Why a pod cannot be given to its provider yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// Volumes that cannot be set up: name and reason of each.
    Volumes(Vec<(String, String)>),
    /// Containers that cannot be configured: name and reason of each.
    Containers(BTreeMap<String, String>),
}

impl Obstacle {
    /// The events that tell of it, in kubelet's words.
    pub fn remarks(&self) -> Vec<Remark> {
        match self {
            Self::Volumes(all) => {
                let message =
                    |(name, why): &(String, String)| format!("MountVolume.SetUp failed for volume {name:?} : {why}");
                all.iter().map(|v| Remark { reason: "FailedMount", message: message(v) }).collect()
            }
            Self::Containers(all) => {
                all.values().map(|why| Remark { reason: "Failed", message: format!("Error: {why}") }).collect()
            }
        }
    }
}

/// One pod and what it is resolved against.
pub(crate) struct Resolver<'a> {
    pub sources: &'a Sources,
    pub pod: &'a Arc<Pod>,
    /// The node that the pod is bound to.
    pub node: &'a Arc<str>,
    pub host_ip: IpAddr,
    pub facts: &'a NodeFacts,
    pub capabilities: Capabilities,
}

impl Resolver<'_> {
    /// Resolves the pod. What was gathered is of use even when something is missing.
    pub async fn resolve(&self) -> (Result<ResolvedPod, Obstacle>, Gathered) {
        let mut gathered = Gathered::default();
        let (volumes, failed) = self.volumes(&mut gathered).await;
        if !failed.is_empty() {
            return (Err(Obstacle::Volumes(failed)), gathered);
        }
        let (containers, unresolved) = self.containers(&mut gathered).await;
        if !unresolved.is_empty() && (gathered.silence || !self.capabilities.starts_apart) {
            return (Err(Obstacle::Containers(unresolved)), gathered);
        }
        let pull_secrets = self.pull_secrets(&mut gathered).await;
        (Ok(ResolvedPod { pod: self.pod.clone(), containers, volumes, unresolved, pull_secrets }), gathered)
    }

    pub(super) fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// An object of the pod's namespace, noted as used.
    pub(super) async fn object(
        &self,
        kind: Kind,
        name: &str,
        gathered: &mut Gathered,
    ) -> Result<Option<Arc<Object>>, String> {
        let speaker = self.sources.client.speaker(self.node);
        let key = ObjectKey { speaker, kind, namespace: self.namespace().to_owned(), name: name.to_owned() };
        let found = self.sources.objects.get(&key).await;
        gathered.silence |= found.is_err();
        let found = found?;
        if !found.as_ref().is_some_and(|o| o.immutable) {
            gathered.used.insert(key, found.as_ref().map(|o| o.version.clone()));
        }
        Ok(found)
    }
}
