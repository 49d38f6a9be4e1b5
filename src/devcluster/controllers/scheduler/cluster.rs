//! The scheduler's picture of the cluster, kept up to date change by change, and the decision where a pod goes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeSelectorTerm, Taint};
use kube::ResourceExt;

use super::pod::{PodInfo, term_matches, tolerates};
use super::resources::Amounts;
use crate::controllers::labels::{self, Labels};

/// A node with what is left on it.
#[derive(Debug, Default)]
pub(crate) struct NodeInfo {
    pub(crate) name: String,
    /// False for a node that is gone but still has pods.
    exists: bool,
    labels: Labels,
    taints: Vec<Taint>,
    unschedulable: bool,
    allocatable: Amounts,
    used: Amounts,
    pods: HashMap<String, Arc<PodInfo>>,
}

/// All nodes and what runs on them.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    placed: HashMap<String, String>,
    /// Pods with required anti-affinity; while there are none, nobody pays for it.
    standoffish: usize,
    start: usize,
}

impl Cluster {
    /// Takes a node's state; whether anything that scheduling looks at changed.
    pub(crate) fn put_node(&mut self, node: &Node) -> bool {
        let index = self.slot(&node.name_any());
        let spec = node.spec.as_ref();
        let labels = node.labels().clone();
        let taints = spec.and_then(|s| s.taints.clone()).unwrap_or_default();
        let unschedulable = spec.and_then(|s| s.unschedulable).unwrap_or(false);
        let allocatable =
            Amounts::of(node.status.as_ref().and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref())));
        let info = &mut self.nodes[index];
        if info.exists
            && info.labels == labels
            && info.taints == taints
            && info.unschedulable == unschedulable
            && info.allocatable == allocatable
        {
            return false;
        }
        (info.exists, info.labels, info.taints) = (true, labels, taints);
        (info.unschedulable, info.allocatable) = (unschedulable, allocatable);
        true
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        if let Some(index) = self.by_name.get(name).copied() {
            self.nodes[index].exists = false;
            self.drop_if_empty(index);
        }
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        self.nodes.push(NodeInfo { name: name.into(), ..NodeInfo::default() });
        self.by_name.insert(name.into(), self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn drop_if_empty(&mut self, index: usize) {
        if self.nodes[index].exists || !self.nodes[index].pods.is_empty() {
            return;
        }
        let gone = self.nodes.swap_remove(index);
        self.by_name.remove(&gone.name);
        if let Some(moved) = self.nodes.get(index) {
            self.by_name.insert(moved.name.clone(), index);
        }
    }

    /// Counts a pod on a node, and no longer where it was counted before.
    pub(crate) fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(&pod.uid);
        let index = self.slot(node);
        self.standoffish += usize::from(!pod.apart.is_empty());
        self.placed.insert(pod.uid.clone(), node.into());
        let info = &mut self.nodes[index];
        info.used.add(&pod.asks, 1);
        info.pods.insert(pod.uid.clone(), pod);
    }

    /// Forgets a pod; whether it was counted anywhere.
    pub(crate) fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(node) = self.placed.remove(uid) else { return false };
        let Some(index) = self.by_name.get(&node).copied() else { return false };
        if let Some(pod) = self.nodes[index].pods.remove(uid) {
            self.standoffish -= usize::from(!pod.apart.is_empty());
            self.nodes[index].used.add(&pod.asks, -1);
        }
        self.drop_if_empty(index);
        true
    }

    /// The node for a pod, or why there is none.
    pub(crate) fn decide(&mut self, pod: &PodInfo) -> Result<String, String> {
        let total = self.nodes.iter().filter(|n| n.exists).count();
        if total == 0 {
            return Err("no nodes available to schedule pods".into());
        }
        let topology = Topology::of(self, pod);
        let enough = sample(self.nodes.len());
        let mut best: Option<(i64, u64, usize)> = None;
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let (mut feasible, mut seen) = (0, 0);
        let count = self.nodes.len();
        for step in 0..count {
            let index = (self.start + step) % count;
            let node = &self.nodes[index];
            seen += 1;
            if !node.exists {
                continue;
            }
            match node.refusal(pod).or_else(|| topology.refusal(node, pod).map(|r| vec![r.to_string()])) {
                Some(why) => why.into_iter().for_each(|r| *reasons.entry(r).or_default() += 1),
                None => {
                    feasible += 1;
                    // The tie breaker spreads equals evenly, and differently for each pod.
                    let score = (node.score(pod) + topology.score(node), rand::random::<u64>(), index);
                    best = best.max(Some(score));
                    if feasible >= enough {
                        break;
                    }
                }
            }
        }
        self.start = (self.start + seen) % count;
        match best {
            Some((_, _, index)) => Ok(self.nodes[index].name.clone()),
            None => {
                let mut reasons: Vec<_> = reasons.into_iter().map(|(why, n)| format!("{n} {why}")).collect();
                reasons.sort();
                Err(format!("0/{total} nodes are available: {}.", reasons.join(", ")))
            }
        }
    }
}

