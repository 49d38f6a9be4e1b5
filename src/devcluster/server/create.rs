//! Creating an object.

use serde_json::{Map, Value, json};

use super::options::FieldValidation;
use super::{Api, Source, Write, Written, convert, log_failed, meta, not_found, now, strategy};
use crate::apply;
use crate::kinds::Kind;
use crate::status::{ApiError, FieldError, Result};
use crate::store::{Draft, Expect, Key, Refused};
use crate::validate;

/// What the metadata of every object is.
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Attempts at a generated name before the client is told to try again.
const NAME_ATTEMPTS: usize = 8;

impl Api {
    /// Creates `value`, given in the version that the kind serves, in `namespace` (empty when cluster-scoped).
    pub(crate) fn create(&self, write: &Write<'_>, namespace: &str, mut value: Value) -> Result<Written> {
        let kind = write.kind;
        let version = value["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if write.source != Source::Apply && !write.dry_run && !matches!(version, "" | "0") {
            return Err(ApiError::new(500, "", "resourceVersion should not be set on objects to be created"));
        }
        self.check_namespace(kind, namespace, &value)?;
        check_identity(kind, &mut value, namespace, "")?;
        let mut warnings = check_fields(write, &mut value, None)?;
        let generate = value["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
        let generated = value["metadata"]["name"].as_str().unwrap_or_default().is_empty() && !generate.is_empty();
        clean_metadata(kind, &mut value, namespace);
        if generated {
            value["metadata"]["name"] = meta::generate_name(&generate).into();
        }
        // A node comes with what its kubelet found out.
        if kind.status && !kind.is("", "namespaces") && !kind.is("", "nodes") {
            remove(&mut value, "status");
        }
        let rules = validate::rules(&kind.group, &kind.kind);
        let complete = |value: &mut Value| {
            if let Some(schema) = &kind.schema {
                schema.default(value);
            }
            (rules.default)(value);
            if let Some(schema) = &kind.schema {
                schema.canonical(value, None);
            }
        };
        complete(&mut value);
        // The client owns what it sent and its defaults, not what the server and admission add.
        if write.source != Source::Apply {
            record(write, None, &mut value);
        }
        strategy::prepare_create(self, write, &mut value)?;
        complete(&mut value);
        strategy::admit_create(self, write, &mut value)?;
        let mut errors = meta::validate(kind, &value, None);
        errors.extend((rules.validate)(&value, None));
        if kind.custom
            && let Some(schema) = &kind.schema
        {
            errors.extend(schema.validate(&value, None));
        }
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if !errors.is_empty() {
            return Err(invalid(kind, &name, &errors).warned(&warnings));
        }
        warnings.extend(validate::warnings(&kind.group, &kind.kind, &value, None));
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
    pub(super) fn check_namespace(&self, kind: &Kind, namespace: &str, value: &Value) -> Result<()> {
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
            error.details["causes"] = json!([{"reason": "NamespaceTerminating", "field": "metadata.namespace",
                "message": format!("namespace {namespace} is being terminated")}]);
            return Err(error);
        }
        Ok(())
    }
}

/// 422 for an object. Events are told of as those of the core, whichever API they came by.
pub(crate) fn invalid(kind: &Kind, name: &str, errors: &[FieldError]) -> ApiError {
    let group = if kind.is("", "events") { "" } else { &*kind.group };
    ApiError::invalid(&kind.kind, group, name, errors)
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
        (_, "") if kind.custom => {
            let body = Value::from(object.clone()).to_string();
            let of = &kind.kind;
            return Err(ApiError::bad_request(format!(
                "the object provided is unrecognized (must be of type {of}): Object 'Kind' is missing in '{body}' \
                 ({body})"
            )));
        }
        (version, named) => {
            let (version, named) = (
                if version.is_empty() && !kind.custom { &wanted } else { version },
                if named.is_empty() { &kind.kind } else { named },
            );
            if kind.custom && version == wanted && *named != *kind.kind {
                let error = FieldError::invalid("kind", &json!(named), &format!("must be {}", kind.kind));
                let name = object.get("metadata").and_then(|meta| meta["name"].as_str()).unwrap_or_default();
                return Err(ApiError::invalid(named, &kind.group, name, &[error]));
            }
            if kind.custom && version != wanted {
                return Err(ApiError::bad_request(format!(
                    "the API version in the data ({version}) does not match the expected API version ({wanted})"
                )));
            }
            if version != wanted || *named != *kind.kind {
                return Err(ApiError::bad_request(mistaken(&wanted, &kind.kind, version, named)));
            }
        }
    }
    object.insert("apiVersion".into(), wanted.into());
    object.insert("kind".into(), (*kind.kind).into());
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    if metadata.is_null() {
        *metadata = json!({});
    }
    let Value::Object(metadata) = metadata else {
        let message = format!(
            "{} in version {:?} cannot be handled as a {}: json: cannot unmarshal {} into Go struct field {}.metadata of \
             type v1.ObjectMeta",
            kind.kind,
            kind.version,
            kind.kind,
            super::http::said(metadata),
            kind.kind
        );
        return Err(ApiError::bad_request(message));
    };
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default();
    if kind.namespaced && !text("namespace").is_empty() && text("namespace") != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if !name.is_empty() {
        check_name(text("name"), name)?;
    }
    match kind.namespaced {
        true => drop(metadata.insert("namespace".into(), namespace.into())),
        false => drop(metadata.remove("namespace")),
    }
    Ok(())
}

