//! Which container, which address and which path of the kubelet a request means.

use serde_json::Value;

use crate::server::options::Options;
use crate::status::{ApiError, Result};

/// The order in which the API server tries a node's addresses. kube-apiserver: `--kubelet-preferred-address-types`.
const ADDRESSES: [&str; 5] = ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];
const KUBELET_PORT: u64 = 10250;

/// Where a node's kubelet listens.
pub(crate) fn kubelet_of(node: &Value) -> Result<(String, u16)> {
    let addresses = node["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = ADDRESSES.iter().find_map(|kind| addresses.iter().find(|a| a["type"] == *kind)?["address"].as_str());
    let host = found.ok_or_else(|| {
        let known: Vec<&str> = addresses.iter().filter_map(|a| a["type"].as_str()).collect();
        let types = ADDRESSES.join(" ");
        ApiError::new(
            500,
            "",
            format!("no preferred addresses found; known addresses: [{}], preferred: [{types}]", known.join(" ")),
        )
    })?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().filter(|p| *p > 0);
    let port = u16::try_from(port.unwrap_or(KUBELET_PORT));
    Ok((host.into(), port.map_err(|_| ApiError::internal("the kubelet's port is none"))?))
}

/// The node that a pod is bound to.
pub(super) fn node_of(pod: &Value) -> Option<&str> {
    pod["spec"]["nodeName"].as_str().filter(|name| !name.is_empty())
}

/// The container that a request means.
pub(super) fn container(pod: &Value, asked: Option<&str>) -> Result<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let names = |list: &str| -> Vec<&str> {
        let list = pod["spec"][list].as_array().into_iter().flatten();
        list.filter_map(|c| c["name"].as_str()).collect()
    };
    let containers = names("containers");
    let all = || [names("initContainers"), names("containers"), names("ephemeralContainers")].concat();
    match asked.filter(|c| !c.is_empty()) {
        Some(container) if all().contains(&container) => Ok(container.into()),
        Some(container) => Err(ApiError::bad_request(format!("container {container} is not valid for pod {name}"))),
        None if containers.len() == 1 => Ok(containers[0].into()),
        None if containers.is_empty() => {
            Err(ApiError::bad_request(format!("a container name must be specified for pod {name}")))
        }
        None => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            all().join(" ")
        ))),
    }
}

/// The kubelet's path of an exec or attach request. kubelet: `pkg/kubelet/server`, parameters of `remotecommand`.
pub(super) fn session_path(what: &str, namespace: &str, pod: &str, container: &str, options: &Options) -> String {
    let mut query = Vec::new();
    if what == "exec" {
        query.extend(options.all("command").map(|word| ("command", word.to_owned())));
    }
    for (asked, told) in [("stderr", "error"), ("stdin", "input"), ("stdout", "output"), ("tty", "tty")] {
        if options.flag(asked) {
            query.push((told, "1".into()));
        }
    }
    path(&[what, namespace, pod, container], &query)
}

/// The kubelet's path of a port-forward request.
pub(super) fn forward_path(namespace: &str, pod: &str, options: &Options) -> Result<String> {
    let mut ports = Vec::new();
    for port in options.all("ports").flat_map(|list| list.split(',')).filter(|port| !port.is_empty()) {
        port.parse::<u32>().map_err(|_| {
            let fault = format!("strconv.ParseUint: parsing {port:?}: invalid syntax");
            ApiError::bad_request(format!("cannot convert to []int32: {fault}"))
        })?;
        ports.push(port);
    }
    let query: &[_] = if ports.is_empty() { &[] } else { &[("port", ports.join(","))] };
    Ok(path(&["portForward", namespace, pod], query))
}

