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
    let patch: json_patch::Patch = serde_json::from_slice(patch)
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
    if patch.0.len() > OPERATIONS_LIMIT {
        let message = format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {OPERATIONS_LIMIT}, got {}",
            patch.0.len()
        );
        return Err(ApiError::new(413, "RequestEntityTooLarge", message));
    }
    let refused = || ApiError::new(422, "Invalid", "the server rejected our request due to an error in our request");
    let (mut value, mut copied) = (current.clone(), 0);
    for operation in patch.0 {
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
