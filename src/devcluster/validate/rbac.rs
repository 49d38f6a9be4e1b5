//! Roles and bindings. core: `pkg/apis/rbac/validation`.

use serde_json::{Value, json};

use crate::status::FieldError;

const GROUP: &str = "rbac.authorization.k8s.io";

fn empty(value: &Value) -> bool {
    value.as_array().is_none_or(Vec::is_empty)
}

pub(super) fn validate_role(role: &Value, _: Option<&Value>) -> Vec<FieldError> {
    rules(role, true)
}

pub(super) fn validate_cluster_role(role: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = rules(role, false);
    let aggregation = &role["aggregationRule"];
    if aggregation.is_object() && empty(&aggregation["clusterRoleSelectors"]) {
        let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        errors.push(FieldError::required("aggregationRule.clusterRoleSelectors", detail));
    }
    errors
}

fn rules(role: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, rule) in role["rules"].as_array().into_iter().flatten().enumerate() {
        let at = |key: &str| format!("rules[{i}].{key}");
        if empty(&rule["verbs"]) {
            errors.push(FieldError::required(at("verbs"), "verbs must contain at least one value"));
        }
        if !empty(&rule["nonResourceURLs"]) {
            let detail = if namespaced {
                Some("namespaced rules cannot apply to non-resource URLs")
            } else if ["apiGroups", "resources", "resourceNames"].iter().any(|key| !empty(&rule[*key])) {
                Some("rules cannot apply to both regular resources and non-resource URLs")
            } else {
                None
            };
            if let Some(detail) = detail {
                errors.push(FieldError::invalid(at("nonResourceURLs"), &rule["nonResourceURLs"], detail));
            }
            continue;
        }
        if empty(&rule["apiGroups"]) {
            let detail = "resource rules must supply at least one api group";
            errors.push(FieldError::required(at("apiGroups"), detail));
        }
        if empty(&rule["resources"]) {
            let detail = "resource rules must supply at least one resource";
            errors.push(FieldError::required(at("resources"), detail));
        }
    }
    errors
}

/// Subjects and the role are of this group unless they say otherwise.
pub(super) fn default_binding(binding: &mut Value) {
    let unset = |value: &Value| value.as_str().is_none_or(str::is_empty);
    if binding["roleRef"].is_object() && unset(&binding["roleRef"]["apiGroup"]) {
        binding["roleRef"]["apiGroup"] = GROUP.into();
    }
    for subject in binding["subjects"].as_array_mut().into_iter().flatten().filter(|s| s.is_object()) {
        if unset(&subject["apiGroup"]) && matches!(subject["kind"].as_str(), Some("User" | "Group")) {
            subject["apiGroup"] = GROUP.into();
        }
    }
}

pub(super) fn validate_role_binding(binding: &Value, old: Option<&Value>) -> Vec<FieldError> {
    validate_binding(binding, old, &["Role", "ClusterRole"], true)
}

pub(super) fn validate_cluster_role_binding(binding: &Value, old: Option<&Value>) -> Vec<FieldError> {
    validate_binding(binding, old, &["ClusterRole"], false)
}

fn validate_binding(binding: &Value, old: Option<&Value>, kinds: &[&str], namespaced: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
    let role = &binding["roleRef"];
    if text(&role["apiGroup"]) != GROUP {
        errors.push(FieldError::not_supported("roleRef.apiGroup", &role["apiGroup"], &[GROUP]));
    }
    if !kinds.contains(&text(&role["kind"]).as_str()) {
        errors.push(FieldError::not_supported("roleRef.kind", &json!(text(&role["kind"])), kinds));
    }
    if text(&role["name"]).is_empty() {
        errors.push(FieldError::required("roleRef.name", ""));
    }
    for (i, subject) in binding["subjects"].as_array().into_iter().flatten().enumerate() {
        let at = |key: &str| format!("subjects[{i}].{key}");
        if text(&subject["name"]).is_empty() {
            errors.push(FieldError::required(at("name"), ""));
        }
        match text(&subject["kind"]).as_str() {
            "ServiceAccount" => {
                if !text(&subject["apiGroup"]).is_empty() {
                    errors.push(FieldError::not_supported(at("apiGroup"), &subject["apiGroup"], &[""]));
                }
                if !namespaced && text(&subject["namespace"]).is_empty() {
                    errors.push(FieldError::required(at("namespace"), ""));
                }
            }
            "User" | "Group" => {
                if text(&subject["apiGroup"]) != GROUP {
                    errors.push(FieldError::not_supported(at("apiGroup"), &subject["apiGroup"], &[GROUP]));
                }
            }
            kind => {
                let kinds = ["ServiceAccount", "User", "Group"];
                errors.push(FieldError::not_supported(at("kind"), &json!(kind), &kinds));
            }
        }
    }
    if let Some(old) = old
        && old["roleRef"] != *role
    {
        let shown = json!({"APIGroup": role["apiGroup"], "Kind": role["kind"], "Name": role["name"]});
        errors.push(FieldError::invalid("roleRef", &shown, "cannot change roleRef"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(errors: &[FieldError]) -> Vec<&str> {
        errors.iter().map(|e| e.field.as_str()).collect()
    }

    #[test]
    fn rules_are_about_resources_or_about_paths() {
        let role = json!({"rules": [{"apiGroups": [""], "resources": ["pods"]}, {"resources": ["x"], "verbs": ["get"]},
            {"apiGroups": [""], "verbs": ["get"]}, {"nonResourceURLs": ["x"], "apiGroups": [""], "verbs": ["get"]}]});
        let wanted = ["rules[0].verbs", "rules[1].apiGroups", "rules[2].resources", "rules[3].nonResourceURLs"];
        assert_eq!(fields(&validate_cluster_role(&role, None)), wanted);
        let paths = json!({"rules": [{"nonResourceURLs": ["/x"], "verbs": ["get"]}]});
        assert!(validate_cluster_role(&paths, None).is_empty());
        assert_eq!(fields(&validate_role(&paths, None)), ["rules[0].nonResourceURLs"]);
    }

    #[test]
    fn bindings_bind_subjects_that_can_be() {
        let mut binding = json!({"roleRef": {"kind": "ClusterRole", "name": "x"}, "subjects": [
            {"kind": "ServiceAccount", "name": "a"}, {"kind": "Foo", "name": "b"}, {"kind": "User"}]});
        default_binding(&mut binding);
        let wanted = ["subjects[0].namespace", "subjects[1].kind", "subjects[2].name"];
        assert_eq!(fields(&validate_cluster_role_binding(&binding, None)), wanted);
        assert_eq!(fields(&validate_role_binding(&binding, None)), wanted[1..]);
        let mut other = binding.clone();
        other["roleRef"]["kind"] = "Role".into();
        assert_eq!(fields(&validate_cluster_role_binding(&other, None))[0], "roleRef.kind");
        assert_eq!(fields(&validate_role_binding(&other, Some(&binding))).last(), Some(&"roleRef"));
    }
}
