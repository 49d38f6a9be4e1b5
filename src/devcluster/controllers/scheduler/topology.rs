//! What other pods mean for where a pod may go: affinity, anti-affinity and spread over domains.

use std::collections::HashMap;

use super::cluster::{Cluster, NodeInfo};
use super::pod::{PodInfo, term_matches};
use crate::controllers::labels;

/// Everything about other pods that matters to one pod, counted once a decision.
#[derive(Default)]
pub(super) struct Topology {
    /// For each affinity term: domains with a match; `None` lets the first of a group in.
    near: Vec<(String, Option<Vec<String>>)>,
    apart: Vec<(String, Vec<String>)>,
    /// Domains that pods already there keep this one out of.
    keep_out: Vec<(String, String)>,
    spread: Vec<Spread>,
}

struct Spread {
    key: String,
    max: i64,
    strict: bool,
    counts: HashMap<String, i64>,
    least: i64,
}

impl Topology {
    pub(super) fn of(cluster: &Cluster, pod: &PodInfo) -> Self {
        let mut topology = Self::default();
        let there = || cluster.nodes.iter().flat_map(|n| n.pods.values().map(move |p| (n, p)));
        let domains = |term: &k8s_openapi::api::core::v1::PodAffinityTerm| {
            let mut found: Vec<String> = there()
                .filter(|(_, p)| term_matches(term, &pod.namespace, &p.namespace, &p.labels))
                .filter_map(|(n, _)| n.labels.get(&term.topology_key).cloned())
                .collect();
            found.sort();
            found.dedup();
            found
        };
        for term in &pod.near {
            let found = domains(term);
            let first = found.is_empty() && term_matches(term, &pod.namespace, &pod.namespace, &pod.labels);
            topology.near.push((term.topology_key.clone(), (!first).then_some(found)));
        }
        for term in &pod.apart {
            topology.apart.push((term.topology_key.clone(), domains(term)));
        }
        if cluster.standoffish > 0 {
            for (node, other) in there() {
                for term in &other.apart {
                    if term_matches(term, &other.namespace, &pod.namespace, &pod.labels)
                        && let Some(value) = node.labels.get(&term.topology_key)
                    {
                        topology.keep_out.push((term.topology_key.clone(), value.clone()));
                    }
                }
            }
        }
        for constraint in &pod.spread {
            let mut counts: HashMap<String, i64> = HashMap::new();
            for node in cluster.nodes.iter().filter(|n| n.exists && n.selected_by(pod)) {
                let Some(domain) = node.labels.get(&constraint.topology_key) else { continue };
                let same = node.pods.values().filter(|p| {
                    p.namespace == pod.namespace
                        && constraint.label_selector.as_ref().is_some_and(|s| labels::matches(s, &p.labels))
                });
                *counts.entry(domain.clone()).or_default() += same.count() as i64;
            }
            let scarce = constraint.min_domains.is_some_and(|min| counts.len() < min as usize);
            let least = if scarce { 0 } else { counts.values().min().copied().unwrap_or_default() };
            topology.spread.push(Spread {
                key: constraint.topology_key.clone(),
                max: i64::from(constraint.max_skew),
                strict: constraint.when_unsatisfiable == "DoNotSchedule",
                counts,
                least,
            });
        }
        topology
    }

    pub(super) fn refusal(&self, node: &NodeInfo, _pod: &PodInfo) -> Option<&'static str> {
        let domain = |key: &str| node.labels.get(key);
        for (key, wanted) in &self.near {
            let Some(here) = domain(key) else { return Some("node(s) didn't match pod affinity rules") };
            if wanted.as_ref().is_some_and(|w| w.binary_search(here).is_err()) {
                return Some("node(s) didn't match pod affinity rules");
            }
        }
        if self.apart.iter().any(|(key, full)| domain(key).is_some_and(|d| full.binary_search(d).is_ok())) {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
        if self.keep_out.iter().any(|(key, value)| domain(key) == Some(value)) {
            return Some("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        for spread in self.spread.iter().filter(|s| s.strict) {
            let Some(here) = domain(&spread.key) else {
                return Some("node(s) didn't match pod topology spread constraints (missing required label)");
            };
            if spread.counts.get(here).copied().unwrap_or_default() + 1 - spread.least > spread.max {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }

    pub(super) fn score(&self, node: &NodeInfo) -> i64 {
        let crowd =
            |s: &Spread| node.labels.get(&s.key).and_then(|d| s.counts.get(d)).copied().unwrap_or(s.max) - s.least;
        self.spread.iter().map(|s| -200 * crowd(s)).sum()
    }
}
