//! Objects as the API server's own types write them: some fields are always there, others only unless they are zero.
//!
//! The rules come from `fields.txt`. Clients see them in every answer, and server-side apply sees them in what an
//! update added: a field that was there as zero before is not a new one.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::{Node, Schema, Type};

/// How a field's zero is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zero {
    Object,
    Null,
    Text,
    Number,
    Bool,
    Quantity,
    /// Zero is a value like any other; only null is left out.
    Pointer,
}

impl Zero {
    fn value(self) -> Value {
        match self {
            Self::Object => json!({}),
            Self::Null | Self::Pointer => Value::Null,
            Self::Text => "".into(),
            Self::Number => 0.into(),
            Self::Bool => false.into(),
            Self::Quantity => "0".into(),
        }
    }
}

/// Fields and how their zeros are written.
pub(super) type Zeros = Box<[(Box<str>, Zero)]>;

type Table = HashMap<&'static str, Vec<(&'static str, Zero)>>;

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        let lines = include_str!("fields.txt").lines().filter(|line| !line.starts_with('#'));
        let field = |text: &'static str| {
            let (name, code) = text.split_once('=')?;
            let zero = match code {
                "o" => Zero::Object,
                "n" => Zero::Null,
                "s" => Zero::Text,
                "i" => Zero::Number,
                "b" => Zero::Bool,
                "q" => Zero::Quantity,
                _ => Zero::Pointer,
            };
            Some((name, zero))
        };
        lines
            .filter_map(|line| {
                let (definition, fields) = line.split_once(' ')?;
                Some((definition, fields.split(' ').filter_map(field).collect()))
            })
            .collect()
    })
}

/// The fields of a definition that are special, of those that it declares; `None` when it is written as it comes.
pub(super) fn zeros(definition: &str, node: &Node) -> Option<Zeros> {
    let name = definition.rsplit('.').next().unwrap_or_default();
    // Schemas of custom resources hold values of any kind.
    if node.preserve || node.fields.is_empty() || name.starts_with("JSON") {
        return None;
    }
    let fields = table().get(name).map(Vec::as_slice).unwrap_or_default();
    let declared = fields.iter().filter(|(field, _)| node.fields.contains_key(*field));
    Some(declared.map(|(field, zero)| ((*field).into(), *zero)).collect())
}

impl Schema {
    /// Writes `value` as the API server's types do. What `old` has at the same place has been through this.
    pub(crate) fn canonical(&self, value: &mut Value, old: Option<&Value>) {
        let node = self.node();
        match value {
            Value::Object(fields) => {
                if let Some(zeros) = &node.zeros {
                    fields.retain(|name, value| {
                        let Some(field) = node.fields.get(name.as_str()) else { return true };
                        let zero = zeros.iter().find(|(field, _)| **field == **name).map(|(_, zero)| *zero);
                        // Lists and maps that are written as null are so when they are empty.
                        let empty = zero == Some(Zero::Null) && is_zero(field.node(), value);
                        if empty || value.is_null() && zero.is_some_and(|zero| zero != Zero::Pointer) {
                            return false;
                        }
                        zero.is_some_and(|zero| zero != Zero::Pointer || !value.is_null())
                            || !is_zero(field.node(), value)
                    });
                    for (name, zero) in zeros.iter().filter(|(_, zero)| *zero != Zero::Pointer) {
                        if !fields.contains_key(&**name) {
                            fields.insert(name.to_string(), zero.value());
                        }
                    }
                }
                for (name, value) in fields.iter_mut().filter(|(_, value)| is_deep(value)) {
                    let old = old.and_then(|old| old.get(name));
                    if let Some(schema) = self.field(name).filter(|_| old != Some(value)) {
                        schema.canonical(value, old);
                    }
                }
            }
            Value::Array(items) => {
                let Some(schema) = &node.items else { return };
                for (i, item) in items.iter_mut().enumerate() {
                    let old = old.and_then(|old| old.get(i));
                    if old != Some(item) {
                        schema.canonical(item, old);
                    }
                }
            }
            Value::String(_) | Value::Number(_) if &*node.format == "quantity" => {
                crate::validate::quantity::canonical(value)
            }
            _ => {}
        }
    }
}

