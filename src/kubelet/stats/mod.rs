//! `/stats/summary`, `/metrics/resource`, `/metrics/cadvisor` and `/metrics/probes`: what is known of the use of nodes,
//! pods and containers, and of how their probes go.
//!
//! What is not known is left out, never zero: metrics-server skips a pod without figures but believes one that uses
//! nothing.

mod cadvisor;
mod probes;
mod summary;
mod text;

use std::sync::Arc;

use futures::FutureExt as _;
use http::StatusCode;

use super::KubeletServer;
use super::connection::text as answer;
use super::handler::{Answered, JSON, Of, ask_each, within};
use crate::provider::{NodeUsage, PodUsage, ProviderError, Usage};

/// Prometheus's text format, which unlike OpenMetrics has milliseconds.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A set of metrics that kubelets have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `/metrics/resource`
    Resource,
    /// `/metrics/cadvisor`
    Cadvisor,
}

/// What one node uses, as far as its provider says.
struct Measured<'a> {
    node: &'a str,
    usage: Option<NodeUsage>,
    /// Images of its containers, by namespace, pod and container: only where they are wanted.
    images: std::collections::HashMap<(String, String, String), String>,
}

pub(super) async fn summary(server: &Arc<KubeletServer>, of: Of<'_>) -> Answered {
    let page = match of {
        Of::One(node) => summary::of_node(node.name(), &within(server, node.provider().stats()).await?),
        Of::All(_) => summary::of_all(&measure(server, of).await?),
    };
    Ok(answer(StatusCode::OK, JSON, page.to_string()))
}

pub(super) async fn metrics(server: &Arc<KubeletServer>, of: Of<'_>, kind: Kind) -> Answered {
    let mut measured = measure(server, of).await?;
    if kind == Kind::Cadvisor {
        for (node, measured) in of.nodes().iter().zip(&mut measured) {
            measured.images = cadvisor::images(&node.pods());
        }
    }
    let page = match kind {
        Kind::Resource => text::resource(&measured, of.is_shared()),
        Kind::Cadvisor => cadvisor::page(&measured, of.is_shared()),
    };
    Ok(answer(StatusCode::OK, PROMETHEUS, page))
}

/// How the probes of nodes' containers went, as far as their providers run them on kubelet's rules.
pub(super) fn probes(of: Of<'_>) -> Answered {
    let counts: Vec<_> = of.nodes().iter().map(|node| (node.name(), node.provider().probes())).collect();
    Ok(answer(StatusCode::OK, PROMETHEUS, probes::page(&counts, of.is_shared())))
}

/// Asks the providers. One out of reach is said in a metric rather than an error, as kubelet does: a scrape that fails
/// altogether looks like a node that is gone.
async fn measure<'a>(server: &Arc<KubeletServer>, of: Of<'a>) -> Result<Vec<Measured<'a>>, ProviderError> {
    let answers =
        ask_each(server, of, |server, node| async move { within(&server, node.provider().stats()).await }.boxed())
            .await;
    let mut measured = Vec::with_capacity(answers.len());
    for (node, usage) in of.nodes().iter().zip(answers) {
        let usage = match usage {
            Ok(usage) => Some(usage),
            Err(ProviderError::Unsupported(_)) if of.is_shared() => continue,
            Err(error @ ProviderError::Unsupported(_)) => return Err(error),
            Err(error) => {
                tracing::debug!(%error, node = node.name(), "the provider gave no statistics");
                None
            }
        };
        measured.push(Measured { node: node.name(), usage, images: Default::default() });
    }
    Ok(measured)
}

/// The sum of several uses at the latest of their times; a figure counts when at least one has it.
fn sum<'a>(usages: impl IntoIterator<Item = &'a Usage>) -> Option<Usage> {
    let add = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (a, b) => a.or(b),
    };
    usages.into_iter().copied().reduce(|a, b| Usage {
        time: a.time.max(b.time),
        cpu_nanos: add(a.cpu_nanos, b.cpu_nanos),
        cpu_nano_cores: add(a.cpu_nano_cores, b.cpu_nano_cores),
        memory_working_set: add(a.memory_working_set, b.memory_working_set),
    })
}

fn of_pod(pod: &PodUsage) -> Option<Usage> {
    sum(pod.containers.iter().map(|c| &c.usage))
}

fn of_node(usage: &NodeUsage) -> Option<Usage> {
    usage.node.or_else(|| sum(&usage.pods.iter().filter_map(of_pod).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{ContainerUsage, FilesystemUsage, InterfaceUsage, NetworkUsage, PodRef};
    use jiff::Timestamp;

    fn usage(cpu: Option<u64>, memory: Option<u64>) -> Usage {
        let time = Timestamp::from_millisecond(1_700_000_000_500).unwrap();
        Usage { time, cpu_nanos: cpu, cpu_nano_cores: cpu.map(|_| 7), memory_working_set: memory }
    }

    pub(super) fn node() -> NodeUsage {
        let start_time = Some(Timestamp::from_second(1_600_000_000).unwrap());
        let logs = Some(FilesystemUsage { used_bytes: Some(4096), ..FilesystemUsage::at(Timestamp::UNIX_EPOCH) });
        let container = |name: &str, usage| ContainerUsage { name: name.into(), start_time, usage, logs };
        let pod = PodRef { namespace: "ns".into(), name: "p".into(), uid: "u".into() };
        let containers =
            vec![container("a", usage(Some(1_500_000_000), Some(10))), container("b", usage(None, Some(5)))];
        let network = Some(network("eth0"));
        NodeUsage { pods: vec![PodUsage { pod, start_time, containers, network }], ..NodeUsage::default() }
    }

    pub(super) fn filesystem() -> FilesystemUsage {
        let time = Timestamp::from_millisecond(1_700_000_000_500).unwrap();
        let (capacity_bytes, available_bytes, used_bytes) = (Some(1000), Some(600), Some(300));
        FilesystemUsage { capacity_bytes, available_bytes, used_bytes, ..FilesystemUsage::at(time) }
    }

    pub(super) fn network(name: &str) -> NetworkUsage {
        let one = |name: &str| InterfaceUsage {
            name: name.into(),
            rx_bytes: Some(100),
            rx_errors: None,
            tx_bytes: Some(200),
            tx_errors: Some(1),
        };
        let time = Timestamp::from_millisecond(1_700_000_000_500).unwrap();
        NetworkUsage { time, interfaces: vec![one(name), one("net1")] }
    }

    pub(super) fn measured(node: &'static str, usage: Option<NodeUsage>) -> Measured<'static> {
        Measured { node, usage, images: Default::default() }
    }

    #[test]
    fn a_sum_counts_what_at_least_one_has() {
        let sum = of_node(&node()).unwrap();
        assert_eq!((sum.cpu_nanos, sum.memory_working_set), (Some(1_500_000_000), Some(15)));
        assert_eq!(of_node(&NodeUsage::default()), None);
    }
}
