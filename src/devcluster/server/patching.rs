//! The four kinds of PATCH.

use serde_json::{Value, json};

use super::create::conversion_fault;
use super::http::{content_type, parse_yaml, said, shallow, unsupported_media};
use super::options::FieldValidation;
use super::{Api, Call, Source, Write, Written, duplicates, now, scan, yaml_duplicates};
use crate::apply;
use crate::kinds::Kind;
use crate::patch;
use crate::schema::printed;
use crate::status::{ApiError, FieldError, Result};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub(crate) const APPLY: &str = "application/apply-patch+yaml";

/// A patch, parsed as far as its type allows without the object.
pub(crate) enum Patch {
    Json(bytes::Bytes),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// Reads a patch; apply patches are handled by [`Api::apply`].
    pub(crate) fn read(kind: &Kind, content_type: &str, body: bytes::Bytes) -> Result<Self> {
        let parsed = |body: &[u8]| serde_json::from_slice(body).map_err(|_| scan::fault(body)).and_then(shallow);
        let object = |body: &[u8], prefix: &str| match parsed(body) {
            Ok(value) if value.is_object() => Ok(value),
            Ok(other) => Err(ApiError::bad_request(format!(
                "{prefix}json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                said(&other)
            ))),
            Err(error) => Err(ApiError::bad_request(format!("{prefix}{error}"))),
        };
        // Seen at its first byte, so that no other patch is read for this.
        let is_null = |body: &[u8]| serde_json::from_slice::<()>(body).is_ok();
        match content_type {
            JSON => Ok(Self::Json(body)),
            MERGE if is_null(&body) => Err(ApiError::bad_request("Invalid JSON Patch")),
            MERGE => Ok(Self::Merge(object(&body, "error decoding patch: ")?)),
            // Nothing is no change.
            STRATEGIC if !kind.custom && is_null(&body) => Ok(Self::Strategic(json!({}))),
            STRATEGIC if !kind.custom => Ok(Self::Strategic(object(&body, "")?)),
            _ if !kind.custom => {
                let mut error = ApiError::new(415, "UnsupportedMediaType", "415: Unsupported Media Type");
                error.details = json!({});
                Err(error)
            }
            _ => {
                let mut accepted = vec![JSON, MERGE];
                accepted.push(APPLY);
                Err(unsupported_media(&accepted))
            }
        }
    }

    pub(crate) fn apply_to(&self, kind: &Kind, current: &Value) -> Result<Value> {
        match (self, &kind.schema) {
            (Self::Json(patch), _) => patch::json(current, patch),
            (Self::Strategic(patch), Some(schema)) => patch::strategic(current, patch, schema),
            (Self::Merge(patch) | Self::Strategic(patch), _) => Ok(patch::merge(current, patch)),
        }
    }

    /// What the body says twice, and what a JSON patch says that nobody asked for.
    fn faults(&self, body: &[u8]) -> Vec<String> {
        let Self::Json(_) = self else { return duplicates::find(body) };
        let told = |fault: &str| format!("json patch {fault}");
        let mut faults: Vec<_> = duplicates::find(body).iter().map(|fault| told(fault)).collect();
        let operations: Vec<Value> = serde_json::from_slice(body).unwrap_or_default();
        for (i, operation) in operations.iter().enumerate() {
            let names = operation.as_object().into_iter().flatten().map(|(name, _)| name);
            let unknown = names.filter(|name| !matches!(name.as_str(), "op" | "path" | "from" | "value"));
            faults.extend(unknown.map(|name| told(&format!("unknown field {:?}", format!("[{i}].{name}")))));
        }
        faults
    }

    /// Refuses what the patch made of an object when it cannot be read as its kind.
    fn check(&self, write: &Write<'_>, old: &Value, new: &mut Value) -> Result<()> {
        let kind = write.kind;
        let Some(schema) = kind.schema.as_ref().filter(|_| !kind.custom) else { return Ok(()) };
        let refuse = |shown: String, fault: &str| {
            let error = FieldError::invalid("patch", &shown.into(), fault);
            Err(ApiError::invalid("", "", "", &[error]))
        };
        if let Self::Strategic(patch) = self {
            // Such a patch goes into the kind's own type, which does not ask what it is.
            for key in ["apiVersion", "kind"] {
                new[key] = old[key].clone();
            }
            if write.validation == FieldValidation::Strict {
                let mut faults = write.duplicates.to_vec();
                faults.extend(schema.unknown_fields(new, Some(old)));
                if !faults.is_empty() {
                    return refuse(printed(patch), &format!("strict decoding error: {}", faults.join(", ")));
                }
            }
            return match schema.restores(new, Some(old)) {
                Err(fault) => refuse(printed(patch), &fault),
                Ok(()) => Ok(()),
            };
        }
        let given = |key: &str| new[key].as_str().filter(|text| !text.is_empty()).unwrap_or_default().to_owned();
        let (version, named) = (given("apiVersion"), given("kind"));
        let is = |given: &str, wanted: &str| given.is_empty() || given == wanted;
        if is(&version, &kind.api_version()) && is(&named, &kind.kind) {
            return Ok(());
        }
        refuse(new.to_string(), &conversion_fault(&kind.api_version(), &kind.kind, &version, &named))
    }
}

