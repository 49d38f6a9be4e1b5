//! Signing requests: who may ask in whose name, who may approve, who may sign.
//!
//! admission: `CertificateSubjectRestriction`, `CertificateApproval`, `CertificateSigning`; registry: the strategies of
//! the status and approval subresources.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::auth::Action;
use crate::auth::node::node_name;
use crate::kinds::Kind;
use crate::pki::request::Request;
use crate::server::{Api, Write, now};
use crate::status::{ApiError, Result};

pub(crate) const GROUP: &str = "certificates.k8s.io";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

fn is_request(kind: &Kind) -> bool {
    kind.is(GROUP, "certificatesigningrequests")
}

fn refuse(write: &Write<'_>, csr: &Value, message: &str) -> ApiError {
    let name = csr["metadata"]["name"].as_str().unwrap_or_default();
    ApiError::forbidden(&write.kind.plural, GROUP, name, message)
}

/// The request inside of a CertificateSigningRequest.
pub(crate) fn parsed(csr: &Value) -> Result<Request, String> {
    let pem = STANDARD.decode(csr["spec"]["request"].as_str().unwrap_or_default()).unwrap_or_default();
    Request::from_pem(&pem)
}

pub(super) fn create(write: &Write<'_>, csr: &Value) -> Result<()> {
    if !is_request(write.kind) {
        return Ok(());
    }
    // Validation tells what is wrong with a request that cannot be read.
    let Ok(request) = parsed(csr) else { return Ok(()) };
    let signer = csr["spec"]["signerName"].as_str().unwrap_or_default();
    if signer == CLIENT && request.organizations.iter().any(|group| group == "system:masters") {
        let message = format!("use of {CLIENT} signer with system:masters group is not allowed");
        return Err(refuse(write, csr, &message));
    }
    let for_nodes = matches!(signer, "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet");
    if let Some(node) = node_name(write.user)
        && for_nodes
        && request.common_name != format!("system:node:{node}")
    {
        return Err(refuse(write, csr, &format!("can only create a node CSR with CN=system:node:{node}")));
    }
    Ok(())
}

/// Puts back what a write to this part of a request cannot change, and stamps new conditions.
pub(super) fn keep(write: &Write<'_>, new: &mut Value, old: &Value) {
    if !is_request(write.kind) {
        return;
    }
    new["spec"] = old["spec"].clone();
    let decided = |condition: &&Value| matches!(condition["type"].as_str(), Some("Approved" | "Denied"));
    let list = |csr: &Value| csr["status"]["conditions"].as_array().cloned().unwrap_or_default();
    match write.subresource {
        "approval" => {
            let conditions = list(new);
            new["status"] = if old["status"].is_object() { old["status"].clone() } else { json!({}) };
            new["status"]["conditions"] = conditions.into();
        }
        "status" => {
            let kept = list(old);
            let kept = kept.iter().filter(decided).cloned();
            let conditions: Vec<Value> = kept.chain(list(new).into_iter().filter(|c| !decided(&c))).collect();
            if !new["status"].is_object() {
                new["status"] = json!({});
            }
            if conditions.is_empty() {
                crate::server::create::remove(&mut new["status"], "conditions");
            } else {
                new["status"]["conditions"] = conditions.into();
            }
        }
        _ => new["status"] = old["status"].clone(),
    }
    if new["status"].is_null() {
        crate::server::create::remove(new, "status");
        return;
    }
    let before = list(old);
    let now = now();
    for condition in new["status"]["conditions"].as_array_mut().into_iter().flatten().filter(|c| c.is_object()) {
        let same = before.iter().any(|b| b["type"] == condition["type"] && b["status"] == condition["status"]);
        for key in ["lastUpdateTime", "lastTransitionTime"] {
            if condition[key].is_null() || !same && key == "lastTransitionTime" {
                condition[key] = now.as_str().into();
            }
        }
    }
}

pub(super) fn update(api: &Api, write: &Write<'_>, new: &Value, old: &Value) -> Result<()> {
    if !is_request(write.kind) {
        return Ok(());
    }
    let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
    let certificate = |csr: &Value| csr["status"]["certificate"].as_str().unwrap_or_default().to_owned();
    let failed = |csr: &Value| {
        let conditions = csr["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|c| c["type"] == "Failed")
    };
    let verb = match write.subresource {
        "approval" => "approve",
        "status" if certificate(new) != certificate(old) || failed(new) != failed(old) => "sign",
        _ => return Ok(()),
    };
    let may = |name: &str| {
        let action = Action { verb, group: GROUP, resource: "signers", name, ..Action::default() };
        api.authorizer.allows(write.user, &action)
    };
    let domain = signer.split('/').next().unwrap_or_default();
    if may(signer) || may(&format!("{domain}/*")) {
        return Ok(());
    }
    let message = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(refuse(write, old, &message))
}
