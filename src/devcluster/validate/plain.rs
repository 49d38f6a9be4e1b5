//! Kinds that the cluster keeps and does little with: claims, classes, quotas and what is about networks.

use serde_json::{Value, json};

use super::fields::{
    entries, is_address, is_cidr, items, label_fault, label_selector, one_of, port, qualified_fault, same,
    subdomain_fault, text,
};
use super::pod::container::quantities;
use super::pod::tolerations;
use crate::status::FieldError;

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// The highest priority that users may give. scheduling: `HighestUserDefinablePriority`.
const HIGHEST_PRIORITY: i64 = 1_000_000_000;
const ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

pub(crate) fn validate_namespace(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (deleting, phase) = (new["metadata"]["deletionTimestamp"].is_string(), &new["status"]["phase"]);
    if !deleting && phase.as_str().is_some_and(|phase| !matches!(phase, "" | "Active")) {
        let detail = "may only be 'Active' if `deletionTimestamp` is empty";
        errors.push(FieldError::invalid("status.Phase", phase, detail));
    }
    for finalizer in items(&new["spec"]["finalizers"]) {
        let name = finalizer.as_str().unwrap_or_default();
        if let Some(fault) = qualified_fault(name) {
            errors.push(FieldError::invalid("spec.finalizers", finalizer, fault));
        }
        if name != "kubernetes" && !name.contains('/') {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid("spec.finalizers", finalizer, detail));
        }
    }
    errors
}

fn access_modes(spec: &Value, missing: &str, errors: &mut Vec<FieldError>) {
    let modes = items(&spec["accessModes"]);
    if modes.is_empty() {
        errors.push(FieldError::required("spec.accessModes", missing));
    }
    for mode in modes.iter().filter(|mode| !MODES.iter().any(|known| *mode == known)) {
        errors.push(FieldError::not_supported("spec.accessModes", mode, MODES));
    }
}

/// The claims that a StatefulSet makes for its pods.
pub(crate) fn claim_templates(spec: &Value, errors: &mut Vec<FieldError>) {
    for (i, claim) in items(&spec["volumeClaimTemplates"]).iter().enumerate() {
        let place = format!("spec.volumeClaimTemplates[{i}]");
        errors.extend(validate_claim(claim, None).into_iter().map(|mut error| {
            error.field = format!("{place}.{}", error.field);
            error
        }));
    }
}

pub(crate) fn validate_claim(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    if let Some(old) = old {
        let mut level = spec.clone();
        for free in ["resources", "volumeName", "volumeAttributesClassName", "storageClassName", "volumeMode"] {
            level[free] = old["spec"][free].clone();
        }
        let rest = entries(&level).all(|(key, value)| same(value, &old["spec"][key]));
        if !rest {
            let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
                          bound claims";
            errors.push(FieldError::forbidden("spec", detail));
        }
        return errors;
    }
    access_modes(spec, "at least 1 access mode is required", &mut errors);
    let storage = &spec["resources"]["requests"]["storage"];
    match storage.as_str() {
        None => errors.push(FieldError::required("spec.resources[storage]", "")),
        Some(amount) if amount.starts_with('-') || amount == "0" => {
            errors.push(FieldError::invalid("spec.resources[storage]", storage, "must be greater than zero"));
        }
        Some(_) => {}
    }
    class_name(spec, &mut errors);
    one_of(spec, "volumeMode", "spec", &["Block", "Filesystem"], &mut errors);
    errors
}

fn class_name(spec: &Value, errors: &mut Vec<FieldError>) {
    let name = text(spec, "storageClassName");
    if let Some(fault) = subdomain_fault(name).filter(|_| !name.is_empty()) {
        errors.push(FieldError::invalid("spec.storageClassName", &spec["storageClassName"], fault));
    }
}

