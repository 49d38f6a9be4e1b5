//! Security contexts. kubernetes: `pkg/apis/core/validation`, `validatePodSpecSecurityContext`,
//! `ValidateSecurityContext`, `validateWindows` and `validateLinux`.

use serde_json::{Map, Value, json};

use crate::status::FieldError;
use crate::validate::fields::{items, one_of, text};

const ID: &str = "must be between 0 and 2147483647, inclusive";
const SYSCTL: &str = "must have at most 253 characters and match regex \
    ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

/// What pods and containers say alike.
fn common(context: &Value, path: &str, ids: &[&str], errors: &mut Vec<FieldError>) {
    for key in ids {
        id(&context[*key], &format!("{path}.{key}"), errors);
    }
    for (key, kinds, what) in [
        ("seccompProfile", ["Localhost", "RuntimeDefault", "Unconfined"], "seccomp"),
        ("appArmorProfile", ["Localhost", "RuntimeDefault", "Unconfined"], "AppArmor"),
    ] {
        let profile = &context[key];
        if !profile.is_object() {
            continue;
        }
        let path = format!("{path}.{key}");
        match text(profile, "type") {
            "" => errors
                .push(FieldError::required(format!("{path}.type"), &format!("type is required when {key} is set"))),
            "Localhost" if text(profile, "localhostProfile").is_empty() => errors.push(FieldError::required(
                format!("{path}.localhostProfile"),
                &format!("must be set when {what} type is Localhost"),
            )),
            kind if kind != "Localhost" && !text(profile, "localhostProfile").is_empty() => {
                let detail = format!("can only be set when {what} type is Localhost");
                errors.push(FieldError::invalid(
                    format!("{path}.localhostProfile"),
                    &profile["localhostProfile"],
                    &detail,
                ));
            }
            _ => one_of(profile, "type", &path, &kinds, errors),
        }
    }
}

fn id(id: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if id.as_i64().is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id)) {
        errors.push(FieldError::invalid(path, id, ID));
    }
}

/// The pod's own context.
pub(super) fn pod(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let (context, path) = (&spec["securityContext"], format!("{path}.securityContext"));
    if spec["shareProcessNamespace"] == true && spec["hostPID"] == true {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(format!("{path}.shareProcessNamespace"), &json!(true), detail));
    }
    common(context, &path, &["fsGroup", "runAsUser", "runAsGroup"], errors);
    for (i, group) in items(&context["supplementalGroups"]).iter().enumerate() {
        id(group, &format!("{path}.supplementalGroups[{i}]"), errors);
    }
    for (i, sysctl) in items(&context["sysctls"]).iter().enumerate() {
        let path = format!("{path}.sysctls[{i}].name");
        match text(sysctl, "name") {
            "" => errors.push(FieldError::required(path, "")),
            name if !is_sysctl(name) => errors.push(FieldError::invalid(path, &sysctl["name"], SYSCTL)),
            _ => {}
        }
    }
    one_of(context, "fsGroupChangePolicy", &path, &["Always", "OnRootMismatch"], errors);
    one_of(context, "supplementalGroupsPolicy", &path, &["Merge", "Strict"], errors);
}

fn is_sysctl(name: &str) -> bool {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(a), Some(z)) if fine(*a) && fine(*z))
            && bytes.iter().all(|b| fine(*b) || b"-_".contains(b))
    };
    name.len() <= 253 && name.split(['.', '/']).all(part)
}

/// A container's context.
pub(super) fn container(context: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if !context.is_object() {
        return;
    }
    let path = format!("{path}.securityContext");
    one_of(context, "procMount", &path, &["Default", "Unmasked"], errors);
    common(context, &path, &["runAsUser", "runAsGroup"], errors);
    if context["allowPrivilegeEscalation"] != false {
        return;
    }
    let capable = items(&context["capabilities"]["add"]).iter().any(|name| name == "CAP_SYS_ADMIN");
    for (broken, what) in
        [(context["privileged"] == true, "`privileged` to true"), (capable, "`capabilities.Add` CAP_SYS_ADMIN")]
    {
        if broken {
            let detail = format!("cannot set `allowPrivilegeEscalation` to false and {what}");
            errors.push(FieldError::invalid_shown(path.as_str(), &shown(context), &detail));
        }
    }
}

