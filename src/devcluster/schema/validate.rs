//! Validating custom resources.

use serde_json::Value;

use super::rules::Rules;
use super::{List, Node, Schema, Type};
use crate::status::FieldError;

impl Schema {
    /// What is wrong with a custom resource. Values that `old` had at the same place already are let through, and
    /// rules in CEL are asked only of objects whose shape is right.
    pub(crate) fn validate(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.values(new, old, "", &mut errors);
        if errors.is_empty() {
            self.expressions(new, old, "", &mut errors);
        }
        errors
    }

    fn values(&self, value: &Value, old: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
        let node = self.node();
        if old == Some(value) || !node.custom || (value.is_null() && node.nullable) {
            return;
        }
        if !fits(node, value) {
            errors.push(wrong_type(node, value, path));
            return;
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
                            errors.push(FieldError::required(join(path, name), "must not be empty"));
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

    fn expressions(&self, value: &Value, old: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
        let node = self.node();
        if !node.custom || value.is_null() {
            return;
        }
        if let Some(compiled) = node.rules.as_ref().and_then(|r| r.cel.as_ref())
            && let Err(faults) = kube_cel::validate_compiled(compiled, value, old)
        {
            let transition = |rule: &str| rule.contains("oldSelf");
            let faults = faults.into_vec().into_iter();
            errors.extend(faults.filter(|f| old != Some(value) || transition(&f.rule)).map(|f| expressed(&f, path)));
        }
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if let Some(schema) = self.field(name) {
                        schema.expressions(value, old.and_then(|o| o.get(name)), &self.below(path, name), errors);
                    }
                }
            }
            Value::Array(items) => {
                let Some(schema) = &node.items else { return };
                for (i, item) in items.iter().enumerate() {
                    schema.expressions(item, self.counterpart(item, old), &format!("{path}[{i}]"), errors);
                }
            }
            _ => {}
        }
    }

    fn below(&self, path: &str, name: &str) -> String {
        if self.node().fields.contains_key(name) { join(path, name) } else { format!("{path}[{name}]") }
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
    let mut many = Vec::new();
    match value {
        Value::Number(number) => {
            let n = number.as_f64().unwrap_or_default();
            if rules.minimum.is_some_and(|m| n < m || (rules.exclusive_minimum && n == m)) {
                let than = if rules.exclusive_minimum { "greater than" } else { "greater than or equal to" };
                invalid(format!("should be {than} {}", rules.minimum.unwrap_or_default()));
            }
            if rules.maximum.is_some_and(|m| n > m || (rules.exclusive_maximum && n == m)) {
                let than = if rules.exclusive_maximum { "less than" } else { "less than or equal to" };
                invalid(format!("should be {than} {}", rules.maximum.unwrap_or_default()));
            }
            if let Some(unit) = rules.multiple_of.filter(|unit| (n / unit).fract() != 0.0) {
                invalid(format!("should be a multiple of {unit}"));
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
            if let Some(pattern) = rules.pattern.as_ref().filter(|p| !p.is_match(text)) {
                invalid(format!("should match '{pattern}'"));
            }
        }
        Value::Array(items) => {
            if let Some(least) = rules.min_items.filter(|least| items.len() < *least) {
                invalid(format!("should have at least {least} items"));
            }
            too_many(rules.max_items, items.len(), path, &mut many);
        }
        Value::Object(fields) => {
            if let Some(least) = rules.min_properties.filter(|least| fields.len() < *least) {
                invalid(format!("should have at least {least} properties"));
            }
            too_many(rules.max_properties, fields.len(), path, &mut many);
        }
        Value::Null | Value::Bool(_) => {}
    }
    if rules.all_of.iter().any(|s| !s.accepts(value)) {
        invalid("must validate all the schemas (allOf)".into());
    }
    if !rules.any_of.is_empty() && !rules.any_of.iter().any(|s| s.accepts(value)) {
        invalid("must validate at least one schema (anyOf)".into());
    }
    if !rules.one_of.is_empty() && rules.one_of.iter().filter(|s| s.accepts(value)).count() != 1 {
        invalid("must validate one and only one schema (oneOf)".into());
    }
    if rules.not.as_ref().is_some_and(|s| s.accepts(value)) {
        invalid("must not validate the schema (not)".into());
    }
    errors.extend(many);
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
            message: format!("Too many: {count}: must have at most {most} items"),
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
fn expressed(fault: &kube_cel::ValidationError, path: &str) -> FieldError {
    let (reason, said) = match fault.reason.as_deref() {
        Some("FieldValueForbidden") => ("FieldValueForbidden", "Forbidden"),
        Some("FieldValueRequired") => ("FieldValueRequired", "Required value"),
        Some("FieldValueDuplicate") => ("FieldValueDuplicate", "Duplicate value"),
        _ => ("FieldValueInvalid", "Invalid value"),
    };
    let field = match fault.field_path.trim_start_matches('.') {
        "" => path.to_owned(),
        below => join(path, below),
    };
    FieldError { field, reason, message: format!("{said}: {}", fault.message) }
}
