//! `…/pods/{name}/{exec,attach,portforward}`: a stream between a client and the kubelet of the pod's node.
//!
//! Whatever protocol the client asks for (SPDY/3.1 or WebSocket) is asked of the kubelet; once both have switched, this
//! server only carries bytes. The exception is a WebSocket client of a node that speaks SPDY alone: [`translate`].

use http::Method;
use http::request::Parts;

use super::{kubelet_of_pod, locate, translate, upgrade, wants_upgrade};
use crate::auth::Action;
use crate::server::http::Answer;
use crate::server::{Api, Call, not_found};
use crate::status::{ApiError, Result};

pub(crate) async fn stream(api: &Api, call: &Call, parts: Parts) -> Result<Answer> {
    let target = &call.target;
    if !matches!(parts.method, Method::GET | Method::POST) {
        let message = "the server does not allow this method on the requested resource";
        return Err(ApiError::new(405, "MethodNotAllowed", message));
    }
    // WebSocket clients come with GET, but running a command is no mere reading: the permission to create is asked
    // for whatever the method. kube-apiserver: `AuthorizePodWebsocketUpgradeCreatePermission`.
    let create = Action {
        verb: "create",
        resource: &target.resource,
        subresource: &target.subresource,
        namespace: &target.namespace,
        name: &target.name,
        ..Action::default()
    };
    if parts.method == Method::GET && !api.authorizer.allows(&call.user, &create) {
        return Err(ApiError::forbidden(&target.resource, "", &target.name, ""));
    }
    let path_of = |container: &str| match target.subresource.as_str() {
        "portforward" => locate::forward_path(&target.namespace, &target.name, &call.options),
        what => Ok(locate::session_path(what, &target.namespace, &target.name, container, &call.options)),
    };
    if target.subresource == "portforward" {
        path_of("")?;
    }
    let pod = call.resource.get(&call.key()).ok_or_else(|| not_found(&call.kind, &target.name))?.value();
    let container = match target.subresource.as_str() {
        "portforward" => String::new(),
        _ => locate::container(&pod, call.options.get("container"))?,
    };
    let Some(node) = locate::node_of(&pod) else {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", target.name)));
    };
    let peer = kubelet_of_pod(api, call, node)?;
    if !wants_upgrade(&parts.headers) {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    let path = path_of(&container)?;
    let declared = api.get("", "nodes", "", node).map(|node| node.value()).unwrap_or_default();
    match translate::wanted(api.kubelets.streams, &target.subresource, &parts.headers, &declared) {
        Some(translation) => translate::translate(api, call, peer, parts, path, translation).await,
        None => upgrade(api, &peer, parts, &path).await,
    }
}
