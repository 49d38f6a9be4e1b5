//! The metrics of the process: one registry, and a typed handle for everything that is counted.
//!
//! [`metrics`] gives the handles from anywhere. Labels have few values: no metric carries the name of a
//! node or a pod, or ten thousand nodes would make the scrape unusable.

use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::process;
use super::view::{NodeRow, NodeState};

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of this process.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

/// Agents in a state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AgentLabels {
    /// One word, as in `ready`.
    pub state: &'static str,
}

/// A request that we made to the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ApiLabels {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`
    pub verb: &'static str,
    /// The plural name, with the subresource behind a slash.
    pub resource: &'static str,
    /// The HTTP status, or 0 when there was no answer.
    pub code: u16,
}

/// A call of a provider.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProviderLabels {
    /// The provider's type.
    pub provider: &'static str,
    /// The method of the trait.
    pub operation: &'static str,
    /// `ok`, the error's reason, or `timeout`.
    pub outcome: &'static str,
}

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueueLabels {
    /// What waits in it.
    pub queue: &'static str,
}

/// What a work queue counts.
#[derive(Clone, Debug)]
pub(crate) struct QueueMetrics {
    pub(crate) depth: Gauge,
    pub(crate) latency: Histogram,
    pub(crate) retries: Counter,
    pub(crate) panics: Counter,
}

/// Pods in a phase.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PodLabels {
    /// `Pending`, `Running` or `Failed`.
    pub phase: &'static str,
}

/// A request to the kubelet API of any node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KubeletLabels {
    /// The route, without parameters.
    pub route: &'static str,
    /// The HTTP status.
    pub code: u16,
}

/// Nodes by how it is with their serving certificates.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CertificateLabels {
    /// `valid`, `pending`, `rejected`, `missing`, `mismatched`, `expiring`, `expired`
    pub state: &'static str,
}

/// A stream that is open at the kubelet API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StreamLabels {
    /// `logs`, `exec`, `attach`, `portForward`
    pub kind: &'static str,
}

/// Every handle. Cheap to use from any thread.
pub struct Metrics {
    registry: Registry,
    /// Agents by state.
    pub agents: Family<AgentLabels, Gauge>,
    /// Pods on this replica's nodes by phase, those that succeeded left out.
    pub pods: Family<PodLabels, Gauge>,
    /// How long renewing a lease takes, in seconds.
    pub lease_renew: Histogram,
    /// How much later than it should a lease is renewed, in seconds.
    pub lease_lateness: Histogram,
    /// Requests to the API server.
    pub api_requests: Family<ApiLabels, Counter>,
    /// How long provider calls take, in seconds.
    pub provider_calls: Family<ProviderLabels, Histogram>,
    /// From a pod's binding to its containers running, in seconds.
    pub pod_start: Histogram,
    /// What waits in each queue.
    pub queue_depth: Family<QueueLabels, Gauge>,
    /// How long it waited, in seconds.
    pub queue_latency: Family<QueueLabels, Histogram>,
    /// How often work was put back because it failed.
    pub queue_retries: Family<QueueLabels, Counter>,
    /// How often work panicked, which is put back as well.
    pub queue_panics: Family<QueueLabels, Counter>,
    /// Requests to the kubelet API.
    pub kubelet_requests: Family<KubeletLabels, Counter>,
    /// Streams open at the kubelet API.
    pub kubelet_streams: Family<StreamLabels, Gauge>,
    /// Connections open at the kubelet API.
    pub kubelet_connections: Gauge,
    /// Connections that were closed before a request: limits, failed handshakes.
    pub kubelet_refused: Counter,
    /// Ports open for the kubelet API.
    pub kubelet_listeners: Gauge,
    /// Nodes by how it is with their serving certificates.
    pub serving_certificates: Family<CertificateLabels, Gauge>,
    /// When the serving certificate that was last read or issued expires, in seconds since 1970.
    pub serving_certificate_expiry: Gauge<f64, AtomicU64>,
}

