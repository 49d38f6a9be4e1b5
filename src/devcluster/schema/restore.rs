//! What the API server's converter from unstructured data stumbles over, in its words. apimachinery: `FromUnstructured`.

use serde_json::Value;

use super::{Schema, Type};

impl Schema {
    /// Why a patched object cannot be read as its type again. What `old` has at the same place is not looked at again.
    pub(crate) fn restores(&self, value: &Value, old: Option<&Value>) -> Result<(), String> {
        let node = self.node();
        if old == Some(value) {
            return Ok(());
        }
        match (node.kind, value) {
            (_, Value::Null) | (Type::Any | Type::IntOrString, _) => Ok(()),
            (Type::Object, Value::Object(fields)) => {
                fields.iter().try_for_each(|(name, value)| match self.field(name) {
                    Some(schema) => schema.restores(value, old.and_then(|old| old.get(name))),
                    None => Ok(()),
                })
            }
            (Type::Object, other) if node.fields.is_empty() => Err(format!("cannot restore map from {}", kind(other))),
            (Type::Object, other) => Err(format!("cannot restore struct from: {}", kind(other))),
            (Type::Array, Value::Array(items)) => {
                let Some(schema) = &node.items else { return Ok(()) };
                items.iter().enumerate().try_for_each(|(i, item)| schema.restores(item, old.and_then(|old| old.get(i))))
            }
            (Type::Array, other) => Err(format!("cannot restore slice from {}", kind(other))),
            // These read themselves.
            (Type::String, _) if !node.format.is_empty() => self.check_types(value, None),
            (Type::String, Value::String(_)) | (Type::Boolean, Value::Bool(_)) => Ok(()),
            (Type::String, Value::Number(number)) if !number.is_f64() => {
                Err("cannot convert int64 to string".to_owned())
            }
            (Type::Integer, Value::Number(number)) if !number.is_f64() => Ok(()),
            (Type::Number, Value::Number(_)) => Ok(()),
            (wanted, _) => Err(format!(
                "unrecognized type: {}",
                match wanted {
                    Type::Integer if !node.format.is_empty() => &node.format,
                    Type::Integer => "int64",
                    Type::Number => "float64",
                    Type::Boolean => "bool",
                    _ => "string",
                }
            )),
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "invalid",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}

/// A value as the API server's language prints it, as in `map[a:1 b:[x y]]`.
pub(crate) fn printed(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(printed).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{name}:{}", printed(value)));
            format!("map[{}]", fields.collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::builtin;
    use serde_json::json;

    #[test]
    fn values_that_do_not_fit_are_told_in_the_converter_s_words() {
        let map = builtin("io.k8s.api.core.v1.ConfigMap").unwrap();
        for (value, fault) in [
            (json!({"data": {"a": "x"}}), ""),
            (json!({"data": {"a": 5}}), "cannot convert int64 to string"),
            (json!({"data": {"a": true}}), "unrecognized type: string"),
            (json!({"data": 5}), "cannot restore map from int64"),
            (json!({"data": [1]}), "cannot restore map from slice"),
            (json!({"metadata": "x"}), "cannot restore struct from: string"),
        ] {
            assert_eq!(map.restores(&value, None).err().unwrap_or_default(), fault, "{value}");
        }
        let pod = builtin("io.k8s.api.core.v1.Pod").unwrap();
        let wrong = json!({"spec": {"activeDeadlineSeconds": "x"}});
        assert_eq!(pod.restores(&wrong, None).unwrap_err(), "unrecognized type: int64");
        assert_eq!(pod.restores(&wrong, Some(&wrong)), Ok(()), "what was there before stays");
    }

    #[test]
    fn values_are_printed_without_quotes() {
        let value = json!({"b": "c", "a": [1, "x", true, null, {"d": 1.5}]});
        assert_eq!(printed(&value), "map[a:[1 x true <nil> map[d:1.5]] b:c]");
    }
}
