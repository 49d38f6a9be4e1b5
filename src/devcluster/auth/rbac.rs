//! RBAC: roles and bindings compiled into rules, compiled again after any of them changed.
//!
//! [`Authorizer`] asks the Node authorizer first, as kube-apiserver does with `--authorization-mode=Node,RBAC`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::node::{self, Opinion};
use super::{Action, User};
use crate::store::{Range, Resource, ResourceId, Store};

const GROUP: &str = "rbac.authorization.k8s.io";

/// One policy rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) resources: Vec<String>,
    pub(crate) names: Vec<String>,
    pub(crate) paths: Vec<String>,
}

impl Rule {
    pub(crate) fn from_json(rule: &Value) -> Self {
        let texts = |key: &str| -> Vec<String> {
            rule[key].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(Into::into)).collect()
        };
        Self {
            verbs: texts("verbs"),
            groups: texts("apiGroups"),
            resources: texts("resources"),
            names: texts("resourceNames"),
            paths: texts("nonResourceURLs"),
        }
    }

    pub(crate) fn allows(&self, action: &Action<'_>) -> bool {
        let any = |list: &[String], wanted: &str| list.iter().any(|v| v == "*" || v == wanted);
        if !any(&self.verbs, action.verb) {
            return false;
        }
        if let Some(path) = action.path {
            return self
                .paths
                .iter()
                .any(|p| p == "*" || p == path || p.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix)));
        }
        let resource = || {
            let sub = action.subresource;
            self.resources.iter().any(|r| match r.split_once('/') {
                _ if r == "*" => true,
                None => sub.is_empty() && r == action.resource,
                Some((resource, of)) => {
                    !sub.is_empty() && of == sub && (resource == "*" || resource == action.resource)
                }
            })
        };
        any(&self.groups, action.group)
            && resource()
            && (self.names.is_empty() || self.names.iter().any(|n| n == action.name && !n.is_empty()))
    }

    fn to_json(&self) -> Value {
        if !self.paths.is_empty() {
            return json!({"verbs": self.verbs, "nonResourceURLs": self.paths});
        }
        let mut rule = json!({"verbs": self.verbs, "apiGroups": self.groups, "resources": self.resources});
        if !self.names.is_empty() {
            rule["resourceNames"] = json!(self.names);
        }
        rule
    }
}

/// Rules granted to a subject, cluster-wide or in one namespace.
#[derive(Debug)]
struct Grant {
    namespace: Option<Box<str>>,
    rules: Arc<[Rule]>,
    /// The binding, the role and the subject, as reviews name them.
    because: Box<str>,
}

/// Whether something is allowed, and what reviews and denials say of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Decision {
    pub(crate) allowed: bool,
    pub(crate) reason: String,
}

#[derive(Debug, Default)]
struct Policy {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
    /// Rules of the role `system:node`, which the Node authorizer gives to every node.
    node: Arc<[Rule]>,
}

/// Answers whether a user may do something.
pub(crate) struct Authorizer {
    store: Arc<Store>,
    resources: [Arc<Resource>; 4],
    compiled: Mutex<(u64, Arc<Policy>)>,
}

impl Authorizer {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        let resource = |plural| store.resource(&ResourceId::new(GROUP, plural));
        let resources = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"].map(resource);
        Self { store, resources, compiled: Mutex::new((0, Arc::default())) }
    }

    pub(crate) fn allows(&self, user: &User, action: &Action<'_>) -> bool {
        self.decide(user, action).allowed
    }

    /// Asks the Node authorizer, then RBAC; either may allow.
    pub(crate) fn decide(&self, user: &User, action: &Action<'_>) -> Decision {
        let allowed = |reason: String| Decision { allowed: true, reason };
        if user.in_group("system:masters") {
            return allowed(String::new());
        }
        let policy = self.policy();
        let refused = match node::opinion(&self.store, user, action) {
            Opinion::Allowed => return allowed(String::new()),
            Opinion::ByRules if policy.node.iter().any(|rule| rule.allows(action)) => return allowed(String::new()),
            Opinion::Refused(reason) => reason,
            Opinion::ByRules | Opinion::None => String::new(),
        };
        let granted = policy.grants(user).find(|grant| {
            let here = grant.namespace.as_deref().is_none_or(|ns| action.path.is_none() && ns == action.namespace);
            here && grant.rules.iter().any(|rule| rule.allows(action))
        });
        match granted {
            Some(grant) => allowed(format!("RBAC: allowed by {}", grant.because)),
            None => Decision { allowed: false, reason: refused },
        }
    }

    /// The rules that hold for a user in a namespace, or cluster-wide when it is empty.
    pub(crate) fn held(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let policy = self.policy();
        let granted = policy.grants(user).filter(|g| g.namespace.as_deref().is_none_or(|ns| ns == namespace));
        granted.flat_map(|grant| grant.rules.iter().cloned()).collect()
    }

    /// Resource rules and non-resource rules of a user in a namespace.
    pub(crate) fn rules(&self, user: &User, namespace: &str) -> (Vec<Value>, Vec<Value>) {
        let mut rules = self.held(user, namespace);
        if user.in_group("system:masters") {
            let all = || vec!["*".to_owned()];
            rules.push(Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() });
            rules.push(Rule { verbs: all(), paths: all(), ..Rule::default() });
        }
        let (paths, resources): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| !rule.paths.is_empty());
        (resources.iter().map(|r| r.to_json()).collect(), paths.iter().map(|r| r.to_json()).collect())
    }

    fn policy(&self) -> Arc<Policy> {
        let newest = self.resources.iter().map(|r| r.changed()).max().unwrap_or(0);
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if compiled.0 != newest {
            *compiled = (newest, Arc::new(self.compile()));
        }
        compiled.1.clone()
    }

    fn compile(&self) -> Policy {
        let [cluster_roles, roles, cluster_bindings, bindings] = self.resources.each_ref().map(|resource| {
            let page = resource.list(&self.store, &Range::default(), |_| true);
            page.map(|page| page.objects.iter().map(|o| o.value()).collect::<Vec<_>>()).unwrap_or_default()
        });
        let rules = |role: &Value| -> Arc<[Rule]> {
            role["rules"].as_array().into_iter().flatten().map(Rule::from_json).collect()
        };
        let name = |value: &Value| value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let namespace = |value: &Value| value["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let cluster_roles: HashMap<_, _> = cluster_roles.iter().map(|r| (name(r), rules(r))).collect();
        let roles: HashMap<_, _> = roles.iter().map(|r| ((namespace(r), name(r)), rules(r))).collect();
        let mut policy =
            Policy { node: cluster_roles.get("system:node").cloned().unwrap_or_default(), ..Policy::default() };
        for binding in &cluster_bindings {
            if let Some(rules) = cluster_roles.get(binding["roleRef"]["name"].as_str().unwrap_or_default()) {
                policy.grant(binding, None, rules);
            }
        }
        for binding in &bindings {
            let (ns, role) = (namespace(binding), binding["roleRef"]["name"].as_str().unwrap_or_default());
            let rules = match binding["roleRef"]["kind"].as_str() {
                Some("ClusterRole") => cluster_roles.get(role),
                _ => roles.get(&(ns.clone(), role.to_owned())),
            };
            if let Some(rules) = rules {
                policy.grant(binding, Some(&ns), rules);
            }
        }
        policy
    }
}

