//! Kinds as data: what the cluster serves, built in or defined by a CustomResourceDefinition.
//!
//! [`builtin`] is the table; [`custom`] makes the same [`Kind`] from a CRD; [`Registry`] finds one by path.

mod builtin;
pub(crate) mod custom;
mod document;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;

pub use document::supported_kinds;

use crate::schema::Schema;
use crate::store::{Field, ResourceId};

pub(crate) const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The same in the order in which discovery tells those of custom kinds.
const CUSTOM_VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

/// A subresource and the kind that it speaks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Subresource {
    pub(crate) name: &'static str,
    pub(crate) group: Box<str>,
    pub(crate) version: Box<str>,
    pub(crate) kind: Box<str>,
    pub(crate) verbs: &'static [&'static str],
}

/// Where a custom kind keeps what its scale subresource shows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScalePaths {
    pub(crate) spec_replicas: String,
    pub(crate) status_replicas: String,
    pub(crate) selector: Option<String>,
}

/// One version of a resource.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) group: Box<str>,
    pub(crate) version: Box<str>,
    pub(crate) kind: Box<str>,
    pub(crate) list_kind: Box<str>,
    pub(crate) plural: Box<str>,
    pub(crate) singular: Box<str>,
    pub(crate) short_names: Vec<Box<str>>,
    pub(crate) categories: Vec<Box<str>>,
    pub(crate) namespaced: bool,
    pub(crate) verbs: &'static [&'static str],
    pub(crate) subresources: Vec<Subresource>,
    /// Name of the definition in the OpenAPI document, as in `io.k8s.api.core.v1.Pod`.
    pub(crate) definition: Box<str>,
    pub(crate) schema: Option<Schema>,
    pub(crate) fields: Vec<Field>,
    /// Where objects of all versions and aliases are stored.
    pub(crate) storage: ResourceId,
    /// `group/version` in which they are stored.
    pub(crate) storage_version: Box<str>,
    /// `metadata.generation` counts changes outside of metadata and status.
    pub(crate) generation: bool,
    /// The status belongs to the status subresource alone.
    pub(crate) status: bool,
    pub(crate) scale: Option<ScalePaths>,
    /// Printer columns of a custom kind.
    pub(crate) columns: Option<Arc<[Value]>>,
    /// What its users are warned of, when this version is on its way out.
    pub(crate) deprecation: Option<Box<str>>,
    pub(crate) custom: bool,
}

impl Kind {
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    pub(crate) fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        &*self.storage.group == group && &*self.storage.plural == plural
    }

    pub(crate) fn stored_as_served(&self) -> bool {
        *self.storage_version == *self.api_version()
    }

    /// An update must say which version it changes. apiserver: `AllowUnconditionalUpdate`.
    pub(crate) fn needs_revision(&self) -> bool {
        self.custom
            || matches!(
                (&*self.group, &*self.plural),
                ("coordination.k8s.io", "leases")
                    | ("policy", "poddisruptionbudgets")
                    | ("node.k8s.io", "runtimeclasses")
                    | ("storage.k8s.io", "csidrivers" | "csinodes" | "volumeattachments")
                    | ("apiextensions.k8s.io", "customresourcedefinitions")
                    | ("apiregistration.k8s.io", "apiservices")
            )
    }

    /// An update of what is not there creates it. apiserver: `AllowCreateOnUpdate`.
    pub(crate) fn creates_on_update(&self) -> bool {
        matches!(
            (&*self.group, &*self.plural),
            ("", "endpoints" | "events" | "limitranges" | "services")
                | ("events.k8s.io", "events")
                | ("coordination.k8s.io", "leases")
                | ("node.k8s.io", "runtimeclasses")
                | ("rbac.authorization.k8s.io", _)
        )
    }

    /// Only requests can be made of it; nothing is stored.
    pub(crate) fn is_virtual(&self) -> bool {
        self.verbs == ["create"]
    }
}

/// Group, version and plural.
type Path = (Box<str>, Box<str>, Box<str>);
/// A version and its kinds.
pub(crate) type Version = (Box<str>, Vec<Arc<Kind>>);

/// All kinds served at a moment. Replaced as a whole when a CRD changes.
#[derive(Debug, Default)]
pub(crate) struct Kinds {
    by_path: HashMap<Path, Arc<Kind>>,
    /// In the order of discovery: group, versions with the preferred first, kinds.
    pub(crate) groups: Vec<(Box<str>, Vec<Version>)>,
}

