//! Empties a node with a contract: every pod is evicted, so that PodDisruptionBudgets hold, for a time that is known;
//! then deleted with its grace period; then, if the node is going away, without. What holds it up is said by name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::agent::Agent;
use super::{Fleet, held, is_conflict, is_not_found};
use crate::api::virtual_node::{BarePods, DeletionPolicy, DrainSpec, DrainedDaemonSetPods, PodDeletion};
use crate::api::{VirtualNode, names};
use crate::pod::is_static;

/// Evictions and deletions of one node under way at a time.
const AT_A_TIME: usize = 16;
/// Pods that are named in a message; the rest is counted.
const NAMED: usize = 5;
/// How often a node that is being emptied is looked at; the end of a pod is noticed at once.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How far the emptying of a node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing is left that has to go.
    Done,
    /// Pods are evicted.
    Evict,
    /// Pods are deleted with their grace period.
    Delete,
    /// The time is over.
    Force,
}

/// How long each stage may take, from the beginning of the drain; `None` for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadlines {
    pub evict: Option<Duration>,
    pub force: Option<Duration>,
}

impl Deadlines {
    /// Of a node that is deleted.
    pub fn of_deletion(drain: &DrainSpec, policy: &DeletionPolicy) -> Self {
        let whole = Duration::from_secs(policy.timeout_seconds.into());
        let evict = match policy.pods {
            PodDeletion::Evict => drain.timeout().unwrap_or(whole * 4 / 5).min(whole),
            PodDeletion::Delete => Duration::ZERO,
        };
        Self { evict: Some(evict), force: Some(whole) }
    }

    /// Of a node that stays.
    pub fn on_request(drain: &DrainSpec, policy: &DeletionPolicy) -> Self {
        let at_once = policy.pods == PodDeletion::Delete;
        Self { evict: if at_once { Some(Duration::ZERO) } else { drain.timeout() }, force: None }
    }

    /// The stage after so much time.
    pub fn stage(&self, left: usize, passed: Duration) -> Stage {
        let over = |deadline: Option<Duration>| deadline.is_some_and(|d| passed >= d);
        if left == 0 {
            Stage::Done
        } else if over(self.force) {
            Stage::Force
        } else if over(self.evict) {
            Stage::Delete
        } else {
            Stage::Evict
        }
    }

    /// Whether the time of a drain that began then is over.
    pub fn over(&self, since: Timestamp) -> bool {
        self.stage(1, passed(since)) == Stage::Force
    }

    /// When the next stage begins.
    fn next(&self, passed: Duration) -> Option<Duration> {
        [self.evict, self.force].into_iter().flatten().filter(|d| *d > passed).min().map(|d| d - passed)
    }
}

fn passed(since: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default()
}

/// What of a drain its condition tells.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Progress {
    /// The drain is over.
    pub done: bool,
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence that names pods and budgets.
    pub message: String,
}

/// The pods that have to go.
pub(super) fn leaving(pods: &[Arc<Pod>], drain: &DrainSpec) -> Vec<Arc<Pod>> {
    let goes = |pod: &Pod| match () {
        () if is_static(pod) => false,
        () if is_daemon(pod) => drain.daemon_set_pods == DrainedDaemonSetPods::Evict,
        () => true,
    };
    pods.iter().filter(|p| goes(p)).cloned().collect()
}

fn controller(pod: &Pod) -> Option<&str> {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|o| o.controller == Some(true)).map(|o| &*o.kind)
}

fn is_daemon(pod: &Pod) -> bool {
    controller(pod) == Some("DaemonSet")
}

