//! Pure: what `fieldRef` and `resourceFieldRef` stand for, in the environment and in files.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::quantity::nano;
use crate::provider::ResolvedContainer;

/// A `fieldRef` of the environment; `None` when there is no such field.
///
/// The pod's own addresses are not known before it starts. With `late` a mark stands for them.
pub(crate) fn of_environment(pod: &Pod, host_ip: IpAddr, path: &str, late: bool) -> Option<String> {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    Some(match path {
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            let name = spec.and_then(|s| s.service_account_name.clone().or_else(|| s.service_account.clone()));
            name.unwrap_or_default()
        }
        "status.hostIP" | "status.hostIPs" => host_ip.to_string(),
        "status.podIP" if late => ResolvedContainer::pod_ip_mark().to_owned(),
        "status.podIPs" if late => ResolvedContainer::pod_ips_mark().to_owned(),
        "status.podIP" => status.and_then(|s| s.pod_ip.clone()).unwrap_or_default(),
        "status.podIPs" => {
            let ips = status.and_then(|s| s.pod_ips.as_deref()).unwrap_or_default();
            ips.iter().map(|ip| ip.ip.as_str()).collect::<Vec<_>>().join(",")
        }
        _ => return of_metadata(pod, path),
    })
}

/// A `fieldRef` of a file: the metadata, all labels and annotations included.
pub(crate) fn of_file(pod: &Pod, path: &str) -> Option<String> {
    match path {
        "metadata.labels" => Some(lines(pod.metadata.labels.as_ref())),
        "metadata.annotations" => Some(lines(pod.metadata.annotations.as_ref())),
        _ => of_metadata(pod, path),
    }
}

fn of_metadata(pod: &Pod, path: &str) -> Option<String> {
    let meta = &pod.metadata;
    let of = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default()
    };
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
    if let Some(key) = subscript("metadata.labels") {
        return Some(of(&meta.labels, key));
    }
    if let Some(key) = subscript("metadata.annotations") {
        return Some(of(&meta.annotations, key));
    }
    match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        _ => None,
    }
}

/// One `key="value"` a line, in order. Kubernetes: `fieldpath.FormatMap`.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter().flatten().map(|(k, v)| format!("{k}={}", quoted(v))).collect::<Vec<_>>().join("\n")
}

/// As Go's `%q` does it.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A `resourceFieldRef`; `None` when there is no such resource or container. A limit that is not set is what
/// the node has. `default` is the container that the reference is in; files have none.
pub(crate) fn of_resources(
    pod: &Pod,
    default: Option<&Container>,
    allocatable: &BTreeMap<String, Quantity>,
    field: &ResourceFieldSelector,
) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let of = match field.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)?,
        None => default?,
    };
    let (group, name) = field.resource.split_once('.')?;
    if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with("hugepages-") {
        return None;
    }
    let resources = of.resources.as_ref();
    let limit = resources.and_then(|r| r.limits.as_ref()).and_then(|l| l.get(name));
    let request = resources.and_then(|r| r.requests.as_ref()).and_then(|l| l.get(name));
    let amount = match group {
        "limits" => limit.filter(|q| nano(&q.0) != Some(0)).or_else(|| allocatable.get(name)),
        "requests" => request.or(limit),
        _ => return None,
    };
    let amount = amount.map_or(Some(0), |q| nano(&q.0))?;
    let divisor = field.divisor.as_ref().and_then(|q| nano(&q.0)).filter(|d| *d > 0).unwrap_or(1_000_000_000);
    Some(((amount + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "n", "namespace": "ns", "uid": "u", "labels": {"a/b": "1", "c": "2"},
                "annotations": {"q": "say \"hi\"\nthere"}},
            "spec": {"nodeName": "node", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"cpu": "250m", "memory": "1Mi"}}},
                {"name": "free"}]},
            "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        }))
        .unwrap()
    }

    #[test]
    fn each_field_has_its_value() {
        for (path, want) in [
            ("metadata.name", Some("n")),
            ("metadata.namespace", Some("ns")),
            ("metadata.uid", Some("u")),
            ("metadata.labels['a/b']", Some("1")),
            ("metadata.labels['none']", Some("")),
            ("metadata.annotations['q']", Some("say \"hi\"\nthere")),
            ("spec.nodeName", Some("node")),
            ("spec.serviceAccountName", Some("sa")),
            ("status.hostIP", Some("192.0.2.1")),
            ("status.hostIPs", Some("192.0.2.1")),
            ("status.podIP", Some("10.0.0.1")),
            ("status.podIPs", Some("10.0.0.1,fd00::1")),
            ("metadata.labels", None),
            ("spec.hostname", None),
        ] {
            let got = of_environment(&pod(), "192.0.2.1".parse().unwrap(), path, false);
            assert_eq!(got.as_deref(), want, "{path}");
        }
        assert_eq!(of_file(&pod(), "metadata.labels").as_deref(), Some("a/b=\"1\"\nc=\"2\""));
        assert_eq!(of_file(&pod(), "metadata.annotations").as_deref(), Some(r#"q="say \"hi\"\nthere""#));
        assert_eq!(of_file(&pod(), "metadata.uid").as_deref(), Some("u"));
        assert_eq!(of_file(&pod(), "status.podIP"), None);
    }

    #[test]
    fn addresses_of_the_pod_are_filled_in_when_they_are_known() {
        let value = |path| of_environment(&pod(), "192.0.2.1".parse().unwrap(), path, true).unwrap();
        let env = [("ONE", value("status.podIP")), ("ALL", format!("<{}>", value("status.podIPs")))];
        let env = env.map(|(name, value)| crate::provider::EnvVar { name: name.into(), value, secret: false });
        let container = ResolvedContainer { env: env.into(), wants_pod_ips: true, ..Default::default() };
        let full = container.with_pod_ips(&["10.1.1.1".parse().unwrap(), "fd00::2".parse().unwrap()]);
        let values: Vec<_> = full.env.iter().map(|v| v.value.as_str()).collect();
        assert_eq!((values, full.wants_pod_ips), (vec!["10.1.1.1", "<10.1.1.1,fd00::2>"], false));
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let allocatable =
            [("cpu".to_owned(), Quantity("4".into())), ("memory".to_owned(), Quantity("8Gi".into()))].into();
        let pod = pod();
        for (container, resource, divisor, want) in [
            ("c", "limits.cpu", "1", Some("2")),
            ("c", "limits.cpu", "1m", Some("1500")),
            ("c", "requests.cpu", "1m", Some("250")),
            ("c", "requests.cpu", "0", Some("1")),
            ("c", "requests.memory", "1Ki", Some("1024")),
            ("c", "limits.memory", "1Gi", Some("8")),
            ("free", "limits.cpu", "1", Some("4")),
            ("free", "requests.cpu", "1", Some("0")),
            ("free", "requests.memory", "1", Some("0")),
            ("free", "limits.ephemeral-storage", "1", Some("0")),
            ("none", "limits.cpu", "1", None),
            ("c", "limits.gpu", "1", None),
        ] {
            let field = ResourceFieldSelector {
                container_name: Some(container.into()),
                resource: resource.into(),
                divisor: Some(Quantity(divisor.into())),
            };
            assert_eq!(
                of_resources(&pod, None, &allocatable, &field).as_deref(),
                want,
                "{container} {resource} {divisor}"
            );
        }
    }
}