/// A path of these segments with this query, encoded.
pub(super) fn path(segments: &[&str], query: &[(&str, String)]) -> String {
    let mut out = String::new();
    for segment in segments {
        out.push('/');
        out.push_str(&encode(segment));
    }
    for (i, (name, value)) in query.iter().enumerate() {
        out.push(if i == 0 { '?' } else { '&' });
        out.push_str(&format!("{name}={}", encode(value)));
    }
    out
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The parts of a name such as `https:web:http`: scheme, name, port. apimachinery: `SplitSchemeNamePort`.
pub(super) fn scheme_name_port(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts[..] {
        [name] => ("", name, ""),
        [name, port] => ("", name, port),
        [scheme @ ("" | "http" | "https"), name, port] => (scheme, name, port),
        _ => return None,
    };
    (!name.is_empty()).then_some((scheme, name, port))
}

/// The address and port of a pod that is asked for by `port`, or its first declared one.
pub(super) fn pod_address(pod: &Value, port: &str) -> Result<(String, u16)> {
    let first = || {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        containers.into_iter().find_map(|c| c["ports"][0]["containerPort"].as_u64()).map(|port| port.to_string())
    };
    let port = if port.is_empty() { first() } else { Some(port.to_owned()) };
    let ip = pod["status"]["podIPs"][0]["ip"].as_str().or(pod["status"]["podIP"].as_str()).unwrap_or_default();
    if ip.parse::<std::net::IpAddr>().is_err() {
        return Err(ApiError::bad_request("address not allowed"));
    }
    let port = port.as_deref().unwrap_or("80");
    let port = port.parse().map_err(|_| ApiError::bad_request(format!("invalid port {port:?}")))?;
    Ok((ip.into(), port))
}

/// The endpoints of a service port that are ready.
pub(super) fn endpoints(service: &Value, slices: &[Value], port: &str) -> Result<Vec<(String, u16)>> {
    let name = service["metadata"]["name"].as_str().unwrap_or_default();
    let unavailable = |message: String| ApiError::new(503, "ServiceUnavailable", message);
    let none = || unavailable(format!("no endpoints available for service {name:?}"));
    let ready = |endpoint: &&Value| endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
    if !slices.iter().any(|s| s["endpoints"].as_array().is_some_and(|e| e.iter().any(|e| ready(&e)))) {
        return Err(none());
    }
    let mut wanted = port.to_owned();
    if let Ok(number) = port.parse::<u64>() {
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let found = ports.into_iter().find(|p| p["port"].as_u64() == Some(number));
        let missing = || unavailable(format!("no service port {number} found for service {name:?}"));
        wanted = found.ok_or_else(missing)?["name"].as_str().unwrap_or_default().to_owned();
    }
    let mut found = Vec::new();
    for slice in slices {
        let ports = slice["ports"].as_array().into_iter().flatten();
        let wanted = |p: &&Value| port.is_empty() || p["name"].as_str().unwrap_or_default() == wanted;
        let Some(port) = ports.into_iter().find(wanted).and_then(|p| p["port"].as_u64()) else { continue };
        let Ok(port) = u16::try_from(port) else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten().filter(ready) {
            found.extend(endpoint["addresses"][0].as_str().map(|address| (address.to_owned(), port)));
        }
    }
    if found.is_empty() { Err(none()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_are_tried_in_the_order_of_kubernetes() {
        let node = json!({"metadata": {"name": "n"}, "status": {
            "addresses": [{"type": "ExternalIP", "address": "1.1.1.1"}, {"type": "InternalIP", "address": "10.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 20001}}}});
        assert_eq!(kubelet_of(&node), Ok(("10.0.0.1".into(), 20001)));
        assert_eq!(kubelet_of(&json!({"status": {}})).unwrap_err().code, 500);
    }

    #[test]
    fn the_only_container_need_not_be_named() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&one, None), Ok("a".into()));
        assert_eq!(container(&one, Some("i")), Ok("i".into()));
        assert_eq!(container(&two, Some("b")), Ok("b".into()));
        let error = container(&two, None).unwrap_err();
        assert_eq!(
            (error.code, error.message.as_str()),
            (400, "a container name must be specified for pod p, choose one of: [i a b]")
        );
        let error = container(&one, Some("x")).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (400, "container x is not valid for pod p"));
    }

    #[test]
    fn sessions_are_asked_of_the_kubelet_in_its_own_words() {
        let options = Options::parse(Some("command=ls&command=-l+x&stdin=true&stdout=maybe&stderr=false&tty=1"));
        assert_eq!(
            session_path("exec", "ns", "p", "c", &options),
            "/exec/ns/p/c?command=ls&command=-l%20x&input=1&output=1&tty=1"
        );
        assert_eq!(session_path("attach", "ns", "p", "c", &options), "/attach/ns/p/c?input=1&output=1&tty=1");
        let ports = |query| forward_path("ns", "p", &Options::parse(query));
        assert_eq!(ports(Some("ports=80,81&ports=82")), Ok("/portForward/ns/p?port=80%2C81%2C82".into()));
        assert_eq!(ports(None), Ok("/portForward/ns/p".into()));
        assert_eq!(
            ports(Some("ports=abc")).unwrap_err().message,
            "cannot convert to []int32: strconv.ParseUint: parsing \"abc\": invalid syntax"
        );
    }

    #[test]
    fn names_may_carry_a_scheme_and_a_port() {
        for (id, wanted) in [
            ("a", Some(("", "a", ""))),
            ("a:80", Some(("", "a", "80"))),
            ("https:a:80", Some(("https", "a", "80"))),
            (":a:", Some(("", "a", ""))),
            ("ftp:a:80", None),
            ("a:b:c:d", None),
            ("", None),
        ] {
            assert_eq!(scheme_name_port(id), wanted, "{id}");
        }
    }

    #[test]
    fn a_pod_is_reached_at_its_first_port_unless_told_otherwise() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "ports": [{"containerPort": 8080}]}]},
            "status": {"podIP": "10.1.0.1"}});
        assert_eq!(pod_address(&pod, ""), Ok(("10.1.0.1".into(), 8080)));
        assert_eq!(pod_address(&pod, "9"), Ok(("10.1.0.1".into(), 9)));
        assert_eq!(pod_address(&json!({}), "9").unwrap_err().message, "address not allowed");
    }

    #[test]
    fn a_service_is_reached_at_its_ready_endpoints() {
        let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "http", "port": 80}]}});
        let slice = json!({"ports": [{"name": "http", "port": 8080}], "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": true}}]});
        let slices = [slice];
        for port in ["", "http", "80"] {
            assert_eq!(endpoints(&service, &slices, port), Ok(vec![("10.0.0.2".into(), 8080)]), "{port}");
        }
        for (port, slices, wanted) in [
            ("", &[][..], "no endpoints available for service \"s\""),
            ("nope", &slices[..], "no endpoints available for service \"s\""),
            ("81", &slices[..], "no service port 81 found for service \"s\""),
        ] {
            let error = endpoints(&service, slices, port).unwrap_err();
            assert_eq!((error.code, error.message.as_str()), (503, wanted));
        }
    }
}
