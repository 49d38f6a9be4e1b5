//! CustomResourceDefinitions. apiextensions: `pkg/apis/apiextensions/validation`.

use serde_json::{Value, json};

use super::fields::{entries, items, text};
use crate::schema::Schema;
use crate::status::FieldError;

const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: &[&str] = &["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
    alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
    validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

/// Fills in the names that follow from others, and how versions are converted.
pub(crate) fn default(crd: &mut Value) {
    let Some(spec) = crd["spec"].as_object_mut() else { return };
    let conversion = spec.entry("conversion").or_insert_with(|| json!({}));
    if conversion.is_object() && !conversion["strategy"].is_string() {
        conversion["strategy"] = "None".into();
    }
    let Some(names) = spec.get_mut("names").filter(|names| names.is_object()) else { return };
    let kind = text(names, "kind").to_owned();
    if text(names, "singular").is_empty() && !kind.is_empty() {
        names["singular"] = kind.to_lowercase().into();
    }
    if text(names, "listKind").is_empty() && !kind.is_empty() {
        names["listKind"] = format!("{kind}List").into();
    }
}

/// What is wrong with a CRD.
pub(crate) fn validate(crd: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &crd["spec"];
    let (group, names) = (text(spec, "group"), &spec["names"]);
    let wanted = format!("{}.{group}", text(names, "plural"));
    if crd["metadata"]["name"] != wanted.as_str() {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", &crd["metadata"]["name"], detail));
    }
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid("spec.group", &spec["group"], "should be a domain with at least one dot"));
    }
    match text(spec, "scope") {
        "" => errors.push(FieldError::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        _ => errors.push(FieldError::not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"])),
    }
    if spec["preserveUnknownFields"] == true {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema \
                      instead";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", &json!(true), detail));
    }
    let versions = items(&spec["versions"]);
    // What all versions have in common is told as one, as in the first version of this API.
    let common = |key: &str| versions.windows(2).all(|pair| pair[0][key] == pair[1][key]);
    for (i, version) in versions.iter().enumerate() {
        version_rules(version, &format!("spec.versions[{i}]"), &common, &mut errors);
    }
    let stored = versions.iter().filter(|v| v["storage"] == true).count();
    if stored != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid_shown("spec.versions", &shown(versions, &common), detail));
    }
    name_rules(names, &mut errors);
    if let Some(first) = versions.first() {
        if common("schema") && first["schema"]["openAPIV3Schema"].is_object() {
            schema(first, "spec.validation", &mut errors);
        }
        if common("subresources") {
            subresources(&first["subresources"], "spec.subresources", &mut errors);
        }
        if common("additionalPrinterColumns") {
            columns(first, "spec.additionalPrinterColumns", &mut errors);
        }
        if common("selectableFields") {
            selectable(first, "spec.selectableFields", &mut errors);
        }
    }
    conversion(&spec["conversion"], &mut errors);
    if stored == 0 {
        let detail = "must have at least one stored version";
        errors.push(FieldError::invalid("status.storedVersions", &Value::Null, detail));
    }
    errors
}

/// What is wrong with what a CRD is to become.
pub(crate) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate(new);
    if new["spec"]["group"] != old["spec"]["group"] {
        // The name was checked against the group that it has, which is told of elsewhere.
        errors.retain(|error| error.field != "metadata.name");
    }
    let versions = items(&new["spec"]["versions"]);
    for (i, stored) in items(&new["status"]["storedVersions"]).iter().enumerate() {
        if !versions.iter().any(|version| version["name"] == *stored) {
            let stored_name = stored.as_str().unwrap_or_default();
            let detail = format!(
                "missing from spec.versions; {stored_name} was previously a storage version, and must remain in \
                 spec.versions until a storage migration ensures no data remains persisted in {stored_name} and removes \
                 {stored_name} from status.storedVersions"
            );
            errors.push(FieldError::invalid(format!("status.storedVersions[{i}]"), stored, &detail));
        }
    }
    errors
}

fn version_rules(version: &Value, path: &str, common: &dyn Fn(&str) -> bool, errors: &mut Vec<FieldError>) {
    if text(version, "name").is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    } else if let Some(fault) = label_1035_fault(text(version, "name")) {
        errors.push(FieldError::invalid(format!("{path}.name"), &version["name"], fault));
    }
    if !version["schema"]["openAPIV3Schema"].is_object() {
        errors.push(FieldError::required(format!("{path}.schema.openAPIV3Schema"), ""));
    } else if !common("schema") {
        schema(version, &format!("{path}.schema"), errors);
    }
    if !common("subresources") {
        subresources(&version["subresources"], &format!("{path}.subresources"), errors);
    }
    if !common("additionalPrinterColumns") {
        columns(version, &format!("{path}.additionalPrinterColumns"), errors);
    }
    if !common("selectableFields") {
        selectable(version, &format!("{path}.selectableFields"), errors);
    }
}

