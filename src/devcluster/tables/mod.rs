//! Server-side tables (`metav1.Table`): what `kubectl get` prints.
//!
//! `table` picks the columns of a kind (`builtin` and its neighbours, or the printer columns of a custom resource by
//! `jsonpath`), computes a row of cells for every object and leaves the page's list metadata as it is. Everything here
//! is pure; only the age columns look at the clock, once a table.

mod about;
mod builtin;
mod human;
mod jsonpath;
mod network;
mod pod;
mod storage;
mod workload;

use jiff::Timestamp;
use serde_json::{Value, json};

pub use human::human_duration;

/// What each row carries beside its cells: the `includeObject` option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// `PartialObjectMetadata`, the default.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

/// A column; priority 1 shows up only with `-o wide`.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    name: &'static str,
    kind: &'static str,
    wide: bool,
    about: &'static str,
}

impl Column {
    fn definition(&self, kind: &str) -> Value {
        let (format, about) = match self.name {
            "Name" => ("name", about::name()),
            "Attacher" => ("name", about::of_field(kind, "Attacher").unwrap_or(self.about)),
            "Age" | "Created At" => ("", about::age()),
            name => ("", about::of_field(kind, name).unwrap_or(self.about)),
        };
        definition(self.name, self.kind, format, about, i32::from(self.wide))
    }
}

/// A column that is always shown.
const fn col(name: &'static str, kind: &'static str, about: &'static str) -> Column {
    Column { name, kind, wide: false, about }
}

/// A column that `-o wide` adds.
const fn wide(name: &'static str, kind: &'static str, about: &'static str) -> Column {
    Column { name, kind, wide: true, about }
}

/// How a built-in kind is printed; `cells` gives all cells after the name.
#[derive(Clone, Copy)]
pub(crate) struct Printer {
    columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
}

/// A `meta.k8s.io/v1` Table of `items`. `crd_columns` are the `additionalPrinterColumns` of a custom resource's served
/// version (an empty slice gives Name and Age), `None` says that the kind is built in.
pub fn table(
    kind: (&str, &str),
    crd_columns: Option<&[Value]>,
    list_meta: &Value,
    items: &[&Value],
    include: IncludeObject,
) -> Value {
    table_at(Timestamp::now(), kind, crd_columns, list_meta, items, include)
}

fn table_at(
    now: Timestamp,
    kind: (&str, &str),
    crd_columns: Option<&[Value]>,
    list_meta: &Value,
    items: &[&Value],
    include: IncludeObject,
) -> Value {
    // Events begin with when they were last seen; their names come late.
    let named = kind.1 != "Event" || crd_columns.is_some();
    let mut definitions = Vec::new();
    if named {
        definitions.push(definition("Name", "string", "name", about::name(), 0));
    }
    let rows: Vec<Value> = match (crd_columns, builtin::printer(kind)) {
        (Some(columns), _) => {
            let columns = CustomColumn::parse(columns);
            definitions.extend(columns.iter().map(|c| c.definition.clone()));
            items.iter().map(|item| row(item, columns.iter().map(|c| c.cell(item, now)).collect(), include)).collect()
        }
        (None, Some(printer)) => {
            definitions.extend(printer.columns.iter().map(|c| c.definition(kind.1)));
            let mut rows: Vec<_> = items.iter().map(|item| row(item, (printer.cells)(item, now), include)).collect();
            if !named {
                let cells = rows.iter_mut().filter_map(|row| row["cells"].as_array_mut());
                cells.for_each(|cells| drop(cells.remove(0)));
            }
            rows
        }
        (None, None) => {
            definitions.push(definition("Created At", "date", "", about::age(), 0));
            let created = |item: &Value| item.pointer("/metadata/creationTimestamp").cloned().unwrap_or_default();
            items.iter().map(|item| row(item, vec![created(item)], include)).collect()
        }
    };
    let metadata = if list_meta.is_object() { list_meta.clone() } else { json!({}) };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}

fn definition(name: &str, kind: &str, format: &str, about: &str, priority: i32) -> Value {
    json!({"name": name, "type": kind, "format": format, "description": about, "priority": priority})
}

fn row(item: &Value, mut cells: Vec<Value>, include: IncludeObject) -> Value {
    cells.insert(0, item.pointer("/metadata/name").cloned().unwrap_or_else(|| "".into()));
    let object = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Object => item.clone(),
        IncludeObject::Metadata => json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": item.get("metadata").cloned().unwrap_or_else(|| json!({})),
        }),
    };
    json!({"cells": cells, "object": object})
}

