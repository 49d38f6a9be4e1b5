//! VirtualNodeSets: keeps as many VirtualNodes of a template as a set says.
//!
//! A set is worked on by one replica of the operator, the one its name belongs to. Its VirtualNodes are written with
//! server-side apply, so that what somebody else sets on one of them stays.

mod plan;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::{Selector, SelectorExt as _};
use kube::runtime::reflector::{ObjectRef, Store, store::Writer};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource as _, ResourceExt as _};
use rand::Rng as _;
use rand::distr::Alphanumeric;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::plan::{Action, Child};
use super::{Fleet, is_conflict, is_not_found, within};
use crate::api::virtual_node_set::{VirtualNodeSet, VirtualNodeSetStatus};
use crate::api::{VirtualNode, conditions};
use crate::cluster::merge;
use crate::cluster::queue::Outcome;
use crate::cluster::watch::watch;

/// Label on every VirtualNode of a set: the set's name.
pub const SET: &str = "vnode.dev/set";
/// Annotation on a VirtualNode: what of the template it was last brought to.
const HASH: &str = "vnode.dev/template-hash";
/// Field manager of what the template says.
const MANAGER: &str = "vnode-set";
/// Sets worked on at a time.
const WORKERS: usize = 4;
/// Writes of one set under way at a time.
const AT_A_TIME: usize = 16;
/// Writes of one step; the rest follows when these are seen.
const BURST: usize = 500;
/// How long the watch may take to show what was made.
const UNSEEN: Duration = Duration::from_secs(30);

/// What was made and not yet seen, by set.
#[derive(Default)]
pub(super) struct Expected(Mutex<HashMap<String, HashMap<String, Instant>>>);

impl Expected {
    fn note(&self, set: &str, made: impl IntoIterator<Item = String>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(set.into()).or_default().extend(made.into_iter().map(|name| (name, Instant::now())));
    }

    /// Whether everything that was made has been seen.
    fn seen(&self, set: &str, is_there: impl Fn(&str) -> bool) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(made) = all.get_mut(set) else { return true };
        made.retain(|name, at| !is_there(name) && at.elapsed() < UNSEEN);
        if made.is_empty() {
            all.remove(set);
            return true;
        }
        false
    }
}

impl Fleet {
    /// Watches the sets until `shutdown`.
    pub(super) async fn watch_sets(self: Arc<Self>, writer: Writer<VirtualNodeSet>, shutdown: CancellationToken) {
        let api: Api<VirtualNodeSet> = Api::all(self.client.clone());
        let events = watch(api, watcher::Config::default()).modify(|set| set.managed_fields_mut().clear());
        let mut events = events.reflect(writer).boxed();
        while let Some(Some(event)) = shutdown.run_until_cancelled(events.next()).await {
            match event {
                Ok(watcher::Event::Apply(set) | watcher::Event::InitApply(set)) => self.sets.queue.add(set.name_any()),
                Ok(watcher::Event::InitDone) => self.all_sets(),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the watch of VirtualNodeSets is interrupted"),
            }
        }
    }

    /// Looks at all sets, as when other replicas are alive.
    pub(super) fn all_sets(&self) {
        self.sets.store.state().iter().for_each(|set| self.sets.queue.add(set.name_any()));
    }

    /// A VirtualNode has changed: its set has a look.
    pub(super) fn look_at_set_of(&self, vn: &VirtualNode) {
        let owner = vn.owner_references().iter().find(|o| o.controller == Some(true) && o.kind == "VirtualNodeSet");
        if let Some(name) = owner.map(|o| &o.name).or_else(|| vn.labels().get(SET)) {
            self.sets.queue.add(name.clone());
        }
    }

    /// Works on the sets until `shutdown`.
    pub(super) async fn run_sets(self: Arc<Self>, shutdown: CancellationToken) {
        let queue = self.sets.queue.clone();
        let step = move |name: String| {
            let fleet = self.clone();
            let span = tracing::info_span!("reconcile virtual node set", set = name);
            let step = async move {
                match AssertUnwindSafe(fleet.set_step(&name)).catch_unwind().await {
                    Ok(Ok(outcome)) => outcome,
                    Ok(Err(error)) if is_conflict(&error) || is_not_found(&error) => Outcome::Retry,
                    Ok(Err(error)) => {
                        tracing::warn!(set = name, %error, "a step failed; it is tried again");
                        Outcome::Retry
                    }
                    Err(_) => {
                        tracing::error!(set = name, "a step panicked; it is tried again");
                        Outcome::Retry
                    }
                }
            };
            step.instrument(span)
        };
        queue.run(WORKERS, shutdown, step).await;
    }