fn latency() -> Histogram {
    // 1 ms to 32 s
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

impl Metrics {
    /// A registry of its own, for tests; the process's is [`metrics`].
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let mut this = Self {
            registry: Registry::with_prefix("vnode"),
            agents: Family::default(),
            pods: Family::default(),
            lease_renew: latency(),
            lease_lateness: latency(),
            api_requests: Family::default(),
            provider_calls: Family::new_with_constructor(latency),
            // 10 ms to 5 min
            pod_start: Histogram::new(exponential_buckets(0.01, 2.0, 16)),
            queue_depth: Family::default(),
            queue_latency: Family::new_with_constructor(latency),
            queue_retries: Family::default(),
            queue_panics: Family::default(),
            kubelet_requests: Family::default(),
            kubelet_streams: Family::default(),
            kubelet_connections: Gauge::default(),
            kubelet_refused: Counter::default(),
            kubelet_listeners: Gauge::default(),
            serving_certificates: Family::default(),
            serving_certificate_expiry: Gauge::default(),
        };
        let r = &mut this.registry;
        r.register("agents", "Node agents of this replica by state", this.agents.clone());
        r.register("pods", "Pods on this replica's nodes by phase", this.pods.clone());
        r.register("lease_renew_seconds", "Time to renew a node's lease", this.lease_renew.clone());
        r.register("lease_lateness_seconds", "How late a node's lease is renewed", this.lease_lateness.clone());
        r.register("api_requests", "Requests to the API server", this.api_requests.clone());
        r.register("provider_call_seconds", "Time of provider calls", this.provider_calls.clone());
        r.register("pod_start_seconds", "From binding a pod to its containers running", this.pod_start.clone());
        r.register("queue_depth", "Items waiting", this.queue_depth.clone());
        r.register("queue_latency_seconds", "How long items waited", this.queue_latency.clone());
        r.register("queue_retries", "Items put back because work on them failed", this.queue_retries.clone());
        r.register("queue_panics", "Items on which work panicked", this.queue_panics.clone());
        r.register("kubelet_requests", "Requests to the kubelet API", this.kubelet_requests.clone());
        r.register("kubelet_streams", "Streams open at the kubelet API", this.kubelet_streams.clone());
        r.register("kubelet_connections", "Connections open at the kubelet API", this.kubelet_connections.clone());
        r.register("kubelet_refused", "Connections closed before a request", this.kubelet_refused.clone());
        r.register("kubelet_listeners", "Ports open for the kubelet API", this.kubelet_listeners.clone());
        r.register(
            "serving_certificates",
            "Nodes by the state of their serving certificates",
            this.serving_certificates.clone(),
        );
        r.register(
            "serving_certificate_expiry_timestamp_seconds",
            "When the serving certificate expires",
            this.serving_certificate_expiry.clone(),
        );
        this
    }

    /// Counts one request to the API server.
    pub fn api_request(&self, verb: &'static str, resource: &'static str, code: u16) {
        self.api_requests.get_or_create(&ApiLabels { verb, resource, code }).inc();
    }

    /// Notes how long a provider call took.
    pub fn provider_call(
        &self,
        provider: &'static str,
        operation: &'static str,
        outcome: &'static str,
        took: Duration,
    ) {
        self.provider_calls.get_or_create(&ProviderLabels { provider, operation, outcome }).observe(took.as_secs_f64());
    }

    /// The gauge of one state of agents.
    pub fn agents_in(&self, state: &'static str) -> Gauge {
        self.agents.get_or_create_owned(&AgentLabels { state })
    }

    /// The gauge of one state of serving certificates.
    pub fn certificates_in(&self, state: &'static str) -> Gauge {
        self.serving_certificates.get_or_create_owned(&CertificateLabels { state })
    }

    /// The handles of one queue.
    pub(crate) fn queue(&self, queue: &'static str) -> QueueMetrics {
        let labels = QueueLabels { queue };
        QueueMetrics {
            depth: self.queue_depth.get_or_create_owned(&labels),
            latency: self.queue_latency.get_or_create_owned(&labels),
            retries: self.queue_retries.get_or_create_owned(&labels),
            panics: self.queue_panics.get_or_create_owned(&labels),
        }
    }

    /// Sets what is counted only when somebody asks: this replica's nodes and their pods.
    pub(crate) fn set_fleet(&self, rows: &[NodeRow]) {
        let ours = || rows.iter().filter(|r| r.ours);
        for state in [NodeState::Ready, NodeState::NotReady, NodeState::Deleting] {
            let count = ours().filter(|r| r.state == state).count();
            self.agents_in(state.word()).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        for (phase, count) in [
            ("Running", ours().map(|r| i64::from(r.pods.running)).sum()),
            ("Pending", ours().map(|r| i64::from(r.pods.pending)).sum()),
            ("Failed", ours().map(|r| i64::from(r.pods.failed)).sum()),
        ] {
            self.pods.get_or_create_owned(&PodLabels { phase }).set(count);
        }
    }

    /// Everything as OpenMetrics text, the process's own figures included.
    pub fn encode(&self) -> String {
        let mut out = process::text();
        // Writing to a String cannot fail, and the end marker must come last.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_in_the_text() {
        let metrics = Metrics::new();
        metrics.api_request("patch", "leases", 200);
        metrics.provider_call("mock", "create_pod", "ok", Duration::from_millis(3));
        metrics.agents_in("ready").set(7);
        let text = metrics.encode();
        assert!(text.contains(r#"vnode_api_requests_total{verb="patch",resource="leases",code="200"} 1"#), "{text}");
        assert!(text.contains(r#"vnode_agents{state="ready"} 7"#));
        assert!(text.contains(r#"operation="create_pod",outcome="ok""#));
        assert!(text.ends_with("# EOF\n"));
    }

    const DOCS: &str = "# Metrics

What `/metrics` has, at the operator's `--metrics-addr` and at every node's kubelet API; made from the registry. After a
change run `VNODE_UPDATE_DOCS=1 cargo test metrics`. No label is the name of a node or a pod: ten thousand of them would
make a scrape unusable. What is known of a single node is in its conditions, on the fleet page and in
`kubectl vnode status`.

Each replica tells of its own nodes: sum over replicas. Histograms have `_bucket`, `_sum` and `_count`.

| metric | type | labels | what it is |
|---|---|---|---|
";

    /// One of everything, so that every family has a sample.
    fn sampled() -> Metrics {
        let metrics = Metrics::new();
        metrics.api_request("patch", "leases", 200);
        metrics.provider_call("mock", "create_pod", "ok", Duration::from_millis(3));
        metrics.set_fleet(&[]);
        metrics.queue("pods");
        drop(metrics.kubelet_requests.get_or_create(&KubeletLabels { route: "pods", code: 200 }));
        drop(metrics.kubelet_streams.get_or_create(&StreamLabels { kind: "exec" }));
        metrics
    }

    #[tokio::test]
    async fn the_documentation_of_metrics_is_that_of_the_registry() {
        let text = sampled().encode();
        let mut docs = String::from(DOCS);
        for line in text.lines() {
            let Some((family, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) else { continue };
            let of_family = |l: &&str| l.starts_with(&format!("# TYPE {family} "));
            let kind = text.lines().find(of_family).and_then(|l| l.rsplit(' ').next()).unwrap();
            let total = if kind == "counter" { "_total" } else { "" };
            let name = format!("{}{total}", family);
            let sample = text.lines().find(|l| {
                let rest = l.strip_prefix(family).unwrap_or("#").trim_start_matches(total);
                rest.starts_with(['{', ' ']) || rest.starts_with("_bucket{")
            });
            let labels = sample.and_then(|l| l.split_once('{')).map_or("", |(_, l)| l.split_once('}').unwrap().0);
            let labels: Vec<_> =
                labels.split(',').filter_map(|l| l.split('=').next()).filter(|l| !matches!(*l, "le" | "")).collect();
            let labels: Vec<_> = labels.iter().map(|l| format!("`{l}`")).collect();
            let help = help.trim_end_matches('.');
            docs += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        if std::env::var_os("VNODE_UPDATE_DOCS").is_some() {
            std::fs::write(path, &docs).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(kept == docs, "docs/metrics.md is out of date: run VNODE_UPDATE_DOCS=1 cargo test metrics");
    }
}
