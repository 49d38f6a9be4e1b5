//! What a patch makes of an object: JSON patches, merge patches and strategic merge patches.

mod strategic;
#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::server::http::{DEPTH_LIMIT, depth_within};
use crate::status::{ApiError, Result};

pub(crate) use strategic::strategic;

/// Most operations of one JSON patch. apiserver: `maxJSONPatchOperations`.
const OPERATIONS_LIMIT: usize = 10_000;
/// Most bytes that the `copy` operations of one patch may make, since copies of copies double. apiserver: the limit of
/// bodies.
const COPIED_LIMIT: usize = 3 << 20;

/// Applies a JSON patch (RFC 6902).
pub(crate) fn json(current: &Value, patch: &[u8]) -> Result<Value> {
    let undecoded = |fault: String| ApiError::bad_request(format!("error decoding patch: {fault}"));
    let operations = match serde_json::from_slice(patch) {
        Ok(Value::Array(operations)) => operations,
        Ok(Value::Null) => Vec::new(),
        Ok(other) => {
            let given = crate::server::http::said(&other);
            return Err(undecoded(format!(
                "json: cannot unmarshal {given} into Go value of type []handlers.jsonPatchOp"
            )));
        }
        Err(_) => return Err(undecoded(crate::server::scan::fault(patch))),
    };
    if operations.len() > OPERATIONS_LIMIT {
        let message = format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {OPERATIONS_LIMIT}, got {}",
            operations.len()
        );
        return Err(ApiError::new(413, "RequestEntityTooLarge", message));
    }
    let refused = || {
        let message = "the server rejected our request due to an error in our request";
        let mut error = ApiError::new(422, "Invalid", message);
        error.details = serde_json::json!({});
        error
    };
    let (mut value, mut copied) = (current.clone(), 0);
    if let Some(odd) = operations.iter().find(|operation| !operation.is_object() && !operation.is_null()) {
        let given = crate::server::http::said(odd);
        return Err(undecoded(format!("json: cannot unmarshal {given} into Go value of type handlers.jsonPatchOp")));
    }
    for mut operation in operations {
        complete(&value, &mut operation).ok_or_else(refused)?;
        let mut operation = serde_json::from_value(operation).map_err(|_| refused())?;
        lenient(&value, &mut operation);
        // Depth grows where something is put, and nowhere else.
        let put = match &operation {
            json_patch::PatchOperation::Add(add) => Some((&add.path, Some(&add.value))),
            json_patch::PatchOperation::Replace(replace) => Some((&replace.path, Some(&replace.value))),
            json_patch::PatchOperation::Move(moved) => Some((&moved.path, value.pointer(moved.from.as_str()))),
            json_patch::PatchOperation::Copy(copy) => {
                let source = value.pointer(copy.from.as_str());
                copied += source.map_or(0, size);
                Some((&copy.path, source))
            }
            json_patch::PatchOperation::Remove(_) | json_patch::PatchOperation::Test(_) => None,
        };
        if let Some((path, Some(put))) = put {
            let room = DEPTH_LIMIT.checked_sub(path.as_str().matches('/').count());
            if room.is_none_or(|room| !depth_within(put, room)) || copied > COPIED_LIMIT {
                return Err(refused());
            }
        }
        json_patch::patch_unsafe(&mut value, &[operation]).map_err(|_| refused())?;
    }
    Ok(value)
}

/// Writes an operation as the standard has it where the API server's own library takes more: without a value it is null,
/// what precedes a path's first slash does not count, and an index below zero counts from the end of its list. `None`
/// for a path without a slash.
fn complete(document: &Value, operation: &mut Value) -> Option<()> {
    let Value::Object(fields) = operation else { return None };
    let adds = fields.get("op").is_some_and(|op| matches!(op.as_str(), Some("add" | "move" | "copy")));
    for (name, adds) in [("path", adds), ("from", false)] {
        let Some(Value::String(path)) = fields.get_mut(name) else { continue };
        if path.is_empty() {
            continue;
        }
        *path = path[path.find('/')?..].to_owned();
        let (parent, last) = path.rsplit_once('/')?;
        if let Some(back) = last.strip_prefix('-').and_then(|back| back.parse::<usize>().ok())
            && let Some(Value::Array(items)) = document.pointer(parent)
        {
            let end = items.len() + usize::from(adds);
            *path = format!("{parent}/{}", end.checked_sub(back)?);
        }
    }
    fields.entry("value").or_insert(Value::Null);
    Some(())
}

/// Where the API server's own library goes beyond the standard: a field that is not there is replaced by adding it, and
/// is the same as null.
fn lenient(value: &Value, operation: &mut json_patch::PatchOperation) {
    use json_patch::{AddOperation, PatchOperation, RemoveOperation, TestOperation};
    let absent = |path: &json_patch::jsonptr::PointerBuf| {
        let (parent, key) = path.as_str().rsplit_once('/').unwrap_or_default();
        !key.is_empty() && value.pointer(parent).is_some_and(Value::is_object) && value.pointer(path.as_str()).is_none()
    };
    match operation {
        PatchOperation::Replace(replace) if absent(&replace.path) => {
            let (path, value) = (replace.path.clone(), replace.value.clone());
            *operation = PatchOperation::Add(AddOperation { path, value });
        }
        PatchOperation::Test(TestOperation { path, value: Value::Null }) if absent(path) => {
            // Nothing to do: the document stays as it is.
            *operation = PatchOperation::Test(TestOperation { path: Default::default(), value: value.clone() });
        }
        PatchOperation::Add(add) if add.path.as_str().is_empty() => {
            // A whole document cannot be added; the standard has it replace what is there.
            *operation = PatchOperation::Remove(RemoveOperation { path: Default::default() });
        }
        _ => {}
    }
}

/// About how long a value is as JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 5,
        Value::String(text) => text.len() + 3,
        Value::Array(items) => 2 + items.iter().map(size).sum::<usize>(),
        Value::Object(fields) => 2 + fields.iter().map(|(name, field)| name.len() + 4 + size(field)).sum::<usize>(),
    }
}

/// Applies a merge patch (RFC 7386).
pub(crate) fn merge(current: &Value, patch: &Value) -> Value {
    let mut value = current.clone();
    json_patch::merge(&mut value, patch);
    value
}
