//! The custom resource types, their names and their rules. Nothing here does I/O.
//!
//! | module | holds |
//! |---|---|
//! | [`names`] | every fixed name: group, finalizer, labels, annotations, field managers |
//! | [`virtual_node`] | `VirtualNode` |
//! | [`virtual_node_set`] | `VirtualNodeSet` |
//! | [`provider`] | `spec.provider`: the union of the providers' configurations |
//! | [`conditions`] | condition types, reasons, and setting one without losing its transition time |

pub mod conditions;
pub mod names;
pub mod provider;
pub mod virtual_node;
pub mod virtual_node_set;

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, ValidationRule,
};
pub use provider::{
    DockerConfig, DockerVolumes, ExternalConfig, GrpcConfig, HostKeyPolicy, MockConfig, ProcessConfig, ProviderSpec,
    ProviderType, SshConfig, SshJump, WebConfig, WebInterface, WebPoll,
};
pub use virtual_node::{VirtualNode, VirtualNodeSpec, VirtualNodeStatus};
pub use virtual_node_set::{VirtualNodeSet, VirtualNodeSetSpec, VirtualNodeSetStatus};

/// The CRDs that this version serves, as `vnode crd` prints them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    crds_with(&BTreeMap::new())
}

/// The CRDs with more members in `spec.provider`: types that a program brings along, by name, each with the schema of
/// its configuration.
pub fn crds_with(own: &BTreeMap<String, JSONSchemaProps>) -> Vec<CustomResourceDefinition> {
    use kube::CustomResourceExt as _;
    let (mut node, mut set) = (VirtualNode::crd(), VirtualNodeSet::crd());
    for spec in specs(&mut set) {
        if let Some(template) = spec.properties.as_mut().and_then(|p| p.get_mut("template")) {
            allow_changes(template);
            template.properties.as_mut().and_then(|p| p.get_mut("spec")).into_iter().for_each(|s| admit(s, own));
        }
    }
    specs(&mut node).for_each(|spec| admit(spec, own));
    vec![node, set]
}

/// The schema of `spec` in each version.
fn specs(crd: &mut CustomResourceDefinition) -> impl Iterator<Item = &mut JSONSchemaProps> {
    let schemas = crd.spec.versions.iter_mut().filter_map(|v| v.schema.as_mut()?.open_api_v3_schema.as_mut());
    schemas.filter_map(|schema| schema.properties.as_mut()?.get_mut("spec"))
}

/// Adds members to the union `provider` of the spec of a VirtualNode, with the same rules as the others have.
fn admit(spec: &mut JSONSchemaProps, own: &BTreeMap<String, JSONSchemaProps>) {
    let Some(provider) = spec.properties.as_mut().and_then(|p| p.get_mut("provider")) else { return };
    for (name, schema) in own {
        let properties = provider.properties.get_or_insert_default();
        if let Some(types) = properties.get_mut("type").and_then(|t| t.enum_.as_mut()) {
            types.push(JSON(name.as_str().into()));
        }
        properties.insert(name.clone(), schema.clone());
        let rule = |rule: String, message: String| ValidationRule {
            rule,
            message: Some(message),
            ..ValidationRule::default()
        };
        // Before the rule of what cannot change, which is the last.
        let rules = provider.x_kubernetes_validations.get_or_insert_default();
        rules.insert(
            0,
            rule(
                format!("self.type != '{name}' || has(self.{name})"),
                format!("provider.{name} must be set (it may be empty: {{}}) when provider.type is {name}"),
            ),
        );
        rules.insert(
            1,
            rule(
                format!("!has(self.{name}) || self.type == '{name}'"),
                format!("provider.{name} is for provider.type {name}: set only the member that provider.type names"),
            ),
        );
    }
}

/// What cannot change in a VirtualNode can in the template of a set, whose nodes are then made anew.
fn allow_changes(schema: &mut JSONSchemaProps) {
    if let Some(rules) = &mut schema.x_kubernetes_validations {
        rules.retain(|rule| !rule.rule.contains("oldSelf"));
        if rules.is_empty() {
            schema.x_kubernetes_validations = None;
        }
    }
    schema.properties.iter_mut().flatten().for_each(|(_, property)| allow_changes(property));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_own_type_is_read_and_written_as_it_is_in_the_manifest() {
        for spec in [
            json!({"type": "toy", "toy": {"port": 7}}),
            json!({"type": "external", "external": {"name": "toy", "config": {"port": 7}}}),
            json!({"type": "mock", "mock": {"seed": 1}}),
        ] {
            let read: ProviderSpec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(read.name(), if spec["type"] == "mock" { "mock" } else { "toy" });
            assert_eq!(serde_json::to_value(read).unwrap(), spec);
        }
    }

    #[test]
    fn every_type_of_the_schema_is_read_as_such() {
        let schema = serde_json::to_value(schemars::schema_for!(ProviderType)).unwrap().to_string();
        let count = schema.matches("\"const\"").count();
        assert!(count > 0, "{schema}");
        let words = schema.split("\"const\":\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
        for word in words {
            let read: ProviderType = serde_json::from_value(json!(word)).unwrap();
            assert!(!matches!(read, ProviderType::Own(_)), "{word} is not among the types");
        }
    }

    #[test]
    fn names_that_would_break_rules_or_hide_other_members_are_refused() {
        for (name, fits) in [("toy", true), ("k3", true), ("mock", false), ("type", false), ("in", false)] {
            assert_eq!(provider::is_own_name(name), fits, "{name}");
        }
        for name in ["", "Toy", "my-toy", "3d", "a_b", &"a".repeat(33)] {
            assert!(!provider::is_own_name(name), "{name}");
        }
    }

    #[test]
    fn an_own_type_is_a_member_of_the_union_in_nodes_and_sets() {
        let schema: JSONSchemaProps =
            serde_json::from_value(json!({"type": "object", "properties": {"port": {"type": "integer"}}})).unwrap();
        let own = BTreeMap::from([("toy".to_owned(), schema)]);
        for (crd, path) in crds_with(&own).iter().zip(["/spec", "/spec/properties/template/properties/spec"]) {
            let crd = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
            let path = format!("/openAPIV3Schema/properties{path}/properties/provider");
            let provider = crd.pointer(&path).unwrap();
            assert_eq!(provider["properties"]["toy"]["properties"]["port"]["type"], "integer");
            assert!(provider["properties"]["type"]["enum"].as_array().unwrap().contains(&json!("toy")));
            let rules = provider["x-kubernetes-validations"].to_string();
            assert!(rules.contains("has(self.toy)"), "{rules}");
        }
    }
}
