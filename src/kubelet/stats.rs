//! `/stats/summary` and `/metrics/resource`: what is known of the node's use of processor and memory.
//!
//! What is not known is left out, never zero: metrics-server skips a pod without figures but believes one
//! that uses nothing.

use std::fmt::Write;

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::connection::text;
use super::handler::{Answered, JSON, within};
use super::{KubeletServer, NodeBackend};
use crate::provider::{NodeUsage, PodUsage, ProviderError, Usage};

/// Prometheus's text format, which unlike OpenMetrics has milliseconds.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn summary(server: &KubeletServer, backend: &dyn NodeBackend) -> Answered {
    let usage = within(server, backend.provider().stats()).await?;
    Ok(text(StatusCode::OK, JSON, summary_of(backend.name(), &usage).to_string()))
}

/// A provider out of reach is said in a metric rather than an error, as kubelet does: a scrape that fails
/// altogether looks like a node that is gone.
pub(super) async fn resource_metrics(server: &KubeletServer, backend: &dyn NodeBackend) -> Answered {
    let usage = match within(server, backend.provider().stats()).await {
        Ok(usage) => Some(usage),
        Err(error @ ProviderError::Unsupported(_)) => return Err(error.into()),
        Err(error) => {
            tracing::debug!(%error, node = backend.name(), "the provider gave no statistics");
            None
        }
    };
    Ok(text(StatusCode::OK, PROMETHEUS, resource_text(usage.as_ref())))
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

fn summary_of(node: &str, usage: &NodeUsage) -> Value {
    let mut about_node = figures(of_node(usage).as_ref());
    about_node.insert("nodeName".to_owned(), node.into());
    let pods: Vec<Value> = usage
        .pods
        .iter()
        .map(|pod| {
            let containers = pod.containers.iter().map(|c| {
                let mut about = figures(Some(&c.usage));
                about.insert("name".to_owned(), c.name.as_str().into());
                insert_start(&mut about, c.start_time);
                Value::Object(about)
            });
            let mut about = figures(of_pod(pod).as_ref());
            let of = &pod.pod;
            about.insert("podRef".to_owned(), json!({"name": &*of.name, "namespace": &*of.namespace, "uid": &*of.uid}));
            about.insert("containers".to_owned(), containers.collect());
            insert_start(&mut about, pod.start_time);
            Value::Object(about)
        })
        .collect();
    json!({ "node": about_node, "pods": pods })
}

fn insert_start(about: &mut Map<String, Value>, start: Option<Timestamp>) {
    if let Some(start) = start {
        about.insert("startTime".to_owned(), seconds(start).into());
    }
}

/// `metav1.Time` has whole seconds.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn figures(usage: Option<&Usage>) -> Map<String, Value> {
    let mut about = Map::new();
    let Some(usage) = usage else { return about };
    let mut cpu = Map::new();
    if let Some(cores) = usage.cpu_nano_cores {
        cpu.insert("usageNanoCores".to_owned(), cores.into());
    }
    if let Some(nanos) = usage.cpu_nanos {
        cpu.insert("usageCoreNanoSeconds".to_owned(), nanos.into());
    }
    if !cpu.is_empty() {
        cpu.insert("time".to_owned(), seconds(usage.time).into());
        about.insert("cpu".to_owned(), cpu.into());
    }
    if let Some(bytes) = usage.memory_working_set {
        about.insert("memory".to_owned(), json!({ "time": seconds(usage.time), "workingSetBytes": bytes }));
    }
    about
}

fn resource_text(usage: Option<&NodeUsage>) -> String {
    let empty = NodeUsage::default();
    let known = usage.unwrap_or(&empty);
    let mut out = Families::default();
    let container_labels = |p: &PodUsage, c: &str| {
        let (namespace, pod) = (escape(&p.pod.namespace), escape(&p.pod.name));
        format!("{{container=\"{}\",namespace=\"{namespace}\",pod=\"{pod}\"}}", escape(c))
    };
    let pod_labels =
        |p: &PodUsage| format!("{{namespace=\"{}\",pod=\"{}\"}}", escape(&p.pod.namespace), escape(&p.pod.name));
    let containers = || known.pods.iter().flat_map(|p| p.containers.iter().map(move |c| (p, c)));

    out.family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
    );
    for (p, c) in containers() {
        out.cpu(&container_labels(p, &c.name), Some(&c.usage));
    }
    out.family("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes");
    for (p, c) in containers() {
        out.memory(&container_labels(p, &c.name), Some(&c.usage));
    }
    out.family("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds");
    for (p, c) in containers() {
        if let Some(start) = c.start_time {
            let millis = start.as_millisecond() as f64;
            out.sample(&container_labels(p, &c.name), millis / 1000.0, None);
        }
    }
    out.family("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds");
    out.cpu("", of_node(known).as_ref());
    out.family("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes");
    out.memory("", of_node(known).as_ref());
    out.family("pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds");
    for p in &known.pods {
        out.cpu(&pod_labels(p), of_pod(p).as_ref());
    }
    out.family("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes");
    for p in &known.pods {
        out.memory(&pod_labels(p), of_pod(p).as_ref());
    }
    out.family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    out.sample("", if usage.is_some() { 0.0 } else { 1.0 }, None);
    out.text
}

