//! What a patch makes of an object: JSON patches, merge patches and strategic merge patches.

mod strategic;
#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::status::{ApiError, Result};

pub(crate) use strategic::strategic;

/// Applies a JSON patch (RFC 6902).
pub(crate) fn json(current: &Value, patch: &[u8]) -> Result<Value> {
    let patch: json_patch::Patch = serde_json::from_slice(patch)
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
    let mut value = current.clone();
    json_patch::patch(&mut value, &patch).map_err(|error| {
        ApiError::new(
            422,
            "Invalid",
            format!("the server rejected our request due to an error in our request: {error}"),
        )
    })?;
    Ok(value)
}

/// Applies a merge patch (RFC 7386).
pub(crate) fn merge(current: &Value, patch: &Value) -> Value {
    let mut value = current.clone();
    json_patch::merge(&mut value, patch);
    value
}
