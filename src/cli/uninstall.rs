//! `vnode uninstall`: what the chart's hook runs before the operator goes, so that no finalizer stays behind.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::api::{VirtualNode, names};
use crate::cluster::client;
use crate::fleet::within;

/// How often it is looked whether the operator is done.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Flags of `vnode uninstall`.
#[derive(Debug, Args)]
pub(super) struct UninstallArgs {
    /// The cluster's kubeconfig. Without it: KUBECONFIG, ~/.kube/config, or the pod's own ServiceAccount.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How long the operator may take to drain and remove the nodes. What is left then is removed by force.
    #[arg(long, default_value = "5m", value_parser = super::operator::duration, value_name = "TIME")]
    timeout: Duration,
}

/// Deletes every VirtualNode and waits until the operator has let go of them.
pub(super) async fn run(args: UninstallArgs) -> Result<()> {
    let client = client::connect(args.kubeconfig.as_deref()).await?;
    delete_sets(&client).await?;
    let nodes: Api<VirtualNode> = Api::all(client.clone());
    let end = Instant::now() + args.timeout;
    let mut asked = false;
    loop {
        let left = match within(nodes.list(&ListParams::default())).await {
            Ok(list) => list.items,
            // The CRD is gone, and with it every object of its kind.
            Err(error) if crate::fleet::is_not_found(&error) => Vec::new(),
            Err(error) => return Err(error).context("listing VirtualNodes"),
        };
        if left.is_empty() {
            println!("no VirtualNode is left");
            return Ok(());
        }
        if !asked {
            asked = true;
            println!("deleting {} VirtualNodes", left.len());
            let deleted = within(nodes.delete_collection(&DeleteParams::default(), &ListParams::default())).await;
            if let Err(error) = deleted {
                // Not everybody may delete a collection: one by one, then.
                tracing::debug!(%error, "deleting them together failed");
                for vn in &left {
                    delete(&nodes, &vn.name_any()).await?;
                }
            }
            continue;
        }
        if Instant::now() >= end {
            println!(
                "{} VirtualNodes are left after {} s and are removed by force",
                left.len(),
                args.timeout.as_secs()
            );
            for vn in &left {
                force(&client, vn).await?;
            }
            return Ok(());
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Sets of VirtualNodes first, where the cluster knows them: they would make new ones.
async fn delete_sets(client: &Client) -> Result<()> {
    let resource = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk(names::GROUP, "v1alpha1", "VirtualNodeSet"),
        "virtualnodesets",
    );
    let sets: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let found = match within(sets.list(&ListParams::default())).await {
        Ok(found) => found.items,
        Err(error) if crate::fleet::is_not_found(&error) => return Ok(()),
        Err(error) => return Err(error).context("listing VirtualNodeSets"),
    };
    for set in found {
        match within(sets.delete(&set.name_any(), &DeleteParams::background())).await {
            Err(error) if !crate::fleet::is_not_found(&error) => {
                return Err(error).context("deleting a VirtualNodeSet");
            }
            _ => {}
        }
    }
    Ok(())
}

async fn delete(nodes: &Api<VirtualNode>, name: &str) -> Result<()> {
    match within(nodes.delete(name, &DeleteParams::default())).await {
        Err(error) if !crate::fleet::is_not_found(&error) => {
            Err(error).with_context(|| format!("deleting VirtualNode {name}"))
        }
        _ => Ok(()),
    }
}

/// Removes the Node, if it is ours, its Lease and the finalizer.
async fn force(client: &Client, vn: &VirtualNode) -> Result<()> {
    let name = vn.name_any();
    let nodes: Api<Node> = Api::all(client.clone());
    let node = within(nodes.get_opt(&name)).await?;
    if node.is_some_and(|n| n.annotations().get(names::OWNER_UID) == vn.metadata.uid.as_ref()) {
        let _gone = within(nodes.delete(&name, &DeleteParams::default())).await;
        let leases: Api<Lease> = Api::namespaced(client.clone(), names::LEASE_NAMESPACE);
        // It belongs to the Node, and goes with it where this may not delete it.
        let _gone = within(leases.delete(&name, &DeleteParams::default())).await;
    }
    let api: Api<VirtualNode> = Api::all(client.clone());
    let rest: Vec<_> = vn.finalizers().iter().filter(|f| *f != names::FINALIZER).collect();
    let patch = json!({"metadata": {"uid": vn.metadata.uid, "finalizers": rest}});
    match within(api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))).await {
        Err(error) if !crate::fleet::is_not_found(&error) => {
            Err(error).with_context(|| format!("removing the finalizer of VirtualNode {name}"))
        }
        _ => Ok(()),
    }
}