    async fn set_step(&self, name: &str) -> kube::Result<Outcome> {
        let Some(set) = self.sets.store.get(&ObjectRef::new(name)) else { return Ok(Outcome::Done) };
        // Its VirtualNodes are the garbage collector's when it goes.
        if set.metadata.deletion_timestamp.is_some()
            || self.members.owner(&format!("virtualnodeset/{name}")).as_ref() != Some(&self.config.identity)
        {
            return Ok(Outcome::Done);
        }
        let selector = match selector(&set) {
            Ok(selector) => selector,
            Err(message) => {
                let status = VirtualNodeSetStatus { replicas: 0, ..set.status.clone().unwrap_or_default() };
                self.write_set_status(&set, status, Some(message), None).await?;
                return Ok(Outcome::Done);
            }
        };
        let hash = template_hash(&set);
        let mut owned = self.claim(&set, &selector).await?;
        owned.sort_by_key(|vn| vn.name_any());
        let uid = set.uid().unwrap_or_default();
        let is_there = |name: &str| self.virtual_node(name).is_some();
        let now = Timestamp::now();
        let children: Vec<Child> = owned.iter().map(|vn| self.child(&set, vn, &hash, now)).collect();
        let mut status = plan::count(&children);
        status.selector = Some(selector.to_string());
        let acted = if self.sets.expected.seen(&uid, is_there) {
            let strangers = self.strangers(name, &owned);
            let mut actions = plan::plan(&set.spec, &children, &strangers);
            actions.truncate(BURST);
            let makes = |action: &Action| matches!(action, Action::Create(_));
            if actions.iter().any(makes) && !self.is_wanted(&set).await? {
                actions.retain(|action| !makes(action));
            }
            self.act(&set, &hash, actions).await
        } else {
            Ok(())
        };
        let trouble = acted.as_ref().err().map(ToString::to_string);
        self.write_set_status(&set, status, None, trouble).await?;
        acted?;
        // Time makes available what is ready.
        let waits = children.iter().any(|c| c.ready && !c.available);
        Ok(if waits { Outcome::After(Duration::from_secs(1)) } else { Outcome::Done })
    }

    /// Whether the API server still has the set. Its VirtualNodes may be seen to leave before it is seen to be gone, and
    /// those that the garbage collector takes away are not made anew.
    async fn is_wanted(&self, set: &VirtualNodeSet) -> kube::Result<bool> {
        let api: Api<VirtualNodeSet> = Api::all(self.client.clone());
        let live = within(api.get_metadata_opt(&set.name_any())).await?.map(|live| live.metadata);
        Ok(live.is_some_and(|live| live.uid == set.metadata.uid && live.deletion_timestamp.is_none()))
    }

    /// The numbers of VirtualNodes that are named as if they were of the set and are not.
    fn strangers(&self, set: &str, owned: &[Arc<VirtualNode>]) -> Vec<u32> {
        let owned: HashSet<_> = owned.iter().filter_map(|vn| vn.metadata.name.as_deref()).collect();
        let all = self.virtual_nodes.state();
        let foreign = all.iter().filter_map(|vn| vn.metadata.name.as_deref()).filter(|name| !owned.contains(name));
        foreign.filter_map(|name| ordinal(set, name)).collect()
    }

    /// The VirtualNodes of a set: those that it controls, those without a controller that it selects, but not those
    /// that it selects no more.
    async fn claim(&self, set: &VirtualNodeSet, selector: &Selector) -> kube::Result<Vec<Arc<VirtualNode>>> {
        let uid = set.uid().unwrap_or_default();
        let mut owned = Vec::new();
        for vn in self.virtual_nodes.state() {
            let controller = vn.owner_references().iter().find(|o| o.controller == Some(true));
            match controller {
                Some(owner) if owner.uid != uid => {}
                Some(_) if selector.matches(vn.labels()) => owned.push(vn),
                Some(_) => self.own(set, &vn, false).await?,
                None if vn.metadata.deletion_timestamp.is_none() && selector.matches(vn.labels()) => {
                    self.own(set, &vn, true).await?;
                    owned.push(vn);
                }
                None => {}
            }
        }
        Ok(owned)
    }

    /// Takes a VirtualNode in, or lets it be.
    async fn own(&self, set: &VirtualNodeSet, vn: &VirtualNode, ours: bool) -> kube::Result<()> {
        let mut owners = vn.owner_references().to_vec();
        owners.retain(|o| Some(&o.uid) != set.metadata.uid.as_ref());
        owners.extend(ours.then(|| owner(set)));
        let patch = json!({"metadata": {
            "uid": vn.uid(), "resourceVersion": vn.resource_version(), "ownerReferences": owners,
        }});
        let api: Api<VirtualNode> = Api::all(self.client.clone());
        within(api.patch_metadata(&vn.name_any(), &PatchParams::default(), &Patch::Merge(patch))).await.map(drop)
    }

