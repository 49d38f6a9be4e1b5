//! Validating custom resources.

use serde_json::Value;

use super::rules::{Rules, is_transition};
use super::{List, Node, Schema, Type};
use crate::status::FieldError;

/// Faults of an object whose shape is not what rules in CEL could be asked of. apiextensions: `hasBlockingErr`.
const BLOCKING: [&str; 5] =
    ["FieldValueNotSupported", "FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid"];

impl Schema {
    /// What is wrong with a custom resource. Values that `old` had at the same place already are let through, and
    /// rules in CEL are asked only of objects whose shape is right.
    pub(crate) fn validate(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.values(new, old, "", &mut errors);
        // Items that are there twice are looked for after everything else.
        errors.sort_by_key(|error| error.reason == "FieldValueDuplicate");
        if !errors.iter().any(|error| BLOCKING.contains(&error.reason)) {
            self.expressions(new, old, old == Some(new), "", &mut errors);
        } else if self.has_expressions() {
            let detail = "some validation rules were not checked because the object was invalid; correct the existing \
                errors to complete validation";
            errors.push(FieldError::invalid("<nil>", &Value::Null, detail));
        }
        errors
    }

    /// What is wrong with a value's shape, its rules in CEL aside.
    pub(super) fn shape_faults(&self, value: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.values(value, None, "", &mut errors);
        errors
    }

    fn has_expressions(&self) -> bool {
        let node = self.node();
        let below = || node.fields.values().chain(&node.items).chain(&node.additional);
        node.custom && (node.rules.as_ref().is_some_and(|r| r.cel.is_some()) || below().any(Self::has_expressions))
    }

    fn values(&self, value: &Value, old: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
        let node = self.node();
        if old == Some(value) || !node.custom || (value.is_null() && node.nullable) {
            return;
        }
        if !fits(node, value) {
            errors.push(wrong_type(node, value, path));
            if let Some(rules) = &node.rules {
                among(rules, value, path, errors);
            }
            return;
        }
        if let Value::String(text) = value
            && !is_of_format(&node.format, text)
        {
            let detail = format!("{path} in body must be of type {}: {value}", node.format);
            errors.push(FieldError::type_invalid(path, value, &detail));
        }
        if node.kind == Type::Integer
            && &*node.format == "int32"
            && value.as_i64().is_none_or(|n| i32::try_from(n).is_err())
        {
            // Nameless, as go-openapi tells it.
            let message =
                format!("Invalid value: \"\": Checked value must be of type integer with format int32 in {path}");
            errors.push(FieldError { field: "<nil>".into(), reason: "FieldValueInvalid", message });
        }
        if let Some(rules) = &node.rules {
            demands(rules, value, path, errors);
        }
        match value {
            Value::Object(fields) => {
                for name in node.required.iter().filter(|name| !fields.contains_key(&***name)) {
                    errors.push(FieldError::required(join(path, name), ""));
                }
                if node.embedded {
                    for name in ["apiVersion", "kind"] {
                        if fields.get(name).and_then(Value::as_str).unwrap_or_default().is_empty() {
                            errors.push(FieldError::required(join(path, name), ""));
                        }
                    }
                }
                for (name, value) in fields {
                    if let Some(schema) = self.field(name) {
                        schema.values(value, old.and_then(|o| o.get(name)), &self.below(path, name), errors);
                    }
                }
            }
            Value::Array(items) => {
                duplicates(&node.list, items, path, errors);
                let Some(schema) = &node.items else { return };
                for (i, item) in items.iter().enumerate() {
                    schema.values(item, self.counterpart(item, old), &format!("{path}[{i}]"), errors);
                }
            }
            _ => {}
        }
    }

