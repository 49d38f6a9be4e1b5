//! `/metrics/resource`, with kubelet's names, labels and words, and how such pages are written.
//!
//! Where several nodes share a port, every sample says which one it is of.

use std::fmt::Write;

use jiff::Timestamp;

use super::{Measured, of_node, of_pod};
use crate::provider::{ContainerUsage, PodUsage, Usage};

/// `/metrics/resource`
pub(super) fn resource(measured: &[Measured<'_>], shared: bool) -> String {
    let mut out = Families::default();
    let container_labels = |m: &Measured<'_>, p: &PodUsage, c: &ContainerUsage| {
        labels(&[
            ("container", &c.name),
            ("namespace", &p.pod.namespace),
            ("node", node(m, shared)),
            ("pod", &p.pod.name),
        ])
    };
    let pod_labels = |m: &Measured<'_>, p: &PodUsage| {
        labels(&[("namespace", &p.pod.namespace), ("node", node(m, shared)), ("pod", &p.pod.name)])
    };
    let node_labels = |m: &Measured<'_>| labels(&[("node", node(m, shared))]);

    out.family(
        "container_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
    );
    for (m, p, c) in containers(measured) {
        out.cpu(&container_labels(m, p, c), Some(&c.usage));
    }
    let help = "[STABLE] Current working set of the container in bytes";
    out.family("container_memory_working_set_bytes", "gauge", help);
    for (m, p, c) in containers(measured) {
        out.memory(&container_labels(m, p, c), Some(&c.usage));
    }
    let help = "[STABLE] Start time of the container since unix epoch in seconds";
    out.family("container_start_time_seconds", "gauge", help);
    for (m, p, c) in containers(measured) {
        out.start(&container_labels(m, p, c), c.start_time);
    }
    let help = "[STABLE] Cumulative cpu time consumed by the node in core-seconds";
    out.family("node_cpu_usage_seconds_total", "counter", help);
    for m in measured {
        out.cpu(&node_labels(m), m.usage.as_ref().and_then(of_node).as_ref());
    }
    out.family("node_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the node in bytes");
    for m in measured {
        out.memory(&node_labels(m), m.usage.as_ref().and_then(of_node).as_ref());
    }
    let help = "[STABLE] Cumulative cpu time consumed by the pod in core-seconds";
    out.family("pod_cpu_usage_seconds_total", "counter", help);
    for (m, p) in pods(measured) {
        out.cpu(&pod_labels(m, p), of_pod(p).as_ref());
    }
    out.family("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes");
    for (m, p) in pods(measured) {
        out.memory(&pod_labels(m, p), of_pod(p).as_ref());
    }
    let help = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    out.family("resource_scrape_error", "gauge", help);
    for m in measured {
        out.sample(&node_labels(m), if m.usage.is_some() { 0.0 } else { 1.0 }, None);
    }
    out.text
}

pub(super) fn pods<'a>(measured: &'a [Measured<'a>]) -> impl Iterator<Item = (&'a Measured<'a>, &'a PodUsage)> {
    measured.iter().flat_map(|m| m.usage.iter().flat_map(|u| &u.pods).map(move |p| (m, p)))
}

pub(super) fn containers<'a>(
    measured: &'a [Measured<'a>],
) -> impl Iterator<Item = (&'a Measured<'a>, &'a PodUsage, &'a ContainerUsage)> {
    pods(measured).flat_map(|(m, p)| p.containers.iter().map(move |c| (m, p, c)))
}

/// The value of the label `node`: none at a node's own port, as on any kubelet.
pub(super) fn node<'a>(measured: &'a Measured<'_>, shared: bool) -> &'a str {
    if shared { measured.node } else { "" }
}

/// Labels in braces. `node` is left out without a value.
pub(super) fn labels(all: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in all.iter().filter(|(name, value)| *name != "node" || !value.is_empty()) {
        let separator = if text.is_empty() { "{" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{name}=\"{}\"", escape(value));
    }
    if !text.is_empty() {
        text.push('}');
    }
    text
}

/// Text in Prometheus's format. A family's head is written with its first sample.
#[derive(Default)]
pub(super) struct Families {
    pub(super) text: String,
    name: &'static str,
    head: Option<(&'static str, &'static str)>,
}

impl Families {
    pub(super) fn family(&mut self, name: &'static str, kind: &'static str, help: &'static str) {
        (self.name, self.head) = (name, Some((kind, help)));
    }

    pub(super) fn cpu(&mut self, labels: &str, usage: Option<&Usage>) {
        if let Some((nanos, time)) = usage.and_then(|u| Some((u.cpu_nanos?, u.time))) {
            self.sample(labels, nanos as f64 / 1e9, Some(time));
        }
    }

    pub(super) fn memory(&mut self, labels: &str, usage: Option<&Usage>) {
        if let Some((bytes, time)) = usage.and_then(|u| Some((u.memory_working_set?, u.time))) {
            self.sample(labels, bytes as f64, Some(time));
        }
    }

    pub(super) fn start(&mut self, labels: &str, start: Option<Timestamp>) {
        if let Some(start) = start {
            self.sample(labels, start.as_millisecond() as f64 / 1000.0, None);
        }
    }

    pub(super) fn sample(&mut self, labels: &str, value: f64, time: Option<Timestamp>) {
        self.part("", labels, value, time);
    }

    /// A sample of a family whose samples have names of their own.
    pub(super) fn part(&mut self, suffix: &str, labels: &str, value: f64, time: Option<Timestamp>) {
        let name = self.name;
        // Writing to a String cannot fail.
        if let Some((kind, help)) = self.head.take() {
            let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        }
        let _ = match time {
            Some(time) => writeln!(self.text, "{name}{suffix}{labels} {value} {}", time.as_millisecond()),
            None => writeln!(self.text, "{name}{suffix}{labels} {value}"),
        };
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{measured, node};
    use super::*;

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
        assert_eq!(resource(&[measured("n", Some(node()))], false), want);
        assert!(resource(&[measured("n", None)], false).ends_with("\nresource_scrape_error 1\n"));
    }

    #[test]
    fn samples_of_a_shared_port_name_their_node() {
        let text = resource(&[measured("n1", Some(node())), measured("n2", None)], true);
        for line in [
            r#"container_cpu_usage_seconds_total{container="a",namespace="ns",node="n1",pod="p"} 1.5 1700000000500"#,
            r#"node_memory_working_set_bytes{node="n1"} 15 1700000000500"#,
            r#"resource_scrape_error{node="n1"} 0"#,
            r#"resource_scrape_error{node="n2"} 1"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert_eq!(text.matches("# HELP resource_scrape_error").count(), 1);
    }
}
