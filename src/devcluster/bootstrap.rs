//! What a cluster has before anybody does anything: namespaces, roles, priority classes, the `kubernetes` service.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::auth::{User, roles};
use crate::selector::label_selector_matches;
use crate::server::Api;
use crate::server::crds::internal;
use crate::status::Result;
use crate::store::{Interest, Key, Range};

const RBAC: &str = "rbac.authorization.k8s.io";

impl Api {
    /// Creates what is missing. What a user has changed since is left alone.
    pub(crate) fn bootstrap(&self, address: SocketAddr, ca: &str) -> Result<()> {
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            self.ensure("", "namespaces", &json!({"metadata": {"name": name}}))?;
        }
        for role in roles::cluster_roles() {
            self.ensure(RBAC, "clusterroles", &role)?;
        }
        for binding in roles::cluster_bindings() {
            self.ensure(RBAC, "clusterrolebindings", &binding)?;
        }
        for role in roles::roles() {
            self.ensure(RBAC, "roles", &role)?;
        }
        for (name, value, use_for) in [
            (
                "system-cluster-critical",
                2_000_000_000,
                "system critical pods that must run in the cluster, but can be moved to another node if necessary",
            ),
            (
                "system-node-critical",
                2_000_001_000,
                "system critical pods that must not be moved from their current node",
            ),
        ] {
            let class =
                json!({"metadata": {"name": name}, "value": value, "description": format!("Used for {use_for}.")});
            self.ensure("scheduling.k8s.io", "priorityclasses", &class)?;
        }
        let published = json!({"metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
            "data": {"client-ca-file": ca}});
        self.ensure("", "configmaps", &published)?;
        let service = json!({"metadata": {"name": "kubernetes", "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": address.port()}]}});
        self.ensure("", "services", &service)?;
        self.keep_api_services();
        Ok(())
    }

    fn ensure(&self, group: &str, plural: &str, object: &Value) -> Result<()> {
        let kinds = self.registry.kinds();
        let Some(kind) = kinds.find(group, "v1", plural) else { return Ok(()) };
        let resource = self.store.resource(&kind.storage);
        let meta = &object["metadata"];
        let namespace = meta["namespace"].as_str().unwrap_or_default();
        if resource.get(&Key::new(namespace, meta["name"].as_str().unwrap_or_default())).is_some() {
            return Ok(());
        }
        let user = User::default();
        let mut object = object.clone();
        (object["apiVersion"], object["kind"]) = (kind.api_version().into(), (*kind.kind).into());
        self.create(&internal(kind, &resource, "", &user), namespace, object).map(drop)
    }

    /// Keeps aggregated cluster roles up to date until the server stops.
    pub(crate) fn follow_aggregation(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let api = self.clone();
        let resource = api.resource(RBAC, "clusterroles");
        let (_, _, mut live) = resource.list_and_watch(&api.store, None, Interest::All, |_| false);
        api.aggregate();
        async move {
            loop {
                let event = tokio::select! {
                    () = api.stopping.cancelled() => return,
                    event = live.events.recv() => event,
                };
                if event.is_none() {
                    live = resource.list_and_watch(&api.store, None, Interest::All, |_| false).2;
                }
                while live.events.try_recv().is_ok() {}
                api.aggregate();
            }
        }
    }

    /// Sets the rules of every aggregated role; those that contain others take a few rounds.
    fn aggregate(&self) {
        let kinds = self.registry.kinds();
        let Some(kind) = kinds.find(RBAC, "v1", "clusterroles") else { return };
        let resource = self.store.resource(&kind.storage);
        let user = User::default();
        for _ in 0..4 {
            let page = resource.list(&self.store, &Range::default(), |_| true);
            let roles: Vec<Value> = page.map(|p| p.objects.iter().map(|o| o.value()).collect()).unwrap_or_default();
            let mut changed = false;
            for role in roles.iter().filter(|role| role["aggregationRule"].is_object()) {
                let rules = aggregated_rules(role, &roles);
                if role["rules"].as_array().is_some_and(|old| *old == rules) {
                    continue;
                }
                let name = role["metadata"]["name"].as_str().unwrap_or_default();
                let set = |old: &Value| {
                    let mut new = old.clone();
                    new["rules"] = json!(rules);
                    Ok(new)
                };
                match self.modify(&internal(kind, &resource, "", &user), &Key::new("", name), set) {
                    Ok(_) => changed = true,
                    Err(error) => tracing::warn!(role = name, %error, "cannot aggregate a role"),
                }
            }
            if !changed {
                return;
            }
        }
    }
}

fn aggregated_rules(role: &Value, roles: &[Value]) -> Vec<Value> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut rules: Vec<Value> = Vec::new();
    for other in roles.iter().filter(|other| other["metadata"]["name"] != role["metadata"]["name"]) {
        let label = |key: &str| other["metadata"]["labels"][key].as_str();
        if selectors.iter().any(|selector| label_selector_matches(selector, label) == Some(true)) {
            for rule in other["rules"].as_array().into_iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aggregated_role_has_the_rules_of_those_it_selects() {
        let role = |name: &str, label: &str, rule: &str| json!({"metadata": {"name": name, "labels": {label: "true"}}, "rules": [{"verbs": [rule]}]});
        let view = json!({"metadata": {"name": "view"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to-view": "true"}}]}});
        let roles = [role("a", "to-view", "get"), role("b", "other", "list"), view.clone()];
        assert_eq!(aggregated_rules(&view, &roles), [json!({"verbs": ["get"]})]);
    }
}
