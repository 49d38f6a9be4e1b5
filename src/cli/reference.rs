//! `docs/reference.md`: every field of the custom resources, from their schemas. A test keeps it up to date.

use std::fmt::Write as _;

use serde_json::Value;

const HEAD: &str = "# Reference

Every field of the custom resources, made from their schemas: the API server checks the same, and `kubectl explain` says
the same. After a change of the types run `VNODE_UPDATE_DOCS=1 cargo test reference`. An example with every field is
[config/samples/virtualnode_full.yaml](../config/samples/virtualnode_full.yaml).
";

fn reference() -> String {
    let mut out = HEAD.to_owned();
    for crd in crate::api::crds() {
        let names = &crd.spec.names;
        for version in &crd.spec.versions {
            let short = names.short_names.clone().unwrap_or_default().join(", ");
            // Writing to a String cannot fail.
            let _ = write!(out, "\n## {}\n\n`{}/{}`, `{}`", names.kind, crd.spec.group, version.name, names.plural);
            let _ = writeln!(out, "{}.", if short.is_empty() { String::new() } else { format!(", short `{short}`") });
            let schema = serde_json::to_value(&version.schema).unwrap_or_default();
            let root = &schema["openAPIV3Schema"]["properties"];
            for part in ["spec", "status"] {
                if root[part].is_null() {
                    continue;
                }
                let _ = write!(out, "\n### {part}\n\n| field | type | default | meaning |\n|---|---|---|---|\n");
                fields(&mut out, part, &root[part]);
                let rules = rules(part, &root[part]);
                if !rules.is_empty() {
                    let _ = write!(out, "\nBeyond types, these must hold:\n\n{rules}");
                }
            }
        }
    }
    out
}

/// A row for each field, depth first.
fn fields(out: &mut String, path: &str, schema: &Value) {
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let here = format!("{path}.{name}");
        let default = match &field["default"] {
            Value::Null if required.contains(&name.as_str()) => "required".to_owned(),
            Value::Null => String::new(),
            value => format!("`{value}`"),
        };
        let mut meaning = field["description"].as_str().unwrap_or_default().replace('\n', " ");
        if let Some(words) = field["enum"].as_array() {
            let words: Vec<_> = words.iter().filter_map(Value::as_str).map(|w| format!("`{w}`")).collect();
            meaning = format!("{meaning} One of {}.", words.join(", "));
        }
        let bounds = [
            ("minimum", "at least"),
            ("maximum", "at most"),
            ("maxLength", "characters at most:"),
            ("maxItems", "items at most:"),
            ("maxProperties", "entries at most:"),
        ];
        let bounds: Vec<_> =
            bounds.iter().filter_map(|(key, word)| Some(format!("{word} {}", number(&field[*key])?))).collect();
        if !bounds.is_empty() {
            meaning = format!("{meaning} ({})", bounds.join(", "));
        }
        let _ = writeln!(out, "| `{here}` | {} | {default} | {} |", kind(field), meaning.trim().replace('|', "\\|"));
        fields(out, &here, field);
        fields(out, &format!("{here}[]"), &field["items"]);
        fields(out, &format!("{here}.*"), &field["additionalProperties"]);
    }
}

fn number(value: &Value) -> Option<String> {
    let number = value.as_f64()?;
    Some(format!("{number}"))
}

fn kind(field: &Value) -> String {
    if field["x-kubernetes-int-or-string"] == true {
        return "quantity".into();
    }
    match field["type"].as_str() {
        Some("array") => format!("list of {}", kind(&field["items"])),
        Some("object") if field["additionalProperties"].is_object() => {
            format!("map of {}", kind(&field["additionalProperties"]))
        }
        Some(plain) => plain.into(),
        None => "any".into(),
    }
}

/// The messages of CEL rules.
fn rules(path: &str, schema: &Value) -> String {
    let mut out = String::new();
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let message = rule["message"].as_str().or(rule["rule"].as_str()).unwrap_or_default();
        let _ = writeln!(out, "- `{path}`: {message}");
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        out += &rules(&format!("{path}.{name}"), field);
        out += &rules(&format!("{path}.{name}.*"), &field["additionalProperties"]);
        out += &rules(&format!("{path}.{name}[]"), &field["items"]);
    }
    out
}

#[test]
fn the_reference_is_that_of_the_schemas() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference.md");
    let wanted = reference();
    if std::env::var_os("VNODE_UPDATE_DOCS").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == wanted, "docs/reference.md is out of date: run VNODE_UPDATE_DOCS=1 cargo test reference");
}
