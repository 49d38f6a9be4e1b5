//! The list of APIServices: one for each group and version served here, as the aggregator of kube-apiserver keeps it.

use serde_json::{Value, json};

use super::crds::internal;
use super::{Api, now};
use crate::auth::User;
use crate::kinds::Kinds;
use crate::store::{Key, Range};

const GROUP: &str = "apiregistration.k8s.io";
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

impl Api {
    /// Creates the APIServices that are missing and removes those of groups that are served no longer.
    pub(crate) fn keep_api_services(&self) {
        let kinds = self.registry.kinds();
        let Some(kind) = kinds.find(GROUP, "v1", "apiservices") else { return };
        let resource = self.store.resource(&kind.storage);
        let user = User::default();
        let wanted = wanted(&kinds);
        let report = |name: &str, error: &dyn std::fmt::Display| {
            tracing::warn!(api_service = name, %error, "cannot keep the list of APIServices");
        };
        for object in &wanted {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            if resource.get(&Key::new("", name)).is_some() {
                continue;
            }
            let made = self.create(&internal(kind, &resource, "", &user), "", object.clone()).and_then(|_| {
                let status = |old: &Value| {
                    let mut new = old.clone();
                    new["status"] = object["status"].clone();
                    Ok(new)
                };
                self.modify(&internal(kind, &resource, "status", &user), &Key::new("", name), status)
            });
            if let Err(error) = made {
                report(name, &error);
            }
        }
        let page = resource.list(&self.store, &Range::default(), |_| true);
        for object in page.map(|p| p.objects).unwrap_or_default() {
            let known = wanted.iter().any(|w| w["metadata"]["name"] == *object.key.name);
            if !known
                && object.value()["metadata"]["labels"][MANAGED].is_string()
                && let Err(crate::store::Refused::Log(error)) =
                    self.store.remove(&resource, &object.key, object.revision)
            {
                report(&object.key.name, &error);
            }
        }
    }
}

fn wanted(kinds: &Kinds) -> Vec<Value> {
    let mut all = Vec::new();
    for (group, versions) in &kinds.groups {
        for (version, kinds) in versions {
            let custom = kinds.iter().any(|kind| kind.custom);
            let metrics = &**group == "metrics.k8s.io";
            let (minimum, priority) = match &**group {
                "" => (18000, 1),
                "metrics.k8s.io" => (100, 100),
                _ if custom => (1000, 100),
                _ => (17000, 15),
            };
            let mut spec = json!({"version": &**version, "groupPriorityMinimum": minimum, "versionPriority": priority});
            if !group.is_empty() {
                spec["group"] = (**group).into();
            }
            let mut metadata = json!({"name": format!("{version}.{group}")});
            let (reason, message) = match metrics {
                true => {
                    spec["service"] = json!({"name": "metrics-server", "namespace": "kube-system", "port": 443});
                    spec["insecureSkipTLSVerify"] = true.into();
                    metadata["labels"] = json!({"k8s-app": "metrics-server"});
                    ("Passed", "all checks passed")
                }
                false => {
                    metadata["labels"] = json!({MANAGED: if custom { "true" } else { "onstart" }});
                    ("Local", "Local APIServices are always available")
                }
            };
            all.push(json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": metadata,
                "spec": spec, "status": {"conditions": [{"type": "Available", "status": "True", "reason": reason,
                    "message": message, "lastTransitionTime": now()}]}}));
        }
    }
    all
}