    /// Asks the rules in CEL. Of what is the same as before, only those that are about changes: the others' faults would
    /// be let through.
    fn expressions(&self, value: &Value, old: Option<&Value>, same: bool, path: &str, errors: &mut Vec<FieldError>) {
        let node = self.node();
        if !node.custom || value.is_null() {
            return;
        }
        if let Some(rules) = node.rules.as_ref().filter(|r| !same || r.transitions)
            && let Some(compiled) = &rules.cel
            && let whole = (path.is_empty() || node.embedded)
            && let before = old.filter(|_| rules.transitions).map(|old| rules.seen(old, whole))
            && let Err(faults) = kube_cel::validate_compiled(compiled, &rules.seen(value, whole), before.as_deref())
        {
            let faults = faults.into_vec().into_iter();
            errors.extend(faults.filter(|f| !same || is_transition(&f.rule)).map(|f| expressed(&f, path, value)));
        }
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if let Some(schema) = self.field(name) {
                        let old = old.and_then(|o| o.get(name));
                        let same = same || old == Some(value);
                        let path = match node.fields.contains_key(&**name) {
                            true => join(path, name),
                            false => format!("{path}[{name}]"),
                        };
                        schema.expressions(value, old, same, &path, errors);
                    }
                }
            }
            Value::Array(items) => {
                let Some(schema) = &node.items else { return };
                for (i, item) in items.iter().enumerate() {
                    let old = self.counterpart(item, old);
                    let same = same || old == Some(item);
                    schema.expressions(item, old, same, &format!("{path}[{i}]"), errors);
                }
            }
            _ => {}
        }
    }

    fn below(&self, path: &str, name: &str) -> String {
        // Entries of maps are named as fields are, unless the values are objects of their own.
        let node = self.node();
        let flat = node.additional.as_ref().is_some_and(|entry| entry.node().fields.is_empty());
        if flat || node.fields.contains_key(name) { join(path, name) } else { format!("{path}[{name}]") }
    }

    /// What a list's item was before, as far as the list's type can tell.
    fn counterpart<'a>(&self, item: &Value, old: Option<&'a Value>) -> Option<&'a Value> {
        let old = old?.as_array()?;
        match &self.node().list {
            List::Map(keys) => old.iter().find(|other| keys.iter().all(|k| other.get(&**k) == item.get(&**k))),
            List::Set | List::Atomic => None,
        }
    }

    fn accepts(&self, value: &Value) -> bool {
        let mut errors = Vec::new();
        self.values(value, None, "", &mut errors);
        errors.is_empty()
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn fits(node: &Node, value: &Value) -> bool {
    match node.kind {
        Type::Any => true,
        Type::Object => value.is_object(),
        Type::Array => value.is_array(),
        Type::String => value.is_string(),
        Type::Integer => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        Type::Number => value.is_number(),
        Type::Boolean => value.is_boolean(),
        Type::IntOrString => value.is_i64() || value.is_u64() || value.is_string(),
    }
}

/// Whether a text has the format of its schema, as far as the format is one that is checked.
fn is_of_format(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        "byte" => {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.decode(text).is_ok()
        }
        _ => true,
    }
}

fn wrong_type(node: &Node, value: &Value, path: &str) -> FieldError {
    let wanted = match node.kind {
        Type::Any | Type::IntOrString => "integer,string",
        Type::Object => "object",
        Type::Array => "array",
        Type::String => "string",
        Type::Integer => "integer",
        Type::Number => "number",
        Type::Boolean => "boolean",
    };
    let given = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let detail = format!("{path} in body must be of type {wanted}: {given:?}");
    FieldError::type_invalid(path, &given.into(), &detail)
}

