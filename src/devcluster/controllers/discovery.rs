//! Every kind that can be listed and deleted, found again whenever the CRDs change.

use std::time::Duration;

use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};

/// A kind the cluster serves.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) watchable: bool,
}

/// All kinds in the version their group prefers, those that are only views of others left out.
pub(crate) async fn kinds(client: &kube::Client) -> Result<Vec<Kind>, kube::Error> {
    let run = Discovery::new(client.clone()).run();
    let found = tokio::time::timeout(Duration::from_secs(30), run)
        .await
        .map_err(|_| kube::Error::Service("discovery took too long".into()))??;
    let mut kinds = Vec::new();
    for group in found.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            // Events are kept by age, and appear in two groups.
            if !capabilities.supports_operation(verbs::LIST) || !capabilities.supports_operation(verbs::DELETE) {
                continue;
            }
            if resource.group == "events.k8s.io" {
                continue;
            }
            let watchable = capabilities.supports_operation(verbs::WATCH) && resource.kind != "Event";
            kinds.push(Kind { namespaced: capabilities.scope == Scope::Namespaced, resource, watchable });
        }
    }
    Ok(kinds)
}