/// Refuses an object that does not have the name of its URL.
pub(crate) fn check_name(given: &str, name: &str) -> Result<()> {
    let fault = match given {
        _ if given == name => return Ok(()),
        "" => format!("({name} based on URL) was undeterminable: name must be provided"),
        _ => format!("({given}) does not match the name on the URL ({name})"),
    };
    Err(ApiError::bad_request(format!("the name of the object {fault}")))
}

/// Refuses a body that says to be of another kind, or of none of the versions.
pub(crate) fn check_kind(body: &Value, kind: &str, versions: &[&str]) -> Result<()> {
    let or = |key: &str, otherwise| body[key].as_str().filter(|said| !said.is_empty()).unwrap_or(otherwise);
    let (version, named) = (or("apiVersion", versions[0]), or("kind", kind));
    if versions.contains(&version) && named == kind {
        return Ok(());
    }
    Err(ApiError::bad_request(mistaken(versions[0], kind, version, named)))
}

/// What a body of another kind is told than `kind` of `wanted`.
fn mistaken(wanted: &str, kind: &str, api_version: &str, named: &str) -> String {
    let version = api_version.rsplit('/').next().unwrap_or_default();
    let fault = conversion_fault(wanted, kind, api_version, named);
    format!("{named} in version {version:?} cannot be handled as a {kind}: {fault}")
}

/// Why an object of another kind cannot be taken for one of this.
pub(crate) fn conversion_fault(wanted: &str, kind: &str, api_version: &str, named: &str) -> String {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let wanted = wanted.split_once('/').map_or("", |(group, _)| group);
    let package = |group: &str| group.split('.').next().filter(|p| !p.is_empty()).unwrap_or("core").to_owned();
    let definition = format!("io.k8s.api.{}.{version}.{named}", package(group));
    if crate::schema::builtin(&definition).is_some() {
        let internal = package(wanted);
        format!("converting ({version}.{named}) to ({internal}.{kind}): unknown conversion")
    } else {
        format!(
            "no kind {named:?} is registered for version {api_version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""
        )
    }
}

/// Finds unknown fields and wrong types, drops what the schema does not know, and returns warnings. What `old` has
/// already has been through this.
pub(crate) fn check_fields(write: &Write<'_>, value: &mut Value, old: Option<&Value>) -> Result<Vec<String>> {
    let (kind, mut warnings) = (write.kind, Vec::new());
    let Some(schema) = &kind.schema else { return Ok(warnings) };
    let refuse = |value: &Value, message: String| match write.source {
        Source::Patch => {
            let error = FieldError::invalid("patch", &json!(value.to_string()), &message);
            ApiError::invalid("", "", "", &[error])
        }
        _ => {
            let (kind, version) = (&kind.kind, &kind.version);
            ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {message}"))
        }
    };
    if write.validation != FieldValidation::Ignore {
        let mut unknown = write.duplicates.to_vec();
        let mut fields = schema.unknown_fields(value, old);
        if fields.len() > 1 && !kind.custom {
            super::duplicates::in_order_of(write.body, &mut fields);
        }
        unknown.extend(fields);
        if write.validation == FieldValidation::Strict && !unknown.is_empty() {
            return Err(refuse(value, format!("strict decoding error: {}", strict_faults(&unknown))));
        }
        warnings = unknown;
    }
    let typed = match (kind.custom, crate::schema::builtin(META)) {
        (false, _) => schema.check_types(value, old),
        (true, Some(meta)) => meta.check_types(&value["metadata"], old.map(|old| &old["metadata"])),
        (true, None) => Ok(()),
    };
    if let Err(error) = typed {
        return Err(refuse(value, error));
    }
    schema.prune(value);
    if !kind.custom {
        schema.fill_null_entries(value, old);
    }
    Ok(warnings)
}

/// The faults of a strictly read body in one line, but for those of its YAML, which the parser tells in lines.
fn strict_faults(faults: &[String]) -> String {
    let (yaml, rest): (Vec<_>, Vec<_>) =
        faults.iter().map(String::as_str).partition(|fault| fault.starts_with("line "));
    if yaml.is_empty() {
        return rest.join(", ");
    }
    let yaml = format!("yaml: unmarshal errors:\n  {}", yaml.join("\n  "));
    [vec![yaml.as_str()], rest].concat().join(", ")
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
        reset: write.reset(),
    };
    if let Some(schema) = &write.kind.schema {
        apply::record_update(before, after, &request, schema);
    }
}

/// Sets what the server sets and drops what a client may not.
fn clean_metadata(kind: &Kind, value: &mut Value, namespace: &str) {
    let Some(metadata) = value["metadata"].as_object_mut() else { return };
    for owned in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"] {
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
