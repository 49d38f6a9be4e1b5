//! The four kinds of PATCH.

use serde_json::{Value, json};

use super::http::{content_type, parse_yaml, shallow, unsupported_media};
use super::{Api, Call, Source, Written, now};
use crate::apply;
use crate::kinds::Kind;
use crate::patch;
use crate::status::{ApiError, FieldError, Result};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// A patch, parsed as far as its type allows without the object.
pub(crate) enum Patch {
    Json(bytes::Bytes),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// Reads a patch; apply patches are handled by [`Api::apply`].
    pub(crate) fn read(kind: &Kind, content_type: &str, body: bytes::Bytes) -> Result<Self> {
        let parsed = |body: &[u8]| serde_json::from_slice(body).map_err(|e| e.to_string()).and_then(shallow);
        let object = |body: &[u8]| match parsed(body) {
            Ok(value) if value.is_object() => Ok(value),
            Ok(_) => Err(ApiError::bad_request("error decoding patch: a JSON object was expected")),
            Err(error) => Err(ApiError::bad_request(format!("error decoding patch: {error}"))),
        };
        match content_type {
            JSON => Ok(Self::Json(body)),
            MERGE => Ok(Self::Merge(object(&body)?)),
            STRATEGIC if !kind.custom => Ok(Self::Strategic(object(&body)?)),
            _ => {
                let mut accepted = vec![JSON, MERGE];
                accepted.extend((!kind.custom).then_some(STRATEGIC));
                accepted.extend([APPLY, "application/apply-patch+cbor"]);
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
}

impl Api {
    pub(crate) fn patch(&self, call: &Call, body: bytes::Bytes) -> Result<Written> {
        let media = content_type(&call.headers);
        if media == APPLY {
            return self.apply(call, &body);
        }
        let patch = Patch::read(&call.kind, &media, body)?;
        let mut write = call.write()?;
        write.source = Source::Patch;
        self.modify(&write, &call.key(), |old| patch.apply_to(&call.kind, old))
    }

    fn apply(&self, call: &Call, body: &[u8]) -> Result<Written> {
        let applied = parse_yaml(body).map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
        check_applied(call, &applied)?;
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
        };
        let mut checked = applied.clone();
        let warnings = super::create::check_fields(&write, &mut checked, None)?;
        let key = call.key();
        loop {
            if write.resource.get(&key).is_none() {
                if !write.subresource.is_empty() {
                    return Err(super::not_found(kind, &key.name));
                }
                if applied["metadata"]["uid"].is_string() {
                    let message = "uid mismatch: the provided object specified a uid, and no existing object was found";
                    return Err(super::conflict(kind, &key.name, message));
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
    if !applied.is_object() {
        return Err(ApiError::bad_request("error decoding YAML: a mapping was expected"));
    }
    let managed = &applied["metadata"]["managedFields"];
    if managed.as_array().is_some_and(|list| !list.is_empty()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let (version, name) = (applied["apiVersion"].as_str(), applied["kind"].as_str());
    if version.is_none_or(str::is_empty) || name.is_none_or(str::is_empty) {
        return Err(ApiError::bad_request("apiVersion and kind must be set in an applied object"));
    }
    if version != Some(&kind.api_version()) || name != Some(&kind.kind) {
        let message = format!(
            "the applied object is {}, Kind={}, which does not match the endpoint's {}, Kind={}",
            json!(version),
            json!(name),
            kind.api_version(),
            kind.kind
        );
        return Err(ApiError::bad_request(message));
    }
    Ok(())
}
