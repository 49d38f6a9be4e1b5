//! Changing an object: one loop of compare and swap under every PUT and PATCH.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::create::{check_fields, check_identity, expect, invalid, record};
use super::{Api, Source, Write, Written, conflict, convert, log_failed, meta, modified, strategy};
use crate::kinds::Kind;
use crate::status::{ApiError, FieldError, Result};
use crate::store::{Draft, Expect, Key, Object, Refused};
use crate::validate;

/// Attempts of a write that does not insist on a revision before its client hears of the conflict.
const ATTEMPTS: usize = 64;

impl Api {
    /// Replaces an object by what `change` makes of its present state, as often as others get in between.
    pub(crate) fn modify(
        &self,
        write: &Write<'_>,
        key: &Key,
        change: impl Fn(&Value) -> Result<Value>,
    ) -> Result<Written> {
        for _ in 0..ATTEMPTS {
            let current = expect(write, key)?;
            let old = Self::served_value(write.kind, &current);
            let new = change(&old)?;
            if let Some(written) = self.replace(write, &current, &old, new)? {
                return Ok(written);
            }
        }
        Err(modified(write.kind, &key.name))
    }

    /// Replaces `current`; `None` when somebody else was faster.
    fn replace(
        &self,
        write: &Write<'_>,
        current: &Arc<Object>,
        old: &Value,
        mut new: Value,
    ) -> Result<Option<Written>> {
        let (kind, name) = (write.kind, &*current.key.name);
        check_identity(kind, &mut new, &current.key.namespace, name)?;
        check_preconditions(write, current, &new)?;
        let mut errors = meta::immutable(&new, old);
        let mut warnings = check_fields(write, &mut new, Some(old))?;
        keep_metadata(&mut new, old, write.source);
        isolate(write, &mut new, old);
        strategy::prepare_update(self, write, &mut new, old)?;
        if let Some(schema) = &kind.schema {
            schema.default(&mut new);
        }
        let rules = validate::rules(&kind.group, &kind.kind);
        (rules.default)(&mut new);
        if let Some(schema) = &kind.schema {
            schema.canonical(&mut new, Some(old));
        }
        // Being bound is no change of what was asked for.
        let asked = !matches!(write.subresource, "status" | "binding");
        if kind.generation && asked && content_differs(&new, old) {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            new["metadata"]["generation"] = generation.into();
        }
        errors.extend(meta::validate(kind, &new, Some(old)));
        if !kind.custom {
            // Kubernetes looks at the metadata of its own kinds twice.
            errors.extend(errors.clone());
        }
        errors.extend(strategy::validate_update(write, &new, old));
        // KEP-1287: what otherwise never changes may change here, by rules of its own.
        if !(kind.is("", "pods") && write.subresource == "resize") {
            errors.extend((rules.validate)(&new, Some(old)));
        }
        if kind.custom
            && let Some(schema) = &kind.schema
        {
            errors.extend(schema.validate(&new, Some(old)));
        }
        if !errors.is_empty() {
            return Err(invalid(kind, name, &errors).warned(&warnings));
        }
        if asked {
            warnings.extend(validate::warnings(&kind.group, &kind.kind, &new, Some(old)));
        }
        strategy::admit_update(self, write, &new, old)?;
        if write.source != Source::Apply {
            if same_but_managed(&new, old) && new["metadata"]["managedFields"] == old["metadata"]["managedFields"] {
                warnings.dedup();
                return Ok(Some(Written { object: current.clone(), warnings, created: false }));
            }
            record(write, Some(old), &mut new);
        }
        let gone = finished(kind, &new);
        let draft = Draft::new(&convert::to_stored(kind, new), &write.resource.fields());
        if draft.same_as(current) {
            return Ok(Some(Written { object: current.clone(), warnings, created: false }));
        }
        if write.dry_run {
            let object = Arc::new(draft.stamp(current.revision));
            return Ok(Some(Written { object, warnings, created: false }));
        }
        match self.store.put(write.resource, draft, Expect::Revision(current.revision)) {
            Ok(object) if gone => match self.store.remove(write.resource, &object.key, object.revision) {
                Err(Refused::Log(error)) => Err(log_failed(&error)),
                // Whoever wrote in between will see that nothing holds the object any more.
                Ok(_) | Err(Refused::Raced) => Ok(Some(Written { object, warnings, created: false })),
            },
            Ok(object) => Ok(Some(Written { object, warnings, created: false })),
            Err(Refused::Raced) => Ok(None),
            Err(Refused::Log(error)) => Err(log_failed(&error)),
        }
    }
}

