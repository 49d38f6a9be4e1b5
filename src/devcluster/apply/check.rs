//! Whether an applied object names each item of its keyed lists and sets once. structured-merge-diff: `typed`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::set::{granular, item_name, shown};
use crate::schema::Schema;

/// What is wrong with the lists of `value`, with the path to it.
pub(super) fn check(value: &Value, schema: &Schema) -> Result<(), String> {
    walk(value, Some(schema), "")
}

fn walk(value: &Value, schema: Option<&Schema>, path: &str) -> Result<(), String> {
    match value {
        Value::Object(fields) if !schema.is_some_and(Schema::atomic) => fields
            .iter()
            .try_for_each(|(name, value)| walk(value, schema.and_then(|s| s.field(name)), &format!("{path}.{name}"))),
        Value::Array(items) if granular(schema) => {
            let inner = schema.and_then(Schema::items);
            let mut seen = BTreeSet::new();
            for item in items {
                let name = item_name(item, schema);
                let key = shown(&name);
                if !seen.insert(name) {
                    return Err(format!("{path}: duplicate entries for key {key}"));
                }
                walk(item, inner, &format!("{path}{key}"))?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_item_named_twice_is_refused_with_its_path() {
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
        ] {
            assert_eq!(check(&pod(containers), schema).err().as_deref(), want);
        }
    }
}
