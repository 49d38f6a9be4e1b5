//! Server-side apply.
use crate::{schema::Schema, status::Result};
use serde_json::Value;

pub(crate) struct Request<'a> {
    pub(crate) manager: &'a str,
    pub(crate) force: bool,
    pub(crate) subresource: Option<&'a str>,
    pub(crate) api_version: &'a str,
    pub(crate) now: &'a str,
}
pub(crate) fn apply(live: Option<&Value>, applied: &Value, _request: &Request<'_>, _schema: &Schema) -> Result<Value> {
    Ok(match live {
        Some(live) => crate::patch::merge(live, applied),
        None => applied.clone(),
    })
}
pub(crate) fn record_update(_before: Option<&Value>, _after: &mut Value, _request: &Request<'_>, _schema: &Schema) {}
