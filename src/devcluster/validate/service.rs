//! Services. kubernetes: `pkg/apis/core/validation`, `ValidateService`.

use serde_json::{Value, json};

use super::fields::{
    entries, is_address, items, label_fault, label_value_fault, one_of, port, port_name_faults, qualified_fault,
    subdomain_fault, text,
};
use crate::status::FieldError;

const ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

pub(crate) fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    let kind = text(spec, "type");
    let ports = items(&spec["ports"]);
    if ports.is_empty() && kind != "ExternalName" && spec["clusterIP"] != "None" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if kind == "ExternalName" {
        let name = text(spec, "externalName").trim_end_matches('.');
        if name.is_empty() {
            errors.push(FieldError::required("spec.externalName", ""));
        } else if let Some(fault) = subdomain_fault(name) {
            errors.push(FieldError::invalid("spec.externalName", &spec["externalName"], fault));
        }
    }
    all_ports(spec, &mut errors);
    for (key, value) in entries(&spec["selector"]) {
        if let Some(fault) = qualified_fault(key) {
            errors.push(FieldError::invalid("spec.selector", &json!(key), fault));
        }
        if let Some(fault) = label_value_fault(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid("spec.selector", value, fault));
        }
    }
    one_of(spec, "sessionAffinity", "spec", &["ClientIP", "None"], &mut errors);
    one_of(spec, "type", "spec", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &mut errors);
    families(spec, &mut errors);
    for (list, special) in [("clusterIPs", &["None", ""][..]), ("externalIPs", &[])] {
        for (i, address) in items(&spec[list]).iter().enumerate() {
            if !is_address(address) && !address.as_str().is_some_and(|text| special.contains(&text)) {
                errors.push(FieldError::invalid(format!("spec.{list}[{i}]"), address, ADDRESS));
            }
        }
    }
    one_of(spec, "internalTrafficPolicy", "spec", &["Cluster", "Local"], &mut errors);
    let outside = matches!(kind, "NodePort" | "LoadBalancer") || !items(&spec["externalIPs"]).is_empty();
    if spec["externalTrafficPolicy"].is_string() && !outside {
        let detail = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", &spec["externalTrafficPolicy"], detail));
    }
    if let Some(old) = old {
        kept_addresses(spec, &old["spec"], &mut errors);
    }
    errors
}

fn all_ports(spec: &Value, errors: &mut Vec<FieldError>) {
    let ports = items(&spec["ports"]);
    let (mut names, mut pairs) = (Vec::new(), Vec::new());
    for (i, item) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let name = text(item, "name");
        if ports.len() > 1 && name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if let Some(fault) = label_fault(name).filter(|_| !name.is_empty()) {
            errors.push(FieldError::invalid(format!("{path}.name"), &item["name"], fault));
        } else if names.contains(&name) && !name.is_empty() {
            errors.push(FieldError::duplicate(format!("{path}.name"), &item["name"]));
        }
        names.push(name);
        port(&item["port"], &format!("{path}.port"), errors);
        one_of(item, "protocol", &path, &["SCTP", "TCP", "UDP"], errors);
        match &item["targetPort"] {
            Value::String(name) => {
                for detail in port_name_faults(name) {
                    errors.push(FieldError::invalid(format!("{path}.targetPort"), &item["targetPort"], detail));
                }
            }
            target if target.is_number() => port(target, &format!("{path}.targetPort"), errors),
            _ => {}
        }
        let protocol = text(item, "appProtocol");
        if let Some(fault) = qualified_fault(protocol).filter(|_| !protocol.is_empty()) {
            errors.push(FieldError::invalid(format!("{path}.appProtocol"), &item["appProtocol"], fault));
        }
        if text(spec, "type") == "ClusterIP" && item["nodePort"].as_i64().unwrap_or(0) != 0 {
            let detail = "may not be used when `type` is 'ClusterIP'";
            errors.push(FieldError::forbidden(format!("{path}.nodePort"), detail));
        }
        let pair = (&item["protocol"], &item["port"]);
        if pairs.contains(&pair) {
            let shown = format!(
                r#"{{"Name":"","Protocol":{},"AppProtocol":null,"Port":{},"TargetPort":0,"NodePort":0}}"#,
                pair.0, pair.1
            );
            let mut error = FieldError::duplicate(path, &Value::Null);
            error.message = format!("Duplicate value: {shown}");
            errors.push(error);
        }
        pairs.push(pair);
    }
}

fn families(spec: &Value, errors: &mut Vec<FieldError>) {
    one_of(spec, "ipFamilyPolicy", "spec", &["PreferDualStack", "RequireDualStack", "SingleStack"], errors);
    for (i, family) in items(&spec["ipFamilies"]).iter().enumerate() {
        let path = format!("spec.ipFamilies[{i}]");
        match family.as_str().unwrap_or_default() {
            "IPv4" => {}
            "IPv6" => errors.push(FieldError::invalid(path, family, "not configured on this cluster")),
            _ => errors.push(FieldError::not_supported(path, family, &["IPv4", "IPv6"])),
        }
    }
}

/// The address of a service stays as long as it has one.
fn kept_addresses(spec: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let external = |spec: &Value| text(spec, "type") == "ExternalName";
    if external(spec) || external(old) || items(&old["clusterIPs"]).is_empty() {
        return;
    }
    if spec["clusterIPs"][0] != old["clusterIPs"][0] {
        errors.push(FieldError::invalid("spec.clusterIPs[0]", &spec["clusterIPs"], "may not change once set"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_refused_by_the_field_that_is_wrong() {
        for (spec, fields) in [
            (json!({"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}), vec![]),
            (json!({"type": "ClusterIP"}), vec!["spec.ports"]),
            (json!({"type": "ExternalName"}), vec!["spec.externalName"]),
            (json!({"ports": [{"port": 80, "targetPort": "A_"}]}), vec!["spec.ports[0].targetPort"; 2]),
            (json!({"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]}), vec!["spec.ports[1].name"]),
            (json!({"ports": [{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]}), vec!["spec.ports[1]"]),
            (json!({"type": "ClusterIP", "ports": [{"port": 1, "nodePort": 30000}]}), vec!["spec.ports[0].nodePort"]),
            (json!({"ports": [{"port": 1}], "clusterIPs": ["x"]}), vec!["spec.clusterIPs[0]"]),
            (json!({"ports": [{"port": 1}], "selector": {"a": "b c"}}), vec!["spec.selector"]),
        ] {
            let found: Vec<_> = validate(&json!({"spec": spec}), None).into_iter().map(|error| error.field).collect();
            assert_eq!(found, fields, "{spec}");
        }
    }
}
