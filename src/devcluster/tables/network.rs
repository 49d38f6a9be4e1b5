//! Printers of Services, what is behind them, and what lets traffic in.

use std::borrow::Borrow;

use jiff::Timestamp;
use serde_json::Value;

use super::builtin::{AGE, age, array, int, or_none, selector, text};
use super::{Column, col, wide};

pub(super) const SERVICE: &[Column] = &[
    col("Type", "string", "type determines how the Service is exposed."),
    col("Cluster-IP", "string", "clusterIP is the IP address of the service."),
    col("External-IP", "string", "IP addresses at which the service is reachable from outside."),
    col("Port(s)", "string", "The list of ports that are exposed by this service."),
    AGE,
    wide("Selector", "string", "Route service traffic to pods with label keys and values matching this selector."),
];

pub(super) fn service(service: &Value, now: Timestamp) -> Vec<Value> {
    let kind = text(service, "/spec/type");
    let mut external: Vec<&str> = match kind {
        "ExternalName" => vec![text(service, "/spec/externalName")],
        "LoadBalancer" => load_balancer(service),
        _ => Vec::new(),
    };
    external.extend(array(service, "/spec/externalIPs").iter().filter_map(Value::as_str));
    let external = match (external.is_empty(), kind) {
        (true, "LoadBalancer") => "<pending>".to_string(),
        (true, _) => "<none>".to_string(),
        _ => external.join(","),
    };
    let ports: Vec<String> = array(service, "/spec/ports")
        .iter()
        .map(|p| match int(p, "/nodePort") {
            0 => format!("{}/{}", int(p, "/port"), text(p, "/protocol")),
            node => format!("{}:{node}/{}", int(p, "/port"), text(p, "/protocol")),
        })
        .collect();
    vec![
        kind.into(),
        or_none(text(service, "/spec/clusterIP")).into(),
        external.into(),
        or_none(&ports.join(",")).into(),
        age(service, now),
        selector(service.pointer("/spec/selector")).into(),
    ]
}

pub(super) const ENDPOINTS: &[Column] =
    &[col("Endpoints", "string", "The addresses and ports behind the service."), AGE];

/// The first three, then how many more.
fn first_three<T: Borrow<str>>(all: &[T]) -> String {
    match all {
        [] => "<none>".into(),
        few if few.len() <= 3 => few.join(","),
        many => format!("{} + {} more...", many[..3].join(","), many.len() - 3),
    }
}

/// Where a load balancer lets traffic in.
fn load_balancer(object: &Value) -> Vec<&str> {
    let points = array(object, "/status/loadBalancer/ingress").iter();
    points.map(|i| if text(i, "/ip").is_empty() { text(i, "/hostname") } else { text(i, "/ip") }).collect()
}

pub(super) fn endpoints(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in array(object, "/subsets") {
        for address in array(subset, "/addresses") {
            let ip = text(address, "/ip");
            match array(subset, "/ports") {
                [] => all.push(ip.to_string()),
                ports => all.extend(ports.iter().map(|p| format!("{ip}:{}", int(p, "/port")))),
            }
        }
    }
    first_three(&all)
}

pub(super) const SLICE: &[Column] = &[
    col("AddressType", "string", "addressType specifies the type of address carried by this EndpointSlice."),
    col("Ports", "string", "ports specifies the list of network ports exposed by each endpoint in this slice."),
    col("Endpoints", "string", "endpoints is a list of unique endpoints in this slice."),
    AGE,
];

pub(super) fn endpoint_slice(slice: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = array(slice, "/ports")
        .iter()
        .map(|p| match (p.get("port").and_then(Value::as_i64), text(p, "/name")) {
            (Some(port), _) => port.to_string(),
            (None, "") => "*".into(),
            (None, name) => name.into(),
        })
        .collect();
    let ports = match (ports.is_empty(), slice.get("ports").is_some_and(|p| !p.is_null())) {
        (true, false) => "*".to_string(),
        (true, true) => "<unset>".to_string(),
        _ => first_three(&ports),
    };
    let addresses: Vec<String> = array(slice, "/endpoints")
        .iter()
        .flat_map(|e| array(e, "/addresses").iter().filter_map(Value::as_str).map(String::from))
        .collect();
    let addresses = if addresses.is_empty() { "<unset>".into() } else { first_three(&addresses) };
    vec![text(slice, "/addressType").into(), ports.into(), addresses.into(), age(slice, now)]
}

