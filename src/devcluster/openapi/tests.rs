use super::{KindInfo, v2, v3, v3_index};
use crate::schema::builtin;

fn pods() -> [KindInfo; 1] {
    let definition = "io.k8s.api.core.v1.Pod".to_owned();
    [KindInfo {
        group: String::new(),
        version: "v1".into(),
        kind: "Pod".into(),
        plural: "pods".into(),
        namespaced: true,
        schema: builtin(&definition).unwrap(),
        definition,
        subresources: vec!["status".into()],
    }]
}

#[test]
fn documents_lead_from_a_kind_to_all_it_refers_to() {
    let url = v3_index(&pods())["paths"]["api/v1"]["serverRelativeURL"].to_string();
    assert!(url.contains("/openapi/v3/api/v1?hash="), "{url}");
    let v3 = v3("v1", &pods());
    let schemas = v3["components"]["schemas"].as_object().unwrap();
    assert_eq!(schemas["io.k8s.api.core.v1.Pod"]["x-kubernetes-group-version-kind"][0]["kind"], "Pod");
    let text = v3.to_string();
    for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name}");
    }
    assert!(!text.contains("$defs"));
    assert!(v2(&pods())["definitions"]["io.k8s.api.core.v1.Container"].is_object());
}

#[test]
fn patches_take_field_validation() {
    let document = v2(&pods());
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation"));
}
