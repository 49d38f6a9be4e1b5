//! Between the versions of a kind: core and `events.k8s.io` events, and custom resources (which differ in name only).

use serde_json::{Map, Value};

use crate::kinds::Kind;

/// Core field, `events.k8s.io` field.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// The stored form in the version that `kind` serves.
pub(crate) fn to_served(kind: &Kind, mut value: Value) -> Value {
    if !kind.stored_as_served() {
        value["apiVersion"] = kind.api_version().into();
        if &*kind.group == "events.k8s.io" {
            rename(&mut value, |core, new| (core, new));
            // The newer type leaves out what the older one writes empty.
            for key in ["reportingController", "reportingInstance"] {
                if value[key] == "" {
                    super::create::remove(&mut value, key);
                }
            }
        }
    }
    value
}

/// What `kind` serves in the form that is stored.
pub(crate) fn to_stored(kind: &Kind, mut value: Value) -> Value {
    if !kind.stored_as_served() {
        value["apiVersion"] = (*kind.storage_version).into();
        if &*kind.group == "events.k8s.io" {
            rename(&mut value, |core, new| (new, core));
        }
    }
    value
}

fn rename(value: &mut Value, direction: impl Fn(&'static str, &'static str) -> (&'static str, &'static str)) {
    let Value::Object(object) = value else { return };
    let renamed: Map<_, _> = EVENT_FIELDS
        .iter()
        .filter_map(|(core, new)| {
            let (from, to) = direction(core, new);
            object.remove(from).map(|member| (to.to_owned(), member))
        })
        .collect();
    object.extend(renamed);
}
