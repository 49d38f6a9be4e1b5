//! Which labels, annotations and taints of a Node are ours, and the patch that changes only those.
//!
//! Server-side apply cannot do it: the Node must be created with its marks (a POST, whose fields apply
//! would not take back), and `spec.taints` is one atomic list that the node-lifecycle controller writes
//! as well. So what we set is remembered in an annotation, as `kubectl apply` does, and survives restarts.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Taint;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::live::LiveNode;
use super::render::Marks;

/// Annotation on a Node: the names of the marks that we set.
pub const APPLIED: &str = "vnode.dev/applied";

/// What we set last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Applied {
    labels: Vec<String>,
    annotations: Vec<String>,
    /// Key and effect.
    taints: Vec<(String, String)>,
    /// The node was cordoned for a drain.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cordoned: bool,
}

impl Applied {
    fn of(marks: &Marks) -> Self {
        Self {
            labels: marks.labels.keys().cloned().collect(),
            annotations: marks.annotations.keys().cloned().collect(),
            taints: marks.taints.iter().map(|t| (t.key.clone(), t.effect.clone())).collect(),
            cordoned: marks.cordon,
        }
    }

    fn to_json(&self) -> String {
        // Lists of strings always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The annotations of a new Node: its own and the memory of what was set.
pub fn annotations(marks: &Marks) -> BTreeMap<String, String> {
    let mut annotations = marks.annotations.clone();
    annotations.insert(APPLIED.into(), Applied::of(marks).to_json());
    annotations
}

/// The merge patch that brings our marks up to date; `None` when they are.
///
/// It carries the resourceVersion when it must replace the list of taints, so that a taint that somebody
/// else sets at the same time is not lost.
pub fn patch(live: &LiveNode, marks: &Marks, unschedulable: Option<bool>) -> Option<Value> {
    let before: Applied =
        live.annotations.get(APPLIED).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let labels = changes(&live.labels, &before.labels, &marks.labels);
    let mut new_annotations = annotations(marks);
    // The order of names is no difference worth a write.
    if before == Applied::of(marks) {
        new_annotations.remove(APPLIED);
    }
    let annotations = changes(&live.annotations, &before.annotations, &new_annotations);
    let taints = merged_taints(&live.taints, &before.taints, &marks.taints);

    let mut metadata = Map::new();
    if !labels.is_empty() {
        metadata.insert("labels".into(), labels.into());
    }
    if !annotations.is_empty() {
        metadata.insert("annotations".into(), annotations.into());
    }
    let mut spec = Map::new();
    if !same_taints(&taints, &live.taints) {
        spec.insert("taints".into(), json!(taints));
        metadata.insert("resourceVersion".into(), live.resource_version.clone().into());
    }
    // The cordon of a drain ends with it; one made by hand is left alone unless the spec decides.
    let drained = if marks.cordon { Some(true) } else { before.cordoned.then_some(false) };
    if let Some(wanted) = if marks.cordon { drained } else { unschedulable.or(drained) }
        && wanted != live.unschedulable
    {
        spec.insert("unschedulable".into(), if wanted { Value::Bool(true) } else { Value::Null });
    }
    if metadata.is_empty() && spec.is_empty() {
        return None;
    }
    // Never somebody else's Node of the same name.
    metadata.insert("uid".into(), live.uid.clone().into());
    let mut patch = json!({"metadata": metadata});
    if !spec.is_empty() {
        patch["spec"] = spec.into();
    }
    Some(patch)
}

fn changes(live: &BTreeMap<String, String>, before: &[String], now: &BTreeMap<String, String>) -> Map<String, Value> {
    let set = now.iter().filter(|(k, v)| live.get(*k) != Some(v)).map(|(k, v)| (k.clone(), Value::from(v.as_str())));
    let gone = before.iter().filter(|k| !now.contains_key(*k) && live.contains_key(*k) && *k != APPLIED);
    set.chain(gone.map(|k| (k.clone(), Value::Null))).collect()
}

fn merged_taints(live: &[Taint], before: &[(String, String)], ours: &[Taint]) -> Vec<Taint> {
    let is_ours = |t: &Taint| {
        before.iter().any(|(k, e)| *k == t.key && *e == t.effect)
            || ours.iter().any(|o| o.key == t.key && o.effect == t.effect)
    };
    let kept = |o: &Taint| {
        // The API server stamps NoExecute taints; a taint that stays keeps its stamp.
        let added = live.iter().find(|l| l.key == o.key && l.effect == o.effect && l.value == o.value);
        Taint { time_added: added.and_then(|l| l.time_added.clone()).or(o.time_added.clone()), ..o.clone() }
    };
    live.iter().filter(|t| !is_ours(t)).cloned().chain(ours.iter().map(kept)).collect()
}

fn same_taints(a: &[Taint], b: &[Taint]) -> bool {
    a.len() == b.len() && a.iter().all(|t| b.contains(t))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, effect: &str) -> Taint {
        Taint { key: key.into(), effect: effect.into(), value: None, time_added: None }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    }

    fn marks(labels: &[(&str, &str)], taints: &[Taint]) -> Marks {
        Marks { labels: map(labels), annotations: map(&[("owner", "u")]), taints: taints.to_vec(), cordon: false }
    }

    fn live(marks: &Marks) -> LiveNode {
        LiveNode {
            uid: "u".into(),
            resource_version: "7".into(),
            labels: marks.labels.clone(),
            annotations: annotations(marks),
            taints: marks.taints.clone(),
            ..LiveNode::default()
        }
    }

    #[test]
    fn nothing_is_written_when_nothing_changed() {
        let marks = marks(&[("a", "1")], &[taint("t", "NoSchedule")]);
        assert_eq!(patch(&live(&marks), &marks, None), None);
    }

    #[test]
    fn what_we_set_before_is_taken_away_and_what_others_set_stays() {
        let old = marks(&[("ours", "1"), ("both", "1")], &[taint("ours", "NoSchedule")]);
        let mut node = live(&old);
        node.labels.insert("theirs".into(), "x".into());
        node.taints.push(taint("node.kubernetes.io/not-ready", "NoExecute"));
        let new = marks(&[("both", "2")], &[taint("new", "NoSchedule")]);
        let patch = patch(&node, &new, None).unwrap();
        assert_eq!(patch["metadata"]["labels"], json!({"ours": null, "both": "2"}));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        let keys: Vec<_> = patch["spec"]["taints"].as_array().unwrap().iter().map(|t| t["key"].clone()).collect();
        assert_eq!(keys, ["node.kubernetes.io/not-ready", "new"]);
    }

    #[test]
    fn a_mark_that_somebody_removed_comes_back() {
        let marks = marks(&[("a", "1")], &[taint("t", "NoSchedule")]);
        let mut node = live(&marks);
        node.labels.clear();
        node.taints.clear();
        let patch = patch(&node, &marks, None).unwrap();
        assert_eq!(patch["metadata"]["labels"]["a"], "1");
        assert_eq!(patch["spec"]["taints"][0]["key"], "t");
    }

    #[test]
    fn the_cordon_of_a_drain_ends_with_it() {
        let (idle, drain) = (marks(&[], &[]), Marks { cordon: true, ..marks(&[], &[]) });
        let cordoned = patch(&live(&idle), &drain, None).unwrap();
        assert_eq!(cordoned["spec"], json!({"unschedulable": true}));
        let mut node = live(&drain);
        node.unschedulable = true;
        assert_eq!(patch(&node, &drain, Some(false)), None, "a drain is stronger");
        assert_eq!(patch(&node, &idle, None).unwrap()["spec"], json!({"unschedulable": null}));
        assert!(patch(&node, &idle, Some(true)).unwrap().get("spec").is_none(), "the spec keeps it cordoned");
    }

    #[test]
    fn a_cordon_by_hand_is_left_alone_unless_the_spec_decides() {
        let marks = marks(&[], &[]);
        let mut node = live(&marks);
        node.unschedulable = true;
        assert_eq!(patch(&node, &marks, None), None);
        assert_eq!(patch(&node, &marks, Some(true)), None);
        assert_eq!(patch(&node, &marks, Some(false)).unwrap()["spec"], json!({"unschedulable": null}));
    }
}