/// Text in Prometheus's format. A family's head is written with its first sample.
#[derive(Default)]
struct Families {
    text: String,
    name: &'static str,
    head: Option<(&'static str, &'static str)>,
}

impl Families {
    fn family(&mut self, name: &'static str, kind: &'static str, help: &'static str) {
        (self.name, self.head) = (name, Some((kind, help)));
    }

    fn cpu(&mut self, labels: &str, usage: Option<&Usage>) {
        if let Some((nanos, time)) = usage.and_then(|u| Some((u.cpu_nanos?, u.time))) {
            self.sample(labels, nanos as f64 / 1e9, Some(time));
        }
    }

    fn memory(&mut self, labels: &str, usage: Option<&Usage>) {
        if let Some((bytes, time)) = usage.and_then(|u| Some((u.memory_working_set?, u.time))) {
            self.sample(labels, bytes as f64, Some(time));
        }
    }

    fn sample(&mut self, labels: &str, value: f64, time: Option<Timestamp>) {
        let name = self.name;
        // Writing to a String cannot fail.
        if let Some((kind, help)) = self.head.take() {
            let _ = writeln!(self.text, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        }
        let _ = match time {
            Some(time) => writeln!(self.text, "{name}{labels} {value} {}", time.as_millisecond()),
            None => writeln!(self.text, "{name}{labels} {value}"),
        };
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{ContainerUsage, PodRef};

    fn usage(cpu: Option<u64>, memory: Option<u64>) -> Usage {
        let time = Timestamp::from_millisecond(1_700_000_000_500).unwrap();
        Usage { time, cpu_nanos: cpu, cpu_nano_cores: cpu.map(|_| 7), memory_working_set: memory }
    }

    fn node() -> NodeUsage {
        let start_time = Some(Timestamp::from_second(1_600_000_000).unwrap());
        let container = |name: &str, usage| ContainerUsage { name: name.into(), start_time, usage };
        let pod = PodRef { namespace: "ns".into(), name: "p".into(), uid: "u".into() };
        let containers =
            vec![container("a", usage(Some(1_500_000_000), Some(10))), container("b", usage(None, Some(5)))];
        NodeUsage { node: None, pods: vec![PodUsage { pod, start_time, containers }] }
    }

    #[test]
    fn the_summary_leaves_out_what_is_not_known() {
        let summary = summary_of("n", &node());
        assert_eq!(summary["node"]["nodeName"], "n");
        assert_eq!(summary["node"]["memory"]["workingSetBytes"], 15);
        let pod = &summary["pods"][0];
        assert_eq!(pod["podRef"], json!({"name": "p", "namespace": "ns", "uid": "u"}));
        assert_eq!(pod["cpu"]["usageCoreNanoSeconds"], 1_500_000_000_u64);
        assert_eq!(pod["containers"][0]["cpu"]["time"], "2023-11-14T22:13:20Z");
        assert_eq!(pod["containers"][0]["startTime"], "2020-09-13T12:26:40Z");
        assert!(pod["containers"][1].get("cpu").is_none());
        assert_eq!(summary_of("n", &NodeUsage::default()), json!({"node": {"nodeName": "n"}, "pods": []}));
    }

    #[test]
    fn the_resource_metrics_are_those_of_a_kubelet() {
        let want = r#"# HELP container_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the container in core-seconds
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container="a",namespace="ns",pod="p"} 1.5 1700000000500
# HELP container_memory_working_set_bytes [STABLE] Current working set of the container in bytes
# TYPE container_memory_working_set_bytes gauge
container_memory_working_set_bytes{container="a",namespace="ns",pod="p"} 10 1700000000500
container_memory_working_set_bytes{container="b",namespace="ns",pod="p"} 5 1700000000500
# HELP container_start_time_seconds [STABLE] Start time of the container since unix epoch in seconds
# TYPE container_start_time_seconds gauge
container_start_time_seconds{container="a",namespace="ns",pod="p"} 1600000000
container_start_time_seconds{container="b",namespace="ns",pod="p"} 1600000000
# HELP node_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the node in core-seconds
# TYPE node_cpu_usage_seconds_total counter
node_cpu_usage_seconds_total 1.5 1700000000500
# HELP node_memory_working_set_bytes [STABLE] Current working set of the node in bytes
# TYPE node_memory_working_set_bytes gauge
node_memory_working_set_bytes 15 1700000000500
# HELP pod_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the pod in core-seconds
# TYPE pod_cpu_usage_seconds_total counter
pod_cpu_usage_seconds_total{namespace="ns",pod="p"} 1.5 1700000000500
# HELP pod_memory_working_set_bytes [STABLE] Current working set of the pod in bytes
# TYPE pod_memory_working_set_bytes gauge
pod_memory_working_set_bytes{namespace="ns",pod="p"} 15 1700000000500
# HELP resource_scrape_error [STABLE] 1 if there was an error while getting container metrics, 0 otherwise
# TYPE resource_scrape_error gauge
resource_scrape_error 0
"#;
        assert_eq!(resource_text(Some(&node())), want);
        assert!(resource_text(None).ends_with("\nresource_scrape_error 1\n"));
    }
}