impl Policy {
    fn grant(&mut self, binding: &Value, namespace: Option<&str>, rules: &Arc<[Rule]>) {
        for subject in binding["subjects"].as_array().into_iter().flatten() {
            let name = subject["name"].as_str().unwrap_or_default().to_owned();
            let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
            let to = match subject["kind"].as_str() {
                Some("ServiceAccount") => {
                    let ns = subject["namespace"].as_str().or(namespace).unwrap_or_default();
                    format!("ServiceAccount {:?}", format!("{name}/{ns}"))
                }
                kind => format!("{} {name:?}", kind.unwrap_or("User")),
            };
            let by = match namespace {
                Some(ns) => format!("RoleBinding {:?}", format!("{}/{ns}", text(&binding["metadata"]["name"]))),
                None => format!("ClusterRoleBinding {:?}", text(&binding["metadata"]["name"])),
            };
            let role = &binding["roleRef"];
            let because = format!("{by} of {} {:?} to {to}", text(&role["kind"]), text(&role["name"])).into();
            let (list, name) = match subject["kind"].as_str() {
                Some("Group") => (&mut self.groups, name),
                Some("ServiceAccount") => {
                    let ns = subject["namespace"].as_str().or(namespace).unwrap_or_default();
                    (&mut self.users, format!("system:serviceaccount:{ns}:{name}"))
                }
                _ => (&mut self.users, name),
            };
            list.entry(name).or_default().push(Grant {
                namespace: namespace.map(Into::into),
                rules: rules.clone(),
                because,
            });
        }
    }

    fn grants<'a>(&'a self, user: &'a User) -> impl Iterator<Item = &'a Grant> {
        let own = self.users.get(&user.name).into_iter().flatten();
        own.chain(user.groups.iter().filter_map(|g| self.groups.get(g)).flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(verb: &'static str, group: &'static str, resource: &'static str, sub: &'static str) -> Action<'static> {
        Action { verb, group, resource, subresource: sub, ..Action::default() }
    }

    #[test]
    fn rules_allow_what_they_name_and_nothing_else() {
        let rule = Rule::from_json(&json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "nodes/proxy"]}));
        for (allowed, action) in [
            (true, action("get", "", "pods", "")),
            (false, action("list", "", "pods", "")),
            (false, action("get", "apps", "pods", "")),
            (false, action("get", "", "pods", "log")),
            (true, action("get", "", "nodes", "proxy")),
            (false, action("get", "", "nodes", "")),
        ] {
            assert_eq!(rule.allows(&action), allowed, "{action:?}");
        }
    }

    #[test]
    fn resource_names_and_paths_narrow_a_rule() {
        let named = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["a"]});
        let named = Rule::from_json(&named);
        assert!(named.allows(&Action { name: "a", ..action("get", "", "pods", "") }));
        assert!(!named.allows(&Action { name: "b", ..action("get", "", "pods", "") }));
        assert!(!named.allows(&action("list", "", "pods", "")));
        let path = Rule::from_json(&json!({"verbs": ["get"], "nonResourceURLs": ["/healthz/*"]}));
        let asks = |path| Action { verb: "get", path: Some(path), ..Action::default() };
        assert!(path.allows(&asks("/healthz/etcd")) && !path.allows(&asks("/metrics")));
    }
}