fn demands(rules: &Rules, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut invalid = |said: String| errors.push(FieldError::invalid(path, value, &format!("{path} in body {said}")));
    let (mut many, mut few, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    match value {
        Value::Number(number) => {
            let n = number.as_f64().unwrap_or_default();
            if let Some(unit) = rules.multiple_of.filter(|unit| (n / unit).fract() != 0.0) {
                invalid(format!("should be a multiple of {unit}"));
            }
            if rules.minimum.is_some_and(|m| n < m || (rules.exclusive_minimum && n == m)) {
                let than = if rules.exclusive_minimum { "greater than" } else { "greater than or equal to" };
                invalid(format!("should be {than} {}", rules.minimum.unwrap_or_default()));
            }
            if rules.maximum.is_some_and(|m| n > m || (rules.exclusive_maximum && n == m)) {
                let than = if rules.exclusive_maximum { "less than" } else { "less than or equal to" };
                invalid(format!("should be {than} {}", rules.maximum.unwrap_or_default()));
            }
        }
        Value::String(text) => {
            let length = text.chars().count();
            if let Some(least) = rules.min_length.filter(|least| length < *least) {
                invalid(format!("should be at least {least} chars long"));
            }
            if let Some(most) = rules.max_length.filter(|most| length > *most) {
                many.push(FieldError {
                    field: path.into(),
                    reason: "FieldValueTooLong",
                    message: format!("Too long: may not be more than {most} bytes"),
                });
            }
            // Of a text's demands the first that fails is told.
            let long = rules.max_length.is_some_and(|most| length > most);
            let short = rules.min_length.is_some_and(|least| length < least);
            if let Some(pattern) = rules.pattern.as_ref().filter(|p| !long && !short && !p.is_match(text)) {
                invalid(format!("should match '{pattern}'"));
            }
        }
        Value::Array(items) => {
            if let Some(least) = rules.min_items.filter(|least| items.len() < *least) {
                let detail = format!("{path} in body should have at least {least} items");
                few.push(FieldError::invalid(path, &items.len().into(), &detail));
            }
            too_many(rules.max_items, items.len(), path, &mut many);
        }
        Value::Object(fields) => {
            if let Some(least) = rules.min_properties.filter(|least| fields.len() < *least) {
                let detail = format!("{path} in body should have at least {least} properties");
                few.push(FieldError::invalid(path, &fields.len().into(), &detail));
            }
            too_many(rules.max_properties, fields.len(), path, &mut many);
        }
        Value::Null | Value::Bool(_) => {}
    }
    // Of a value as a whole Kubernetes names the place in the text alone, and then what the first alternative misses.
    let mut combined = |said: String, alternatives: &[Schema]| {
        let message = format!("Invalid value: \"\": {:?} {said}", path);
        whole.push(FieldError { field: "<nil>".into(), reason: "FieldValueInvalid", message });
        if let Some(first) = alternatives.first() {
            first.values(value, None, path, &mut whole);
        }
    };
    if let Some(missed) = rules.all_of.iter().find(|s| !s.accepts(value)) {
        combined("must validate all the schemas (allOf)".into(), std::slice::from_ref(missed));
    }
    if !rules.any_of.is_empty() && !rules.any_of.iter().any(|s| s.accepts(value)) {
        combined("must validate at least one schema (anyOf)".into(), &rules.any_of);
    }
    let fitting = rules.one_of.iter().filter(|s| s.accepts(value)).count();
    if !rules.one_of.is_empty() && fitting != 1 {
        let found = if fitting == 0 { "none valid".to_owned() } else { format!("{fitting} valid alternatives") };
        let rest: &[Schema] = if fitting == 0 { &rules.one_of } else { &[] };
        combined(format!("must validate one and only one schema (oneOf). Found {found}"), rest);
    }
    if rules.not.as_ref().is_some_and(|s| s.accepts(value)) {
        combined("must not validate the schema (not)".into(), &[]);
    }
    errors.extend(few);
    errors.extend(whole);
    errors.extend(many);
    among(rules, value, path, errors);
}

fn among(rules: &Rules, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(allowed) = rules.allowed.as_ref().filter(|allowed| !allowed.contains(value)) {
        let texts: Vec<_> = allowed.iter().map(|a| a.as_str().map_or_else(|| a.to_string(), Into::into)).collect();
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        errors.push(FieldError::not_supported(path, value, &texts));
    }
}

fn too_many(most: Option<usize>, count: usize, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(most) = most.filter(|most| count > *most) {
        errors.push(FieldError {
            field: path.into(),
            reason: "FieldValueTooMany",
            message: format!("Too many: {count}: must have at most {most} item{}", if most == 1 { "" } else { "s" }),
        });
    }
}

fn duplicates(list: &List, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let id = |item: &Value| match list {
        List::Map(keys) => keys
            .iter()
            .filter_map(|k| item.get(&**k).map(|v| (k.to_string(), v.clone())))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        List::Set | List::Atomic => item.clone(),
    };
    if *list == List::Atomic {
        return;
    }
    let mut seen = std::collections::HashSet::new();
    for (i, item) in items.iter().enumerate() {
        let id = id(item);
        if !seen.insert(id.to_string()) {
            errors.push(FieldError::duplicate(format!("{path}[{i}]"), &id));
        }
    }
}

/// A broken rule as Kubernetes words it: without the value.
/// Flat values are shown; others say nothing in a message.
fn expressed(fault: &kube_cel::ValidationError, path: &str, value: &Value) -> FieldError {
    let (reason, said) = match fault.reason.as_deref() {
        Some("FieldValueForbidden") => ("FieldValueForbidden", "Forbidden"),
        Some("FieldValueRequired") => ("FieldValueRequired", "Required value"),
        Some("FieldValueDuplicate") => ("FieldValueDuplicate", "Duplicate value"),
        _ => ("FieldValueInvalid", "Invalid value"),
    };
    let field = match fault.field_path.trim_start_matches('.') {
        // The object as a whole has no name.
        "" if path.is_empty() => "<nil>".to_owned(),
        "" => path.to_owned(),
        below => join(path, below),
    };
    let shown = match value {
        Value::Object(_) | Value::Array(_) => String::new(),
        _ if reason != "FieldValueInvalid" => String::new(),
        flat => format!(" {flat}:"),
    };
    if reason == "FieldValueDuplicate" {
        // Its words are lost. apiextensions: `fieldErrorForReason`.
        let shown = if value.is_object() || value.is_array() { String::new() } else { format!(": {value}") };
        return FieldError { field, reason, message: format!("{said}{shown}") };
    }
    FieldError { field, reason, message: format!("{said}:{shown} {}", fault.message) }
}