/// The body's resourceVersion and uid, when given, must be those of the object.
fn check_preconditions(write: &Write<'_>, current: &Object, new: &Value) -> Result<()> {
    let (kind, name) = (write.kind, &*current.key.name);
    let meta = &new["metadata"];
    let given = |key: &str| meta[key].as_str().filter(|text| !text.is_empty());
    if let Some(uid) = given("uid")
        && *uid != *current.uid
    {
        if write.source != Source::Body {
            let error = FieldError::invalid("metadata.uid", &uid.into(), "field is immutable");
            // Kubernetes looks at the metadata of its own kinds twice.
            let errors = if kind.custom { vec![error] } else { vec![error.clone(), error] };
            return Err(invalid(kind, name, &errors));
        }
        let said = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", current.uid);
        let place = storage_path(kind, &current.key.namespace);
        let message = format!(
            "StorageError: invalid object, Code: 4, Key: {place}/{name}, ResourceVersion: 0, AdditionalErrorMsg: {said}"
        );
        return Err(conflict(kind, name, &message));
    }
    // Version 0 is none: whatever is there is meant.
    match given("resourceVersion").filter(|version| version.parse() != Ok(0_u64)) {
        Some(version) if version != current.revision.to_string() => {
            if version.parse::<u64>().is_err() {
                let message = format!("strconv.ParseUint: parsing {version:?}: invalid syntax");
                return Err(ApiError::new(500, "", message));
            }
            Err(modified(kind, name))
        }
        None if write.source == Source::Body
            && kind.needs_revision()
            && (write.subresource.is_empty()
                || kind.custom && write.subresource == "status"
                || kind.is("policy", "poddisruptionbudgets")) =>
        {
            let error = FieldError::invalid("metadata.resourceVersion", &0.into(), "must be specified for an update");
            Err(ApiError::invalid(&kind.plural, &kind.group, name, &[error]))
        }
        _ => Ok(()),
    }
}

/// Where Kubernetes keeps objects of a kind, which some of its messages tell.
fn storage_path(kind: &Kind, namespace: &str) -> String {
    let place = match (&*kind.storage.group, &*kind.storage.plural) {
        ("", "nodes") => "minions".into(),
        ("", "services") => "services/specs".into(),
        ("", "endpoints") => "services/endpoints".into(),
        (group, plural) if kind.custom => format!("{group}/{plural}"),
        (_, plural) => plural.to_owned(),
    };
    if namespace.is_empty() { format!("/registry/{place}") } else { format!("/registry/{place}/{namespace}") }
}

/// Puts back what only the server sets.
fn keep_metadata(new: &mut Value, old: &Value, source: Source) {
    let (Some(meta), old) = (new["metadata"].as_object_mut(), &old["metadata"]) else { return };
    for owned in
        ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "resourceVersion"]
    {
        match old.get(owned) {
            Some(value) => drop(meta.insert(owned.into(), value.clone())),
            None => drop(meta.remove(owned)),
        }
    }
    meta.remove("selfLink");
    // A client that knows nothing of managed fields must not lose those of others.
    if source != Source::Apply
        && meta.get("managedFields").is_none_or(|list| list.as_array().is_some_and(Vec::is_empty))
        && let Some(managed) = old.get("managedFields")
    {
        meta.insert("managedFields".into(), managed.clone());
    }
}

/// A status write changes the status only, any other write everything but the status.
fn isolate(write: &Write<'_>, new: &mut Value, old: &Value) {
    let Value::Object(object) = new else { return };
    let take = |object: &mut Map<String, Value>, key: &str| match old.get(key) {
        Some(value) if object.get(key) == Some(value) => {}
        Some(value) => drop(object.insert(key.into(), value.clone())),
        None => drop(object.remove(key)),
    };
    if write.subresource == "status" {
        let others: Vec<String> =
            object.keys().chain(old.as_object().into_iter().flat_map(Map::keys)).cloned().collect();
        for key in others.iter().filter(|key| !matches!(key.as_str(), "status" | "metadata")) {
            take(object, key);
        }
        let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        let kept: &[&str] = match &*write.kind.group {
            _ if write.kind.custom => &["labels", "annotations", "finalizers", "ownerReferences"],
            "apps" => &["labels"],
            _ => &["ownerReferences"],
        };
        for key in kept {
            match old["metadata"].get(*key) {
                Some(value) => drop(meta.insert((*key).into(), value.clone())),
                None => drop(meta.remove(*key)),
            }
        }
    } else if write.kind.status
        && write.subresource != "finalize"
        && write.subresource != "binding"
        && write.subresource != "approval"
        && write.subresource != "eviction"
    {
        take(object, "status");
    }
}

fn content_differs(new: &Value, old: &Value) -> bool {
    fn content<'a>(value: &'a Value, key: &str) -> &'a Value {
        value.get(key).unwrap_or(&Value::Null)
    }
    let keys = new.as_object().into_iter().chain(old.as_object()).flat_map(Map::keys);
    keys.filter(|key| !matches!(key.as_str(), "metadata" | "status")).any(|key| content(new, key) != content(old, key))
}

fn same_but_managed(new: &Value, old: &Value) -> bool {
    fn all_of_first(first: &Value, second: &Value) -> bool {
        let mut fields = first["metadata"].as_object().into_iter().flatten();
        fields.all(|(name, value)| name == "managedFields" || second["metadata"].get(name) == Some(value))
    }
    new.get("status") == old.get("status")
        && !content_differs(new, old)
        && all_of_first(new, old)
        && all_of_first(old, new)
}

/// An object that was only waiting for its finalizers (and a namespace for its content).
fn finished(kind: &Kind, value: &Value) -> bool {
    let meta = &value["metadata"];
    let none = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    meta["deletionTimestamp"].is_string()
        && meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && none(&meta["finalizers"])
        && (!kind.is("", "namespaces") || none(&value["spec"]["finalizers"]))
}
