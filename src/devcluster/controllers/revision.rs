//! ControllerRevisions: the templates that a StatefulSet or DaemonSet has had, for `kubectl rollout history` and `undo`.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::workload::{owned_by, template_hash};
use super::world::{World, controller_of, gone_is_fine, there_is_fine};

/// What to keep of an owner's past.
pub(crate) struct History<'a> {
    pub(crate) template: &'a PodTemplateSpec,
    /// The label that carries the hash.
    pub(crate) label: &'static str,
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    /// How many old revisions stay.
    pub(crate) keep: usize,
    /// Hashes that pods still have.
    pub(crate) used: HashSet<String>,
}

/// The patch that brings an owner back to this template.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// Records the present template, unless it is, and forgets what is too old; the hash of the template.
pub(crate) async fn sync<K>(world: &World, owner: &K, history: History<'_>) -> Result<String, kube::Error>
where
    K: Resource<DynamicType = ()>,
{
    let uid = owner.uid().unwrap_or_default();
    let namespace = owner.namespace().unwrap_or_default();
    let api = world.api::<ControllerRevision>(&namespace);
    let mut all = world.revisions.select(|r| controller_of(r).is_some_and(|o| o.uid == uid));
    let number = |r: &ControllerRevision| r.revision.unwrap_or_default();
    all.sort_by_key(|r| number(r));
    let data = data(history.template);
    let last = all.last().map_or(0, |r| number(r));
    let hash = match all.iter().find(|r| r.data.0 == data) {
        Some(same) => {
            if number(same) < last {
                // An earlier template is back.
                let body = Patch::Merge(json!({"revision": last + 1}));
                gone_is_fine(api.patch(&same.name_any(), &PatchParams::default(), &body).await.map(drop))?;
            }
            same.labels().get(history.label).cloned().unwrap_or_default()
        }
        None => {
            let hash = template_hash(history.template, None);
            let mut labels = history.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
            labels.insert(history.label.into(), hash.clone());
            let revision = ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(format!("{}-{hash}", owner.name_any())),
                    labels: Some(labels),
                    annotations: history.annotations,
                    owner_references: Some(vec![owned_by(owner)]),
                    ..ObjectMeta::default()
                },
                data: RawExtension(data),
                revision: Some(last + 1),
            };
            there_is_fine(api.create(&PostParams::default(), &revision).await.map(drop))?;
            hash
        }
    };
    let old: Vec<_> = all
        .iter()
        .filter(|r| r.labels().get(history.label).is_none_or(|h| *h != hash && !history.used.contains(h)))
        .collect();
    for revision in old.iter().take(old.len().saturating_sub(history.keep)) {
        gone_is_fine(api.delete(&revision.name_any(), &DeleteParams::default()).await.map(drop))?;
    }
    Ok(hash)
}