impl Schema {
    /// Makes the nulls in maps of text what the API's types read them as: empty text. What `old` has at the same place
    /// has been through this.
    pub(crate) fn fill_null_entries(&self, value: &mut Value, old: Option<&Value>) {
        let node = self.node();
        match value {
            Value::Object(fields) => {
                let text = node.additional.as_ref().is_some_and(|schema| schema.node().kind == Type::String);
                for (name, value) in fields {
                    if text && value.is_null() {
                        *value = "".into();
                    } else if value.is_object() || value.is_array() {
                        let old = old.and_then(|old| old.get(name));
                        if let Some(schema) = self.field(name).filter(|_| old != Some(value)) {
                            schema.fill_null_entries(value, old);
                        }
                    }
                }
            }
            Value::Array(items) => {
                let Some(schema) = &node.items else { return };
                for (i, item) in items.iter_mut().enumerate() {
                    let old = old.and_then(|old| old.get(i));
                    if old != Some(item) {
                        schema.fill_null_entries(item, old);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Whether there is something to rewrite in a value; of the flat ones quantities alone, which begin as numbers do.
fn is_deep(value: &Value) -> bool {
    match value {
        Value::Object(_) | Value::Array(_) | Value::Number(_) => true,
        Value::String(text) => text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')),
        Value::Null | Value::Bool(_) => false,
    }
}

/// Whether a field with this value is left out.
fn is_zero(node: &Node, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => node.kind == Type::Array && items.is_empty(),
        Value::Object(fields) => node.additional.is_some() && fields.is_empty(),
        Value::String(text) => node.kind == Type::String && &*node.format != "quantity" && text.is_empty(),
        Value::Bool(on) => node.kind == Type::Boolean && !on,
        Value::Number(number) => node.kind == Type::Integer && number.as_i64() == Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_in_maps_of_text_are_empty_text() {
        let kinds = crate::kinds::Registry::new().kinds();
        let mut value = json!({"metadata": {"labels": {"a": null}}, "data": {"b": null, "c": "d"}, "immutable": null});
        let kind = kinds.find("", "v1", "configmaps").unwrap();
        kind.schema.as_ref().unwrap().fill_null_entries(&mut value, None);
        assert_eq!(value["data"], json!({"b": "", "c": "d"}));
        assert_eq!((&value["metadata"]["labels"]["a"], &value["immutable"]), (&json!(""), &Value::Null));
    }

    #[test]
    fn zeros_are_written_where_the_types_of_the_api_write_them() {
        let kinds = crate::kinds::Registry::new().kinds();
        for (resource, given, want) in [
            (
                "pods",
                json!({"metadata": {"labels": {}}, "spec": {"containers": [{"name": "c", "env": [], "tty": false}],
                    "nodeName": "", "priority": 0, "hostNetwork": false, "nodeSelector": {}, "volumes": null}}),
                json!({"metadata": {}, "spec": {"containers": [{"name": "c", "resources": {}}], "priority": 0},
                    "status": {}}),
            ),
            (
                "nodes",
                json!({"spec": {"unschedulable": false}, "status": {"nodeInfo": {"bootID": "b"}}}),
                json!({"metadata": {}, "spec": {}, "status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
                    "nodeInfo": {"architecture": "", "bootID": "b", "containerRuntimeVersion": "", "kernelVersion": "",
                    "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "",
                    "osImage": "", "systemUUID": ""}}}),
            ),
            (
                "nodes",
                json!({"metadata": {}, "spec": {}, "status": {"capacity": {"cpu": 2, "memory": "1.5Gi"},
                    "nodeInfo": {}, "daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}}),
                json!({"metadata": {}, "spec": {}, "status": {"capacity": {"cpu": "2", "memory": "1536Mi"},
                    "daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}, "nodeInfo": {"architecture": "",
                    "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
                    "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
                    "systemUUID": ""}}}),
            ),
            ("services", json!({"spec": null}), json!({"metadata": {}, "spec": {}, "status": {"loadBalancer": {}}})),
            ("configmaps", json!({"data": {"a": ""}}), json!({"metadata": {}, "data": {"a": ""}})),
        ] {
            let kind = kinds.find("", "v1", resource).unwrap();
            let mut value = given.clone();
            kind.schema.as_ref().unwrap().canonical(&mut value, None);
            assert_eq!(value, want, "{resource}");
            let once = value.clone();
            kind.schema.as_ref().unwrap().canonical(&mut value, None);
            assert_eq!(value, once, "{resource} twice");
        }
    }
}
