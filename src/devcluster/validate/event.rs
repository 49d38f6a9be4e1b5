//! Events of both APIs, which are one resource. kubernetes: `pkg/apis/core/validation`, `ValidateEventCreate`.

use serde_json::{Value, json};

use super::fields::{qualified_fault, text};
use crate::status::FieldError;

const LONGEST: usize = 128;
const NOTE_LONGEST: usize = 1024;
const EMPTY_NAME: &str = "name part must be non-empty";

/// What the API that an event came by calls its fields.
struct Names {
    controller: &'static str,
    instance: &'static str,
    about: &'static str,
    note: &'static str,
    typed: bool,
}

pub(crate) fn validate_core(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let names = Names {
        controller: "reportingComponent",
        instance: "reportingInstance",
        about: "involvedObject",
        note: "message",
        typed: false,
    };
    validate(new, old, &names)
}

pub(crate) fn validate_events(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let names = Names {
        controller: "reportingController",
        instance: "reportingInstance",
        about: "regarding",
        note: "note",
        typed: true,
    };
    validate(new, old, &names)
}

fn validate(new: &Value, old: Option<&Value>, names: &Names) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let place = text(&new["metadata"], "namespace");
    let about = &new[names.about];
    let namespace = text(about, "namespace");
    let timed = !text(new, "eventTime").is_empty();
    // What has no namespace is told of in the default one, or in the newer form in that of the system.
    let matching = match namespace {
        "" => matches!(place, "" | "default") || place == "kube-system" && (timed || names.typed),
        namespace => namespace == place,
    };
    if !matching {
        let detail = "does not match event.namespace";
        errors.push(FieldError::invalid("involvedObject.namespace", &json!(namespace), detail));
    }
    if let Some(old) = old {
        if names.typed {
            immutable(new, old, names, &mut errors);
        }
        return errors;
    }
    if !timed && names.typed {
        errors.push(FieldError::required("eventTime", ""));
    }
    if timed {
        of_the_new_kind(new, names, &mut errors);
    }
    for (key, field) in [
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("deprecatedSource", "source"),
    ] {
        let empty = |value: &Value| value.as_object().is_none_or(serde_json::Map::is_empty);
        let set = !new[key].is_null() && new[key] != 0 && !(new[key].is_object() && empty(&new[key]));
        if names.typed && set {
            errors.push(FieldError::invalid(field, &json!(""), "needs to be unset"));
        }
    }
    if names.typed && !matches!(text(new, "type"), "Normal" | "Warning") {
        // The value is not in the message, but twice in the detail.
        let detail = format!("has invalid value: {}", text(new, "type"));
        errors.push(FieldError::invalid("type", &json!(""), &detail));
    }
    errors
}

/// Events with an `eventTime` say who acted and how.
fn of_the_new_kind(new: &Value, names: &Names, errors: &mut Vec<FieldError>) {
    let controller = text(new, names.controller);
    if controller.is_empty() {
        errors.push(FieldError::required(names.controller, ""));
        errors.push(FieldError::invalid(names.controller, &json!(""), EMPTY_NAME));
    }
    if let Some(fault) = qualified_fault(controller) {
        errors.push(FieldError::invalid(names.controller, &json!(controller), fault));
    }
    for key in [names.instance, "action", "reason"] {
        match text(new, key) {
            "" => errors.push(FieldError::required(key, "")),
            said if said.len() > LONGEST => {
                let detail = format!("can have at most {LONGEST} characters");
                errors.push(FieldError::invalid(key, &json!(""), &detail));
            }
            _ => {}
        }
    }
    if text(new, names.note).len() > NOTE_LONGEST {
        let detail = format!("can have at most {NOTE_LONGEST} characters");
        errors.push(FieldError::invalid("message", &json!(""), &detail));
    }
    if names.typed && new["series"].is_object() {
        if new["series"]["count"].as_i64().unwrap_or(0) < 2 {
            errors.push(FieldError::invalid("series.count", &json!(""), "should be at least 2"));
        }
        if text(&new["series"], "lastObservedTime").is_empty() {
            errors.push(FieldError::required("series.lastObservedTime", ""));
        }
    }
}

fn immutable(new: &Value, old: &Value, names: &Names, errors: &mut Vec<FieldError>) {
    for key in
        [names.about, "reason", names.note, "type", "eventTime", "action", "related", names.controller, names.instance]
    {
        if new[key] != old[key] {
            // Whatever the API calls them, the fields of the core's own type are told of.
            let field = match key {
                key if key == names.about => "involvedObject",
                key if key == names.note => "message",
                key => key,
            };
            errors.push(FieldError::invalid(field, &new[key], "field is immutable"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_say_who_did_what_to_whom() {
        let event = json!({"metadata": {"name": "e", "namespace": "n"}, "regarding": {"namespace": "n"},
            "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "a.b/c", "reportingInstance": "i",
            "action": "A", "reason": "R", "type": "Normal"});
        for (key, value, fields) in [
            ("note", json!("fine"), vec![]),
            ("type", json!("Other"), vec!["type"]),
            ("reason", json!(""), vec!["reason"]),
            ("action", json!("A".repeat(129)), vec!["action"]),
            ("regarding", json!({"namespace": "m"}), vec!["involvedObject.namespace"]),
            ("series", json!({"count": 1, "lastObservedTime": "t"}), vec!["series.count"]),
            ("eventTime", Value::Null, vec!["eventTime"]),
        ] {
            let mut event = event.clone();
            event[key] = value;
            let found: Vec<_> = validate_events(&event, None).into_iter().map(|error| error.field).collect();
            assert_eq!(found, fields, "{event}");
        }
        let old_kind = json!({"metadata": {"namespace": "default"}, "involvedObject": {"kind": "Node", "name": "n"}});
        assert_eq!(validate_core(&old_kind, None), [], "events of nodes are in the default namespace");
        let of_node = |place: &str| {
            let mut event = event.clone();
            (event["metadata"]["namespace"], event["regarding"]) = (place.into(), json!({"kind": "Node", "name": "n"}));
            validate_events(&event, None).is_empty()
        };
        assert!(of_node("kube-system") && !of_node("kube-public"));
        let mut changed = event.clone();
        changed["action"] = "B".into();
        assert_eq!(validate_events(&changed, Some(&event))[0].message, "Invalid value: \"B\": field is immutable");
    }
}
