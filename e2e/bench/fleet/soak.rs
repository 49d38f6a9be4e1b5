//! Pods and nodes that come and go for a long time: what the operator has in memory and open must not grow with it.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, Client};
use serde_json::json;
use vnode::api::VirtualNode;

use super::common::Result;
use super::report::Report;
use super::scenarios::{create_node, create_pod, each};
use super::{Bed, Options};

/// How many seconds a pod, and a node, is there.
const LIFE: usize = 5;
/// Nodes that are made, and deleted, each second.
const NODES: usize = 2;
/// What is remembered and let go again, and what the allocator keeps, has come to its size in this share of the time.
const WARM: f64 = 0.25;

async fn forget(client: &Client, name: &str) -> Result<()> {
    Api::<Pod>::namespaced(client.clone(), "default").delete(name, &DeleteParams::default()).await?;
    Ok(())
}

/// Each second so many pods as the rate says, and two nodes with a pod each, come and others go.
pub async fn soak(client: &Client, bed: &Bed, options: &Options, nodes: usize, report: &mut Report) -> Result<()> {
    let (start, rate) = (Instant::now(), options.rate);
    let vns: Api<VirtualNode> = Api::all(client.clone());
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let mut warm = None;
    let mut second = 0_usize;
    while start.elapsed() < options.soak {
        ticks.tick().await;
        each(rate, |n| create_pod(client, format!("soak-{second}-{n}"), format!("bench-{}", n % nodes))).await?;
        each(NODES, async |n| {
            let name = format!("soak-{second}-{n}");
            create_node(client, name.clone(), json!({})).await?;
            create_pod(client, format!("on-{name}"), name).await
        })
        .await?;
        if let Some(old) = second.checked_sub(LIFE) {
            each(rate, async |n| forget(client, &format!("soak-{old}-{n}")).await).await?;
            each(NODES, async |n| {
                vns.delete(&format!("soak-{old}-{n}"), &DeleteParams::default()).await?;
                Ok(())
            })
            .await?;
        }
        second += 1;
        if warm.is_none() && start.elapsed() >= options.soak.mul_f64(WARM) {
            warm = Some((bed.rss(), bed.descriptors()));
        }
    }
    let (rss, descriptors) = warm.ok_or("it was too short")?;
    report.note("soak: pods that lived and went", "", "", (second.saturating_sub(LIFE) * rate) as f64);
    report.note("soak: resident memory after a quarter", "MiB", "", rss);
    report.note("soak: resident memory at its end", "MiB", "the same", bed.rss());
    report.note("soak: descriptors after a quarter", "", "", descriptors);
    report.note("soak: descriptors at its end", "", "the same", bed.descriptors());
    Ok(())
}