pub(crate) fn validate_volume(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    const OTHERS: [&str; 9] = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    let mut errors = Vec::new();
    let spec = &new["spec"];
    access_modes(spec, "", &mut errors);
    let capacity = &spec["capacity"];
    let names: Vec<_> = entries(capacity).map(|(name, _)| name.as_str()).collect();
    if names.is_empty() {
        errors.push(FieldError::required("spec.capacity", ""));
    }
    if names != ["storage"] {
        errors.push(FieldError::not_supported("spec.capacity", capacity, &["storage"]));
    }
    one_of(spec, "persistentVolumeReclaimPolicy", "spec", &["Delete", "Recycle", "Retain"], &mut errors);
    let mut sources = entries(spec).filter(|(key, value)| !OTHERS.contains(&key.as_str()) && !value.is_null());
    match sources.next() {
        None => errors.push(FieldError::required("spec", "must specify a volume type")),
        Some(_) => {
            for (extra, _) in sources {
                let detail = "may not specify more than 1 volume type";
                errors.push(FieldError::forbidden(format!("spec.{extra}"), detail));
            }
        }
    }
    class_name(spec, &mut errors);
    one_of(spec, "volumeMode", "spec", &["Block", "Filesystem"], &mut errors);
    errors
}

pub(crate) fn validate_priority_class(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = text(&new["metadata"], "name");
    // The two that come with the cluster are what they are.
    let own = matches!(name, "system-cluster-critical" | "system-node-critical");
    if name.starts_with("system-") && !own {
        let detail = format!(
            "priority class names with 'system-' prefix are reserved for system use only. error: {name} is not a known \
             system priority class"
        );
        errors.push(FieldError::forbidden("metadata.name", &detail));
    } else if !own && new["value"].as_i64().is_some_and(|value| value > HIGHEST_PRIORITY) {
        let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_PRIORITY}");
        errors.push(FieldError::forbidden("value", &detail));
    }
    let policies = ["PreemptLowerPriority", "Never"];
    let policy = &new["preemptionPolicy"];
    if policy.as_str().is_some_and(|policy| !policies.contains(&policy)) {
        errors.push(FieldError::not_supported("preemptionPolicy", policy, &policies));
    }
    if let Some(old) = old {
        let value = |class: &Value| class["value"].as_i64().unwrap_or(0);
        if value(new) != value(old) {
            errors.push(FieldError::invalid("value", &json!(value(new)), "field is immutable"));
        }
        if new["preemptionPolicy"] != old["preemptionPolicy"] {
            errors.push(FieldError::invalid("preemptionPolicy", policy, "field is immutable"));
        }
    }
    errors
}

pub(crate) fn validate_runtime_class(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let handler = text(new, "handler");
    if old.is_some_and(|old| old["handler"] != new["handler"]) {
        errors.push(FieldError::invalid("handler", &new["handler"], "field is immutable"));
    } else if handler.is_empty() {
        errors.push(FieldError::required("handler", ""));
    } else if let Some(fault) = label_fault(handler) {
        errors.push(FieldError::invalid("handler", &new["handler"], fault));
    }
    quantities(&new["overhead"]["podFixed"], "overhead.limits", &mut errors);
    tolerations(&new["scheduling"]["tolerations"], "scheduling.tolerations", &mut errors);
    errors
}

pub(crate) fn validate_storage_class(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let provisioner = text(new, "provisioner");
    if provisioner.is_empty() {
        errors.push(FieldError::required("provisioner", ""));
    } else if let Some(fault) = qualified_fault(&provisioner.to_lowercase()) {
        errors.push(FieldError::invalid("provisioner", &new["provisioner"], fault));
    }
    for (key, allowed) in
        [("reclaimPolicy", ["Delete", "Retain"]), ("volumeBindingMode", ["Immediate", "WaitForFirstConsumer"])]
    {
        if new[key].as_str().is_some_and(|given| !allowed.contains(&given)) {
            errors.push(FieldError::not_supported(key, &new[key], &allowed));
        }
    }
    errors
}

