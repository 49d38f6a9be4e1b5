//! Fields that a schema does not know, types that do not fit, and defaults.

use serde_json::Value;

use super::{Schema, Type};

/// Where a walk is; becomes text only when there is something to tell.
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(above, name) => write!(f, "{above}.{name}"),
            Self::Item(above, index) => write!(f, "{above}[{index}]"),
        }
    }
}

impl Schema {
    /// Fields of `value` that the schema does not know, as in `unknown field "spec.foo"`. What `old` has at the same
    /// place is not looked at again.
    pub(crate) fn unknown_fields(&self, value: &Value, old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        self.unknown(value, old, &Path::Root, &mut found);
        found
    }

    fn unknown(&self, value: &Value, old: Option<&Value>, path: &Path<'_>, found: &mut Vec<String>) {
        let node = self.node();
        let root = matches!(path, Path::Root);
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let old = old.and_then(|old| old.get(name));
                    let here = Path::Field(path, name);
                    match self.field(name) {
                        Some(_) if old == Some(value) => {}
                        Some(schema) => schema.unknown(value, old, &here, found),
                        None if node.preserve || node.kind != Type::Object => {}
                        None if root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") => {}
                        None => found.push(format!("unknown field {:?}", here.to_string())),
                    }
                }
            }
            Value::Array(items) => {
                let Some(schema) = &node.items else { return };
                for (i, item) in items.iter().enumerate() {
                    let old = old.and_then(|old| old.get(i));
                    if old != Some(item) {
                        schema.unknown(item, old, &Path::Item(path, i), found);
                    }
                }
            }
            _ => {}
        }
    }

    /// Drops what the schema does not know, and nulls that mean nothing.
    pub(crate) fn prune(&self, value: &mut Value) {
        self.prune_level(value, true);
    }

    fn prune_level(&self, value: &mut Value, root: bool) {
        let node = self.node();
        match value {
            Value::Object(fields) => {
                fields.retain(|name, value| {
                    if value.is_null() && !node.custom && node.fields.contains_key(name.as_str()) {
                        return false;
                    }
                    let known = self.field(name).is_some() || node.preserve || node.kind != Type::Object;
                    known || (root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata"))
                });
                for (name, value) in fields.iter_mut() {
                    if let Some(schema) = self.field(name) {
                        schema.prune_level(value, false);
                    }
                }
            }
            Value::Array(items) => {
                let Some(schema) = &node.items else { return };
                items.iter_mut().for_each(|item| schema.prune_level(item, false));
            }
            _ => {}
        }
    }

    /// Fills in the defaults of a custom resource's schema; those of built-in kinds are code of their own.
    pub(crate) fn default(&self, value: &mut Value) {
        let node = self.node();
        if !node.custom {
            return;
        }
        match value {
            Value::Object(fields) => {
                for (name, schema) in &node.fields {
                    let child = schema.node();
                    let Some(default) = child.default.as_ref().filter(|_| child.custom) else { continue };
                    // A null where null is not a value counts as not given.
                    if fields.get(&**name).is_none_or(|v| v.is_null() && !child.nullable) {
                        fields.insert(name.to_string(), default.clone());
                    }
                }
                for (name, value) in fields.iter_mut() {
                    if let Some(schema) = self.field(name) {
                        schema.default(value);
                    }
                }
                fields.retain(|name, value| {
                    !value.is_null()
                        || node
                            .fields
                            .get(name.as_str())
                            .is_none_or(|s| s.node().nullable || !s.node().custom || s.node().default.is_none())
                });
            }
            Value::Array(items) => {
                let Some(schema) = &node.items else { return };
                items.iter_mut().for_each(|item| schema.default(item));
            }
            _ => {}
        }
    }

    /// What decoding `value` as the built-in type would stumble over. What `old` has at the same place is not looked at
    /// again.
    pub(crate) fn check_types(&self, value: &Value, old: Option<&Value>) -> Result<(), String> {
        self.check(value, old, &Path::Root)
    }

    fn check(&self, value: &Value, old: Option<&Value>, path: &Path<'_>) -> Result<(), String> {
        let node = self.node();
        let wanted = match (node.kind, value) {
            (_, Value::Null) | (Type::Any, _) => return Ok(()),
            (Type::Object, Value::Object(fields)) => {
                for (name, value) in fields {
                    let old = old.and_then(|old| old.get(name));
                    if let Some(schema) = self.field(name).filter(|_| old != Some(value)) {
                        schema.check(value, old, &Path::Field(path, name))?;
                    }
                }
                return Ok(());
            }
            (Type::Array, Value::Array(items)) => {
                let Some(schema) = &node.items else { return Ok(()) };
                return items.iter().enumerate().try_for_each(|(i, item)| match old.and_then(|old| old.get(i)) {
                    Some(old) if old == item => Ok(()),
                    old => schema.check(item, old, path),
                });
            }
            (Type::String, Value::String(text)) => return check_text(&node.format, text, path),
            (Type::Integer, Value::Number(number)) => {
                let fits = match &*node.format {
                    "int32" => number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
                    _ => number.is_i64() || number.is_u64(),
                };
                if fits {
                    return Ok(());
                }
                "an integer in range"
            }
            (Type::Number, Value::Number(_)) | (Type::Boolean, Value::Bool(_)) => return Ok(()),
            (Type::IntOrString, Value::String(text)) => return check_text(&node.format, text, path),
            (Type::IntOrString, Value::Number(_)) => return Ok(()),
            (Type::Object, _) => "an object",
            (Type::Array, _) => "a list",
            (Type::String, _) => "a string",
            (Type::Integer, _) => "an integer",
            (Type::Number, _) => "a number",
            (Type::Boolean, _) => "a boolean",
            (Type::IntOrString, _) => "an integer or a string",
        };
        Err(format!("json: cannot unmarshal {} into field {path} that takes {wanted}", said(value)))
    }
}

fn check_text(format: &str, text: &str, path: &Path<'_>) -> Result<(), String> {
    use base64::Engine;
    if format == "quantity" && kube_quantity::ParsedQuantity::try_from(text).is_err() {
        // The API server's own words; they name no field.
        return Err("quantities must match the regular expression \
             '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            .into());
    }
    let fault = match format {
        "byte" => {
            base64::engine::general_purpose::STANDARD.decode(text).err().map(|e| format!("illegal base64 data: {e}"))
        }
        "date-time" if !text.is_empty() => text.parse::<jiff::Timestamp>().err().map(|e| e.to_string()),
        _ => None,
    };
    fault.map_or(Ok(()), |fault| Err(format!("field {path}: {fault}")))
}

fn said(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
