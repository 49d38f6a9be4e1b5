//! Kinds from CustomResourceDefinitions.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{CUSTOM_VERBS, Kind, ScalePaths, Subresource, common_fields};
use crate::schema::Schema;
use crate::store::{Field, ResourceId};

const RW: &[&str] = &["get", "patch", "update"];

/// The kinds of a CRD's served versions. A version whose schema cannot be used is left out: validation has
/// already refused such a CRD, so that is one written by an older version of this program.
pub(crate) fn kinds(crd: &Value) -> Vec<Kind> {
    let spec = &crd["spec"];
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let storage = versions.iter().find(|v| v["storage"] == true).unwrap_or(&Value::Null);
    let served = versions.iter().filter(|v| v["served"] == true);
    served.filter_map(|version| kind(spec, version, text(&storage["name"]))).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn texts(value: &Value) -> Vec<Box<str>> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(Into::into)).collect()
}

fn kind(spec: &Value, version: &Value, storage: &str) -> Option<Kind> {
    let (group, names) = (text(&spec["group"]), &spec["names"]);
    let (name, kind, plural) = (text(&version["name"]), text(&names["kind"]), text(&names["plural"]));
    let namespaced = spec["scope"] == "Namespaced";
    let schema = Schema::from_crd(&version["schema"]["openAPIV3Schema"]).ok()?;
    let subresource = |name, group: &str, version: &str, kind: &str| Subresource {
        name,
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        verbs: RW,
    };
    let subs = &version["subresources"];
    let mut subresources = Vec::new();
    let scale = subs.get("scale").filter(|s| s.is_object()).map(|scale| ScalePaths {
        spec_replicas: text(&scale["specReplicasPath"]).into(),
        status_replicas: text(&scale["statusReplicasPath"]).into(),
        selector: scale["labelSelectorPath"].as_str().map(Into::into),
    });
    let status = subs.get("status").is_some_and(Value::is_object);
    if status {
        subresources.push(subresource("status", group, name, kind));
    }
    if scale.is_some() {
        subresources.push(subresource("scale", "autoscaling", "v1", "Scale"));
    }
    let mut fields = common_fields(namespaced);
    for path in version["selectableFields"].as_array().into_iter().flatten() {
        let path = text(&path["jsonPath"]).trim_start_matches('.');
        let pointer = format!("/{}", path.replace('.', "/"));
        fields.push(Field { name: path.into(), pointer: pointer.into(), default: "", otherwise: "" });
    }
    let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
        "description": "CreationTimestamp is a timestamp representing the server time when this object was created."});
    let columns = version["additionalPrinterColumns"].as_array().cloned().unwrap_or_else(|| vec![age]);
    let reversed: Vec<_> = group.split('.').rev().collect();
    Some(Kind {
        group: group.into(),
        version: name.into(),
        kind: kind.into(),
        list_kind: text(&names["listKind"]).into(),
        plural: plural.into(),
        singular: text(&names["singular"]).into(),
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        namespaced,
        verbs: CUSTOM_VERBS,
        subresources,
        definition: format!("{}.{name}.{kind}", reversed.join(".")).into(),
        schema: Some(schema),
        fields,
        storage: ResourceId::new(group, plural),
        storage_version: format!("{group}/{storage}").into(),
        generation: true,
        status,
        scale,
        columns: Some(Arc::from(columns)),
        deprecation: (version["deprecated"] == true).then(|| match text(&version["deprecationWarning"]) {
            "" => format!("{group}/{name} {kind} is deprecated").into(),
            said => said.into(),
        }),
        custom: true,
    })
}