pub(crate) fn validate_slice(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut names = Vec::new();
    for (i, port) in items(&new["ports"]).iter().enumerate() {
        let name = text(port, "name");
        if names.contains(&name) {
            errors.push(FieldError::duplicate(format!("ports[{i}].name"), &json!(name)));
        }
        names.push(name);
    }
    let kinds = ["FQDN", "IPv4", "IPv6"];
    match text(new, "addressType") {
        "" => errors.push(FieldError::required("addressType", "")),
        kind if kinds.contains(&kind) => {}
        _ => errors.push(FieldError::not_supported("addressType", &new["addressType"], &kinds)),
    }
    if old.is_some_and(|old| old["addressType"] != new["addressType"]) {
        errors.push(FieldError::invalid("addressType", &new["addressType"], "field is immutable"));
    }
    for (i, endpoint) in items(&new["endpoints"]).iter().enumerate() {
        let path = format!("endpoints[{i}].addresses");
        let addresses = items(&endpoint["addresses"]);
        if addresses.is_empty() {
            errors.push(FieldError::required(path.as_str(), "must contain at least 1 address"));
        }
        let numbers = matches!(text(new, "addressType"), "IPv4" | "IPv6");
        for (j, address) in addresses.iter().enumerate().filter(|(_, address)| numbers && !is_address(address)) {
            errors.push(FieldError::invalid(format!("{path}[{j}]"), address, ADDRESS));
        }
    }
    errors
}

pub(crate) fn validate_endpoints(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, subset) in items(&new["subsets"]).iter().enumerate() {
        let path = format!("subsets[{i}]");
        let lists = ["addresses", "notReadyAddresses"];
        if lists.iter().all(|list| items(&subset[*list]).is_empty()) {
            errors.push(FieldError::required(path.as_str(), "must specify `addresses` or `notReadyAddresses`"));
        }
        for list in lists {
            for (j, address) in items(&subset[list]).iter().enumerate().filter(|(_, a)| !is_address(&a["ip"])) {
                let field = format!("{path}.{list}[{j}].ip");
                errors.push(FieldError::invalid(field.as_str(), &address["ip"], ADDRESS));
                errors.push(FieldError::invalid(field, &address["ip"], "must be a valid IP address"));
            }
        }
        for (j, item) in items(&subset["ports"]).iter().enumerate() {
            port(&item["port"], &format!("{path}.ports[{j}].port"), &mut errors);
        }
    }
    errors
}

pub(crate) fn validate_ingress_class(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match text(&new["spec"], "controller") {
        "" => errors.push(FieldError::required("spec.controller", "")),
        name => domain_path(name, "spec.controller", &mut errors),
    }
    errors
}

/// A name such as `acme.io/foo`. apimachinery: `IsDomainPrefixedPath`.
pub(crate) fn domain_path(name: &str, path: &str, errors: &mut Vec<FieldError>) {
    let fine = name.split_once('/').is_some_and(|(domain, rest)| subdomain_fault(domain).is_none() && !rest.is_empty());
    if !fine {
        let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        errors.push(FieldError::invalid(path, &json!(name), detail));
    }
}

pub(crate) fn validate_ingress(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    if !spec["defaultBackend"].is_object() && items(&spec["rules"]).is_empty() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid("spec", &Value::Null, detail));
    }
    if spec["defaultBackend"].is_object() {
        backend(&spec["defaultBackend"], "spec.defaultBackend", &mut errors);
    }
    for (i, rule) in items(&spec["rules"]).iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        let host = text(rule, "host");
        if let Some(fault) = subdomain_fault(host.trim_start_matches("*.")).filter(|_| !host.is_empty()) {
            errors.push(FieldError::invalid(format!("{path}.host"), &rule["host"], fault));
        }
        for (j, item) in items(&rule["http"]["paths"]).iter().enumerate() {
            let path = format!("{path}.http.paths[{j}]");
            match text(item, "pathType") {
                "" => errors.push(FieldError::required(format!("{path}.pathType"), "pathType must be specified")),
                "Exact" | "Prefix" if !text(item, "path").starts_with('/') => {
                    let detail = "must be an absolute path";
                    errors.push(FieldError::invalid(format!("{path}.path"), &json!(text(item, "path")), detail));
                }
                _ => one_of(item, "pathType", &path, &["Exact", "ImplementationSpecific", "Prefix"], &mut errors),
            }
            backend(&item["backend"], &format!("{path}.backend"), &mut errors);
        }
    }
    errors
}