    fn child(&self, set: &VirtualNodeSet, vn: &VirtualNode, hash: &str, now: Timestamp) -> Child {
        let status = vn.status.clone().unwrap_or_default();
        let observed = status.observed_generation == vn.metadata.generation;
        let ready = status.conditions.iter().find(|c| c.type_ == conditions::READY && c.status == "True");
        let since = ready.map(|c| now.duration_since(c.last_transition_time.0).as_secs());
        let name = vn.name_any();
        Child {
            ordinal: ordinal(&set.name_any(), &name),
            current: vn.annotations().get(HASH).is_some_and(|h| h == hash),
            to_replace: vn.spec.provider.kind != set.spec.template.spec.provider.kind,
            ready: observed && ready.is_some(),
            available: observed && since.is_some_and(|s| s >= i64::from(set.spec.min_ready_seconds)),
            cordoned: vn.spec.unschedulable == Some(true)
                || vn.spec.drain.requested
                || self.nodes.get(&name).is_some_and(|n| n.unschedulable),
            pods: status.pods.map_or(0, |p| p.total),
            leaving: vn.metadata.deletion_timestamp.is_some(),
            name,
        }
    }

    async fn act(&self, set: &VirtualNodeSet, hash: &str, actions: Vec<Action>) -> kube::Result<()> {
        let uid = set.uid().unwrap_or_default();
        let done = stream::iter(actions).map(|action| {
            let uid = &uid;
            async move {
                match action {
                    Action::Create(ordinal) => {
                        let name = child_name(&set.name_any(), ordinal);
                        if self.virtual_node(&name).is_some() {
                            // Somebody has just made one of that name: the next look passes it over.
                            return Ok(());
                        }
                        // Without force: a VirtualNode of that name that is somebody else's is a conflict.
                        self.apply_child(set, &name, hash, false).await?;
                        self.sets.expected.note(uid, [name]);
                        Ok(())
                    }
                    Action::Update(name) => self.apply_child(set, &name, hash, true).await,
                    Action::Delete(name) => {
                        let Some(vn) = self.virtual_node(&name) else { return Ok(()) };
                        let same = Preconditions { uid: vn.uid(), resource_version: None };
                        let params = DeleteParams { preconditions: Some(same), ..DeleteParams::background() };
                        let api: Api<VirtualNode> = Api::all(self.client.clone());
                        match within(api.delete(&name, &params)).await {
                            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error),
                            _ => Ok(()),
                        }
                    }
                }
            }
        });
        let mut done = done.buffer_unordered(AT_A_TIME);
        let mut first = Ok(());
        while let Some(result) = done.next().await {
            if first.is_ok() {
                first = result;
            }
        }
        first
    }

    async fn apply_child(&self, set: &VirtualNodeSet, name: &str, hash: &str, force: bool) -> kube::Result<()> {
        let params = PatchParams { force, ..PatchParams::apply(MANAGER) };
        let api: Api<VirtualNode> = Api::all(self.client.clone());
        within(api.patch(name, &params, &Patch::Apply(child(set, name, hash)))).await.map(drop)
    }

    async fn write_set_status(
        &self,
        set: &VirtualNodeSet,
        mut status: VirtualNodeSetStatus,
        wrong: Option<String>,
        trouble: Option<String>,
    ) -> kube::Result<()> {
        let (generation, now) = (set.metadata.generation, Timestamp::now());
        let mut all = set.status.as_ref().map(|s| s.conditions.clone()).unwrap_or_default();
        let wanted = set.spec.replicas;
        let complete = wrong.is_none()
            && [status.replicas, status.updated_replicas, status.available_replicas].iter().all(|n| *n == wanted);
        let progress = format!(
            "{wanted} desired: {} there, {} up to date, {} available",
            status.replicas, status.updated_replicas, status.available_replicas
        );
        let (reason, message) = match &wrong {
            Some(wrong) => ("SelectorInvalid", wrong.as_str()),
            None => ("Valid", "the selector fits the template"),
        };
        conditions::set(&mut all, conditions::ACCEPTED, wrong.is_none(), reason, message, generation, now);
        let (reason, progress) = match trouble {
            Some(trouble) => ("Failing", format!("{progress}; {trouble}")),
            None if complete => ("Complete", progress),
            None => ("Progressing", progress),
        };
        conditions::set(&mut all, conditions::READY, complete, reason, &progress, generation, now);
        status.conditions = all;
        status.observed_generation = generation;
        let before = json!(set.status.clone().unwrap_or_default());
        let Some(patch) = merge::diff(&before, &json!(status)) else { return Ok(()) };
        let api: Api<VirtualNodeSet> = Api::all(self.client.clone());
        let patch = json!({"metadata": {"uid": set.uid()}, "status": patch});
        match within(api.patch_status(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch))).await {
            Err(error) if !is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// The sets of the fleet.
pub(super) struct Sets {
    pub store: Store<VirtualNodeSet>,
    pub queue: Arc<crate::cluster::queue::WorkQueue<String>>,
    pub expected: Expected,
}

fn selector(set: &VirtualNodeSet) -> Result<Selector, String> {
    let Some(selector) = &set.spec.selector else {
        return Ok([(SET.to_owned(), set.name_any())].into_iter().collect());
    };
    let parsed: Selector = selector.clone().try_into().map_err(|error| format!("spec.selector: {error}"))?;
    if selector.match_labels.is_none() && selector.match_expressions.is_none() {
        return Err("spec.selector: an empty selector would select every VirtualNode; name a label".into());
    }
    if !parsed.matches(&labels(set)) {
        return Err("spec.selector does not select the labels of spec.template.metadata.labels".into());
    }
    Ok(parsed)
}

fn labels(set: &VirtualNodeSet) -> BTreeMap<String, String> {
    let mut labels = set.spec.template.metadata.labels.clone();
    labels.insert(SET.into(), set.name_any());
    labels
}

/// A short digest of the template: its nodes follow when it changes.
fn template_hash(set: &VirtualNodeSet) -> String {
    // A template is plain data, which always serialises; maps are ordered.
    let digest = Sha256::digest(serde_json::to_vec(&set.spec.template).unwrap_or_default());
    digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

/// The number in the name of a node of a set.
fn ordinal(set: &str, name: &str) -> Option<u32> {
    name.strip_prefix(set)?.strip_prefix('-')?.parse().ok()
}

fn child_name(set: &str, ordinal: Option<u32>) -> String {
    match ordinal {
        Some(ordinal) => format!("{set}-{ordinal}"),
        None => {
            let word: String = rand::rng().sample_iter(Alphanumeric).take(5).map(char::from).collect();
            format!("{set}-{}", word.to_ascii_lowercase())
        }
    }
}

fn owner(set: &VirtualNodeSet) -> OwnerReference {
    // A set that is in the store has a name and a uid.
    set.controller_owner_ref(&()).unwrap_or_default()
}

fn child(set: &VirtualNodeSet, name: &str, hash: &str) -> Value {
    let mut annotations = set.spec.template.metadata.annotations.clone();
    annotations.insert(HASH.into(), hash.into());
    json!({
        "apiVersion": VirtualNode::api_version(&()),
        "kind": VirtualNode::kind(&()),
        "metadata": {
            "name": name, "labels": labels(set), "annotations": annotations, "ownerReferences": [owner(set)],
        },
        "spec": set.spec.template.spec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(spec: Value) -> VirtualNodeSet {
        let mut all = json!({"template": {"spec": {"provider": {"type": "mock", "mock": {}}}}});
        for (key, value) in spec.as_object().unwrap() {
            all[key] = value.clone();
        }
        let meta = json!({"name": "edge", "uid": "u"});
        serde_json::from_value(
            json!({"apiVersion": "vnode.dev/v1alpha1", "kind": "VirtualNodeSet", "metadata": meta, "spec": all}),
        )
        .unwrap()
    }

    #[test]
    fn a_selector_must_select_what_the_template_makes() {
        assert_eq!(selector(&set(json!({}))).unwrap().to_string(), "vnode.dev/set=edge");
        let template =
            json!({"metadata": {"labels": {"zone": "a"}}, "spec": {"provider": {"type": "mock", "mock": {}}}});
        let with = |selector| set(json!({"selector": selector, "template": template}));
        assert!(selector(&with(json!({"matchLabels": {"zone": "a"}}))).is_ok());
        assert!(
            selector(&with(json!({"matchLabels": {"zone": "b"}}))).unwrap_err().contains("template.metadata.labels")
        );
        assert!(selector(&with(json!({}))).unwrap_err().contains("name a label"));
    }

    #[test]
    fn a_change_of_the_template_alone_changes_the_hash() {
        let a = set(json!({"replicas": 1}));
        assert_eq!(template_hash(&a), template_hash(&set(json!({"replicas": 9}))));
        let other = json!({"spec": {"provider": {"type": "mock", "mock": {}}, "capacity": {"cpu": 8}}});
        assert_ne!(template_hash(&a), template_hash(&set(json!({"template": other}))));
    }

    #[test]
    fn names_are_those_of_objects() {
        assert_eq!(child_name("edge", Some(12)), "edge-12");
        let name = child_name("edge", None);
        assert!(
            name.len() == 10 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
            "{name}"
        );
    }
}
