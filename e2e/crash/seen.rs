//! What was seen of pods and nodes: every version of each, from one watch, and what is wrong with them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use futures::StreamExt as _;
use kube::api::DynamicObject;
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::Value;

use crate::support::objects;

/// One version of an object.
pub struct Version {
    pub object: Value,
    pub gone: bool,
}

/// All versions, in the order in which they came.
pub type Seen = Rc<RefCell<Vec<Version>>>;

/// Begins to watch all objects of a kind.
pub fn watch(client: &Client, kind: &str) -> Seen {
    let seen = Seen::default();
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &objects::resource(kind));
    let versions = seen.clone();
    tokio::task::spawn_local(async move {
        let mut events = watcher(api, watcher::Config::default()).boxed();
        while let Some(event) = events.next().await {
            let Some((object, gone)) = objects::change(event) else { continue };
            let object = serde_json::to_value(&object).expect("an object is JSON");
            versions.borrow_mut().push(Version { object, gone });
        }
    });
    seen
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn rank(phase: &str) -> u8 {
    match phase {
        "Running" => 1,
        "Succeeded" | "Failed" => 2,
        _ => 0,
    }
}

/// What one pod was last seen with.
#[derive(Default)]
struct Story {
    name: String,
    phase: String,
    /// By the container's name: which one it is.
    containers: BTreeMap<String, String>,
    ran: bool,
    node: String,
}

/// What is wrong with the pods of a namespace: each must have gone forward, with the same containers all its life. The
/// pods of a name that ran are counted.
pub fn complaints_of_pods(versions: &[Version], namespace: &str, wanted: &[(&str, usize)]) -> Vec<String> {
    let mut stories = BTreeMap::<String, Story>::new();
    let mut complaints = BTreeSet::new();
    let of_namespace = versions.iter().map(|v| &v.object).filter(|p| p["metadata"]["namespace"] == namespace);
    for pod in of_namespace {
        let story = stories.entry(text(&pod["metadata"]["uid"]).to_owned()).or_default();
        story.name = text(&pod["metadata"]["name"]).to_owned();
        let (name, phase) = (&story.name, text(&pod["status"]["phase"]));
        let back =
            rank(phase) < rank(&story.phase) || rank(phase) == 2 && rank(&story.phase) == 2 && phase != story.phase;
        if back {
            complaints.insert(format!("pod {name} went from {} to {phase}", story.phase));
        }
        if phase == "Failed" && pod["metadata"]["deletionTimestamp"].is_null() {
            complaints.insert(format!("pod {name} failed: {}", pod["status"]));
        }
        story.phase = phase.to_owned();
        story.node = text(&pod["spec"]["nodeName"]).to_owned();
        story.ran |= rank(phase) > 0;
        let statuses = ["initContainerStatuses", "containerStatuses"].map(|field| pod["status"][field].as_array());
        for status in statuses.into_iter().flatten().flatten() {
            let container = text(&status["name"]);
            if status["restartCount"] != 0 {
                complaints.insert(format!("container {container} of pod {name} was restarted: {status}"));
            }
            let id = text(&status["containerID"]);
            if id.is_empty() {
                continue;
            }
            let started = [&status["state"]["running"], &status["state"]["terminated"]];
            let started = started.iter().map(|s| text(&s["startedAt"])).find(|s| !s.is_empty()).unwrap_or("-");
            let now = format!("{id} of {started}");
            let before = story.containers.entry(container.to_owned()).or_insert_with(|| now.clone());
            if *before != now {
                complaints.insert(format!("container {container} of pod {name} was {before} and became {now}"));
            }
        }
    }
    for (name, count) in wanted {
        let ran: Vec<_> = stories.values().filter(|s| s.name == *name && s.ran).map(|s| &*s.node).collect();
        if ran.len() != *count {
            complaints.insert(format!("{} pods of name {name} ran, not {count}: on {ran:?}", ran.len()));
        }
    }
    complaints.into_iter().collect()
}

/// What is wrong with the nodes of a life: none was made anew, or missed.
pub fn complaints_of_nodes(versions: &[Version], names: &[String]) -> Vec<String> {
    let mut complaints = Vec::new();
    for name in names {
        let of_name = || versions.iter().filter(|v| v.object["metadata"]["name"] == name.as_str());
        let uids: BTreeSet<_> = of_name().map(|v| text(&v.object["metadata"]["uid"])).collect();
        if uids.len() != 1 {
            complaints.push(format!("node {name} was made {} times", uids.len()));
        }
        let ready = |v: &Version| {
            let conditions = v.object["status"]["conditions"].as_array().into_iter().flatten();
            conditions.filter(|c| c["type"] == "Ready").map(|c| text(&c["status"]).to_owned()).next_back()
        };
        let missed = of_name().filter_map(ready).skip_while(|status| status != "True").find(|status| status != "True");
        if let Some(status) = missed {
            complaints.push(format!("node {name} was ready, and then {status}"));
        }
        if of_name().next_back().is_some_and(|v| !v.gone) {
            complaints.push(format!("node {name} was left behind"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(phase: &str, id: &str, restarts: u64) -> Version {
        let status = json!({"phase": phase, "containerStatuses": [{"name": "main", "containerID": id,
            "restartCount": restarts, "state": {"running": {"startedAt": "then"}}}]});
        let metadata = json!({"name": "a", "namespace": "b", "uid": "c"});
        Version { object: json!({"metadata": metadata, "status": status}), gone: false }
    }

    #[test]
    fn a_pod_that_went_back_or_was_doubled_is_told_of() {
        for (versions, says) in [
            (vec![pod("Pending", "", 0), pod("Running", "x", 0), pod("Succeeded", "x", 0)], ""),
            (vec![pod("Running", "x", 0), pod("Pending", "x", 0)], "went from Running to Pending"),
            (vec![pod("Succeeded", "x", 0), pod("Failed", "x", 0)], "went from Succeeded to Failed"),
            (vec![pod("Running", "x", 0), pod("Running", "y", 0)], "became y"),
            (vec![pod("Running", "x", 1)], "was restarted"),
            (vec![pod("Failed", "x", 0)], "failed"),
            (vec![pod("Pending", "", 0)], "0 pods of name a ran, not 1"),
        ] {
            let complaints = complaints_of_pods(&versions, "b", &[("a", 1)]).join("; ");
            assert_eq!(says.is_empty(), complaints.is_empty(), "{says}: {complaints}");
            assert!(complaints.contains(says), "{says}: {complaints}");
        }
    }
}
