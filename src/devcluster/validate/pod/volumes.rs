//! Volumes and what mounts them. kubernetes: `pkg/apis/core/validation`, `ValidateVolumes`, `ValidateVolumeMounts`.

use serde_json::{Value, json};

use super::environment::{Selects, field_selector, resource_selector};
use crate::status::FieldError;
use crate::validate::fields::{
    config_key_fault, entries, items, not_found, one_of, subdomain_fault, text, unique_name,
};

const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const HOST_PATHS: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// The volumes of a pod; returns the names that mounts may use.
pub(super) fn volumes(spec: &Value, path: &str, errors: &mut Vec<FieldError>) -> Vec<String> {
    let mut names = Vec::new();
    for (i, volume) in items(&spec["volumes"]).iter().enumerate() {
        let path = format!("{path}.volumes[{i}]");
        let sources = entries(volume).filter(|(key, source)| *key != "name" && !source.is_null());
        for (extra, _) in sources.skip(1) {
            let detail = "may not specify more than 1 volume type";
            errors.push(FieldError::forbidden(format!("{path}.{extra}"), detail));
        }
        source(volume, &path, errors);
        unique_name(volume, &path, &mut names, errors);
    }
    names
}

fn source(volume: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (name, key) in [
        ("hostPath", "path"),
        ("secret", "secretName"),
        ("configMap", "name"),
        ("persistentVolumeClaim", "claimName"),
        ("nfs", "server"),
        ("nfs", "path"),
        ("csi", "driver"),
    ] {
        if volume[name].is_object() && text(&volume[name], key).is_empty() {
            errors.push(FieldError::required(format!("{path}.{name}.{key}"), ""));
        }
    }
    let host = &volume["hostPath"];
    if host.is_object() {
        no_backsteps(&host["path"], &format!("{path}.hostPath.path"), errors);
    }
    if !text(host, "path").is_empty() {
        one_of(host, "type", &format!("{path}.hostPath"), HOST_PATHS, errors);
    }
    if volume["nfs"].is_object() && !text(&volume["nfs"], "path").starts_with('/') {
        let shown = json!(text(&volume["nfs"], "path"));
        errors.push(FieldError::invalid(format!("{path}.nfs.path"), &shown, "must be an absolute path"));
    }
    if text(&volume["emptyDir"], "sizeLimit").starts_with('-') {
        let detail = "SizeLimit field must be a valid resource quantity";
        errors.push(FieldError::forbidden(format!("{path}.emptyDir.sizeLimit"), detail));
    }
    if volume["ephemeral"].is_object() && !volume["ephemeral"]["volumeClaimTemplate"].is_object() {
        errors.push(FieldError::required(format!("{path}.ephemeral.volumeClaimTemplate"), ""));
    }
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        mode(&volume[name]["defaultMode"], &format!("{path}.{name}.defaultMode"), errors);
    }
    for name in ["secret", "configMap"] {
        keys(&volume[name], &format!("{path}.{name}"), errors);
    }
    for file in items(&volume["downwardAPI"]["items"]) {
        downward(file, &format!("{path}.downwardAPI"), errors);
    }
    if volume["projected"].is_object() {
        projected(&volume["projected"], &format!("{path}.projected"), errors);
    }
}

fn projected(projected: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (i, source) in items(&projected["sources"]).iter().enumerate() {
        let at = format!("{path}.sources[{i}]");
        if entries(source).filter(|(_, kind)| !kind.is_null()).count() > 1 {
            errors.push(FieldError::forbidden(at, "may not specify more than 1 volume type per source"));
            continue;
        }
        for name in ["secret", "configMap"] {
            if source[name].is_object() && text(&source[name], "name").is_empty() {
                errors.push(FieldError::required(format!("{at}.{name}.name"), ""));
            }
            keys(&source[name], &format!("{at}.{name}"), errors);
        }
        for file in items(&source["downwardAPI"]["items"]) {
            downward(file, &format!("{at}.downwardAPI"), errors);
        }
        let token = &source["serviceAccountToken"];
        if token.is_object() {
            let seconds = &token["expirationSeconds"];
            if seconds.as_i64().is_some_and(|n| n < 600) {
                let detail = "may not specify a duration less than 10 minutes";
                let at = format!("{at}.serviceAccountToken.expirationSeconds");
                errors.push(FieldError::invalid(at, seconds, detail));
            }
            if text(token, "path").is_empty() {
                errors.push(FieldError::required(format!("{path}.path"), ""));
            }
        }
    }
}

fn keys(source: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (i, item) in items(&source["items"]).iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        if text(item, "key").is_empty() {
            errors.push(FieldError::required(format!("{path}.key"), ""));
        }
        match text(item, "path") {
            "" => errors.push(FieldError::required(format!("{path}.path"), "")),
            _ => inside(&item["path"], &format!("{path}.path"), errors),
        }
        mode(&item["mode"], &format!("{path}.mode"), errors);
    }
}

