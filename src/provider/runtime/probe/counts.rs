//! How a pod's probes went, for as long as the pod is known. kubelet: `pkg/kubelet/prober`, its metrics.

use std::sync::Mutex;
use std::time::Duration;

use crate::provider::runtime::core::guard;
use crate::provider::runtime::machine::state::ProbeKind;
use crate::provider::{PROBE_BUCKETS, PodRef, ProbeCounts};

/// Counts for each container and kind of probe, over restarts of the container.
#[derive(Default)]
pub(in crate::provider::runtime) struct Probed(Mutex<Vec<Count>>);

struct Count {
    container: String,
    kind: ProbeKind,
    failed: u64,
    successful: [u64; PROBE_BUCKETS.len() + 1],
    seconds: f64,
}

impl Probed {
    /// Counts an answer. kubelet notes how long only those took that succeeded.
    pub fn count(&self, container: &str, kind: ProbeKind, good: bool, took: Duration) {
        let mut counts = guard(&self.0);
        let index = counts.iter().position(|c| c.kind == kind && c.container == container).unwrap_or_else(|| {
            let container = container.to_owned();
            counts.push(Count { container, kind, failed: 0, successful: Default::default(), seconds: 0.0 });
            counts.len() - 1
        });
        let count = &mut counts[index];
        if good {
            let seconds = took.as_secs_f64();
            count.successful[PROBE_BUCKETS.partition_point(|limit| *limit < seconds)] += 1;
            count.seconds += seconds;
        } else {
            count.failed += 1;
        }
    }

    /// The counts, as those of this pod.
    pub fn counts(&self, pod: &PodRef) -> Vec<ProbeCounts> {
        let of = |c: &Count| ProbeCounts {
            pod: pod.clone(),
            container: c.container.clone(),
            kind: c.kind.word(),
            failed: c.failed,
            successful: c.successful,
            seconds: c.seconds,
        };
        guard(&self.0).iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_container_kind_result_and_time() {
        let probed = Probed::default();
        let pod = PodRef { namespace: "ns".into(), name: "p".into(), uid: "u".into() };
        assert_eq!(probed.counts(&pod), []);
        for (container, kind, good, millis) in [
            ("a", ProbeKind::Liveness, true, 5),
            ("a", ProbeKind::Liveness, true, 6),
            ("a", ProbeKind::Liveness, false, 7),
            ("a", ProbeKind::Readiness, true, 20_000),
            ("b", ProbeKind::Liveness, false, 1),
        ] {
            probed.count(container, kind, good, Duration::from_millis(millis));
        }
        let counts = probed.counts(&pod);
        let short = |c: &ProbeCounts| (c.container.clone(), c.kind, c.failed, c.successful.iter().sum::<u64>());
        let want = [("a", "Liveness", 1, 2), ("a", "Readiness", 0, 1), ("b", "Liveness", 1, 0)];
        assert_eq!(counts.iter().map(short).collect::<Vec<_>>(), want.map(|(c, k, f, s)| (c.to_owned(), k, f, s)));
        assert_eq!((counts[0].successful[0], counts[0].successful[1]), (1, 1));
        assert_eq!(counts[1].successful.last(), Some(&1));
        assert!((counts[0].seconds - 0.011).abs() < 1e-9);
    }
}
