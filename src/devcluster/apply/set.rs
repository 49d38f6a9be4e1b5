//! Sets of fields, as `fieldsV1` writes them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::schema::{List, Schema};

/// A set of fields: this one, if it is a member, and those below, by their `f:`, `k:` or `v:` names.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Set {
    pub(super) member: bool,
    pub(super) below: BTreeMap<String, Set>,
}

/// Fields of `metadata` that have no owner.
const FREE_METADATA: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "managedFields",
    "generation",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

impl Set {
    pub(super) fn leaf() -> Self {
        Self { member: true, below: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }

    /// Reads `fieldsV1`.
    pub(super) fn read(fields: &Value) -> Self {
        let Value::Object(fields) = fields else { return Self::default() };
        let below = fields.iter().filter(|(name, _)| *name != ".").map(|(name, fields)| {
            let mut set = Self::read(fields);
            set.member = fields.get(".").is_some() || set.below.is_empty();
            (name.clone(), set)
        });
        Self { member: false, below: below.collect() }
    }

    /// Whether all members are among those that `fieldsV1` names.
    pub(super) fn is_within(&self, fields: &Value) -> bool {
        self.below.iter().all(|(name, set)| {
            fields.get(name).is_some_and(|fields| (!set.member || is_member(fields)) && set.is_within(fields))
        })
    }

    /// Whether any member is among those that `fieldsV1` names.
    pub(super) fn touches(&self, fields: &Value) -> bool {
        self.below.iter().any(|(name, set)| {
            fields.get(name).is_some_and(|fields| set.member && is_member(fields) || set.touches(fields))
        })
    }

    /// Writes `fieldsV1`.
    pub(super) fn write(&self) -> Value {
        let mut fields = Map::new();
        if self.member && !self.below.is_empty() {
            fields.insert(".".into(), Map::new().into());
        }
        fields.extend(self.below.iter().map(|(name, set)| (name.clone(), set.write())));
        fields.into()
    }

    /// The fields that `value` sets.
    pub(super) fn of(value: &Value, schema: Option<&Schema>) -> Self {
        let mut set = Self::default();
        match value {
            Value::Object(fields) if !schema.is_some_and(Schema::atomic) => {
                for (name, value) in fields {
                    let mut below = Self::of(value, schema.and_then(|s| s.field(name)));
                    let nothing = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                    below.member |= nothing || !schema.is_some_and(|s| s.declares(name));
                    // Nobody owns an empty list of items that have owners of their own.
                    if !below.is_empty() {
                        set.below.insert(format!("f:{name}"), below);
                    }
                }
            }
            Value::Array(items) if granular(schema) => {
                for item in items {
                    let mut below = match schema.map(Schema::list) {
                        Some(List::Map(_)) => Self::of(item, schema.and_then(Schema::items)),
                        _ => Self::default(),
                    };
                    below.member = true;
                    set.below.insert(item_name(item, schema), below);
                }
            }
            _ => set.member = true,
        }
        set
    }

    /// A value that was not there before: it and all that is in it.
    pub(super) fn added(value: &Value, schema: Option<&Schema>) -> Self {
        let mut set = Self::leaf();
        match value {
            Value::Object(fields) if !schema.is_some_and(Schema::atomic) => {
                let below = |(name, value): (&String, &Value)| {
                    (format!("f:{name}"), Self::added(value, schema.and_then(|s| s.field(name))))
                };
                set.below = fields.iter().map(below).collect();
            }
            Value::Array(items) if granular(schema) => {
                let inner = schema.filter(|s| matches!(s.list(), List::Map(_))).and_then(Schema::items);
                set.below = items.iter().map(|item| (item_name(item, schema), Self::added(item, inner))).collect();
            }
            _ => {}
        }
        set
    }

    /// Drops what nobody owns.
    pub(super) fn without_free(mut self) -> Self {
        self.below.remove("f:apiVersion");
        self.below.remove("f:kind");
        if let Some(metadata) = self.below.get_mut("f:metadata") {
            metadata.below.retain(|name, _| !FREE_METADATA.contains(&name.trim_start_matches("f:")));
            metadata.member = false;
            if metadata.is_empty() {
                self.below.remove("f:metadata");
            }
        }
        self.member = false;
        self
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.member |= other.member;
        for (name, set) in &other.below {
            self.below.entry(name.clone()).or_default().add(set);
        }
    }

    /// Removes the members that `other` has.
    pub(super) fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        for (name, set) in &other.below {
            if let Some(mine) = self.below.get_mut(name) {
                mine.subtract(set);
                if mine.is_empty() {
                    self.below.remove(name);
                }
            }
        }
    }

    /// Removes the members of `other` and everything below them.
    pub(super) fn subtract_deep(&mut self, other: &Self) {
        for (name, set) in &other.below {
            if set.member {
                self.below.remove(name);
            } else if let Some(mine) = self.below.get_mut(name) {
                mine.subtract_deep(set);
                if mine.is_empty() {
                    self.below.remove(name);
                }
            }
        }
    }

    pub(super) fn common(&self, other: &Self) -> Self {
        let below = self.below.iter().filter_map(|(name, set)| {
            let common = set.common(other.below.get(name)?);
            (!common.is_empty()).then(|| (name.clone(), common))
        });
        Self { member: self.member && other.member, below: below.collect() }
    }

    /// The members' paths, as in `.spec.containers[name="c"].image`, those of a level before those below it.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, path: &str, paths: &mut Vec<String>) {
        let here = |name: &str| format!("{path}{}", shown(name));
        paths.extend(self.below.iter().filter(|(_, set)| set.member).map(|(name, _)| here(name)));
        for (name, set) in &self.below {
            set.collect(&here(name), paths);
        }
    }
}

/// A name in a set as a step of a path.
pub(super) fn shown(name: &str) -> String {
    match name.split_once(':') {
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<_> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        Some(("v", value)) => format!("[={value}]"),
        Some((_, field)) => format!(".{field}"),
        None => format!(".{name}"),
    }
}

/// Whether a field of `fieldsV1` is owned itself and not only what is below it.
fn is_member(fields: &Value) -> bool {
    fields.get(".").is_some() || fields.as_object().is_none_or(Map::is_empty)
}

/// Whether a list's items have owners of their own.
pub(super) fn granular(schema: Option<&Schema>) -> bool {
    schema.is_some_and(|s| *s.list() != List::Atomic)
}

/// An item's name in a set.
pub(super) fn item_name(item: &Value, schema: Option<&Schema>) -> String {
    let Some(List::Map(keys)) = schema.map(Schema::list) else { return format!("v:{item}") };
    let items = schema.and_then(Schema::items);
    let id: BTreeMap<&str, &Value> = keys
        .iter()
        .filter_map(|key| {
            let default = || items.and_then(|s| s.field(key)).and_then(Schema::default_value);
            Some((&**key, item.get(&**key).or_else(default)?))
        })
        .collect();
    format!("k:{}", serde_json::to_string(&id).unwrap_or_default())
}
