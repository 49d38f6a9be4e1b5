//! One reading of a node's `/metrics/resource`, and what two of them say.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

/// What something uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Usage {
    pub(super) nano_cores: u64,
    pub(super) bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sample {
    cpu_seconds: Option<f64>,
    bytes: Option<f64>,
    /// Seconds since 1970.
    started: Option<f64>,
    at: Option<Timestamp>,
}

/// Namespace and name.
type PodKey = (Box<str>, Box<str>);

/// The counters of a node and its containers at a moment.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) at: Timestamp,
    node: Sample,
    /// By namespace and pod, then by container.
    pods: BTreeMap<PodKey, BTreeMap<String, Sample>>,
}

impl Reading {
    /// Reads the text format; lines that are none of ours are skipped.
    pub(super) fn parse(text: &str, read: Timestamp) -> Self {
        let mut reading = Self { at: read, node: Sample::default(), pods: BTreeMap::new() };
        for line in text.lines() {
            let Some(line) = Line::parse(line) else { continue };
            let sample = match line.name.strip_prefix("container_") {
                None => &mut reading.node,
                Some(_) => {
                    let (Some(namespace), Some(pod), Some(container)) =
                        (line.label("namespace"), line.label("pod"), line.label("container"))
                    else {
                        continue;
                    };
                    let pod = reading.pods.entry((namespace.into(), pod.into())).or_default();
                    pod.entry(container.into()).or_default()
                }
            };
            match line.name {
                "node_cpu_usage_seconds_total" | "container_cpu_usage_seconds_total" => {
                    sample.cpu_seconds = Some(line.value);
                    sample.at = line.at;
                }
                "node_memory_working_set_bytes" | "container_memory_working_set_bytes" => {
                    sample.bytes = Some(line.value);
                }
                "container_start_time_seconds" => sample.started = Some(line.value),
                _ => {}
            }
        }
        if let Some(at) = reading.node.at {
            reading.at = at;
        }
        reading
    }

    /// The time between two readings.
    pub(super) fn since(&self, before: &Self) -> Duration {
        self.at.duration_since(before.at).try_into().unwrap_or_default()
    }

    pub(super) fn node(&self, before: &Self) -> Option<Usage> {
        usage(&self.node, self.at, Some((&before.node, before.at)))
    }

    /// The usage of a pod's containers; all of them or nothing.
    pub(super) fn pod(&self, before: Option<&Self>, namespace: &str, name: &str) -> Option<Vec<(String, Usage)>> {
        let key = (namespace.into(), name.into());
        let containers = self.pods.get(&key)?;
        let earlier = before.and_then(|before| Some((before.pods.get(&key)?, before.at)));
        let of = |(name, sample): (&String, &Sample)| {
            let earlier = earlier.and_then(|(all, at)| Some((all.get(name)?, at)));
            Some((name.to_string(), usage(sample, self.at, earlier)?))
        };
        containers.iter().map(of).collect()
    }
}

fn usage(last: &Sample, read: Timestamp, before: Option<(&Sample, Timestamp)>) -> Option<Usage> {
    let (cpu, bytes) = (last.cpu_seconds?, last.bytes?);
    let seconds = |at: Timestamp| at.as_millisecond() as f64 / 1000.0;
    let now = seconds(last.at.unwrap_or(read));
    let earlier = before.and_then(|(sample, read)| Some((sample.cpu_seconds?, seconds(sample.at.unwrap_or(read)))));
    let (spent, took) = match earlier {
        // A counter that went back belongs to a new container: all of it was spent since its start.
        Some((then, at)) if then <= cpu && at < now => (cpu - then, now - at),
        _ => (cpu, now - last.started?),
    };
    // Shares of a moment mislead.
    if took < 0.1 {
        return None;
    }
    Some(Usage { nano_cores: (spent / took * 1e9) as u64, bytes: bytes as u64 })
}

/// A sample in the text format: `name{label="value",…} value [milliseconds]`.
struct Line<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
    at: Option<Timestamp>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim();
        if line.starts_with('#') {
            return None;
        }
        let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                rest = rest.trim_start_matches([',', ' ']);
                if let Some(after) = rest.strip_prefix('}') {
                    rest = after;
                    break;
                }
                let (label, after) = rest.split_once("=\"")?;
                let (value, after) = quoted(after)?;
                labels.push((label, value));
                rest = after;
            }
        }
        let mut words = rest.split_whitespace();
        let value = words.next()?.parse().ok().filter(|v: &f64| v.is_finite() && *v >= 0.0)?;
        let at = words.next().and_then(|ms| Timestamp::from_millisecond(ms.parse().ok()?).ok());
        Some(Self { name, labels, value, at })
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
    }
}

/// A label's value as far as its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(second: i64, node: &str, container: &str) -> Reading {
        let text = format!(
            "# HELP node_cpu_usage_seconds_total cpu\n# TYPE node_cpu_usage_seconds_total counter\n\
             node_cpu_usage_seconds_total {node} {ms}\nnode_memory_working_set_bytes 2048 {ms}\n\
             container_cpu_usage_seconds_total{{container=\"c\",namespace=\"ns\",pod=\"p\"}} {container} {ms}\n\
             container_memory_working_set_bytes{{container=\"c\",namespace=\"ns\",pod=\"p\"}} 1.024e+03 {ms}\n\
             container_start_time_seconds{{container=\"c\",namespace=\"ns\",pod=\"p\"}} 100\n\
             scrape_error 0\nrubbish{{x=\n",
            ms = second * 1000
        );
        Reading::parse(&text, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn usage_is_the_difference_of_two_readings() {
        let (before, last) = (reading(110, "10", "1"), reading(120, "15", "2.5"));
        assert_eq!(last.since(&before), Duration::from_secs(10));
        assert_eq!(last.node(&before), Some(Usage { nano_cores: 500_000_000, bytes: 2048 }));
        let usage = Usage { nano_cores: 150_000_000, bytes: 1024 };
        assert_eq!(last.pod(Some(&before), "ns", "p"), Some(vec![("c".into(), usage)]));
        assert_eq!(last.pod(Some(&before), "ns", "q"), None);
    }

    #[test]
    fn a_container_that_began_anew_is_measured_since_its_start() {
        let (before, last) = (reading(110, "10", "7"), reading(120, "15", "2"));
        let usage = Usage { nano_cores: 100_000_000, bytes: 1024 };
        assert_eq!(last.pod(Some(&before), "ns", "p"), Some(vec![("c".into(), usage)]));
        assert_eq!(last.pod(None, "ns", "p"), Some(vec![("c".into(), usage)]));
    }

    #[test]
    fn one_reading_says_nothing_of_a_node() {
        let last = reading(120, "15", "2");
        assert_eq!(last.node(&last), None);
    }

    #[test]
    fn labels_may_contain_anything() {
        let line = Line::parse(r#"x{a="q\"\\,}",b="" } 1e3 5"#).unwrap();
        assert_eq!((line.label("a"), line.label("b"), line.value), (Some("q\"\\,}"), Some(""), 1000.0));
        for rubbish in ["", "x", "x{", "x{a=\"b} 1", "x NaN", "x -1", "# x 1"] {
            assert!(Line::parse(rubbish).is_none(), "{rubbish}");
        }
    }
}
