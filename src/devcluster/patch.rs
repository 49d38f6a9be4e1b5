//! Patches.
use crate::{
    schema::Schema,
    status::{ApiError, Result},
};
use serde_json::Value;

pub(crate) fn json(current: &Value, patch: &[u8]) -> Result<Value> {
    let patch: json_patch::Patch = serde_json::from_slice(patch).map_err(|e| ApiError::bad_request(e.to_string()))?;
    let mut value = current.clone();
    json_patch::patch(&mut value, &patch).map_err(|e| ApiError::new(422, "Invalid", e.to_string()))?;
    Ok(value)
}
pub(crate) fn merge(current: &Value, patch: &Value) -> Value {
    let mut value = current.clone();
    json_patch::merge(&mut value, patch);
    value
}
pub(crate) fn strategic(current: &Value, patch: &Value, _schema: &Schema) -> Result<Value> {
    Ok(merge(current, patch))
}
