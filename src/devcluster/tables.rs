//! Tables.
use serde_json::{Value, json};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum IncludeObject { None, Metadata, Object }
pub(crate) fn table(_kind: (&str, &str), _columns: Option<&[Value]>, list_meta: &Value, items: &[&Value], _include: IncludeObject) -> Value {
    let rows: Vec<_> = items.iter().map(|i| json!({"cells": [i["metadata"]["name"]], "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": i["metadata"]}})).collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta, "columnDefinitions": [{"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0}], "rows": rows})
}
