//! `/metrics/probes`, with kubelet's names, labels and words. kubelet: `pkg/kubelet/prober/prober_manager.go`.

use super::text::{Families, labels};
use crate::provider::{PROBE_BUCKETS, ProbeCounts};

/// The whole page, from the counts of each node. Where several nodes share a port, every sample says which one it is of.
pub(super) fn page(nodes: &[(&str, Vec<ProbeCounts>)], shared: bool) -> String {
    let mut out = Families::default();
    let all =
        || nodes.iter().flat_map(|(node, counts)| counts.iter().map(move |c| (if shared { node } else { "" }, c)));
    let help = "[ALPHA] Duration in seconds for a probe response.";
    out.family("prober_probe_duration_seconds", "histogram", help);
    for (node, c) in all() {
        let count: u64 = c.successful.iter().sum();
        if count == 0 {
            continue;
        }
        let with = |more: &[(&str, &str)]| {
            let own = [
                ("container", c.container.as_str()),
                ("namespace", &c.pod.namespace),
                ("node", node),
                ("pod", &c.pod.name),
                ("probe_type", c.kind),
            ];
            labels(&[&own, more].concat())
        };
        let mut sum = 0;
        for (limit, count) in PROBE_BUCKETS.iter().zip(c.successful) {
            sum += count;
            out.part("_bucket", &with(&[("le", &limit.to_string())]), sum as f64, None);
        }
        out.part("_bucket", &with(&[("le", "+Inf")]), count as f64, None);
        out.part("_sum", &with(&[]), c.seconds, None);
        out.part("_count", &with(&[]), count as f64, None);
    }
    let help = "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
    out.family("prober_probe_total", "counter", help);
    for (node, c) in all() {
        for (result, count) in [("failed", c.failed), ("successful", c.successful.iter().sum())] {
            // As in kubelet, what never was has no sample.
            if count > 0 {
                let of = [
                    ("container", c.container.as_str()),
                    ("namespace", &c.pod.namespace),
                    ("node", node),
                    ("pod", &c.pod.name),
                    ("pod_uid", &c.pod.uid),
                    ("probe_type", c.kind),
                    ("result", result),
                ];
                out.sample(&labels(&of), count as f64, None);
            }
        }
    }
    out.text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::PodRef;

    fn counts(failed: u64, fast: u64, slow: u64) -> ProbeCounts {
        let pod = PodRef { namespace: "ns".into(), name: "p".into(), uid: "u".into() };
        let mut successful = [0; PROBE_BUCKETS.len() + 1];
        (successful[1], successful[PROBE_BUCKETS.len()]) = (fast, slow);
        ProbeCounts { pod, container: "c".into(), kind: "Liveness", failed, successful, seconds: 20.5 }
    }

    #[test]
    fn probes_are_counted_as_kubelet_counts_them() {
        let bucket = |le: &str, n: u32| {
            let of = r#"container="c",namespace="ns",pod="p",probe_type="Liveness""#;
            format!("prober_probe_duration_seconds_bucket{{{of},le=\"{le}\"}} {n}\n")
        };
        let limits = ["0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10"];
        let buckets = bucket("0.005", 0) + &limits.map(|le| bucket(le, 2)).concat() + &bucket("+Inf", 3);
        let want = format!(
            r#"# HELP prober_probe_duration_seconds [ALPHA] Duration in seconds for a probe response.
# TYPE prober_probe_duration_seconds histogram
{buckets}prober_probe_duration_seconds_sum{{container="c",namespace="ns",pod="p",probe_type="Liveness"}} 20.5
prober_probe_duration_seconds_count{{container="c",namespace="ns",pod="p",probe_type="Liveness"}} 3
# HELP prober_probe_total [BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.
# TYPE prober_probe_total counter
prober_probe_total{{container="c",namespace="ns",pod="p",pod_uid="u",probe_type="Liveness",result="failed"}} 4
prober_probe_total{{container="c",namespace="ns",pod="p",pod_uid="u",probe_type="Liveness",result="successful"}} 3
"#
        );
        assert_eq!(page(&[("n", vec![counts(4, 2, 1)])], false), want);
    }

    #[test]
    fn what_never_was_has_no_sample_and_a_shared_port_names_the_node() {
        assert_eq!(page(&[("n", Vec::new())], false), "");
        let text = page(&[("n", vec![counts(1, 0, 0)])], true);
        assert!(!text.contains("duration") && !text.contains("successful"), "{text}");
        assert!(text.contains(r#"namespace="ns",node="n",pod="p","#), "{text}");
    }
}
