//! Changing the resources of a pod that exists. KEP-1287; kubernetes: `pkg/apis/core/validation`, `ValidatePodResize`.

use serde_json::Value;

use super::default::qos_class;
use crate::status::FieldError;
use crate::validate::fields::{entries, items, text};

const LISTS: [&str; 2] = ["containers", "initContainers"];

fn names(spec: &Value, list: &str) -> Vec<String> {
    items(&spec[list]).iter().map(|container| text(container, "name").to_owned()).collect()
}

/// The old pod with the resources of the new one: nothing else is changed through this path. Containers that come, go or
/// move are left for validation to refuse.
pub(crate) fn keep_but_resources(new: &mut Value, old: &Value) {
    if LISTS.iter().any(|list| names(&new["spec"], list) != names(&old["spec"], list)) {
        return;
    }
    let mut spec = old["spec"].clone();
    for list in LISTS {
        for (i, container) in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            let Some(fields) = container.as_object_mut() else { continue };
            for field in ["resources", "resizePolicy"] {
                match new["spec"][list][i].get(field) {
                    Some(value) => drop(fields.insert(field.into(), value.clone())),
                    None => drop(fields.remove(field)),
                }
            }
        }
    }
    if let Some(fields) = spec.as_object_mut() {
        match new["spec"].get("resources") {
            Some(value) => drop(fields.insert("resources".into(), value.clone())),
            None => drop(fields.remove("resources")),
        }
    }
    new["spec"] = spec;
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let kept = old["metadata"].get(field).cloned();
        if let Some(meta) = new["metadata"].as_object_mut() {
            match kept {
                Some(value) => drop(meta.insert(field.into(), value)),
                None => drop(meta.remove(field)),
            }
        }
    }
}

/// What is wrong with a pod's new resources.
pub(crate) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if LISTS.iter().any(|list| names(&new["spec"], list) != names(&old["spec"], list)) {
        errors.push(FieldError::forbidden("spec.containers", "containers may not be added or removed on resize"));
        return errors;
    }
    super::validate_spec(&new["spec"], "spec", &mut errors);
    let class = qos_class(&old["spec"]);
    if qos_class(&new["spec"]) != class {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", &class.into(), detail));
    }
    let running = items(&old["status"]["containerStatuses"]).iter().find(|c| c["state"]["running"].is_object());
    if running.is_some_and(|status| !status["resources"].is_object()) {
        errors.push(FieldError::forbidden("spec", "Pod running on node without support for resize"));
    }
    let mut others = false;
    for list in LISTS {
        for (i, (is, was)) in items(&new["spec"][list]).iter().zip(items(&old["spec"][list])).enumerate() {
            for kind in ["limits", "requests"] {
                let (is, was) = (&is["resources"][kind], &was["resources"][kind]);
                let own = |name: &str| matches!(name, "cpu" | "memory");
                if entries(was).any(|(name, _)| own(name) && is[name].is_null()) {
                    let detail = format!("resource {kind} cannot be removed");
                    errors.push(FieldError::forbidden(format!("spec.{list}[{i}].resources.{kind}"), &detail));
                }
                let names = entries(is).chain(entries(was)).map(|(name, _)| name);
                others |= names.filter(|name| !own(name)).any(|name| is[name] != was[name]);
            }
        }
    }
    if others {
        errors.push(FieldError::forbidden("spec", "only cpu and memory resources are mutable"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_resize_changes_amounts_and_nothing_else() {
        let pod = |resources: Value| json!({"metadata": {}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}});
        let old = pod(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}));
        for (resources, fault) in [
            (json!({"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}), ""),
            (json!({"requests": {"cpu": "1"}}), "Forbidden: resource limits cannot be removed"),
            (json!({}), "Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing"),
            (
                json!({"requests": {"cpu": "1", "a.b/c": "1"}, "limits": {"cpu": "2", "a.b/c": "1"}}),
                "Forbidden: only cpu and memory resources are mutable",
            ),
        ] {
            let mut new = pod(resources);
            new["spec"]["containers"][0]["image"] = "other".into();
            new["metadata"]["labels"] = json!({"a": "b"});
            keep_but_resources(&mut new, &old);
            assert_eq!(new["spec"]["containers"][0]["image"], "i");
            assert!(new["metadata"]["labels"].is_null());
            let said = validate(&new, &old).first().map(|error| error.message.clone()).unwrap_or_default();
            assert_eq!(said, fault, "{new}");
        }
        let mut renamed = old.clone();
        renamed["spec"]["containers"][0]["name"] = "d".into();
        keep_but_resources(&mut renamed, &old);
        assert_eq!(validate(&renamed, &old)[0].field, "spec.containers");
    }
}
