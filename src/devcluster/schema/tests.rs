use serde_json::{Value, json};

use super::{Schema, builtin};

fn widget() -> Schema {
    Schema::from_crd(&json!({"type": "object", "required": ["spec"], "properties": {"spec": {
        "type": "object", "required": ["mode"],
        "x-kubernetes-validations": [
            {"rule": "self.size <= 10 || self.mode == 'Big'", "message": "only Big widgets exceed 10"},
            {"rule": "self.mode == oldSelf.mode", "message": "mode is immutable"}],
        "properties": {
            "size": {"type": "integer", "minimum": 0, "default": 1},
            "mode": {"type": "string", "enum": ["Small", "Big"]},
            "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}, "maxItems": 3,
                "x-kubernetes-list-type": "set"},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "quantity": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "value": {"type": "string", "default": "none"}}}}}}}}))
    .unwrap()
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "e.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec})
}

#[test]
fn custom_resources_are_pruned_and_defaulted() {
    let (schema, mut value) = (
        widget(),
        object(json!({"mode": "Small", "unknown": "x", "free": {"any": {"thing": 1}}, "items": [{"name": "a"}],
            "quantity": "5Gi"})),
    );
    assert_eq!(schema.unknown_fields(&value, None), ["unknown field \"spec.unknown\""]);
    schema.prune(&mut value);
    schema.default(&mut value);
    assert_eq!(
        value["spec"],
        json!({"mode": "Small", "free": {"any": {"thing": 1}}, "items": [{"name": "a", "value": "none"}],
            "quantity": "5Gi", "size": 1})
    );
    assert_eq!(schema.validate(&value, None), []);
}

#[test]
fn custom_resources_are_refused_with_the_field_and_the_reason() {
    for (spec, field, reason) in [
        (json!({"mode": "Tiny"}), "spec.mode", "FieldValueNotSupported"),
        (json!({"size": 3}), "spec.mode", "FieldValueRequired"),
        (json!({"mode": "Small", "size": -1}), "spec.size", "FieldValueInvalid"),
        (json!({"mode": "Small", "size": "big"}), "spec.size", "FieldValueTypeInvalid"),
        (json!({"mode": "Small", "tags": ["a", "B"]}), "spec.tags[1]", "FieldValueInvalid"),
        (json!({"mode": "Small", "tags": ["a", "a"]}), "spec.tags[1]", "FieldValueDuplicate"),
        (json!({"mode": "Small", "tags": ["a", "b", "c", "d"]}), "spec.tags", "FieldValueTooMany"),
        (json!({"mode": "Small", "items": [{"name": "a"}, {"name": "a"}]}), "spec.items[1]", "FieldValueDuplicate"),
        (json!({"mode": "Small", "size": 11}), "spec", "FieldValueInvalid"),
    ] {
        let mut value = object(spec.clone());
        widget().default(&mut value);
        let errors = widget().validate(&value, None);
        // The last one tells that rules were not asked, where the shape is wrong.
        let told = errors.iter().filter(|e| e.field != "<nil>").map(|e| (&*e.field, e.reason));
        assert_eq!(told.collect::<Vec<_>>(), [(field, reason)], "{spec}");
    }
}

#[test]
fn rules_are_worded_without_the_value_and_see_the_old_object() {
    let small = object(json!({"mode": "Small", "size": 1}));
    let message = |value: &Value, old| widget().validate(value, old)[0].message.clone();
    assert_eq!(
        message(&object(json!({"mode": "Small", "size": 11})), None),
        "Invalid value: only Big widgets exceed 10"
    );
    assert_eq!(message(&object(json!({"mode": "Big", "size": 1})), Some(&small)), "Invalid value: mode is immutable");
}

#[test]
fn builtin_kinds_know_their_fields_and_types() {
    let pod = builtin("io.k8s.api.core.v1.Pod").unwrap();
    let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "imagge": "x"}]}});
    assert_eq!(pod.unknown_fields(&value, None), ["unknown field \"spec.containers[0].imagge\""]);
    let map = builtin("io.k8s.api.core.v1.ConfigMap").unwrap();
    assert!(map.check_types(&json!({"data": {"k": 1}}), None).is_err());
    assert!(map.check_types(&json!({"data": {"k": "1"}}), None).is_ok());
}

#[test]
fn what_an_object_had_already_is_not_checked_again() {
    let pod = builtin("io.k8s.api.core.v1.Pod").unwrap();
    let old = json!({"spec": {"containers": [{"name": "c", "imagge": "x"}], "nodeName": 7}});
    let mut new = old.clone();
    new["status"] = json!({"phaze": "x"});
    assert_eq!(pod.unknown_fields(&new, Some(&old)), ["unknown field \"status.phaze\""]);
    assert!(pod.check_types(&new, Some(&old)).is_ok() && pod.check_types(&new, None).is_err());
}
