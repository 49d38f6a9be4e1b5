//! Fields that a schema does not know, types that do not fit, and defaults.

use serde_json::Value;

use super::{Schema, Type};
use crate::server::http::said;

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
                        || node.fields.get(name.as_str()).is_none_or(|s| s.node().nullable || !s.node().custom)
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
        self.check(value, old, &Path::Root, &self.node().name)
    }

    /// `owner` is the Go type that has the field; a map's values are at the map's place.
    fn check(&self, value: &Value, old: Option<&Value>, path: &Path<'_>, owner: &str) -> Result<(), String> {
        let node = self.node();
        let number = |number: &serde_json::Number| Err(mismatch(&format!("number {number}"), owner, path, self));
        match (node.kind, value) {
            (_, Value::Null) | (Type::Any, _) => Ok(()),
            (Type::Object, Value::Object(fields)) => {
                for (name, value) in fields {
                    let old = old.and_then(|old| old.get(name));
                    let Some(schema) = self.field(name).filter(|_| old != Some(value)) else { continue };
                    match node.fields.contains_key(name.as_str()) {
                        true => schema.check(value, old, &Path::Field(path, name), &node.name)?,
                        false => schema.check(value, old, path, owner)?,
                    }
                }
                Ok(())
            }
            (Type::Array, Value::Array(items)) => {
                let Some(schema) = &node.items else { return Ok(()) };
                items.iter().enumerate().try_for_each(|(i, item)| match old.and_then(|old| old.get(i)) {
                    Some(old) if old == item => Ok(()),
                    old => schema.check(item, old, path, owner),
                })
            }
            (Type::String, Value::String(text)) | (Type::IntOrString, Value::String(text)) => {
                check_text(&node.format, text)
            }
            (Type::Integer, Value::Number(given)) => match &*node.format {
                "int32" if given.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
                "int32" => number(given),
                _ if given.is_i64() || given.is_u64() => Ok(()),
                _ => number(given),
            },
            (Type::Number, Value::Number(_)) | (Type::Boolean, Value::Bool(_)) => Ok(()),
            (Type::IntOrString, Value::Number(_)) => Ok(()),
            (Type::String, Value::Number(_)) if &*node.format == "quantity" => Ok(()),
            (_, other) => Err(mismatch(said(other), owner, path, self)),
        }
    }

    /// The Go type of a value.
    fn go_type(&self) -> String {
        let node = self.node();
        match node.kind {
            Type::Object => match (&node.additional, &*node.name) {
                (Some(values), _) => format!("map[string]{}", values.go_type()),
                (None, "") => "map[string]interface {}".into(),
                (None, name) => format!("v1.{name}"),
            },
            Type::Array => format!("[]{}", node.items.as_ref().map(Self::go_type).unwrap_or_default()),
            Type::String if &*node.format == "byte" => "[]uint8".into(),
            Type::Integer => if node.format.is_empty() { "int64" } else { &node.format }.into(),
            Type::Number => "float64".into(),
            Type::Boolean => "bool".into(),
            Type::IntOrString => "intstr.IntOrString".into(),
            Type::String | Type::Any => "string".into(),
        }
    }
}

fn mismatch(given: &str, owner: &str, path: &Path<'_>, schema: &Schema) -> String {
    format!("json: cannot unmarshal {given} into Go struct field {owner}.{path} of type {}", schema.go_type())
}

/// Times that are kept to the microsecond are written so, with all six digits.
fn micro_time(text: &str) -> Result<(), String> {
    let told = |rest: &str, wanted: &str| {
        Err(format!(
            "parsing time {text:?} as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse {rest:?} as {wanted:?}"
        ))
    };
    let Some((seconds, rest)) = text.split_at_checked("2006-01-02T15:04:05".len()) else { return told(text, "2006") };
    if format!("{seconds}Z").parse::<jiff::Timestamp>().is_err() {
        return told(text, "2006");
    }
    let digits = rest.strip_prefix('.').map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    match digits {
        0..6 => told(rest, ".000000"),
        6 if text.parse::<jiff::Timestamp>().is_ok() => Ok(()),
        _ => told(&rest[7..], "Z07:00"),
    }
}

fn check_text(format: &str, text: &str) -> Result<(), String> {
    use base64::Engine;
    if format == "quantity" && kube_quantity::ParsedQuantity::try_from(text).is_err() {
        // The API server's own words; like those that follow, they name no field.
        return Err("quantities must match the regular expression \
             '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            .into());
    }
    match format {
        "byte" => {
            use base64::DecodeError::{InvalidByte, InvalidLastSymbol};
            let fault = base64::engine::general_purpose::STANDARD.decode(text).err();
            fault.map_or(Ok(()), |fault| {
                let at = match fault {
                    InvalidByte(at, _) | InvalidLastSymbol(at, _) => at,
                    _ => text.len(),
                };
                Err(format!("illegal base64 data at input byte {at}"))
            })
        }
        "micro-time" if !text.is_empty() => micro_time(text),
        "date-time" if !text.is_empty() && text.parse::<jiff::Timestamp>().is_err() => {
            Err(format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""))
        }
        _ => Ok(()),
    }
}