impl Api {
    pub(crate) fn patch(&self, call: &Call, body: bytes::Bytes) -> Result<Written> {
        let media = content_type(&call.headers);
        if media == APPLY {
            return self.apply(call, &body);
        }
        let patch = Patch::read(&call.kind, &media, body.clone())?;
        call.options.check_unforced()?;
        let mut write = call.write()?;
        let faults = match write.validation {
            FieldValidation::Ignore => Vec::new(),
            _ => patch.faults(&body),
        };
        write.source = Source::Patch;
        write.duplicates = &faults;
        self.modify(&write, &call.key(), |old| {
            let mut new = patch.apply_to(&call.kind, old)?;
            patch.check(&write, old, &mut new)?;
            Ok(new)
        })
    }

    fn apply(&self, call: &Call, body: &[u8]) -> Result<Written> {
        let applied = parse_yaml(body).map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
        let validation = call.options.field_validation()?;
        let twice = match validation {
            FieldValidation::Ignore => Vec::new(),
            _ => yaml_duplicates::find(body),
        };
        if validation == FieldValidation::Strict && !twice.is_empty() {
            return Err(ApiError::bad_request(format!(
                "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {}",
                twice.join("\n  ")
            )));
        }
        let mut written = self.apply_fields(call, &applied)?;
        written.warnings.splice(0..0, twice);
        Ok(written)
    }

    /// Applies an object that has been read.
    pub(crate) fn apply_fields(&self, call: &Call, applied: &Value) -> Result<Written> {
        check_applied(call, applied)?;
        let kind = &call.kind;
        let Some(schema) = &kind.schema else {
            return Err(ApiError::new(415, "UnsupportedMediaType", "this kind cannot be applied"));
        };
        let mut write = call.write()?;
        write.source = Source::Apply;
        let (api_version, now) = (kind.api_version(), now());
        let request = apply::Request {
            manager: write.manager,
            force: call.options.flag("force"),
            subresource: Some(write.subresource).filter(|s| !s.is_empty()),
            api_version: &api_version,
            now: &now,
            reset: write.reset(),
        };
        apply::fits(applied, schema)?;
        let mut checked = applied.clone();
        let warnings = super::create::check_fields(&write, &mut checked, None)?;
        let key = call.key();
        loop {
            if write.resource.get(&key).is_none() {
                if !write.subresource.is_empty() {
                    return Err(super::not_found(kind, &key.name));
                }
                if let Some(uid) = applied["metadata"]["uid"].as_str() {
                    let message = format!(
                        "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                    );
                    return Err(super::conflict(kind, &key.name, &message));
                }
                let made = apply::apply(None, &checked, &request, schema)?;
                match self.create(&write, &key.namespace, made) {
                    // Somebody created it in between: then apply to theirs.
                    Err(error) if error.reason == "AlreadyExists" => continue,
                    other => return other.map(|written| Written { warnings, ..written }),
                }
            }
            match self.modify(&write, &key, |old| apply::apply(Some(old), &checked, &request, schema)) {
                Err(error)
                    if error.code == 404 && write.resource.get(&key).is_none() && write.subresource.is_empty() => {}
                other => return other.map(|written| Written { warnings, ..written }),
            }
        }
    }
}

fn check_applied(call: &Call, applied: &Value) -> Result<()> {
    let kind = &call.kind;
    let invalid = |error| Err(ApiError::invalid("PatchOptions", "meta.k8s.io", "", &[error]));
    if call.options.get("fieldManager").is_none_or(str::is_empty) {
        return invalid(FieldError::required("fieldManager", "is required for apply patch"));
    }
    if !applied.is_object() && !applied.is_null() {
        let given = said(applied);
        return Err(ApiError::bad_request(format!(
            "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {given} into Go \
             value of type map[string]interface {{}}"
        )));
    }
    let text = |key: &str| applied[key].as_str().unwrap_or_default();
    let (version, name) = (text("apiVersion"), text("kind"));
    if version != kind.api_version() || *name != *kind.kind {
        // Kubernetes always puts a slash before the version, be there a group or not.
        let slash = if version.contains('/') { "" } else { "/" };
        return Err(ApiError::bad_request(format!("invalid object type: {slash}{version}, Kind={name}")));
    }
    Ok(())
}
