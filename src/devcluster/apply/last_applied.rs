//! The annotation in which `kubectl apply` without server-side apply keeps what it applied last.
//!
//! When kubectl changes over to server-side apply, what it owns by that annotation is still its own, and the annotation
//! follows what it applies from then on. apimachinery: `managedfields/internal`, `LastAppliedManager` and
//! `LastAppliedUpdater`.

use serde_json::Value;

use super::merge::compare;
use super::set::Set;
use crate::schema::Schema;

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The one manager that this is done for.
const MANAGER: &str = "kubectl";
/// Most bytes of all annotations of an object.
const LIMIT: usize = 256 << 10;

fn annotation(object: &Value) -> Option<&str> {
    object["metadata"]["annotations"][ANNOTATION].as_str().filter(|text| !text.is_empty())
}

/// The fields that the manager may take over from anybody: those that it applied by the annotation, and that are still
/// as they were.
pub(super) fn owned(live: &Value, manager: &str, schema: &Schema) -> Set {
    let applied = (manager == MANAGER).then(|| annotation(live)).flatten();
    let Some(applied) = applied.and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return Set::default();
    };
    let mut fields = Set::of(&applied, Some(schema));
    let differs = compare(&applied, live, Some(schema));
    fields.subtract(&differs.changed);
    fields.subtract(&differs.removed);
    fields
}

/// Makes the annotation of what was `applied`, where there is one.
pub(super) fn renew(object: &mut Value, applied: &Value, manager: &str) {
    if manager != MANAGER || annotation(object).is_none() {
        return;
    }
    let mut applied = applied.clone();
    if let Some(meta) = applied["metadata"].as_object_mut() {
        meta.remove("managedFields");
        if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(ANNOTATION);
            if annotations.is_empty() {
                meta.remove("annotations");
            }
        }
    }
    let text = format!("{applied}\n");
    let fits = text.len() <= LIMIT;
    object["metadata"]["annotations"][ANNOTATION] = if fits { text } else { String::new() }.into();
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_annotation_follows_what_kubectl_applies_where_it_is() {
        let applied = json!({"kind": "ConfigMap", "data": {"a": "2"}, "metadata": {"name": "n", "annotations": {}}});
        let with = |text: &str| json!({"metadata": {"annotations": {ANNOTATION: text}}});
        let renewed = |mut object: Value, manager: &str| {
            renew(&mut object, &applied, manager);
            object["metadata"]["annotations"][ANNOTATION].as_str().map(String::from)
        };
        let want = "{\"data\":{\"a\":\"2\"},\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"n\"}}\n";
        assert_eq!(renewed(with("{}"), "kubectl").as_deref(), Some(want));
        assert_eq!(renewed(with("{}"), "other").as_deref(), Some("{}"));
        assert_eq!(renewed(json!({"metadata": {}}), "kubectl"), None);
    }

    #[test]
    fn what_was_applied_and_is_still_so_belongs_to_kubectl() {
        let kinds = crate::kinds::Registry::new().kinds();
        let schema = kinds.find("", "v1", "configmaps").unwrap().schema.clone().unwrap();
        let annotated = json!({"data": {"a": "1", "b": "1"}}).to_string();
        let live = json!({"data": {"a": "1", "b": "changed"}, "metadata": {"annotations": {ANNOTATION: annotated}}});
        let data = &owned(&live, "kubectl", &schema).below["f:data"];
        assert!(data.below.contains_key("f:a") && !data.below.contains_key("f:b"));
        assert!(owned(&live, "other", &schema).is_empty());
    }
}
