//! Whether a CustomResourceDefinition's schema is one that objects can be pruned, defaulted and merged by.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::parse::Parser;
use super::{Schema, builtin, parse};
use crate::status::FieldError;

/// Expressions with more operators are refused unread: what compiles them recurses.
const OPERATORS_LIMIT: usize = 1000;

fn is_endless(rule: &str) -> bool {
    rule.bytes().filter(|byte| b".?([{!-+*/%&|<>=:,".contains(byte)).count() > OPERATORS_LIMIT
}

const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

impl Schema {
    /// The schema of a custom resource; errors name fields below `openAPIV3Schema`.
    pub(crate) fn from_crd(source: &Value) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        if source["type"] != "object" {
            let fault = FieldError::invalid("type", &source["type"], "must be object at the root");
            errors.push(if source["type"].is_null() {
                FieldError::required("type", "must not be empty at the root")
            } else {
                fault
            });
        }
        check(source, "", &mut errors);
        metadata(source, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        let definitions = HashMap::new();
        let parser = Parser { definitions: &definitions, custom: true };
        // Rules at the root see the object's type and name, which its schema need not declare.
        let mut shape = source.clone();
        for (name, kind) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
            if shape["properties"][name].is_null() {
                shape["properties"][name] = json!({"type": kind});
            }
        }
        if shape["properties"]["metadata"]["properties"].is_null() {
            shape["properties"]["metadata"]["properties"] =
                json!({"name": {"type": "string"}, "generateName": {"type": "string"}});
        }
        let mut node = parser.node(&shape, "");
        node.source = source.clone();
        if let Some(meta) = builtin("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
            node.fields.insert("metadata".into(), meta);
        }
        for name in ["apiVersion", "kind"] {
            node.fields.insert(name.into(), parse::text(true));
        }
        Ok(Schema::own(node))
    }
}

