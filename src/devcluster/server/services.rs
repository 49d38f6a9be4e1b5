//! The addresses and node ports of Services, which the server gives and takes.

use serde_json::{Value, json};

use super::Api;
use crate::status::{ApiError, Result};

/// Service addresses: 10.96.0.0/12 without its first hundred.
const SERVICE_NET: u32 = (10 << 24) | (96 << 16);
const SERVICE_NET_SIZE: u32 = 1 << 20;
const NODE_PORTS: std::ops::RangeInclusive<u64> = 30_000..=32_767;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// What a service had for its old type goes with it, unless the client says otherwise.
pub(super) fn release(new: &mut Value, old: &Value) {
    let (is, was) = (text(&new["spec"], "type").to_owned(), text(&old["spec"], "type").to_owned());
    let outside = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    let mut gone = Vec::new();
    if outside(&was) && !outside(&is) {
        gone.push("externalTrafficPolicy");
        let taken: Vec<_> =
            old["spec"]["ports"].as_array().into_iter().flatten().map(|port| port["nodePort"].clone()).collect();
        for port in new["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if taken.contains(&port["nodePort"]) {
                super::create::remove(port, "nodePort");
            }
        }
    }
    if is == "ExternalName" && was != is {
        gone.extend(["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]);
    }
    for key in gone.into_iter().filter(|key| new["spec"][*key] == old["spec"][*key]).collect::<Vec<_>>() {
        super::create::remove(&mut new["spec"], key);
    }
}

/// Gives a service its address and its node ports.
pub(super) fn allocate(api: &Api, service: &mut Value) -> Result<()> {
    let spec = &service["spec"];
    let kind = match text(spec, "type") {
        "" => "ClusterIP",
        other => other,
    }
    .to_owned();
    if !spec.is_object() || kind == "ExternalName" {
        return Ok(());
    }
    let services = api.resource("", "services");
    if text(spec, "clusterIP").is_empty() {
        let taken = |ip: &str| {
            let at = services.fields().iter().position(|f| &*f.name == "spec.clusterIP");
            let range = crate::store::Range { limit: 1, ..Default::default() };
            let same = |o: &crate::store::Object| at.and_then(|at| o.fields.get(at)).is_some_and(|v| **v == *ip);
            services.list(&api.store, &range, same).is_ok_and(|page| !page.objects.is_empty())
        };
        let free = (0..64).find_map(|_| {
            let host = 100 + rand::random_range(0..SERVICE_NET_SIZE - 200);
            let ip = std::net::Ipv4Addr::from(SERVICE_NET + host).to_string();
            (!taken(&ip)).then_some(ip)
        });
        let ip = free.ok_or_else(|| ApiError::internal("failed to allocate a serviceIP: range is full"))?;
        service["spec"]["clusterIP"] = ip.into();
    }
    let ip = service["spec"]["clusterIP"].clone();
    if !service["spec"]["clusterIPs"].is_array() {
        service["spec"]["clusterIPs"] = json!([ip]);
    }
    // Whoever writes the endpoints of a headless Service without a selector may write both kinds.
    let selectorless = service["spec"]["selector"].as_object().is_none_or(serde_json::Map::is_empty);
    let (families, policy) = match service["spec"]["clusterIP"] == "None" && selectorless {
        true => (json!(["IPv4", "IPv6"]), "RequireDualStack"),
        false => (json!(["IPv4"]), "SingleStack"),
    };
    for (key, value) in [("ipFamilies", families), ("ipFamilyPolicy", policy.into())] {
        if service["spec"].get(key).is_none_or(Value::is_null) {
            service["spec"][key] = value;
        }
    }
    if kind == "LoadBalancer"
        && service["spec"]["externalTrafficPolicy"] == "Local"
        && service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) == 0
    {
        service["spec"]["healthCheckNodePort"] = rand::random_range(NODE_PORTS).into();
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if port["nodePort"].as_u64().unwrap_or(0) == 0 {
                port["nodePort"] = rand::random_range(NODE_PORTS).into();
            }
        }
    }
    Ok(())
}
