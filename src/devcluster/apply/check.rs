//! Whether an applied object fits its kind: only known fields, of their types, and each item of a keyed list or set
//! once. structured-merge-diff: `typed`, `validate.go`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::set::{granular, item_name, shown};
use crate::schema::{List, Schema, Type};

/// What is wrong with `value`, with the path to it.
pub(super) fn check(value: &Value, schema: &Schema) -> Result<(), String> {
    let mut faults = Vec::new();
    walk(value, Some(schema), "", &mut faults);
    match faults.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("errors:\n  {}", many.join("\n  "))),
    }
}

fn walk(value: &Value, schema: Option<&Schema>, path: &str, faults: &mut Vec<String>) {
    if let Some(expected) = schema.and_then(|schema| misfit(value, schema)) {
        faults.push(format!("{path}: {expected}"));
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = format!("{path}.{name}");
                match schema.map(|s| (s.field(name), s.closed())) {
                    Some((None, true)) => faults.push(format!("{path}: field not declared in schema")),
                    found => walk(value, found.and_then(|(field, _)| field), &path, faults),
                }
            }
        }
        Value::Array(items) if granular(schema) => {
            let inner = schema.and_then(Schema::items);
            let mut seen = BTreeSet::new();
            for (i, item) in items.iter().enumerate() {
                if let Some(key) = omitted_key(item, schema) {
                    faults.push(format!(
                        "{path}: element {i}: associative list with keys has an element that omits key field {key:?} (and \
                         doesn't have default value)"
                    ));
                    continue;
                }
                let name = item_name(item, schema);
                let key = shown(&name);
                if !seen.insert(name) {
                    faults.push(format!("{path}: duplicate entries for key {key}"));
                    continue;
                }
                walk(item, inner, &format!("{path}{key}"), faults);
            }
        }
        Value::Array(items) => {
            let inner = schema.and_then(Schema::items);
            for (i, item) in items.iter().enumerate() {
                walk(item, inner, &format!("{path}[{i}]"), faults);
            }
        }
        _ => {}
    }
}

/// A key of a keyed list that an item does not have and that has no default.
fn omitted_key<'a>(item: &Value, schema: Option<&'a Schema>) -> Option<&'a str> {
    let List::Map(keys) = schema.filter(|s| s.is_custom())?.list() else { return None };
    let inner = schema.and_then(Schema::items);
    let default = |key: &str| inner.and_then(|s| s.field(key)).and_then(Schema::default_value);
    let missing = |key: &&str| item.get(*key).is_none() && default(key).is_none();
    // Of several keys, one is enough.
    (keys.len() == 1).then_some(())?;
    keys.iter().map(|key| &**key).find(missing)
}

/// What was expected instead of `value`.
fn misfit(value: &Value, schema: &Schema) -> Option<String> {
    let got = format!("&{{{}}}", go(value));
    match (schema.kind(), value) {
        (_, Value::Null) | (Type::Any | Type::IntOrString, _) => None,
        (Type::Object, Value::Object(_)) | (Type::Array, Value::Array(_)) | (Type::Boolean, Value::Bool(_)) => None,
        (Type::Integer | Type::Number, Value::Number(_)) | (Type::String, Value::String(_)) => None,
        (Type::String, Value::Number(_)) if schema.is_quantity() => None,
        (Type::Object, _) => Some(format!("expected map, got {got}")),
        (Type::Array, _) => Some(format!("expected list, got {got}")),
        (Type::Boolean, _) => Some(format!("expected boolean, got {got}")),
        (Type::Integer | Type::Number, _) => {
            Some("expected numeric (int or float), got *value.valueUnstructured".into())
        }
        (Type::String, _) => {
            let shown = if value.is_string() { value.to_string() } else { go(value) };
            Some(format!("expected string, got &value.valueUnstructured{{Value:{shown}}}"))
        }
    }
}

/// A value as Go prints it.
fn go(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}:{}", go(value))).collect();
            format!("map[{}]", fields.join(" "))
        }
        flat => flat.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_its_path() {
        let kinds = crate::kinds::Registry::new().kinds();
        let pods = kinds.find("", "v1", "pods").unwrap();
        let schema = pods.schema.as_ref().unwrap();
        let pod = |containers: Value| json!({"metadata": {"name": "p"}, "spec": {"containers": containers}});
        for (containers, want) in [
            (json!([{"name": "a"}, {"name": "b"}]), None),
            (json!([{"name": "a"}, {"name": "a"}]), Some(r#".spec.containers: duplicate entries for key [name="a"]"#)),
            (
                json!([{"name": "a", "ports": [{"containerPort": 1}, {"containerPort": 1, "protocol": "TCP"}]}]),
                Some(r#".spec.containers[name="a"].ports: duplicate entries for key [containerPort=1,protocol="TCP"]"#),
            ),
            (json!([{"name": "a", "args": ["x", "x"]}]), None),
            (json!([{"name": "a", "x": 1}]), Some(r#".spec.containers[name="a"].x: field not declared in schema"#)),
            (json!([{"name": "a", "tty": "x"}]), Some(r#".spec.containers[name="a"].tty: expected boolean, got &{x}"#)),
            (
                json!([{"name": "a", "image": 2}]),
                Some(r#".spec.containers[name="a"].image: expected string, got &value.valueUnstructured{Value:2}"#),
            ),
            // Keys of the built-in kinds have an empty default.
            (json!([{"image": "i"}]), None),
            (json!([{"name": "a", "resources": {"limits": {"cpu": 1}}}]), None),
            (json!({"a": ["b"]}), Some(".spec.containers: expected list, got &{map[a:[b]]}")),
        ] {
            assert_eq!(check(&pod(containers), schema).err().as_deref(), want);
        }
    }
}