fn check(source: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let at = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let flag = |name: &str| source[name] == true;
    if !source["$ref"].is_null() {
        errors.push(FieldError::forbidden(at("$ref"), "$ref is not supported"));
        return;
    }
    branches(source, &at, errors);
    match source["type"].as_str().unwrap_or_default() {
        "" if !flag("x-kubernetes-int-or-string") && !flag("x-kubernetes-preserve-unknown-fields") => {
            if !path.is_empty() {
                errors.push(FieldError::required(at("type"), "must not be empty for specified object fields"));
            }
        }
        "" => {}
        known if TYPES.contains(&known) => {}
        _ => errors.push(FieldError::not_supported(at("type"), &source["type"], TYPES)),
    }
    if source["type"] == "array" && !source["items"].is_object() {
        errors.push(FieldError::required(at("items"), "must be specified"));
    }
    if source["additionalProperties"].is_object() && source["properties"].as_object().is_some_and(|p| !p.is_empty()) {
        errors.push(FieldError::forbidden(
            at("additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        ));
    }
    if source["additionalProperties"] == false {
        errors.push(FieldError::forbidden(at("additionalProperties"), "additionalProperties cannot be set to false"));
    }
    if source["x-kubernetes-preserve-unknown-fields"] == false {
        let detail = "must be true or undefined";
        errors.push(FieldError::invalid(at("x-kubernetes-preserve-unknown-fields"), &json!(false), detail));
    }
    if flag("uniqueItems") {
        errors.push(FieldError::forbidden(
            at("uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    if let Some(pattern) = source["pattern"].as_str()
        && let Err(error) = regex::Regex::new(pattern)
    {
        errors.push(FieldError::invalid(
            at("pattern"),
            &source["pattern"],
            &format!("must be a valid regular expression, but isn't: {error}"),
        ));
    }
    if flag("x-kubernetes-embedded-resource")
        && !flag("x-kubernetes-preserve-unknown-fields")
        && source["properties"].as_object().is_none_or(|properties| properties.is_empty())
    {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without \
                      x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(at("properties"), detail));
    }
    check_list(source, &at, errors);
    let rules = source["x-kubernetes-validations"].as_array();
    if let Some(i) = rules.into_iter().flatten().position(|rule| is_endless(rule["rule"].as_str().unwrap_or_default()))
    {
        let detail = format!("compilation failed: the expression has more than {OPERATORS_LIMIT} operators");
        let field = at(&format!("x-kubernetes-validations[{i}].rule"));
        errors.push(FieldError::invalid(field, &"<expression>".into(), &detail));
    } else if rules.is_some() {
        super::expression::check(source, path.is_empty(), &at, errors);
    }
    default(source, &at, errors);
    for (name, property) in source["properties"].as_object().into_iter().flatten() {
        check(property, &at(&format!("properties[{name}]")), errors);
    }
    for name in ["items", "additionalProperties"] {
        if source[name].is_object() {
            check(&source[name], &at(name), errors);
        }
    }
}

/// Alternatives say what values must be, not what there is.
fn branches(source: &Value, at: &dyn Fn(&str) -> String, errors: &mut Vec<FieldError>) {
    let lists = ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|name| {
        let list = source[name].as_array().into_iter().flatten().enumerate();
        list.map(move |(i, branch)| (format!("{name}[{i}]"), branch))
    });
    let not = source["not"].is_object().then(|| ("not".to_owned(), &source["not"]));
    for (place, branch) in lists.chain(not) {
        branch_rules(branch, &at(&place), source["x-kubernetes-int-or-string"] == true, errors);
    }
}

fn branch_rules(branch: &Value, path: &str, int_or_string: bool, errors: &mut Vec<FieldError>) {
    let at = |name: &str| format!("{path}.{name}");
    for name in ["description", "title", "type"] {
        let given = branch[name].as_str().unwrap_or_default();
        // One idiom is let through: anyOf with both types of what is an integer or a string.
        let idiom = int_or_string && name == "type" && matches!(given, "integer" | "string");
        if !given.is_empty() && !idiom {
            errors.push(FieldError::forbidden(at(name), "must be empty to be structural"));
        }
    }
    for name in ["default", "additionalProperties"] {
        if branch.get(name).is_some() {
            errors.push(FieldError::forbidden(at(name), "must be undefined to be structural"));
        }
    }
    for name in ["nullable", "x-kubernetes-int-or-string", "x-kubernetes-embedded-resource"] {
        if branch[name] == true {
            errors.push(FieldError::forbidden(at(name), "must be false to be structural"));
        }
    }
    if branch["x-kubernetes-preserve-unknown-fields"] == true {
        let field = at("x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::forbidden(field, "must be undefined to be structural"));
    }
    for (name, property) in branch["properties"].as_object().into_iter().flatten() {
        branch_rules(property, &at(&format!("properties[{name}]")), false, errors);
    }
    if branch["items"].is_object() {
        branch_rules(&branch["items"], &at("items"), false, errors);
    }
    branches(branch, &|name| format!("{path}.{name}"), errors);
}

/// A default is a value that its own schema takes.
fn default(source: &Value, at: &dyn Fn(&str) -> String, errors: &mut Vec<FieldError>) {
    let Some(value) = source.get("default").filter(|value| !value.is_null()) else { return };
    let definitions = HashMap::new();
    let parser = Parser { definitions: &definitions, custom: true };
    let schema = Schema::own(parser.node(source, ""));
    let mut full = value.clone();
    schema.default(&mut full);
    errors.extend(schema.shape_faults(&full).into_iter().map(|mut fault| {
        let place = at("default");
        fault.field = match &*fault.field {
            "" => place,
            below if below.starts_with('[') => format!("{place}{below}"),
            below => format!("{place}.{below}"),
        };
        fault
    }));
}

/// What every object has is not described again.
fn metadata(source: &Value, errors: &mut Vec<FieldError>) {
    let Some(fields) = source["properties"]["metadata"].as_object() else { return };
    let known = |name: &str, value: &Value| match name {
        "type" => true,
        "properties" => {
            value.as_object().into_iter().flatten().all(|(n, _)| matches!(n.as_str(), "name" | "generateName"))
        }
        _ => false,
    };
    if !fields.iter().all(|(name, value)| known(name, value)) {
        let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.push(FieldError::forbidden("properties[metadata]", detail));
    }
}

fn check_list(source: &Value, at: &dyn Fn(&str) -> String, errors: &mut Vec<FieldError>) {
    let keys = source["x-kubernetes-list-map-keys"].as_array().map(Vec::as_slice).unwrap_or_default();
    match source["x-kubernetes-list-type"].as_str() {
        None => {}
        Some(_) if source["type"] != "array" => {
            errors.push(FieldError::invalid(
                at("type"),
                &source["type"],
                "must be array if x-kubernetes-list-type is specified",
            ));
        }
        Some("atomic") => {}
        Some("set") => {
            let (items, map) = (&source["items"], &source["items"]["x-kubernetes-map-type"]);
            let whole = match items["type"].as_str() {
                Some("object") => *map == "atomic",
                _ => true,
            };
            if !whole {
                let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
                errors.push(FieldError::invalid(at("items.x-kubernetes-map-type"), map, detail));
            }
        }
        Some("map") => {
            if keys.is_empty() {
                errors.push(FieldError::required(
                    at("x-kubernetes-list-map-keys"),
                    "must not be empty if x-kubernetes-list-type is map",
                ));
            }
            for (i, key) in keys.iter().enumerate() {
                let name = key.as_str().unwrap_or_default();
                if source["items"]["properties"][name].is_null() {
                    errors.push(FieldError::invalid(
                        at(&format!("x-kubernetes-list-map-keys[{i}]")),
                        key,
                        "entries must all be names of item properties",
                    ));
                } else if source["items"]["properties"][name].get("default").is_none()
                    && !source["items"]["required"].as_array().is_some_and(|required| required.contains(key))
                {
                    let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a \
                                  required property";
                    errors.push(FieldError::required(at(&format!("items.properties[{name}].default")), detail));
                }
            }
        }
        Some(_) => errors.push(FieldError::not_supported(
            at("x-kubernetes-list-type"),
            &source["x-kubernetes-list-type"],
            &["atomic", "map", "set"],
        )),
    }
}
