//! The smallest JSON merge patch from one value to another (RFC 7386).

use serde_json::{Map, Value};

/// What must be merged into `from` to get `to`; `None` when they are the same. Lists are replaced whole.
pub fn diff(from: &Value, to: &Value) -> Option<Value> {
    match (from, to) {
        _ if from == to => None,
        (Value::Object(from), Value::Object(to)) => {
            let gone = from.keys().filter(|k| !to.contains_key(*k)).map(|k| (k.clone(), Value::Null));
            let nothing = Value::Null;
            let changed = to.iter().filter_map(|(k, v)| Some((k.clone(), diff(from.get(k).unwrap_or(&nothing), v)?)));
            Some(Value::Object(gone.chain(changed).collect::<Map<_, _>>()))
        }
        _ => Some(to.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_changed_is_in_the_patch() {
        for (from, to, patch) in [
            (json!({"a": 1}), json!({"a": 1}), None),
            (json!({"a": 1, "b": 2}), json!({"a": 1, "b": 3}), Some(json!({"b": 3}))),
            (json!({"a": {"x": 1, "y": 2}}), json!({"a": {"y": 2}}), Some(json!({"a": {"x": null}}))),
            (json!({"a": [1]}), json!({"a": [1, 2]}), Some(json!({"a": [1, 2]}))),
            (json!({}), json!({"a": {"b": 1}}), Some(json!({"a": {"b": 1}}))),
            (Value::Null, json!({"a": 1}), Some(json!({"a": 1}))),
        ] {
            assert_eq!(diff(&from, &to), patch, "{from} → {to}");
        }
    }
}