fn path(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// What the condition `Drained` says.
pub(super) fn progress(stage: Stage, left: &[Arc<Pod>], held_up: &BTreeMap<String, String>) -> Progress {
    let (reason, doing) = match stage {
        Stage::Done => {
            return Progress { done: true, reason: "NoPodsLeft", message: "no pod is left that had to go".into() };
        }
        Stage::Evict if held_up.is_empty() => ("Evicting", "being evicted"),
        Stage::Evict => ("HeldUp", "being evicted"),
        Stage::Delete => ("Deleting", "being deleted with their grace periods, the time for evictions being over"),
        Stage::Force => ("Forcing", "being deleted without grace, the time being over"),
    };
    // Those that are held up come first, being what a person has to look at.
    let mut names: Vec<_> = left.iter().map(|pod| path(pod)).collect();
    names.sort_by_key(|name| (!held_up.contains_key(name), name.clone()));
    let named = names.iter().take(NAMED).map(|name| match held_up.get(name) {
        Some(why) => format!("{name} ({why})"),
        None => name.clone(),
    });
    let more = names.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let message = format!("{} left, {doing}: {}{more}", count(names.len()), named.collect::<Vec<_>>().join(", "));
    Progress { done: false, reason, message }
}

fn count(pods: usize) -> String {
    if pods == 1 { "1 pod is".into() } else { format!("{pods} pods are") }
}

impl Fleet {
    /// A step of emptying a node. Returns the stage, those left, and when to look again.
    pub(super) async fn drain(
        &self,
        vn: &VirtualNode,
        agent: &Agent,
        deadlines: Deadlines,
        since: Timestamp,
    ) -> kube::Result<(Stage, Vec<Arc<Pod>>, Duration)> {
        let left = leaving(&self.pods_of(agent).await?, &vn.spec.drain);
        let passed = passed(since);
        let stage = deadlines.stage(left.len(), passed);
        let held_up = match stage {
            Stage::Evict => {
                let keep = vn.spec.drain.bare_pods == BarePods::Keep;
                let (kept, asked): (Vec<_>, Vec<_>) =
                    left.iter().cloned().partition(|pod| keep && controller(pod).is_none());
                let mut held_up = self.ask_to_go(agent, &asked, PodDeletion::Evict).await;
                let why = "no controller would make it anew; spec.drain.barePods is Keep";
                held_up.extend(kept.iter().map(|pod| (path(pod), why.to_owned())));
                held_up
            }
            Stage::Delete => self.ask_to_go(agent, &left, PodDeletion::Delete).await,
            Stage::Done | Stage::Force => BTreeMap::new(),
        };
        agent.state().drained = Some(progress(stage, &left, &held_up));
        let wait = deadlines.next(passed).unwrap_or(LOOK_AGAIN).clamp(Duration::from_millis(10), LOOK_AGAIN);
        Ok((stage, left, wait))
    }

    /// The pods of a node that may have been ours for a moment only: after a restart the watch of all pods had passed
    /// over those of this node, and an emptied node is not the same as one that is not known.
    pub(super) async fn pods_of(&self, agent: &Agent) -> kube::Result<Vec<Arc<Pod>>> {
        if !agent.state().runs_pods || self.pods.has_all(&agent.name) {
            return Ok(self.pods.pods(&agent.name));
        }
        self.pods.list(&agent.name).await.map_err(|error| kube::Error::Service(error.into()))
    }

    /// Asks pods to go that were not asked yet. Returns why some cannot, by name.
    async fn ask_to_go(&self, agent: &Agent, pods: &[Arc<Pod>], how: PodDeletion) -> BTreeMap<String, String> {
        let mut staying = pods.to_vec();
        staying.retain(|p| p.metadata.deletion_timestamp.is_none());
        let asked = stream::iter(staying).map(|pod| async move {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            let params = DeleteParams { preconditions: Some(of_uid(&pod)), ..DeleteParams::default() };
            let name = pod.name_any();
            let answer = match how {
                PodDeletion::Delete => held(&agent.hold, api.delete(&name, &params)).await.map(drop),
                PodDeletion::Evict => {
                    let params = EvictParams { delete_options: Some(params), ..EvictParams::default() };
                    held(&agent.hold, api.evict(&name, &params)).await.map(drop)
                }
            };
            match answer {
                Err(error) if !is_not_found(&error) && !is_conflict(&error) => Some((path(&pod), why(&error))),
                _ => None,
            }
        });
        asked.buffer_unordered(AT_A_TIME).filter_map(futures::future::ready).collect().await
    }

    /// Deletes pods without grace.
    pub(super) async fn force(&self, agent: &Agent, pods: &[Arc<Pod>]) -> kube::Result<()> {
        let forced = stream::iter(pods.to_vec()).map(|pod| async move {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            let params = DeleteParams { preconditions: Some(of_uid(&pod)), ..DeleteParams::default() }.grace_period(0);
            match held(&agent.hold, api.delete(&pod.name_any(), &params)).await {
                Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error),
                _ => Ok(()),
            }
        });
        let forced: Vec<kube::Result<()>> = forced.buffer_unordered(AT_A_TIME).collect().await;
        forced.into_iter().collect()
    }

    /// Keeps new pods away before the first one is asked to go.
    pub(super) async fn cordon(&self, agent: &Agent) -> kube::Result<()> {
        let Some(live) = self.nodes.get(&agent.name) else { return Ok(()) };
        if live.unschedulable || !live.is_owned_by(&agent.uid) {
            return Ok(());
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
        let patch = json!({"metadata": {"uid": live.uid}, "spec": {"unschedulable": true}});
        match held(&agent.hold, api.patch(&agent.name, &params, &Patch::Merge(patch))).await {
            Ok(node) => self.nodes.put(node),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// What the API server said, the budget's own words where it names one.
fn why(error: &kube::Error) -> String {
    let kube::Error::Api(status) = error else { return error.to_string() };
    let causes = status.details.iter().flat_map(|d| &d.causes);
    match causes.map(|c| &*c.message).find(|m| !m.is_empty()) {
        Some(cause) => cause.trim_end_matches('.').to_owned(),
        None => status.message.trim_end_matches('.').to_owned(),
    }
}

fn of_uid(pod: &Pod) -> Preconditions {
    Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn each_stage_has_its_time_and_the_last_one_comes() {
        let spec = |timeout: Option<&str>| DrainSpec { timeout: timeout.map(str::to_owned), ..DrainSpec::default() };
        let policy = |pods, timeout_seconds| DeletionPolicy { pods, timeout_seconds };
        let evict = policy(PodDeletion::Evict, 300);
        for (drain, policy, passed, want) in [
            (spec(None), &evict, 0, Stage::Evict),
            (spec(None), &evict, 239, Stage::Evict),
            (spec(None), &evict, 240, Stage::Delete),
            (spec(None), &evict, 300, Stage::Force),
            (spec(Some("1m30s")), &evict, 89, Stage::Evict),
            (spec(Some("1m30s")), &evict, 90, Stage::Delete),
            (spec(Some("1h")), &evict, 299, Stage::Evict),
            (spec(Some("1h")), &evict, 300, Stage::Force),
            (spec(None), &policy(PodDeletion::Delete, 300), 0, Stage::Delete),
            (spec(None), &policy(PodDeletion::Evict, 0), 0, Stage::Force),
        ] {
            let deadlines = Deadlines::of_deletion(&drain, policy);
            assert_eq!(deadlines.stage(1, S * passed), want, "{drain:?} {policy:?} after {passed} s");
            assert_eq!(deadlines.stage(0, S * passed), Stage::Done);
        }
        let request = Deadlines::on_request(&spec(None), &evict);
        assert_eq!(request.stage(1, S * 1_000_000), Stage::Evict, "budgets hold for ever");
        let request = Deadlines::on_request(&spec(Some("5s")), &evict);
        assert_eq!(request.stage(1, S * 1_000_000), Stage::Delete, "a node that stays loses no pod by force");
        assert_eq!(request.next(S * 3), Some(S * 2));
    }

    #[test]
    fn the_condition_names_what_holds_it_up() {
        let pod = |name: &str| {
            Arc::new(serde_json::from_value::<Pod>(json!({"metadata": {"name": name, "namespace": "d"}})).unwrap())
        };
        let left: Vec<_> = (0..7).map(|n| pod(&format!("web-{n}"))).collect();
        let held_up =
            BTreeMap::from([("d/web-6".to_owned(), "The disruption budget web needs 2 healthy pods".to_owned())]);
        let said = progress(Stage::Evict, &left, &held_up);
        assert_eq!((said.done, said.reason), (false, "HeldUp"));
        assert!(
            said.message.starts_with("7 pods are left, being evicted: d/web-6 (The disruption budget web"),
            "{said:?}"
        );
        assert!(said.message.ends_with("and 2 more"), "{said:?}");
        assert_eq!(progress(Stage::Evict, &left, &BTreeMap::new()).reason, "Evicting");
        assert!(progress(Stage::Done, &[], &BTreeMap::new()).done);
    }

    #[test]
    fn pods_of_daemon_sets_and_static_pods_stay_unless_asked_for() {
        let pod = |kind: &str| {
            let owners = json!([{"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "u", "controller": true}]);
            Arc::new(
                serde_json::from_value::<Pod>(json!({"metadata": {"name": kind, "ownerReferences": owners}})).unwrap(),
            )
        };
        let pods = [pod("DaemonSet"), pod("ReplicaSet")];
        assert_eq!(leaving(&pods, &DrainSpec::default()).len(), 1);
        let all = DrainSpec { daemon_set_pods: DrainedDaemonSetPods::Evict, ..DrainSpec::default() };
        assert_eq!(leaving(&pods, &all).len(), 2);
    }
}
