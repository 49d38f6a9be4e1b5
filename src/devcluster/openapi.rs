//! OpenAPI.
use crate::schema::Schema;
use serde_json::{Value, json};

#[allow(dead_code)]
pub(crate) struct KindInfo {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) namespaced: bool,
    pub(crate) definition: String,
    pub(crate) subresources: Vec<String>,
    pub(crate) schema: Schema,
}
pub(crate) fn v2(_kinds: &[KindInfo]) -> Value {
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": {}, "definitions": {}})
}
pub(crate) fn v3_index(_kinds: &[KindInfo]) -> Value {
    json!({"paths": {}})
}
pub(crate) fn v3(_group_version: &str, _kinds: &[KindInfo]) -> Value {
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": {}, "components": {"schemas": {}}})
}
