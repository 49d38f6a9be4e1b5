use proptest::prelude::*;
use serde_json::{Value, json};

use super::{json as json_patch, merge, strategic};
use crate::schema::builtin;

fn pod(current: Value, patch: Value) -> Value {
    strategic(&current, &patch, &builtin("io.k8s.api.core.v1.Pod").unwrap()).unwrap()
}

#[test]
fn json_patches_fail_as_kubernetes_says() {
    let current = json!({"data": {"b": "2"}});
    for (patch, code) in [
        ("[{]", 400),
        (r#"[{"op":"remove","path":"/data/zz"}]"#, 422),
        (r#"[{"op":"test","path":"/data/b","value":"nope"}]"#, 422),
    ] {
        assert_eq!(json_patch(&current, patch.as_bytes()).unwrap_err().code, code, "{patch}");
    }
}

#[test]
fn strategic_patches_merge_lists_by_key() {
    for (current, patch, wanted) in [
        (
            json!({"spec": {"containers": [{"name": "c", "image": "1"}, {"name": "d"}]}}),
            json!({"spec": {"containers": [{"name": "c", "image": "2"}]}}),
            json!({"spec": {"containers": [{"name": "c", "image": "2"}, {"name": "d"}]}}),
        ),
        (
            json!({"status": {"conditions": [{"type": "A"}, {"type": "B"}]}}),
            json!({"status": {"conditions": [{"type": "A", "$patch": "delete"}]}}),
            json!({"status": {"conditions": [{"type": "B"}]}}),
        ),
        (
            json!({"metadata": {"finalizers": ["a"]}}),
            json!({"metadata": {"finalizers": ["b"]}}),
            json!({"metadata": {"finalizers": ["a", "b"]}}),
        ),
        (
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
            json!({"metadata": {"finalizers": ["b"]}}),
        ),
        (
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
            json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}]}}),
        ),
        (
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}),
        ),
        (
            json!({"spec": {"tolerations": [{"key": "a"}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}]}}),
        ),
        (
            json!({"spec": {"containers": [{"name": "a"}]}}),
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "b"}]}}),
            json!({"spec": {"containers": [{"name": "b"}]}}),
        ),
    ] {
        assert_eq!(pod(current, patch.clone()), wanted, "{patch}");
    }
}

proptest! {
    #[test]
    fn strategic_equals_merge_on_maps(
        old in prop::collection::btree_map("[a-d]", "[a-z]{0,3}", 0..4),
        new in prop::collection::btree_map("[a-d]", prop::option::of("[a-z]{0,3}"), 0..4),
    ) {
        let (current, patch) = (json!({"metadata": {"labels": old}}), json!({"metadata": {"labels": new}}));
        prop_assert_eq!(pod(current.clone(), patch.clone()), merge(&current, &patch));
    }
}
