//! What the commands read from the cluster.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, ObjectList};
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;

use crate::api::{VirtualNode, conditions, names};

/// No request of a command takes longer.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);
/// Objects of one answer.
const PAGE: u32 = 500;

/// All objects of a kind, in pages.
pub(super) async fn list<K>(api: &Api<K>, params: &ListParams) -> kube::Result<Vec<K>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut params = params.clone().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page: ObjectList<K> = within(api.list(&params)).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|c| !c.is_empty()) {
            Some(next) => params.continue_token = Some(next),
            None => return Ok(all),
        }
    }
}

/// A request with a deadline.
pub(super) async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(answer) => answer,
        Err(_) => Err(kube::Error::Service(format!("no answer within {} s", DEADLINE.as_secs()).into())),
    }
}

/// The VirtualNodes of a name, or all of them, by name.
pub(super) async fn virtual_nodes(client: &Client, names: &[String]) -> Result<Vec<VirtualNode>> {
    let api: Api<VirtualNode> = Api::all(client.clone());
    let mut found = if names.is_empty() {
        list(&api, &ListParams::default()).await.map_err(without_crd)?
    } else {
        let mut found = Vec::new();
        for name in names {
            match within(api.get_opt(name)).await.map_err(without_crd)? {
                Some(vn) => found.push(vn),
                None => bail!("there is no VirtualNode {name}; `kubectl get virtualnodes` lists them"),
            }
        }
        found
    };
    found.sort_by_key(|vn| vn.name_any());
    Ok(found)
}

/// An error of a request for VirtualNodes, where having none may be the cause.
pub(super) fn without_crd(error: kube::Error) -> anyhow::Error {
    match &error {
        kube::Error::Api(status) if status.code == 404 => {
            anyhow::anyhow!("the cluster knows no VirtualNodes: install the CRDs with `vnode crd | kubectl apply -f -`")
        }
        _ => anyhow::Error::new(error).context("listing VirtualNodes"),
    }
}

/// The Nodes of the fleet by name.
pub(super) async fn nodes(client: &Client) -> Result<HashMap<String, Node>> {
    let params = ListParams::default().labels(names::PROVIDER_LABEL);
    let nodes = list(&Api::<Node>::all(client.clone()), &params).await.context("listing nodes")?;
    Ok(nodes.into_iter().map(|n| (n.name_any(), n)).collect())
}

/// The pods that are bound to a node.
pub(super) async fn pods_on(client: &Client, node: &str) -> Result<Vec<Pod>> {
    let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
    list(&Api::<Pod>::all(client.clone()), &params).await.with_context(|| format!("listing the pods on {node}"))
}

/// When a node last gave a sign of life.
pub(super) async fn lease(client: &Client, node: &str) -> kube::Result<Option<Lease>> {
    within(Api::<Lease>::namespaced(client.clone(), names::LEASE_NAMESPACE).get_opt(node)).await
}

/// What stands in a VirtualNode's way: the reason and message of its condition Ready, and since when.
pub(super) fn problem(vn: &VirtualNode) -> Option<(String, String, Option<Timestamp>)> {
    let Some(status) = vn.status.as_ref() else {
        return Some(("NotSeen".into(), "no operator has looked at it yet".into(), created(vn)));
    };
    let ready = status.conditions.iter().find(|c| c.type_ == conditions::READY)?;
    (ready.status != "True").then(|| (ready.reason.clone(), ready.message.clone(), Some(ready.last_transition_time.0)))
}

/// When it was made.
pub(super) fn created(vn: &VirtualNode) -> Option<Timestamp> {
    vn.metadata.creation_timestamp.as_ref().map(|t| t.0)
}