/// A container's context as Kubernetes prints its own type of it.
fn shown(context: &Value) -> String {
    const FIELDS: [&str; 12] = [
        "Capabilities",
        "Privileged",
        "SELinuxOptions",
        "WindowsOptions",
        "RunAsUser",
        "RunAsGroup",
        "RunAsNonRoot",
        "ReadOnlyRootFilesystem",
        "AllowPrivilegeEscalation",
        "ProcMount",
        "SeccompProfile",
        "AppArmorProfile",
    ];
    let field = |name: &&str| {
        let key = match *name {
            "SELinuxOptions" => "seLinuxOptions".to_owned(),
            name => name[..1].to_lowercase() + &name[1..],
        };
        let value = match (&*key, &context[&key]) {
            ("capabilities", lists) if lists.is_object() => {
                format!(r#"{{"Add":{},"Drop":{}}}"#, lists["add"], lists["drop"])
            }
            (_, value) => titled(value).to_string(),
        };
        format!("{name:?}:{value}")
    };
    format!("{{{}}}", FIELDS.iter().map(field).collect::<Vec<_>>().join(","))
}

fn titled(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let title = |name: &str| {
                let mut letters = name.chars();
                letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
            };
            Value::Object(fields.iter().map(|(name, value)| (title(name), titled(value))).collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

/// What one operating system's pods do not know.
pub(super) fn system(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut refuse = |field: String, detail: &str| errors.push(FieldError::forbidden(field, detail));
    match text(&spec["os"], "name") {
        "windows" => {
            const DETAIL: &str = "cannot be set for a windows pod";
            let flag = |key: &str| spec[key] == true;
            for key in ["hostPID", "hostIPC"].into_iter().filter(|key| flag(key)) {
                refuse(format!("{path}.{key}"), DETAIL);
            }
            let context = &spec["securityContext"];
            for key in ["appArmorProfile", "seLinuxOptions", "seccompProfile", "fsGroup", "fsGroupChangePolicy"] {
                if !context[key].is_null() {
                    refuse(format!("{path}.securityContext.{key}"), DETAIL);
                }
            }
            if !items(&context["sysctls"]).is_empty() {
                refuse(format!("{path}.securityContext.sysctls"), DETAIL);
            }
            if flag("shareProcessNamespace") {
                refuse(format!("{path}.shareProcessNamespace"), DETAIL);
            }
            for key in ["runAsUser", "runAsGroup", "supplementalGroups"] {
                if !context[key].is_null() {
                    refuse(format!("{path}.securityContext.{key}"), DETAIL);
                }
            }
            for (i, container) in items(&spec["containers"]).iter().enumerate() {
                for key in [
                    "appArmorProfile",
                    "seLinuxOptions",
                    "seccompProfile",
                    "capabilities",
                    "readOnlyRootFilesystem",
                    "privileged",
                    "allowPrivilegeEscalation",
                    "procMount",
                    "runAsUser",
                    "runAsGroup",
                ] {
                    if !container["securityContext"][key].is_null() {
                        refuse(format!("{path}.containers[{i}].securityContext.{key}"), DETAIL);
                    }
                }
            }
        }
        "linux" => {
            const DETAIL: &str = "windows options cannot be set for a linux pod";
            let own = (path.to_owned(), &spec["securityContext"]);
            let containers = items(&spec["containers"]).iter().enumerate();
            let containers = containers.map(|(i, c)| (format!("{path}.containers[{i}]"), &c["securityContext"]));
            for (path, context) in std::iter::once(own).chain(containers) {
                if !context["windowsOptions"].is_null() {
                    refuse(format!("{path}.securityContext.windowsOptions"), DETAIL);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_shown_as_the_type_of_kubernetes_is_printed() {
        let shown = shown(&json!({"privileged": true, "allowPrivilegeEscalation": false}));
        assert!(shown.starts_with(r#"{"Capabilities":null,"Privileged":true,"SELinuxOptions":null,"#), "{shown}");
        assert!(shown.contains(r#""AllowPrivilegeEscalation":false,"#), "{shown}");
    }

    #[test]
    fn sysctls_have_their_own_grammar() {
        for (name, fine) in [("kernel.shm_rmid_forced", true), ("net/ipv4", true), ("a..b", false), ("A", false)] {
            assert_eq!(is_sysctl(name), fine, "{name}");
        }
    }
}