impl Kinds {
    fn new(kinds: Vec<Arc<Kind>>) -> Self {
        let mut groups: Vec<(Box<str>, Vec<Version>)> = Vec::new();
        let mut by_path = HashMap::new();
        for kind in kinds {
            by_path.insert((kind.group.clone(), kind.version.clone(), kind.plural.clone()), kind.clone());
            let at = groups.iter().position(|(g, _)| *g == kind.group).unwrap_or_else(|| {
                groups.push((kind.group.clone(), Vec::new()));
                groups.len() - 1
            });
            let versions = &mut groups[at].1;
            match versions.iter_mut().find(|(v, _)| *v == kind.version) {
                Some((_, kinds)) => kinds.push(kind),
                None => versions.push((kind.version.clone(), vec![kind])),
            }
        }
        // Served by somebody else on a cluster, so it comes after what definitions bring. apiserver: `GroupPriorityMinimum`.
        groups.sort_by_key(|(group, _)| &**group == "metrics.k8s.io");
        for (_, versions) in &mut groups {
            versions.sort_by_key(|(version, _)| std::cmp::Reverse(version_rank(version)));
            versions.iter_mut().for_each(|(_, kinds)| kinds.sort_by(|a, b| a.plural.cmp(&b.plural)));
        }
        Self { by_path, groups }
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_path.get(&(group.into(), version.into(), plural.into()))
    }

    pub(crate) fn versions(&self, group: &str) -> Option<&[Version]> {
        self.groups.iter().find(|(g, _)| &**g == group).map(|(_, versions)| versions.as_slice())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.groups.iter().flat_map(|(_, versions)| versions).flat_map(|(_, kinds)| kinds)
    }
}

/// Order of preference among versions: stable before beta before alpha, each newest first.
pub(crate) fn version_rank(version: &str) -> (u8, u32, u32) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..digits].parse().ok()?;
        let (rank, minor) = match &rest[digits..] {
            "" => (3, ""),
            tail => tail.strip_prefix("beta").map(|m| (2, m)).or(tail.strip_prefix("alpha").map(|m| (1, m)))?,
        };
        Some((rank, major, if minor.is_empty() { 0 } else { minor.parse().ok()? }))
    };
    parse().unwrap_or((0, 0, 0))
}

/// The kinds served now.
#[derive(Debug)]
pub(crate) struct Registry {
    builtin: Vec<Arc<Kind>>,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    kinds: Arc<Kinds>,
    custom: BTreeMap<String, Vec<Arc<Kind>>>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        let builtin: Vec<_> = builtin::table().into_iter().map(Arc::new).collect();
        let kinds = Arc::new(Kinds::new(builtin.clone()));
        Self { builtin, state: RwLock::new(State { kinds, custom: BTreeMap::new() }) }
    }

    pub(crate) fn kinds(&self) -> Arc<Kinds> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).kinds.clone()
    }

    /// Serves the kinds of the named CRD in place of those it had; none when `kinds` is empty.
    pub(crate) fn set_custom(&self, crd: &str, kinds: Vec<Kind>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if kinds.is_empty() {
            if state.custom.remove(crd).is_none() {
                return;
            }
        } else {
            state.custom.insert(crd.into(), kinds.into_iter().map(Arc::new).collect());
        }
        let all = self.builtin.iter().chain(state.custom.values().flatten()).cloned().collect();
        state.kinds = Arc::new(Kinds::new(all));
    }
}

/// Fields that every resource can be selected by.
pub(crate) fn common_fields(namespaced: bool) -> Vec<Field> {
    let mut fields = vec![field("metadata.name", "")];
    if namespaced {
        fields.push(field("metadata.namespace", ""));
    }
    fields
}

pub(crate) fn field(name: &str, default: &'static str) -> Field {
    Field { name: name.into(), pointer: format!("/{}", name.replace('.', "/")).into(), default, otherwise: "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_versions_are_preferred() {
        let mut versions = vec!["v1alpha1", "v2", "v1", "nonsense", "v1beta2", "v1beta1"];
        versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        assert_eq!(versions, ["v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "nonsense"]);
    }

    #[test]
    fn no_two_kinds_share_a_path_or_a_name() {
        let table = builtin::table();
        for (i, a) in table.iter().enumerate() {
            for b in &table[i + 1..] {
                let path = |k: &Kind| (k.group.clone(), k.version.clone(), k.plural.clone());
                assert_ne!(path(a), path(b));
            }
        }
    }
}