pub(super) const INGRESS: &[Column] = &[
    col("Class", "string", "The name of the IngressClass resource that should be used for additional configuration"),
    col("Hosts", "string", "Hosts that incoming requests are matched against before the ingress rule"),
    col("Address", "string", "Address is a list containing ingress points for the load-balancer"),
    col("Ports", "string", "Ports of TLS configurations that open"),
    AGE,
];

pub(super) fn ingress(ingress: &Value, now: Timestamp) -> Vec<Value> {
    let hosts: Vec<&str> =
        array(ingress, "/spec/rules").iter().map(|rule| text(rule, "/host")).filter(|host| !host.is_empty()).collect();
    let hosts = if hosts.is_empty() { "*".to_owned() } else { first_three(&hosts) };
    let ports = if array(ingress, "/spec/tls").is_empty() { "80" } else { "80, 443" };
    vec![
        or_none(text(ingress, "/spec/ingressClassName")).into(),
        hosts.into(),
        load_balancer(ingress).join(",").into(),
        ports.into(),
        age(ingress, now),
    ]
}

pub(super) const INGRESS_CLASS: &[Column] = &[
    col("Controller", "string", "Controller that is responsible for handling this class"),
    col("Parameters", "string", "A reference to a resource with additional parameters"),
    AGE,
];

pub(super) fn ingress_class(class: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = match class.pointer("/spec/parameters").filter(|parameters| !parameters.is_null()) {
        None => "<none>".to_owned(),
        Some(to) => {
            let group = text(to, "/apiGroup");
            let dot = if group.is_empty() { "" } else { "." };
            format!("{}{dot}{group}/{}", text(to, "/kind"), text(to, "/name"))
        }
    };
    vec![text(class, "/spec/controller").into(), parameters.into(), age(class, now)]
}

pub(super) const NETWORK_POLICY: &[Column] = &[col("Pod-Selector", "string", ""), AGE];

pub(super) fn network_policy(policy: &Value, now: Timestamp) -> Vec<Value> {
    vec![selector(policy.pointer("/spec/podSelector")).into(), age(policy, now)]
}

pub(super) const IP_ADDRESS: &[Column] =
    &[col("ParentRef", "string", "ParentRef references the resource that an IPAddress is attached to."), AGE];

pub(super) fn ip_address(address: &Value, now: Timestamp) -> Vec<Value> {
    let parent = |key: &str| text(address, &format!("/spec/parentRef/{key}"));
    let dot = if parent("group").is_empty() { "" } else { "." };
    let slash = if parent("namespace").is_empty() { "" } else { "/" };
    let resource = format!("{}{dot}{}", parent("resource"), parent("group")).to_lowercase();
    let named = match resource.as_str() {
        "" => "<none>".to_owned(),
        of => format!("{of}{slash}{}/{}", parent("namespace"), parent("name")),
    };
    vec![named.into(), age(address, now)]
}

pub(super) const SERVICE_CIDR: &[Column] = &[
    col("CIDRs", "string", "CIDRs defines the IP blocks in CIDR notation from which to assign service cluster IPs."),
    AGE,
];

pub(super) fn service_cidr(cidr: &Value, now: Timestamp) -> Vec<Value> {
    let ranges: Vec<&str> = array(cidr, "/spec/cidrs").iter().filter_map(Value::as_str).collect();
    vec![ranges.join(",").into(), age(cidr, now)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn services_and_endpoints_read_as_kubectl_prints_them() {
        let object = json!({"spec": {"type": "NodePort", "clusterIP": "10.1.2.3", "selector": {"app": "x"},
            "ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
        let got = service(&object, Timestamp::now());
        assert_eq!(got[1..4], ["10.1.2.3", "<none>", "80:30000/TCP,53/UDP"].map(Value::from));
        assert_eq!(got[5], "app=x");
        let ips: Vec<_> = (1..6).map(|i| json!({"ip": format!("10.0.0.{i}")})).collect();
        let object = json!({"subsets": [{"addresses": ips, "ports": [{"port": 80}]}]});
        assert_eq!(endpoints(&object), "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...");
    }

    #[test]
    fn an_ingress_tells_its_hosts_and_whether_it_has_certificates() {
        let rules: Vec<_> = ["a", "b", "c", "d"].map(|host| json!({"host": host})).to_vec();
        let object = json!({"spec": {"rules": rules, "tls": [{}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"hostname": "h"}]}}});
        let got = ingress(&object, Timestamp::now());
        assert_eq!(got[..4], ["<none>", "a,b,c + 1 more...", "1.2.3.4,h", "80, 443"].map(Value::from));
        assert_eq!(ingress(&json!({"spec": {}}), Timestamp::now())[1], "*");
    }
}
