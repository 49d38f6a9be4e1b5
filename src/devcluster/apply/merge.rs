//! Merging what is applied into what is there, comparing two states of an object, and removing fields.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::set::{Set, granular, item_name};
use crate::schema::{List, Schema};

/// `live` with everything that `applied` sets.
pub(super) fn merge(live: &Value, applied: &Value, schema: Option<&Schema>) -> Value {
    match (live, applied) {
        (Value::Object(live), Value::Object(applied)) if !schema.is_some_and(Schema::atomic) => {
            let mut merged = live.clone();
            for (name, value) in applied {
                let now = live.get(name).unwrap_or(&Value::Null);
                merged.insert(name.clone(), merge(now, value, schema.and_then(|s| s.field(name))));
            }
            merged.into()
        }
        (Value::Array(live), Value::Array(applied)) if granular(schema) => {
            let mut merged = live.clone();
            let mut places: HashMap<String, usize> =
                live.iter().enumerate().map(|(i, item)| (item_name(item, schema), i)).collect();
            for item in applied {
                match places.get(&item_name(item, schema)) {
                    Some(place) => merged[*place] = merge(&merged[*place], item, schema.and_then(Schema::items)),
                    None => {
                        places.insert(item_name(item, schema), merged.len());
                        merged.push(item.clone());
                    }
                }
            }
            merged.into()
        }
        _ => applied.clone(),
    }
}

/// What differs between two states: fields that are new or changed, and fields that are gone.
#[derive(Default)]
pub(super) struct Difference {
    pub(super) changed: Set,
    pub(super) removed: Set,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

/// Compares two states; equal parts cost one comparison. Null is an empty map or list, but it is there.
pub(super) fn compare(old: &Value, new: &Value, schema: Option<&Schema>) -> Difference {
    let mut difference = Difference::default();
    if old == new {
        return difference;
    }
    let (none, nothing) = (Map::new(), Vec::new());
    let fields = |value| match value {
        &Value::Null => None,
        value => value.as_object(),
    };
    let items = |value| match value {
        &Value::Null => None,
        value => value.as_array(),
    };
    match (old, new) {
        (Value::Object(_) | Value::Null, Value::Object(_) | Value::Null)
            if !(schema.is_some_and(Schema::atomic) || is_empty(old) && is_empty(new)) =>
        {
            let (old, new) = (fields(old).unwrap_or(&none), fields(new).unwrap_or(&none));
            for (name, value) in new {
                difference.put(format!("f:{name}"), old.get(name), value, schema.and_then(|s| s.field(name)));
            }
            for name in old.keys().filter(|name| !new.contains_key(*name)) {
                difference.removed.below.insert(format!("f:{name}"), Set::leaf());
            }
        }
        (Value::Array(_) | Value::Null, Value::Array(_) | Value::Null)
            if granular(schema) && !(is_empty(old) && is_empty(new)) =>
        {
            let (old, new) = (items(old).unwrap_or(&nothing), items(new).unwrap_or(&nothing));
            let mut before: HashMap<String, &Value> = old.iter().map(|i| (item_name(i, schema), i)).collect();
            let items = schema.filter(|s| matches!(s.list(), List::Map(_))).and_then(Schema::items);
            for item in new {
                let name = item_name(item, schema);
                let was = before.remove(&name);
                difference.put(name, was, item, items);
            }
            difference.removed.below.extend(before.into_keys().map(|name| (name, Set::leaf())));
        }
        _ => difference.changed.member = true,
    }
    difference
}

impl Difference {
    fn put(&mut self, name: String, old: Option<&Value>, new: &Value, schema: Option<&Schema>) {
        let Some(old) = old else {
            self.changed.below.insert(name, Set::added(new, schema));
            return;
        };
        let inner = compare(old, new, schema);
        if !inner.changed.is_empty() {
            self.changed.below.insert(name.clone(), inner.changed);
        }
        if !inner.removed.is_empty() {
            self.removed.below.insert(name, inner.removed);
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || is_hollow(value)
}

/// Removes the fields in `gone`, except where `kept` has them or something below them.
pub(super) fn remove(value: &mut Value, gone: &Set, kept: &Set, schema: Option<&Schema>) {
    let nobody = Set::default();
    match value {
        Value::Object(fields) => {
            for (name, set) in &gone.below {
                let Some(field) = name.strip_prefix("f:") else { continue };
                let keeps = kept.below.get(name);
                if set.member && keeps.is_none() {
                    fields.remove(field);
                } else if let Some(inner) = fields.get_mut(field) {
                    let full = !is_hollow(inner);
                    remove(inner, set, keeps.unwrap_or(&nobody), schema.and_then(|s| s.field(field)));
                    if full && keeps.is_none() && is_hollow(inner) {
                        fields.remove(field);
                    }
                }
            }
        }
        Value::Array(items) if granular(schema) => items.retain_mut(|item| {
            let name = item_name(item, schema);
            let (Some(set), keeps) = (gone.below.get(&name), kept.below.get(&name)) else { return true };
            if set.member && keeps.is_none() {
                return false;
            }
            remove(item, set, keeps.unwrap_or(&nobody), schema.and_then(Schema::items));
            true
        }),
        _ => {}
    }
}

fn is_hollow(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}