/// A printer column of a custom resource with its path parsed once a table.
struct CustomColumn {
    definition: Value,
    kind: String,
    path: Option<jsonpath::Path>,
}

impl CustomColumn {
    fn parse(columns: &[Value]) -> Vec<Self> {
        if columns.is_empty() {
            return vec![Self {
                definition: definition("Age", "date", "", about::age(), 0),
                kind: "date".into(),
                path: jsonpath::Path::parse(".metadata.creationTimestamp"),
            }];
        }
        columns
            .iter()
            .map(|c| {
                let text = |field: &str| c.get(field).and_then(Value::as_str).unwrap_or_default();
                let path = text("jsonPath");
                let about = match text("description") {
                    "" => format!("Custom resource definition column (in JSONPath format): {path}"),
                    said => said.into(),
                };
                let priority = c.get("priority").and_then(Value::as_i64).unwrap_or(0) as i32;
                Self {
                    definition: definition(text("name"), text("type"), text("format"), &about, priority),
                    kind: text("type").into(),
                    path: jsonpath::Path::parse(path),
                }
            })
            .collect()
    }

    fn cell(&self, item: &Value, now: Timestamp) -> Value {
        let Some(path) = &self.path else { return Value::Null };
        let found = path.find(item);
        let Some(first) = found.first() else { return Value::Null };
        match self.kind.as_str() {
            "integer" => first.as_i64().or_else(|| first.as_f64().map(|f| f as i64)).map_or(Value::Null, Value::from),
            "number" => first.as_f64().map_or(Value::Null, Value::from),
            "boolean" => first.as_bool().map_or(Value::Null, Value::from),
            "date" => match first.as_str() {
                Some(at) => human::since(at, now).into(),
                None => "<unknown>".into(),
            },
            // Of several values the first alone is shown.
            _ => jsonpath::print(first).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(table: &Value) -> Vec<&str> {
        table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn custom_columns_come_from_their_paths() {
        let columns = [
            json!({"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"}),
            json!({"name": "Pods", "type": "integer", "jsonPath": ".status.pods", "priority": 1}),
            json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}),
        ];
        let item = json!({
            "metadata": {"name": "v", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"pods": 3, "conditions": [{"type": "X", "status": "no"}, {"type": "Ready", "status": "True"}]},
        });
        let now = "2026-01-01T00:05:00Z".parse().unwrap();
        let got = table_at(
            now,
            ("x.y", "V"),
            Some(&columns),
            &json!({"resourceVersion": "7"}),
            &[&item],
            IncludeObject::None,
        );
        assert_eq!(names(&got), ["Name", "Ready", "Pods", "Age"]);
        assert_eq!(got["rows"][0], json!({"cells": ["v", "True", 3, "5m"], "object": null}));
        assert_eq!(got["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn a_custom_resource_without_columns_prints_its_age_and_an_unknown_kind_its_birth() {
        let item = json!({"metadata": {"name": "v", "creationTimestamp": "2026-01-01T00:00:00Z"}});
        let now = "2026-01-01T00:05:00Z".parse().unwrap();
        let got = table_at(now, ("x.y", "V"), Some(&[]), &json!({}), &[&item], IncludeObject::Metadata);
        assert_eq!(names(&got), ["Name", "Age"]);
        assert_eq!(got["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        let got = table_at(now, ("x.y", "V"), None, &json!({}), &[&item], IncludeObject::Object);
        assert_eq!(names(&got), ["Name", "Created At"]);
        assert_eq!(got["rows"][0]["cells"][1], "2026-01-01T00:00:00Z");
        assert_eq!(got["rows"][0]["object"], item);
    }

    #[test]
    fn columns_and_cells_agree_in_number_for_every_kind() {
        for kind in builtin::KINDS {
            let got = table(*kind, None, &json!({}), &[&json!({"metadata": {"name": "x"}})], IncludeObject::None);
            assert_eq!(
                got["columnDefinitions"].as_array().unwrap().len(),
                got["rows"][0]["cells"].as_array().unwrap().len(),
                "{kind:?}"
            );
            assert!(got["columnDefinitions"].as_array().unwrap().len() > 1, "{kind:?}");
            assert!(builtin::printer(*kind).is_some(), "{kind:?} has no printer");
        }
    }
}
