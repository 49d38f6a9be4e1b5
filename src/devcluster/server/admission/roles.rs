//! Roles and bindings: a user grants what he has himself, unless he may `escalate` or `bind`.
//!
//! kube-apiserver: `pkg/registry/rbac`, the policy based storages.

use serde_json::Value;

use crate::auth::escalation::missing;
use crate::auth::rbac::Rule;
use crate::auth::{Action, User};
use crate::server::{Api, Write};
use crate::status::{ApiError, Result};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn check(api: &Api, write: &Write<'_>, new: &Value, old: Option<&Value>) -> Result<()> {
    if &*write.kind.group != GROUP || write.user.in_group("system:masters") {
        return Ok(());
    }
    let namespace = new["metadata"]["namespace"].as_str().unwrap_or_default();
    let changed = |key: &str| old.is_none_or(|old| old[key] != new[key]);
    match &*write.kind.plural {
        "roles" | "clusterroles" if changed("rules") || changed("aggregationRule") => {
            role(api, write, new, old, namespace)
        }
        "rolebindings" | "clusterrolebindings" if changed("subjects") || changed("roleRef") => {
            binding(api, write, new, namespace)
        }
        _ => Ok(()),
    }
}

fn refuse(write: &Write<'_>, object: &Value, message: &str) -> ApiError {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    ApiError::forbidden(&write.kind.plural, GROUP, name, message)
}

fn role(api: &Api, write: &Write<'_>, role: &Value, old: Option<&Value>, namespace: &str) -> Result<()> {
    let name = role["metadata"]["name"].as_str().unwrap_or_default();
    let plural = &*write.kind.plural;
    let escalate = Action { verb: "escalate", group: GROUP, resource: plural, namespace, name, ..Action::default() };
    if api.authorizer.allows(write.user, &escalate) {
        return Ok(());
    }
    let aggregates = |role: &Value| role["aggregationRule"].is_object();
    if aggregates(role) || old.is_some_and(aggregates) {
        let all = || vec!["*".to_owned()];
        let everything = [
            Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() },
            Rule { verbs: all(), paths: all(), ..Rule::default() },
        ];
        if !missing(&api.authorizer.held(write.user, ""), &everything).is_empty() {
            return Err(refuse(write, role, "must have cluster-admin privileges to use the aggregationRule"));
        }
    }
    no_escalation(api, write, role, &rules(role), namespace)
}

fn binding(api: &Api, write: &Write<'_>, binding: &Value, namespace: &str) -> Result<()> {
    let reference = &binding["roleRef"];
    let name = reference["name"].as_str().unwrap_or_default();
    let (plural, of) = match reference["kind"].as_str() {
        Some("ClusterRole") => ("clusterroles", ""),
        Some("Role") if !namespace.is_empty() => ("roles", namespace),
        // What is wrong with it is told by validation.
        _ => return Ok(()),
    };
    let bind = Action { verb: "bind", group: GROUP, resource: plural, namespace, name, ..Action::default() };
    if api.authorizer.allows(write.user, &bind) {
        return Ok(());
    }
    let Some(role) = api.get(GROUP, plural, of, name) else {
        return Err(ApiError::not_found(&write.kind.plural, GROUP, name));
    };
    no_escalation(api, write, binding, &rules(&role.value()), namespace)
}

fn rules(role: &Value) -> Vec<Rule> {
    role["rules"].as_array().into_iter().flatten().map(Rule::from_json).collect()
}

fn no_escalation(api: &Api, write: &Write<'_>, object: &Value, wanted: &[Rule], namespace: &str) -> Result<()> {
    let lacking = missing(&api.authorizer.held(write.user, namespace), wanted);
    if lacking.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{} is attempting to grant RBAC permissions not currently held:\n{}",
        described(write.user),
        lacking.join("\n")
    );
    Err(refuse(write, object, &message))
}

fn described(user: &User) -> String {
    let groups: Vec<_> = user.groups.iter().map(|group| format!("{group:?}")).collect();
    format!("user {:?} (groups=[{}])", user.name, groups.join(" "))
}