/// The versions as Kubernetes prints its own type of them; what they have in common is not in them.
fn shown(versions: &[Value], common: &dyn Fn(&str) -> bool) -> String {
    let own = |version: &Value, key: &str| if common(key) { Value::Null } else { version[key].clone() };
    let version = |v: &Value| {
        format!(
            r#"{{"Name":{},"Served":{},"Storage":{},"Deprecated":{},"DeprecationWarning":{},"Schema":{},"Subresources":{},"AdditionalPrinterColumns":{},"SelectableFields":{}}}"#,
            v["name"],
            v["served"] == true,
            v["storage"] == true,
            v["deprecated"] == true,
            v["deprecationWarning"],
            own(v, "schema"),
            own(v, "subresources"),
            own(v, "additionalPrinterColumns"),
            own(v, "selectableFields")
        )
    };
    format!("[{}]", versions.iter().map(version).collect::<Vec<_>>().join(","))
}

fn label_1035_fault(name: &str) -> Option<&'static str> {
    let bytes = name.as_bytes();
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = matches!((bytes.first(), bytes.last()), (Some(a), Some(z)) if a.is_ascii_lowercase() && fine(*z));
    match ends && bytes.iter().all(|b| fine(*b) || *b == b'-') {
        _ if name.len() > 63 => Some("must be no more than 63 bytes"),
        true => None,
        false => Some(LABEL_1035),
    }
}

fn name_rules(names: &Value, errors: &mut Vec<FieldError>) {
    for name in ["plural", "singular", "kind", "listKind"] {
        if text(names, name).is_empty() {
            errors.push(FieldError::required(format!("spec.names.{name}"), ""));
        }
    }
    for name in ["plural", "singular"] {
        let given = text(names, name);
        if let Some(fault) = label_1035_fault(given).filter(|_| !given.is_empty()) {
            errors.push(FieldError::invalid(format!("spec.names.{name}"), &names[name], fault));
        }
    }
    for name in ["kind", "listKind"] {
        let given = text(names, name);
        if let Some(fault) = label_1035_fault(&given.to_lowercase()).filter(|_| !given.is_empty()) {
            let detail = format!("may have mixed case, but should otherwise match: {fault}");
            errors.push(FieldError::invalid(format!("spec.names.{name}"), &names[name], &detail));
        }
    }
    for list in ["shortNames", "categories"] {
        for (i, name) in items(&names[list]).iter().enumerate() {
            if let Some(fault) = label_1035_fault(name.as_str().unwrap_or_default()) {
                errors.push(FieldError::invalid(format!("spec.names.{list}[{i}]"), name, fault));
            }
        }
    }
    if !text(names, "kind").is_empty() && names["kind"] == names["listKind"] {
        let detail = "kind and listKind may not be the same";
        errors.push(FieldError::invalid("spec.names.listKind", &names["listKind"], detail));
    }
}

fn schema(version: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if let Err(faults) = Schema::from_crd(&version["schema"]["openAPIV3Schema"]) {
        errors.extend(faults.into_iter().map(|mut fault| {
            fault.field = format!("{path}.openAPIV3Schema.{}", fault.field);
            fault
        }));
    }
}

/// A path of names with dots before them; says whether there is one.
fn simple_path(path: &Value, field: &str, errors: &mut Vec<FieldError>) -> bool {
    let fault = match path.as_str().unwrap_or_default() {
        "" => {
            errors.push(FieldError::required(field, ""));
            return false;
        }
        given if !given.starts_with('.') => "must be a simple json path starting with .",
        _ => return true,
    };
    errors.push(FieldError::invalid(field, path, fault));
    false
}

fn subresources(subresources: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let scale = &subresources["scale"];
    if !scale.is_object() {
        return;
    }
    for (key, below) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
        let field = format!("{path}.scale.{key}");
        if simple_path(&scale[key], &field, errors) && !text(scale, key).starts_with(below) {
            let detail = format!("should be a json path under {}", below.trim_end_matches('.'));
            errors.push(FieldError::invalid(field, &scale[key], &detail));
        }
    }
    let (key, given) = ("labelSelectorPath", text(scale, "labelSelectorPath"));
    let field = format!("{path}.scale.{key}");
    if !given.is_empty()
        && simple_path(&scale[key], &field, errors)
        && ![".spec.", ".status."].iter().any(|below| given.starts_with(below))
    {
        let detail = "should be a json path under either .spec or .status";
        errors.push(FieldError::invalid(field, &scale[key], detail));
    }
}

