//! Creating an object.

use serde_json::{Map, Value, json};

use super::options::FieldValidation;
use super::{Api, Source, Write, Written, convert, log_failed, meta, not_found, now, strategy};
use crate::apply;
use crate::kinds::Kind;
use crate::status::{ApiError, FieldError, Result};
use crate::store::{Draft, Expect, Key, Refused};
use crate::validate;

/// Attempts at a generated name before the client is told to try again.
const NAME_ATTEMPTS: usize = 8;

impl Api {
    /// Creates `value`, given in the version that the kind serves, in `namespace` (empty when cluster-scoped).
    pub(crate) fn create(&self, write: &Write<'_>, namespace: &str, mut value: Value) -> Result<Written> {
        let kind = write.kind;
        self.check_namespace(kind, namespace, &value)?;
        check_identity(kind, &mut value, namespace, "")?;
        let mut warnings = check_fields(write, &mut value, None)?;
        let generate = value["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
        let generated = value["metadata"]["name"].as_str().unwrap_or_default().is_empty() && !generate.is_empty();
        clean_metadata(kind, &mut value, namespace);
        if generated {
            value["metadata"]["name"] = meta::generate_name(&generate).into();
        }
        if kind.status && !kind.is("", "namespaces") {
            remove(&mut value, "status");
        }
        strategy::prepare_create(self, write, &mut value)?;
        if let Some(schema) = &kind.schema {
            schema.default(&mut value);
        }
        let rules = validate::rules(&kind.group, &kind.kind);
        (rules.default)(&mut value);
        strategy::admit_create(self, write, &mut value, &mut warnings)?;
        let mut errors = meta::validate(kind, &value, None);
        errors.extend((rules.validate)(&value, None));
        if kind.custom
            && let Some(schema) = &kind.schema
        {
            errors.extend(schema.validate(&value, None));
        }
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if !errors.is_empty() {
            return Err(ApiError::invalid(&kind.kind, &kind.group, &name, &errors));
        }
        if write.source != Source::Apply {
            record(write, None, &mut value);
        }
        let mut stored = convert::to_stored(kind, value);
        for attempt in 0.. {
            let draft = Draft::new(&stored, &write.resource.fields());
            if write.dry_run {
                if write.resource.get(draft.key()).is_some() {
                    return Err(ApiError::already_exists(&kind.plural, &kind.group, &name));
                }
                return Ok(Written { object: draft.stamp(0).into(), warnings, created: true });
            }
            match self.store.put(write.resource, draft, Expect::Absent) {
                Ok(object) => return Ok(Written { object, warnings, created: true }),
                Err(Refused::Log(error)) => return Err(log_failed(&error)),
                Err(Refused::Raced) if generated && attempt < NAME_ATTEMPTS => {
                    stored["metadata"]["name"] = meta::generate_name(&generate).into();
                }
                Err(Refused::Raced) => return Err(ApiError::already_exists(&kind.plural, &kind.group, &name)),
            }
        }
        Err(ApiError::already_exists(&kind.plural, &kind.group, &name))
    }

    /// Namespaced objects need a namespace that exists and is not on its way out.
    fn check_namespace(&self, kind: &Kind, namespace: &str, value: &Value) -> Result<()> {
        if !kind.namespaced {
            return Ok(());
        }
        let Some(found) = self.get("", "namespaces", "", namespace) else {
            return Err(ApiError::not_found("namespaces", "", namespace));
        };
        let found = found.value();
        if found["metadata"]["deletionTimestamp"].is_string() || found["status"]["phase"] == "Terminating" {
            let name = value["metadata"]["name"].as_str().unwrap_or_default();
            let message =
                format!("unable to create new content in namespace {namespace} because it is being terminated");
            let mut error = ApiError::forbidden(&kind.plural, &kind.group, name, &message);
            let since = &found["metadata"]["deletionTimestamp"];
            error.details["causes"] = json!([{"reason": "NamespaceTerminating", "field": "metadata.namespace",
                "message": format!("namespace {namespace} is being terminated since {}", since.as_str().unwrap_or_default())}]);
            return Err(error);
        }
        Ok(())
    }
}

/// Checks that the body is of this kind, in this namespace and, when given, of this name.
pub(crate) fn check_identity(kind: &Kind, value: &mut Value, namespace: &str, name: &str) -> Result<()> {
    let wanted = kind.api_version();
    let Value::Object(object) = value else {
        return Err(ApiError::bad_request("a JSON object was expected"));
    };
    let given = |object: &Map<String, Value>, key: &str| object.get(key).and_then(Value::as_str).map(String::from);
    let (api_version, named) = (given(object, "apiVersion"), given(object, "kind"));
    match (api_version.as_deref().unwrap_or_default(), named.as_deref().unwrap_or_default()) {
        ("", _) | (_, "") if kind.custom || object.contains_key("apiVersion") != object.contains_key("kind") => {
            let missing = if api_version.as_deref().unwrap_or_default().is_empty() { "apiVersion" } else { "kind" };
            return Err(ApiError::bad_request(format!(
                "Object '{}' is missing in the body",
                if missing == "kind" { "Kind" } else { "apiVersion" }
            )));
        }
        ("", "") => {}
        (version, k) if version != wanted || *k != *kind.kind => {
            let message = format!(
                "{k} in version {version:?} cannot be handled as a {}: the API version in the data ({version}) or its kind \
                 does not match the expected {wanted}, Kind={}",
                kind.kind, kind.kind
            );
            return Err(ApiError::bad_request(message));
        }
        _ => {}
    }
    object.insert("apiVersion".into(), wanted.into());
    object.insert("kind".into(), (*kind.kind).into());
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    if metadata.is_null() {
        *metadata = json!({});
    }
    let Value::Object(metadata) = metadata else {
        return Err(ApiError::bad_request("metadata: a JSON object was expected"));
    };
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default();
    if kind.namespaced && !text("namespace").is_empty() && text("namespace") != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if !name.is_empty() && !text("name").is_empty() && text("name") != name {
        let message = format!("the name of the object ({}) does not match the name on the URL ({name})", text("name"));
        return Err(ApiError::bad_request(message));
    }
    if !name.is_empty() {
        metadata.insert("name".into(), name.into());
    }
    match kind.namespaced {
        true => drop(metadata.insert("namespace".into(), namespace.into())),
        false => drop(metadata.remove("namespace")),
    }
    Ok(())
}

/// Finds unknown fields and wrong types, drops what the schema does not know, and returns warnings. What `old` has
/// already has been through this.
pub(crate) fn check_fields(write: &Write<'_>, value: &mut Value, old: Option<&Value>) -> Result<Vec<String>> {
    let (kind, mut warnings) = (write.kind, Vec::new());
    let Some(schema) = &kind.schema else { return Ok(warnings) };
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let refuse = |value: &Value, message: String| match write.source {
        Source::Patch => {
            let error = FieldError::invalid("patch", &json!(value.to_string()), &message);
            ApiError::invalid(&kind.kind, &kind.group, &name, &[error])
        }
        _ => ApiError::bad_request(message),
    };
    if write.validation != FieldValidation::Ignore {
        let unknown = schema.unknown_fields(value, old);
        if write.validation == FieldValidation::Strict && !unknown.is_empty() {
            return Err(refuse(value, format!("strict decoding error: {}", unknown.join(", "))));
        }
        warnings = unknown;
    }
    if !kind.custom
        && let Err(error) = schema.check_types(value, old)
    {
        let message =
            format!("{} in version {:?} cannot be handled as a {}: {error}", kind.kind, kind.version, kind.kind);
        return Err(refuse(value, message));
    }
    schema.prune(value);
    Ok(warnings)
}

/// Notes who set which fields.
pub(crate) fn record(write: &Write<'_>, before: Option<&Value>, after: &mut Value) {
    let (api_version, now) = (write.kind.api_version(), now());
    let request = apply::Request {
        manager: write.manager,
        force: false,
        subresource: Some(write.subresource).filter(|s| !s.is_empty()),
        api_version: &api_version,
        now: &now,
    };
    if let Some(schema) = &write.kind.schema {
        apply::record_update(before, after, &request, schema);
    }
}

/// Sets what the server sets and drops what a client may not.
fn clean_metadata(kind: &Kind, value: &mut Value, namespace: &str) {
    let Some(metadata) = value["metadata"].as_object_mut() else { return };
    for owned in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        metadata.remove(owned);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), now().into());
    if kind.namespaced {
        metadata.insert("namespace".into(), namespace.into());
    }
    if kind.generation {
        metadata.insert("generation".into(), 1.into());
    }
    for empty in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let nothing = |v: &Value| {
            v.is_null() || v.as_object().is_some_and(Map::is_empty) || v.as_array().is_some_and(Vec::is_empty)
        };
        if metadata.get(empty).is_some_and(nothing) {
            metadata.remove(empty);
        }
    }
}

pub(crate) fn remove(value: &mut Value, key: &str) {
    if let Value::Object(object) = value {
        object.remove(key);
    }
}

/// 404 when a named object is not there.
pub(crate) fn expect(write: &Write<'_>, key: &Key) -> Result<std::sync::Arc<crate::store::Object>> {
    write.resource.get(key).ok_or_else(|| not_found(write.kind, &key.name))
}
