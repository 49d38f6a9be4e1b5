//! What a custom resource's schema demands of a value beyond its shape.

use regex::Regex;
use std::borrow::Cow;

use serde_json::{Map, Value};

use super::Schema;
use super::parse::Parser;
use super::types;

/// The demands of one level.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) allowed: Option<Vec<Value>>,
    pub(super) pattern: Option<Regex>,
    pub(super) minimum: Option<f64>,
    pub(super) maximum: Option<f64>,
    pub(super) exclusive_minimum: bool,
    pub(super) exclusive_maximum: bool,
    pub(super) multiple_of: Option<f64>,
    pub(super) min_length: Option<usize>,
    pub(super) max_length: Option<usize>,
    pub(super) min_items: Option<usize>,
    pub(super) max_items: Option<usize>,
    pub(super) min_properties: Option<usize>,
    pub(super) max_properties: Option<usize>,
    pub(super) all_of: Vec<Schema>,
    pub(super) any_of: Vec<Schema>,
    pub(super) one_of: Vec<Schema>,
    pub(super) not: Option<Schema>,
    /// The rules in CEL of this level alone, over the shape of everything below.
    pub(super) cel: Option<kube_cel::CompiledSchema>,
    /// The fields that those rules look at, unless they look at the whole.
    asked: Option<Vec<Box<str>>>,
    /// One of them asks how it was before, so that it counts for what has not changed as well.
    pub(super) transitions: bool,
}

/// Whether a rule in CEL is about a change.
pub(super) fn is_transition(rule: &str) -> bool {
    rule.contains("oldSelf")
}

impl Rules {
    /// The rules of a schema, which has passed the structural checks.
    pub(super) fn read(parser: &Parser<'_>, source: &Value) -> Option<Self> {
        let size = |name: &str| source[name].as_u64().and_then(|n| usize::try_from(n).ok());
        let branches = |name: &str| -> Vec<Schema> {
            source[name].as_array().into_iter().flatten().map(|s| parser.schema(s)).collect()
        };
        let rules = Self {
            allowed: source["enum"].as_array().cloned(),
            pattern: source["pattern"].as_str().and_then(|p| Regex::new(p).ok()),
            minimum: source["minimum"].as_f64(),
            maximum: source["maximum"].as_f64(),
            exclusive_minimum: source["exclusiveMinimum"] == true,
            exclusive_maximum: source["exclusiveMaximum"] == true,
            multiple_of: source["multipleOf"].as_f64(),
            min_length: size("minLength"),
            max_length: size("maxLength"),
            min_items: size("minItems"),
            max_items: size("maxItems"),
            min_properties: size("minProperties"),
            max_properties: size("maxProperties"),
            all_of: branches("allOf"),
            any_of: branches("anyOf"),
            one_of: branches("oneOf"),
            not: source["not"].is_object().then(|| parser.schema(&source["not"])),
            transitions: source["x-kubernetes-validations"]
                .as_array()
                .is_some_and(|all| all.iter().any(|r| r["rule"].as_str().is_some_and(is_transition))),
            asked: asked(&source["x-kubernetes-validations"]),
            cel: source["x-kubernetes-validations"].is_array().then(|| kube_cel::compile_schema(&this_level(source))),
        };
        Some(rules)
    }

    /// What the rules in CEL may see of a value, as far as they look: of the metadata of a whole object its name alone.
    /// Making a value of CEL out of an object costs more than the rules that look at it.
    pub(super) fn seen<'v>(&self, value: &'v Value, whole_object: bool) -> Cow<'v, Value> {
        let (Value::Object(fields), Some(asked)) = (value, &self.asked) else { return Cow::Borrowed(value) };
        let metadata = |value: &Value| {
            let named =
                ["name", "generateName"].into_iter().filter_map(|n| Some((n.to_owned(), value.get(n)?.clone())));
            Value::Object(named.collect())
        };
        let seen = asked.iter().filter_map(|name| {
            let field = fields.get(&**name)?;
            let field = if whole_object && &**name == "metadata" { metadata(field) } else { field.clone() };
            Some((name.to_string(), field))
        });
        Cow::Owned(Value::Object(seen.collect::<Map<_, _>>()))
    }
}

/// The fields that all rules of a level look at, before and after a change.
fn asked(rules: &Value) -> Option<Vec<Box<str>>> {
    let mut all = std::collections::BTreeSet::new();
    for rule in rules.as_array()? {
        for text in ["rule", "messageExpression"].into_iter().filter_map(|key| rule[key].as_str()) {
            for variable in ["self", "oldSelf"] {
                all.extend(types::fields_asked(text, variable)?);
            }
        }
    }
    Some(all.into_iter().map(Into::into).collect())
}

/// The schema without the rules of what is below, which are checked at their own levels.
fn this_level(source: &Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                if fields.get("x-kubernetes-validations").is_some_and(Value::is_array) {
                    fields.remove("x-kubernetes-validations");
                }
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut shape = source.clone();
    strip(&mut shape);
    shape["x-kubernetes-validations"] = source["x-kubernetes-validations"].clone();
    for rule in shape["x-kubernetes-validations"].as_array_mut().into_iter().flatten() {
        if rule["optionalOldSelf"] == true {
            make_optional(rule);
        }
    }
    shape
}

/// Wraps what was before in an optional, which is what such a rule asks; evaluation knows it as a value or null.
fn make_optional(rule: &mut Value) {
    let said = rule["rule"].as_str().unwrap_or_default().to_owned();
    let Some(wrapped) = types::replaced(&said, "oldSelf", "(oldSelf == null ? optional.none() : optional.of(oldSelf))")
    else {
        return;
    };
    if rule["message"].as_str().is_none_or(str::is_empty) {
        rule["message"] = format!("failed rule: {said}").into();
    }
    rule["rule"] = wrapped.into();
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_see_what_they_ask_for() {
        let object =
            json!({"kind": "K", "metadata": {"name": "n", "labels": {"a": "b"}}, "spec": {"x": 1}, "status": {}});
        for (rule, message, seen) in [
            ("self.metadata.name.size() <= 63", None, json!({"metadata": {"name": "n"}})),
            ("has(self.spec) && self.spec.x == oldSelf.spec.x", None, json!({"spec": {"x": 1}})),
            ("self.?spec.?x.orValue(0) < 3", Some("self.kind"), json!({"kind": "K", "spec": {"x": 1}})),
            ("self.absent == 'self'", None, json!({})),
            ("self == oldSelf", None, object.clone()),
            ("'x' in self", None, object.clone()),
            ("self.size() > 1", None, object.clone()),
            ("self.__namespace__ == 'x'", None, object.clone()),
            ("[self].all(s, s.spec.x > 0)", None, object.clone()),
        ] {
            let rules = json!([{"rule": rule, "messageExpression": message}]);
            let rules = Rules { asked: asked(&rules), ..Rules::default() };
            assert_eq!(*rules.seen(&object, true), seen, "{rule}");
        }
    }
}