/// A file of the downward API; Kubernetes names its volume, not its place in it.
fn downward(file: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match text(file, "path") {
        "" => errors.push(FieldError::required(format!("{path}.path"), "")),
        _ => inside(&file["path"], &format!("{path}.path"), errors),
    }
    if file["fieldRef"].is_object() {
        field_selector(&file["fieldRef"], &format!("{path}.fieldRef"), VOLUME_FIELDS, errors);
    } else if file["resourceFieldRef"].is_object() {
        resource_selector(&file["resourceFieldRef"], &format!("{path}.resourceFieldRef"), Selects::Named, errors);
    } else {
        errors.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required"));
    }
    mode(&file["mode"], &format!("{path}.mode"), errors);
}

fn mode(mode: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if mode.as_i64().is_some_and(|bits| !(0..=0o777).contains(&bits)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(path, mode, detail));
    }
}

fn no_backsteps(at: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if at.as_str().unwrap_or_default().split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, at, "must not contain '..'"));
    }
}

/// A path that stays below where it is put.
fn inside(at: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let said = at.as_str().unwrap_or_default();
    if said.starts_with('/') {
        errors.push(FieldError::invalid(path, at, "must be a relative path"));
    }
    no_backsteps(at, path, errors);
    if said.starts_with("..") && !said.starts_with("../") && said != ".." {
        errors.push(FieldError::invalid(path, at, "must not start with '..'"));
    }
}

/// The mounts of a container; `volumes` are the names that it may use.
pub(super) fn mounts(container: &Value, path: &str, volumes: &[String], errors: &mut Vec<FieldError>) {
    let mut paths = Vec::new();
    let list = format!("{path}.volumeMounts");
    for (i, mount) in items(&container["volumeMounts"]).iter().enumerate() {
        let path = format!("{list}[{i}]");
        let name = text(mount, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.iter().any(|v| v == name) {
            errors.push(not_found(format!("{path}.name"), &mount["name"]));
        }
        let at = text(mount, "mountPath");
        if at.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if paths.contains(&at) {
            errors.push(FieldError::invalid(format!("{path}.mountPath"), &mount["mountPath"], "must be unique"));
        }
        paths.push(at);
        // These are named without the mount's place in the list.
        descending(&mount["subPath"], &format!("{list}.subPath"), errors);
        if !text(mount, "subPathExpr").is_empty() && !text(mount, "subPath").is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(format!("{path}.subPathExpr"), &mount["subPathExpr"], detail));
        }
        descending(&mount["subPathExpr"], &format!("{list}.subPathExpr"), errors);
        one_of(mount, "mountPropagation", &list, &["Bidirectional", "HostToContainer", "None"], errors);
        if mount["mountPropagation"] == "Bidirectional" && container["securityContext"]["privileged"] != true {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(format!("{list}.mountPropagation"), detail));
        }
    }
    devices(container, path, volumes, errors);
}

fn descending(at: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if at.as_str().is_some_and(|said| said.starts_with('/')) {
        errors.push(FieldError::invalid(path, at, "must be a relative path"));
    }
    no_backsteps(at, path, errors);
}

fn devices(container: &Value, path: &str, volumes: &[String], errors: &mut Vec<FieldError>) {
    let mut names = Vec::new();
    for (i, device) in items(&container["volumeDevices"]).iter().enumerate() {
        let path = format!("{path}.volumeDevices[{i}]");
        let name = text(device, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            if names.contains(&name) {
                errors.push(FieldError::invalid(format!("{path}.name"), &device["name"], "must be unique"));
            }
            if !volumes.iter().any(|v| v == name) {
                errors.push(not_found(format!("{path}.name"), &device["name"]));
            }
        }
        names.push(name);
        let at = text(device, "devicePath");
        if at.is_empty() {
            errors.push(FieldError::required(format!("{path}.devicePath"), ""));
        } else if at.split('/').any(|part| part == "..") {
            let detail = "can not contain backsteps ('..')";
            errors.push(FieldError::invalid(format!("{path}.devicePath"), &device["devicePath"], detail));
        }
    }
}

/// A reference to a key of a ConfigMap or Secret.
pub(super) fn key_reference(reference: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let (name, key) = (text(reference, "name"), text(reference, "key"));
    if let Some(fault) = subdomain_fault(name) {
        errors.push(FieldError::invalid(format!("{path}.name"), &json!(name), fault));
    }
    if key.is_empty() {
        errors.push(FieldError::required(format!("{path}.key"), ""));
    } else if let Some(fault) = config_key_fault(key) {
        errors.push(FieldError::invalid(format!("{path}.key"), &reference["key"], fault));
    }
}
