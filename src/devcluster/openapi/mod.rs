//! The OpenAPI documents: what `kubectl explain`, `diff` and `apply` read.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::schema::{Schema, sources};

mod enums;
pub(crate) mod protobuf;
#[cfg(test)]
mod tests;

const VERSION: &str = "v1.36.0";
/// Where version 2 keeps its definitions.
const V2: &str = "#/definitions/";
const DEFS: &str = "#/$defs/";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// What the documents say of a kind.
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

impl KindInfo {
    /// As in `api/v1` or `apis/apps/v1`.
    fn root(&self) -> String {
        match self.group.as_str() {
            "" => format!("api/{}", self.version),
            group => format!("apis/{group}/{}", self.version),
        }
    }

    fn gvk(&self) -> Value {
        json!({"group": self.group, "version": self.version, "kind": self.kind})
    }
}

/// The OpenAPI v2 document of all kinds.
pub(crate) fn v2(kinds: &[KindInfo]) -> Value {
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths(kinds, V2, true), "definitions": schemas(kinds, V2)})
}

/// The list of OpenAPI v3 documents, one a group version. Their addresses change when their content does.
pub(crate) fn v3_index(kinds: &[KindInfo]) -> Value {
    let mut roots: BTreeMap<String, Sha256> = BTreeMap::new();
    for kind in kinds {
        let hash = roots.entry(kind.root()).or_default();
        hash.update(&kind.definition);
        hash.update(kind.subresources.join(","));
        hash.update(kind.schema.source().to_string());
    }
    let paths: Map<_, _> = roots
        .into_iter()
        .map(|(root, hash)| {
            let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02X}")).collect();
            let url = json!({"serverRelativeURL": format!("/openapi/v3/{root}?hash={hash}")});
            (root, url)
        })
        .collect();
    json!({"paths": paths})
}

/// The OpenAPI v3 document of a group version, whose kinds these are.
pub(crate) fn v3(_group_version: &str, kinds: &[KindInfo]) -> Value {
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths(kinds, "#/components/schemas/", false),
        "components": {"schemas": schemas(kinds, "#/components/schemas/")}})
}

/// The kinds' definitions and all that they refer to.
fn schemas(kinds: &[KindInfo], place: &str) -> Value {
    let known: BTreeMap<_, _> = sources().collect();
    let (mut out, mut wanted, mut seen) = (Map::new(), Vec::new(), BTreeSet::new());
    for kind in kinds {
        let mut schema = kind.schema.source().clone();
        if !known.contains_key(kind.definition.as_str()) {
            for name in ["apiVersion", "kind"] {
                schema["properties"][name] = json!({"type": "string"});
            }
            schema["properties"]["metadata"] = json!({"$ref": format!("{DEFS}{META}")});
        }
        collect(&schema, &mut wanted);
        if place != V2 {
            enums::add(&kind.definition, &mut schema);
        }
        refer(&mut schema, place);
        let entry = out.entry(kind.definition.clone()).or_insert(schema);
        match &mut entry["x-kubernetes-group-version-kind"] {
            Value::Array(list) => list.push(kind.gvk()),
            none => *none = json!([kind.gvk()]),
        }
    }
    while let Some(name) = wanted.pop() {
        if out.contains_key(&name) || !seen.insert(name.clone()) {
            continue;
        }
        let Some(source) = known.get(name.as_str()) else { continue };
        collect(source, &mut wanted);
        let mut schema = (*source).clone();
        if place != V2 {
            enums::add(&name, &mut schema);
        }
        refer(&mut schema, place);
        out.insert(name, schema);
    }
    out.into()
}

fn collect(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            if let Some(name) = fields.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(DEFS)) {
                found.push(name.to_owned());
            }
            fields.values().for_each(|value| collect(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, found)),
        _ => {}
    }
}

/// Makes references lead to `place`. Beside a reference version 3 allows nothing, so it moves into `allOf` there.
fn refer(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(|value| refer(value, place));
            let name = fields.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(DEFS));
            let Some(target) = name.map(|name| format!("{place}{name}")) else { return };
            if fields.len() == 1 || place == V2 {
                fields.insert("$ref".into(), target.into());
            } else {
                fields.remove("$ref");
                fields.insert("allOf".into(), json!([{"$ref": target}]));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|value| refer(value, place)),
        _ => {}
    }
}

fn paths(kinds: &[KindInfo], place: &str, v2: bool) -> Value {
    let mut paths = Map::new();
    for kind in kinds {
        let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let list = format!("/{}{scope}/{}", kind.root(), kind.plural);
        let one = format!("{list}/{{name}}");
        paths.insert(list, operations(kind, &[("get", "list"), ("post", "post")], place, v2));
        let verbs = [("get", "get"), ("put", "put"), ("patch", "patch"), ("delete", "delete")];
        if kind.subresources.iter().any(|name| name == "status") {
            paths.insert(format!("{one}/status"), operations(kind, &verbs[..3], place, v2));
        }
        paths.insert(one, operations(kind, &verbs, place, v2));
    }
    paths.into()
}

fn operations(kind: &KindInfo, verbs: &[(&str, &str)], place: &str, v2: bool) -> Value {
    let parameter = |name: &str, kind: &str| match v2 {
        true => json!({"name": name, "in": "query", "type": kind, "uniqueItems": true}),
        false => json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}}),
    };
    let mut item = Map::new();
    for (method, action) in verbs {
        let mut parameters = Vec::new();
        if matches!(*method, "post" | "put" | "patch") {
            parameters.extend(["dryRun", "fieldManager", "fieldValidation"].map(|name| parameter(name, "string")));
        }
        if *method == "patch" {
            parameters.push(parameter("force", "boolean"));
        }
        let schema = json!({"$ref": format!("{place}{}", kind.definition)});
        let ok = match v2 {
            true => json!({"description": "OK", "schema": schema}),
            false => json!({"description": "OK", "content": {"application/json": {"schema": schema}}}),
        };
        let operation = json!({"parameters": parameters, "responses": {"200": ok},
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind.gvk()});
        item.insert((*method).into(), operation);
    }
    item.into()
}