fn columns(version: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (i, column) in items(&version["additionalPrinterColumns"]).iter().enumerate() {
        let path = format!("{path}[{i}]");
        if text(column, "name").is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        let detail = format!("must be one of {}", COLUMN_TYPES.join(","));
        match text(column, "type") {
            "" => errors.push(FieldError::required(format!("{path}.type"), &detail)),
            kind if COLUMN_TYPES.contains(&kind) => {}
            _ => errors.push(FieldError::invalid(format!("{path}.type"), &column["type"], &detail)),
        }
        let format = text(column, "format");
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            let detail = format!("must be one of {}", COLUMN_FORMATS.join(","));
            errors.push(FieldError::invalid(format!("{path}.format"), &column["format"], &detail));
        }
        simple_path(&column["jsonPath"], &format!("{path}.JSONPath"), errors);
    }
}

fn selectable(version: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (i, selectable) in items(&version["selectableFields"]).iter().enumerate() {
        let field = format!("{path}[{i}].jsonPath");
        if !simple_path(&selectable["jsonPath"], &field, errors) {
            continue;
        }
        let parts = text(selectable, "jsonPath").split('.').filter(|part| !part.is_empty());
        let root = &version["schema"]["openAPIV3Schema"];
        let found = parts.fold(root, |schema, part| &schema["properties"][part]);
        if !matches!(text(found, "type"), "string" | "boolean" | "integer") {
            let detail = "is an invalid path: does not refer to a valid field";
            errors.push(FieldError::invalid(field, &selectable["jsonPath"], detail));
        }
    }
}

fn conversion(conversion: &Value, errors: &mut Vec<FieldError>) {
    let webhook = &conversion["webhook"];
    match text(conversion, "strategy") {
        "" | "None" => {
            if entries(webhook).next().is_some() {
                let detail = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden("spec.conversion.webhookClientConfig", detail));
            }
        }
        "Webhook" => {
            if !webhook["clientConfig"].is_object() {
                let detail = "required when strategy is set to Webhook";
                errors.push(FieldError::required("spec.conversion.webhookClientConfig", detail));
            }
            if items(&webhook["conversionReviewVersions"]).is_empty() {
                errors.push(FieldError::required("spec.conversion.conversionReviewVersions", ""));
            }
        }
        _ => errors.push(FieldError::not_supported(
            "spec.conversion.strategy",
            &conversion["strategy"],
            &["None", "Webhook"],
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({"metadata": {"name": "ws.x.io"}, "spec": {"group": "x.io", "scope": "Namespaced",
            "names": {"plural": "ws", "singular": "w", "kind": "W", "listKind": "WList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}}}}}}}]}})
    }

    #[test]
    fn faults_of_a_definition_are_named_by_their_place() {
        assert_eq!(validate(&definition()), []);
        let scale = "/spec/versions/0/subresources";
        let columns = "/spec/versions/0/additionalPrinterColumns";
        for (place, value, faults) in [
            ("/spec/names/kind", json!("w k"), vec!["spec.names.kind"]),
            ("/spec/names/shortNames", json!(["A"]), vec!["spec.names.shortNames[0]"]),
            ("/spec/names/listKind", json!("W"), vec!["spec.names.listKind"]),
            (
                scale,
                json!({"scale": {}}),
                vec!["spec.subresources.scale.specReplicasPath", "spec.subresources.scale.statusReplicasPath"],
            ),
            (
                scale,
                json!({"scale": {"specReplicasPath": "x", "statusReplicasPath": ".spec.y"}}),
                vec!["spec.subresources.scale.specReplicasPath", "spec.subresources.scale.statusReplicasPath"],
            ),
            (
                columns,
                json!([{"name": "a", "type": "x", "jsonPath": "a"}]),
                vec!["spec.additionalPrinterColumns[0].type", "spec.additionalPrinterColumns[0].JSONPath"],
            ),
            ("/spec/versions/0/selectableFields", json!([{"jsonPath": ".spec.a"}]), vec![]),
            (
                "/spec/versions/0/selectableFields",
                json!([{"jsonPath": ".spec.b"}]),
                vec!["spec.selectableFields[0].jsonPath"],
            ),
            (
                "/spec/conversion",
                json!({"strategy": "Webhook"}),
                vec!["spec.conversion.webhookClientConfig", "spec.conversion.conversionReviewVersions"],
            ),
            ("/spec/preserveUnknownFields", json!(true), vec!["spec.preserveUnknownFields"]),
            ("/spec/versions/0/storage", json!(false), vec!["spec.versions", "status.storedVersions"]),
        ] {
            let mut crd = definition();
            let (parent, key) = place.rsplit_once('/').unwrap();
            crd.pointer_mut(parent).unwrap()[key] = value;
            let fields: Vec<_> = validate(&crd).into_iter().map(|error| error.field).collect();
            assert_eq!(fields, faults, "{place}");
        }
    }
}
