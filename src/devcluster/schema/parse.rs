//! From JSON schemas to nodes.

use std::collections::HashMap;

use serde_json::Value;

use super::rules::Rules;
use super::{Link, List, Node, Schema, Type, builtin, canonical, lists};

/// Where references lead, and what the schema belongs to.
pub(super) struct Parser<'a> {
    /// Definitions by name; none for custom resources.
    pub(super) definitions: &'a HashMap<String, usize>,
    pub(super) custom: bool,
}

impl Parser<'_> {
    /// The schema of `source`, which is the definition of that name, if it is one.
    pub(super) fn schema(&self, source: &Value) -> Schema {
        if let Some(name) = source["$ref"].as_str().and_then(|r| r.rsplit('/').next())
            && let Some(index) = self.definitions.get(name)
        {
            return Schema(Link::Definition(*index));
        }
        Schema::own(self.node(source, ""))
    }

    pub(super) fn node(&self, source: &Value, definition: &str) -> Node {
        let flag = |name: &str| source[name] == true;
        let mut node = Node {
            name: definition.rsplit('.').next().unwrap_or_default().into(),
            kind: kind(source),
            format: source["format"].as_str().unwrap_or_default().into(),
            required: texts(&source["required"]),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            nullable: flag("nullable"),
            list: list(source),
            atomic: source["x-kubernetes-map-type"] == "atomic" || lists::atomic(definition),
            default: source.get("default").cloned(),
            custom: self.custom,
            source: source.clone(),
            ..Node::default()
        };
        for (name, field) in source["properties"].as_object().into_iter().flatten() {
            node.fields.insert(name.as_str().into(), self.child(definition, name, field));
        }
        if source["items"].is_object() {
            node.items = Some(self.schema(&source["items"]));
        }
        match &source["additionalProperties"] {
            Value::Object(_) => node.additional = Some(self.schema(&source["additionalProperties"])),
            Value::Bool(true) => node.preserve = true,
            _ => {}
        }
        if node.embedded
            && let Some(meta) = builtin("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
        {
            node.fields.insert("metadata".into(), meta);
            for name in ["apiVersion", "kind"] {
                node.fields.entry(name.into()).or_insert_with(|| text(self.custom));
            }
        }
        if self.custom {
            node.rules = Rules::read(self, source);
        } else if is_free(definition)
            || (node.kind == Type::Object && node.fields.is_empty() && node.additional.is_none())
        {
            node.preserve = true;
        }
        if !self.custom
            && definition.rsplit('.').next().is_some_and(|name| name.starts_with("JSON"))
            && is_free(definition)
        {
            // Their published schema says object, but they hold any value: a default, an `enum`'s members.
            node.kind = Type::Any;
        }
        if !self.custom && definition.ends_with(".MicroTime") {
            node.format = "micro-time".into();
        }
        if !self.custom && definition.ends_with(".resource.Quantity") {
            node.format = "quantity".into();
        }
        if !self.custom && !definition.is_empty() {
            node.zeros = canonical::zeros(definition, &node);
        }
        node
    }

    fn child(&self, definition: &str, name: &str, source: &Value) -> Schema {
        if self.custom || source.get("$ref").is_some() {
            return self.schema(source);
        }
        let mut node = self.node(source, "");
        (node.list, node.strategy) = lists::merging(definition, name);
        node.atomic |= lists::atomic_field(definition, name);
        node.default = lists::default_value(definition, name).map(Into::into);
        Schema::own(node)
    }
}

/// A string.
pub(super) fn text(custom: bool) -> Schema {
    Schema::own(Node { kind: Type::String, custom, ..Node::default() })
}

fn texts(list: &Value) -> Vec<Box<str>> {
    list.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(Into::into)).collect()
}

fn kind(source: &Value) -> Type {
    if source["x-kubernetes-int-or-string"] == true {
        return Type::IntOrString;
    }
    match source["type"].as_str().unwrap_or_default() {
        "object" => Type::Object,
        "array" => Type::Array,
        "string" => Type::String,
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        _ => Type::Any,
    }
}

fn list(source: &Value) -> List {
    match source["x-kubernetes-list-type"].as_str() {
        Some("set") => List::Set,
        Some("map") => List::Map(texts(&source["x-kubernetes-list-map-keys"])),
        _ => List::Atomic,
    }
}

/// Definitions whose content is any JSON.
fn is_free(definition: &str) -> bool {
    [
        "RawExtension",
        "FieldsV1",
        "JSON",
        "JSONSchemaPropsOrArray",
        "JSONSchemaPropsOrBool",
        "JSONSchemaPropsOrStringArray",
    ]
    .iter()
    .any(|free| definition.rsplit('.').next() == Some(free))
}
