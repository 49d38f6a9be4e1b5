//! `…/{nodes,pods,services}/{name}/proxy/…`: any request, passed on to a kubelet, a pod or a pod behind a service.
//!
//! Unlike kube-apiserver, loopback addresses are let through: that is where the nodes of a development cluster live.

use http::Method;
use http::header::{HeaderValue, LOCATION};
use http::request::Parts;
use http_body_util::BodyExt;

use super::{Peer, dial, kubelet, locate, passed_on, upgrade, wants_upgrade};
use crate::server::http::{Answer, Asking, full};
use crate::server::{Api, Call, not_found};
use crate::status::{ApiError, Result};
use crate::store::Range;

pub(crate) async fn forward(api: &Api, call: &Call, parts: Parts, body: Asking) -> Result<Answer> {
    let peer = peer(api, call)?;
    let Some(path) = rest(parts.uri.path()) else {
        return Err(ApiError::bad_request("the path cannot be proxied"));
    };
    if path.is_empty() && matches!(parts.method, Method::GET | Method::HEAD) && !wants_upgrade(&parts.headers) {
        // Relative links of what is behind work only below a slash.
        return Ok(redirect(&parts));
    }
    let mut path = if path.is_empty() { "/".to_owned() } else { path.to_owned() };
    if let Some(query) = parts.uri.query() {
        path = format!("{path}?{query}");
    }
    if wants_upgrade(&parts.headers) {
        return upgrade(api, &peer, parts, &path).await;
    }
    let mut request = http::Request::builder()
        .method(parts.method)
        .uri(&path)
        .body(body.map_err(std::io::Error::other).boxed_unsync())
        .map_err(|_| ApiError::bad_request("the path cannot be proxied"))?;
    *request.headers_mut() = passed_on(&parts.headers);
    let answer = dial::send(&peer, request, dial::PROXY_DEADLINE)
        .await
        .map_err(|error| ApiError::new(503, "ServiceUnavailable", format!("error trying to reach service: {error}")))?;
    Ok(dial::streamed(answer))
}

fn redirect(parts: &Parts) -> Answer {
    let mut to = format!("{}/", parts.uri.path());
    if let Some(query) = parts.uri.query() {
        to = format!("{to}?{query}");
    }
    let mut answer = Answer::new(full(""));
    *answer.status_mut() = http::StatusCode::MOVED_PERMANENTLY;
    if let Ok(to) = HeaderValue::from_str(&to) {
        answer.headers_mut().insert(LOCATION, to);
    }
    answer
}

/// What follows `…/{resource}/{name}/proxy` in a path.
fn rest(path: &str) -> Option<&str> {
    let segments = if path.starts_with("/api/v1/namespaces/") { 8 } else { 6 };
    let mut at = 0;
    for _ in 1..segments {
        at += path[at..].find('/')? + 1;
    }
    let end = path[at..].find('/').map_or(path.len(), |slash| at + slash);
    (&path[at..end] == "proxy").then(|| &path[end..])
}

fn peer(api: &Api, call: &Call) -> Result<Peer> {
    let id = &call.target.name;
    let what = &*call.kind.singular;
    let (scheme, name, port) =
        locate::scheme_name_port(id).ok_or_else(|| ApiError::bad_request(format!("invalid {what} request {id:?}")))?;
    let tls = || (scheme == "https").then(|| api.kubelets.as_nobody.clone());
    match what {
        "node" => {
            let peer = kubelet(api, name)?;
            if port.is_empty() || port == peer.port.to_string() {
                return Ok(peer);
            }
            let port = port.parse().map_err(|_| ApiError::bad_request(format!("invalid port {port:?}")))?;
            Ok(Peer { port, tls: tls(), ..peer })
        }
        "pod" => {
            let key = crate::store::Key::new(&call.target.namespace, name);
            let pod = call.resource.get(&key).ok_or_else(|| not_found(&call.kind, name))?;
            let (host, port) = locate::pod_address(&pod.value(), port)?;
            Ok(Peer { host, port, tls: tls() })
        }
        _ => {
            let namespace = call.target.namespace.as_str();
            let key = crate::store::Key::new(namespace, name);
            let service = call.resource.get(&key).ok_or_else(|| not_found(&call.kind, name))?.value();
            let range = Range { namespace: Some(namespace), ..Range::default() };
            let slices = api.resource("discovery.k8s.io", "endpointslices").list(&api.store, &range, |_| true);
            let slices = slices.map(|page| page.objects).unwrap_or_default();
            let slices: Vec<_> = slices.iter().map(|slice| slice.value()).collect();
            let own: Vec<_> = slices
                .into_iter()
                .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == name)
                .collect();
            let endpoints = locate::endpoints(&service, &own, port)?;
            let (host, port) = endpoints[rand::random_range(0..endpoints.len())].clone();
            Ok(Peer { host, port, tls: tls() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_the_path_is_passed_on_as_it_was_written() {
        for (path, wanted) in [
            ("/api/v1/nodes/n/proxy", Some("")),
            ("/api/v1/nodes/n/proxy/", Some("/")),
            ("/api/v1/nodes/n/proxy/a%2Fb//c/", Some("/a%2Fb//c/")),
            ("/api/v1/namespaces/ns/pods/p:80/proxy/x", Some("/x")),
            ("/api/v1/namespaces/ns/services/s/proxy", Some("")),
            ("/api/v1/namespaces/ns/pods/p/log", None),
            ("/api/v1", None),
        ] {
            assert_eq!(rest(path), wanted, "{path}");
        }
    }
}
