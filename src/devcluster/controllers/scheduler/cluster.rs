//! The scheduler's picture of the cluster, kept up to date change by change, and the decision where a pod goes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeSelectorTerm, Taint};
use kube::ResourceExt;

use super::pod::{PodInfo, tolerates};
use super::resources::Amounts;
use super::topology::Topology;
use crate::controllers::labels::{self, Labels};

/// A node with what is left on it.
#[derive(Debug, Default)]
pub(crate) struct NodeInfo {
    pub(crate) name: String,
    /// False for a node that is gone but still has pods.
    pub(super) exists: bool,
    pub(super) labels: Labels,
    pub(super) taints: Vec<Taint>,
    pub(super) unschedulable: bool,
    allocatable: Amounts,
    used: Amounts,
    pub(super) pods: HashMap<String, Arc<PodInfo>>,
}

/// All nodes and what runs on them.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(super) nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    placed: HashMap<String, String>,
    /// Pods with required anti-affinity; while there are none, nobody pays for it.
    pub(super) standoffish: usize,
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

    /// How many nodes there are.
    pub(crate) fn total(&self) -> usize {
        self.nodes.iter().filter(|n| n.exists).count()
    }

    /// The node for a pod, or why there is none.
    pub(crate) fn decide(&mut self, pod: &PodInfo) -> Result<String, String> {
        let total = self.total();
        if total == 0 {
            return Err("no nodes available to schedule pods".into());
        }
        let topology = Topology::of(self, pod);
        let enough = sample(self.nodes.len());
        let mut best: Option<(i64, u64, usize)> = None;
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut preemption: BTreeMap<&str, usize> = BTreeMap::new();
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
                Some(why) => {
                    let hint = if node.yields(pod, &why) { NO_VICTIMS } else { NO_HELP };
                    *preemption.entry(hint).or_default() += 1;
                    why.into_iter().for_each(|r| *reasons.entry(r).or_default() += 1);
                }
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
                let mut hints: Vec<_> = preemption.into_iter().map(|(hint, n)| format!("{n} {hint}")).collect();
                hints.sort();
                let none = format!("0/{total} nodes are available:");
                Err(format!(
                    "{none} {}. no new claims to deallocate, preemption: {none} {}.",
                    reasons.join(", "),
                    hints.join(", ")
                ))
            }
        }
    }
}

/// What kube-scheduler says of nodes where fewer pods would change nothing, and of those where they might.
const NO_HELP: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
const UNSCHEDULABLE: &str = "node(s) were unschedulable";
const TAINTED: &str = "node(s) had untolerated taint(s)";
const UNSELECTED: &str = "node(s) didn't match Pod's node affinity/selector";
const NOT_NEAR: &str = "node(s) didn't match pod affinity rules";

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
    pub(super) fn selected_by(&self, pod: &PodInfo) -> bool {
        pod.node_selector.iter().all(|(k, v)| self.labels.get(k) == Some(v))
            && pod.required.as_ref().is_none_or(|terms| terms.iter().any(|t| term_takes(t, self)))
    }

    /// Why this node's taints and labels keep the pod out.
    fn unwelcome(&self, pod: &PodInfo) -> Option<Vec<String>> {
        let one = |why: &str| Some(vec![why.to_string()]);
        let tolerated =
            |key: &str, value: &str, effect: &str| pod.tolerations.iter().any(|t| tolerates(t, key, value, effect));
        if self.unschedulable && !tolerated("node.kubernetes.io/unschedulable", "", "NoSchedule") {
            return one(UNSCHEDULABLE);
        }
        for taint in self.taints.iter().filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute")) {
            let value = taint.value.as_deref().unwrap_or_default();
            if !tolerated(&taint.key, value, &taint.effect) {
                return one(TAINTED);
            }
        }
        if !self.selected_by(pod) {
            return one(UNSELECTED);
        }
        None
    }

    /// Whether a node that refuses for these reasons might take the pod if others left it.
    fn yields(&self, pod: &PodInfo, why: &[String]) -> bool {
        let (asks, have) = (&pod.asks, &self.allocatable);
        let other = |name: &String| have.other.get(name).copied().unwrap_or_default();
        let too_much =
            asks.cpu > have.cpu || asks.memory > have.memory || asks.other.iter().any(|(name, n)| *n > other(name));
        let firm = |why: &String| [UNSCHEDULABLE, TAINTED, UNSELECTED, NOT_NEAR].contains(&why.as_str());
        !too_much && !why.iter().any(firm)
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
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were \
             unschedulable. no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not \
             helpful for scheduling."
        );
        let tolerant = pod("p", json!({"tolerations": [{"key": "k", "operator": "Exists"}]}));
        assert_eq!(cluster.decide(&tolerant).unwrap(), "b");
        let picky = pod("p", json!({"nodeSelector": {"zone": "none"}, "tolerations": [{"operator": "Exists"}]}));
        assert_eq!(
            cluster.decide(&picky).unwrap_err(),
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. no new claims to deallocate, \
             preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
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
            "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules. no new claims to \
             deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
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