fn backend(backend: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let service = &backend["service"];
    if backend["resource"].is_object() {
        return;
    }
    if text(service, "name").is_empty() {
        errors.push(FieldError::required(format!("{path}.service.name"), ""));
    }
    if text(&service["port"], "name").is_empty() && service["port"]["number"].as_i64().unwrap_or(0) == 0 {
        errors.push(FieldError::required(path, "port name or number is required"));
    }
}

pub(crate) fn validate_network_policy(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    label_selector(&spec["podSelector"], "spec.podSelector", &mut errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in items(&spec[direction]).iter().enumerate() {
            let path = format!("spec.{direction}[{i}]");
            for (j, item) in items(&rule["ports"]).iter().enumerate() {
                if item["port"].is_number() {
                    port(&item["port"], &format!("{path}.ports[{j}].port"), &mut errors);
                }
            }
            for (j, peer) in items(&rule[peers]).iter().enumerate() {
                let path = format!("{path}.{peers}[{j}]");
                if entries(peer).filter(|(_, value)| !value.is_null()).count() == 0 {
                    errors.push(FieldError::required(path.as_str(), "must specify a peer"));
                }
                label_selector(&peer["podSelector"], &format!("{path}.podSelector"), &mut errors);
                label_selector(&peer["namespaceSelector"], &format!("{path}.namespaceSelector"), &mut errors);
                let block = &peer["ipBlock"];
                if block.is_object() && !is_cidr(&block["cidr"]) {
                    errors.push(FieldError::invalid(format!("{path}.ipBlock.cidr"), &block["cidr"], CIDR));
                }
            }
        }
    }
    for (i, kind) in items(&spec["policyTypes"]).iter().enumerate() {
        if kind != "Ingress" && kind != "Egress" {
            errors.push(FieldError::not_supported(format!("spec.policyTypes[{i}]"), kind, &["Ingress", "Egress"]));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_kinds_are_refused_for_what_they_lack() {
        type Check = fn(&Value, Option<&Value>) -> Vec<FieldError>;
        let cases: [(Check, Value, &[&str]); 12] = [
            (validate_claim, json!({}), &["spec.accessModes", "spec.resources[storage]"]),
            (
                validate_claim,
                json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
                &[],
            ),
            (validate_priority_class, json!({"metadata": {"name": "system-x"}, "value": 1}), &["metadata.name"]),
            (validate_priority_class, json!({"metadata": {"name": "x"}, "value": 2_000_000_000}), &["value"]),
            (validate_runtime_class, json!({"handler": "A_"}), &["handler"]),
            (validate_storage_class, json!({"provisioner": "a b"}), &["provisioner"]),
            (
                validate_slice,
                json!({"addressType": "IPv4", "endpoints": [{"addresses": ["x"]}]}),
                &["endpoints[0].addresses[0]"],
            ),
            (validate_endpoints, json!({"subsets": [{}]}), &["subsets[0]"]),
            (validate_ingress, json!({"spec": {}}), &["spec"]),
            (validate_ingress_class, json!({"spec": {"controller": "a b"}}), &["spec.controller"]),
            (validate_network_policy, json!({"spec": {"policyTypes": ["X"]}}), &["spec.policyTypes[0]"]),
            (validate_namespace, json!({"spec": {"finalizers": ["kubernetes", "foo"]}}), &["spec.finalizers"]),
        ];
        for (check, object, fields) in cases {
            let found: Vec<_> = check(&object, None).into_iter().map(|error| error.field).collect();
            assert_eq!(found, fields, "{object}");
        }
    }
}