/// How many feasible nodes are enough to choose from. kube-scheduler: `numFeasibleNodesToFind`.
fn sample(nodes: usize) -> usize {
    if nodes <= 100 {
        return nodes;
    }
    (nodes * 50usize.saturating_sub(nodes / 125).max(5) / 100).max(100)
}

fn term_takes(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions
        .iter()
        .all(|e| labels::requirement(&node.labels, &e.key, &e.operator, e.values.as_deref().unwrap_or_default()))
        && fields.iter().all(|f| {
            let named = f.values.iter().flatten().any(|v| *v == node.name);
            f.key == "metadata.name" && (f.operator == "In") == named
        })
}

/// Whether a node's taints and labels let a pod run there, room aside.
pub(crate) fn may_run(node: &Node, pod: &PodInfo) -> bool {
    let spec = node.spec.as_ref();
    let info = NodeInfo {
        name: node.name_any(),
        labels: node.labels().clone(),
        taints: spec.and_then(|s| s.taints.clone()).unwrap_or_default(),
        unschedulable: spec.and_then(|s| s.unschedulable).unwrap_or(false),
        ..NodeInfo::default()
    };
    info.unwelcome(pod).is_none()
}

impl NodeInfo {
    fn selected_by(&self, pod: &PodInfo) -> bool {
        pod.node_selector.iter().all(|(k, v)| self.labels.get(k) == Some(v))
            && pod.required.as_ref().is_none_or(|terms| terms.iter().any(|t| term_takes(t, self)))
    }

    /// Why this node's taints and labels keep the pod out.
    fn unwelcome(&self, pod: &PodInfo) -> Option<Vec<String>> {
        let one = |why: &str| Some(vec![why.to_string()]);
        let tolerated =
            |key: &str, value: &str, effect: &str| pod.tolerations.iter().any(|t| tolerates(t, key, value, effect));
        if self.unschedulable && !tolerated("node.kubernetes.io/unschedulable", "", "NoSchedule") {
            return one("node(s) were unschedulable");
        }
        for taint in self.taints.iter().filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute")) {
            let value = taint.value.as_deref().unwrap_or_default();
            if !tolerated(&taint.key, value, &taint.effect) {
                return Some(vec![format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)]);
            }
        }
        if !self.selected_by(pod) {
            return one("node(s) didn't match Pod's node affinity/selector");
        }
        None
    }

    /// Why this node cannot take the pod, topology aside.
    fn refusal(&self, pod: &PodInfo) -> Option<Vec<String>> {
        let one = |why: &str| Some(vec![why.to_string()]);
        if let Some(why) = self.unwelcome(pod) {
            return Some(why);
        }
        let clashes = |(protocol, ip, number): &super::pod::HostPort| {
            self.pods.values().flat_map(|p| &p.ports).any(|(protocol2, ip2, number2)| {
                number == number2 && protocol == protocol2 && (ip == ip2 || ip.is_empty() || ip2.is_empty())
            })
        };
        if pod.ports.iter().any(clashes) {
            return one("node(s) didn't have free ports for the requested pod ports");
        }
        let (asks, used, have) = (&pod.asks, &self.used, &self.allocatable);
        let mut short = Vec::new();
        if used.pods + 1 > have.pods {
            short.push("Too many pods".to_string());
        }
        if asks.cpu > 0 && used.cpu + asks.cpu > have.cpu {
            short.push("Insufficient cpu".into());
        }
        if asks.memory > 0 && used.memory + asks.memory > have.memory {
            short.push("Insufficient memory".into());
        }
        for (name, asked) in asks.other.iter().filter(|(_, asked)| **asked > 0) {
            let of = |amounts: &Amounts| amounts.other.get(name).copied().unwrap_or_default();
            if of(used) + asked > of(have) {
                short.push(format!("Insufficient {name}"));
            }
        }
        (!short.is_empty()).then_some(short)
    }

    /// Higher is better: free share of cpu, memory and pods, preferred affinity, taints that would rather not.
    fn score(&self, pod: &PodInfo) -> i64 {
        let free =
            |used: i64, asked: i64, have: i64| if have <= 0 { 0 } else { (have - used - asked).max(0) * 1000 / have };
        let (asks, used, have) = (&pod.asks, &self.used, &self.allocatable);
        let mut score = (free(used.cpu, asks.cpu, have.cpu)
            + free(used.memory, asks.memory, have.memory)
            + free(used.pods, 1, have.pods))
            / 3;
        for term in pod.preferred.iter().filter(|t| term_takes(&t.preference, self)) {
            score += i64::from(term.weight) * 20;
        }
        for taint in self.taints.iter().filter(|t| t.effect == "PreferNoSchedule") {
            let value = taint.value.as_deref().unwrap_or_default();
            if !pod.tolerations.iter().any(|t| tolerates(t, &taint.key, value, &taint.effect)) {
                score -= 3000;
            }
        }
        score
    }
}

