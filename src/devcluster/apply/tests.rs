use proptest::prelude::*;
use serde_json::{Value, json};

use super::merge::compare;
use super::{Request, Reset, apply, record_update, rewrite};
use crate::schema::{Schema, builtin};

fn by(manager: &str) -> Request<'_> {
    Request {
        manager,
        force: false,
        subresource: None,
        api_version: "v1",
        now: "2026-01-01T00:00:00Z",
        reset: Reset::Nothing,
    }
}

fn schema(kind: &str) -> Schema {
    builtin(&format!("io.k8s.api.core.v1.{kind}")).unwrap()
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "s"}, "data": data})
}

#[test]
fn applied_fields_are_owned_contested_and_given_up() {
    let schema = schema("ConfigMap");
    let made = apply(None, &map(json!({"a": "1", "b": "1"})), &by("one"), &schema).unwrap();
    assert_eq!(made["metadata"]["managedFields"][0]["fieldsV1"], json!({"f:data": {"f:a": {}, "f:b": {}}}));
    let two = map(json!({"b": "2"}));
    let error = apply(Some(&made), &two, &by("two"), &schema).unwrap_err();
    assert_eq!(error.code, 409);
    assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"one\": .data.b");
    assert_eq!(error.details["causes"][0]["field"], ".data.b");
    let forced = apply(Some(&made), &two, &Request { force: true, ..by("two") }, &schema).unwrap();
    assert_eq!(forced["data"], json!({"a": "1", "b": "2"}));
    let moved = apply(Some(&forced), &map(json!({"c": "3"})), &by("one"), &schema).unwrap();
    assert_eq!(moved["data"], json!({"b": "2", "c": "3"}));
    let mut updated = moved.clone();
    updated["data"]["d"] = "4".into();
    record_update(Some(&moved), &mut updated, &by("three"), &schema);
    let error = apply(Some(&updated), &map(json!({"d": "5"})), &by("one"), &schema).unwrap_err();
    assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"three\" using v1: .data.d");
}

#[test]
fn list_items_have_owners_of_their_own() {
    let schema = schema("Pod");
    let pod = |conditions: Value| json!({"metadata": {"name": "p"}, "status": {"conditions": conditions}});
    let ready = |status: &str| json!({"type": "Ready", "status": status});
    let live = apply(None, &pod(json!([ready("True"), {"type": "X", "status": "True"}])), &by("a"), &schema).unwrap();
    let live = apply(Some(&live), &pod(json!([{"type": "Mine", "status": "True"}])), &by("b"), &schema).unwrap();
    let live = apply(Some(&live), &pod(json!([ready("False")])), &by("a"), &schema).unwrap();
    assert_eq!(live["status"]["conditions"], json!([ready("False"), {"type": "Mine", "status": "True"}]));
}

proptest! {
    #[test]
    fn applying_twice_changes_nothing(data in prop::collection::btree_map("[a-d]", "[a-z]{0,3}", 0..4)) {
        let (schema, applied) = (schema("ConfigMap"), map(json!(data)));
        let once = apply(None, &applied, &by("one"), &schema).unwrap();
        prop_assert_eq!(&apply(Some(&once), &applied, &by("one"), &schema).unwrap(), &once);
    }

    #[test]
    fn renewing_an_entry_is_what_writing_it_anew_would_be(
        first in prop::collection::btree_map("[a-d]", "[a-z]{0,2}", 0..4),
        second in prop::collection::btree_map("[a-d]", "[a-z]{0,2}", 0..4),
        third in prop::collection::btree_map("[a-d]", "[a-z]{0,2}", 0..4),
    ) {
        let schema = schema("ConfigMap");
        let mut live = map(json!(first));
        record_update(None, &mut live, &by("one"), &schema);
        for (data, manager) in [(second, "two"), (third, "one")] {
            let mut after = live.clone();
            for (key, value) in data {
                after["data"][key] = value.into();
            }
            let later = Request { now: "2026-02-02T00:00:00Z", ..by(manager) };
            let (mut renewed, mut rewritten) = (after.clone(), after.clone());
            record_update(Some(&live), &mut renewed, &later, &schema);
            let mut difference = compare(&live, &after, Some(&schema));
            difference.changed = difference.changed.without_free();
            difference.removed = difference.removed.without_free();
            if !difference.is_empty() {
                rewrite(Some(&live), &mut rewritten, &later, difference);
            }
            prop_assert_eq!(&renewed, &rewritten);
            live = renewed;
        }
    }
}