/// Everything about other pods that matters to one pod, counted once a decision.
#[derive(Default)]
struct Topology {
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
    fn of(cluster: &Cluster, pod: &PodInfo) -> Self {
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

    fn refusal(&self, node: &NodeInfo, _pod: &PodInfo) -> Option<&'static str> {
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

    fn score(&self, node: &NodeInfo) -> i64 {
        let crowd =
            |s: &Spread| node.labels.get(&s.key).and_then(|d| s.counts.get(d)).copied().unwrap_or(s.max) - s.least;
        self.spread.iter().map(|s| -200 * crowd(s)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    fn node(name: &str, cpu: &str, more: Value) -> Node {
        let mut value = json!({"metadata": {"name": name, "labels": {"zone": name, "kubernetes.io/hostname": name}},
            "spec": {}, "status": {"allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "3"}}});
        for (k, v) in more.as_object().into_iter().flatten() {
            value["spec"][k] = v.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn pod(name: &str, spec: Value) -> Arc<PodInfo> {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": "1"}}}]);
        }
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"app": "x"}}, "spec": spec}),
        )
        .unwrap();
        PodInfo::of(&pod)
    }

    #[test]
    fn the_reason_counts_nodes_by_what_they_lack() {
        let mut cluster = Cluster::default();
        assert_eq!(cluster.decide(&pod("p", json!({}))).unwrap_err(), "no nodes available to schedule pods");
        cluster.put_node(&node("a", "500m", json!({})));
        cluster.put_node(&node("b", "2", json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]})));
        cluster.put_node(&node("c", "2", json!({"unschedulable": true})));
        assert_eq!(
            cluster.decide(&pod("p", json!({}))).unwrap_err(),
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}, 1 node(s) were \
             unschedulable."
        );
        let tolerant = pod("p", json!({"tolerations": [{"key": "k", "operator": "Exists"}]}));
        assert_eq!(cluster.decide(&tolerant).unwrap(), "b");
        let picky = pod("p", json!({"nodeSelector": {"zone": "none"}, "tolerations": [{"operator": "Exists"}]}));
        assert_eq!(
            cluster.decide(&picky).unwrap_err(),
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
        );
    }

    #[test]
    fn what_is_placed_is_taken_and_what_leaves_is_free() {
        let mut cluster = Cluster::default();
        cluster.put_node(&node("a", "1", json!({})));
        cluster.place(pod("p", json!({})), "a");
        assert!(cluster.decide(&pod("q", json!({}))).is_err());
        assert!(cluster.remove_pod("p"));
        assert_eq!(cluster.decide(&pod("q", json!({}))).unwrap(), "a");
        cluster.place(pod("p", json!({})), "a");
        cluster.remove_node("a");
        assert!(cluster.decide(&pod("q", json!({}))).is_err());
        cluster.remove_pod("p");
        assert!(cluster.nodes.is_empty());
    }

    #[test]
    fn anti_affinity_keeps_pods_apart_both_ways() {
        let term = json!([{"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "zone"}]);
        let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
        let mut cluster = Cluster::default();
        cluster.put_node(&node("a", "4", json!({})));
        cluster.place(pod("p", apart.clone()), "a");
        assert_eq!(
            cluster.decide(&pod("q", json!({}))).unwrap_err(),
            "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."
        );
        cluster.put_node(&node("b", "4", json!({})));
        assert_eq!(cluster.decide(&pod("q", apart)).unwrap(), "b");
        let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
        let mut cluster = Cluster::default();
        cluster.put_node(&node("a", "4", json!({})));
        cluster.put_node(&node("b", "4", json!({})));
        cluster.place(pod("p", near.clone()), "a");
        assert_eq!(cluster.decide(&pod("q", near)).unwrap(), "a");
    }

    #[test]
    fn equal_nodes_fill_evenly_and_a_thousand_decide_fast() {
        let mut cluster = Cluster::default();
        for i in 0..1000 {
            cluster.put_node(&node(&format!("n{i}"), "64", json!({})));
        }
        let begun = std::time::Instant::now();
        for i in 0..2000 {
            let p = pod(&format!("p{i}"), json!({}));
            let to = cluster.decide(&p).unwrap();
            cluster.place(p, &to);
        }
        // Generous for debug builds on a busy machine; a release build is far below.
        assert!(begun.elapsed().as_secs() < 10);
        assert!(cluster.nodes.iter().all(|n| n.used.pods <= 3));
    }
}
