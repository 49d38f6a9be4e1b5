//! CertificateSigningRequests: approves what nodes ask for themselves when a role allows it, signs what is approved, and
//! removes what was decided or left alone long ago.
//!
//! kube-controller-manager: `pkg/controller/certificates`, its approver, signer and cleaner.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use super::queue::{Outcome, Queue};
use super::world::{World, gone_is_fine, now};
use crate::pki::Authority;
use crate::pki::request::Request;

/// How long a certificate holds unless less is asked for. kube-controller-manager: `--cluster-signing-duration`.
const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
const DECIDED_KEPT: Duration = Duration::from_secs(3600);
const PENDING_KEPT: Duration = Duration::from_secs(24 * 3600);

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>, authority: Arc<Authority>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<String>> = Queue::new();
    let q = queue.clone();
    world.signing_requests.on_change(move |change| {
        if let Some(csr) = change.new {
            q.add(csr.name_any());
        }
    });
    let world = world.clone();
    async move {
        world.signing_requests.synced().await;
        queue.work("certificates", 4, |name| reconcile(&world, &authority, name)).await;
    }
}

/// What is to be done with a request.
#[derive(Debug, PartialEq)]
enum Step {
    /// Approve it if one of these subresources is granted to whoever asks, with this message.
    Ask(Vec<(&'static str, &'static str)>),
    Sign(Request),
    /// Its signer does not do this, for this reason.
    Fail(String),
    /// Nothing, until it is that old.
    Keep(Duration),
}

fn plan(csr: &CertificateSigningRequest, request: Result<Request, String>) -> Step {
    let status = csr.status.clone().unwrap_or_default();
    let has = |kind: &str| status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True");
    if has("Denied") || has("Failed") || status.certificate.is_some() {
        return Step::Keep(DECIDED_KEPT);
    }
    let spec = &csr.spec;
    let Ok(request) = request else { return Step::Keep(PENDING_KEPT) };
    if has("Approved") {
        return match permitted(spec, &request) {
            None => Step::Keep(DECIDED_KEPT),
            Some(Ok(())) => Step::Sign(request),
            Some(Err(fault)) => Step::Fail(fault),
        };
    }
    if spec.signer_name != KUBELET_CLIENT || kubelet_client(&request, &spec.usages.clone().unwrap_or_default()).is_err()
    {
        return Step::Keep(PENDING_KEPT);
    }
    let mut ask = Vec::new();
    if spec.username.as_deref() == Some(&request.common_name) {
        ask.push(("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."));
    }
    ask.push(("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."));
    Step::Ask(ask)
}

/// Whether the signer of a request signs it; `None` when it is not one of ours.
fn permitted(spec: &CertificateSigningRequestSpec, request: &Request) -> Option<Result<(), String>> {
    let usages = spec.usages.clone().unwrap_or_default();
    Some(match spec.signer_name.as_str() {
        CLIENT => client(&usages),
        KUBELET_CLIENT => kubelet_client(request, &usages),
        KUBELET_SERVING => kubelet_serving(request, &usages),
        _ => return None,
    })
}

fn client(usages: &[String]) -> Result<(), String> {
    let allowed = ["digital signature", "key encipherment", "client auth"];
    if let Some(other) = usages.iter().find(|usage| !allowed.contains(&usage.as_str())) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    match usages.iter().any(|usage| usage == "client auth") {
        true => Ok(()),
        false => Err("missing required usage for client certificate: client auth".into()),
    }
}

fn of_a_node(request: &Request) -> Result<(), String> {
    if request.organizations != ["system:nodes"] {
        return Err("subject organization is not system:nodes".into());
    }
    match request.common_name.starts_with("system:node:") {
        true => Ok(()),
        false => Err("subject common name does not begin with system:node:".into()),
    }
}

/// The usages are these, with or without key encipherment, and no others.
fn exactly(usages: &[String], purpose: &str) -> Result<(), String> {
    let mut rest: Vec<&str> = usages.iter().map(String::as_str).filter(|u| *u != "key encipherment").collect();
    rest.sort_unstable();
    let mut wanted = ["digital signature", purpose];
    wanted.sort_unstable();
    match rest == wanted {
        true => Ok(()),
        false => {
            let mut all = ["digital signature", "key encipherment", purpose];
            all.sort_unstable();
            Err(format!("usages did not match [{}]", all.join(" ")))
        }
    }
}

fn kubelet_client(request: &Request, usages: &[String]) -> Result<(), String> {
    of_a_node(request)?;
    for (there, what) in [
        (!request.dns_names.is_empty(), "DNS"),
        (request.emails > 0, "email"),
        (request.addresses > 0, "IP"),
        (request.uris > 0, "URI"),
    ] {
        if there {
            return Err(format!("{what} subjectAltNames are not allowed"));
        }
    }
    exactly(usages, "client auth")
}

fn kubelet_serving(request: &Request, usages: &[String]) -> Result<(), String> {
    of_a_node(request)?;
    if request.dns_names.is_empty() && request.addresses == 0 {
        return Err("DNS or IP subjectAltName is required".into());
    }
    if request.emails > 0 {
        return Err("email subjectAltNames are not allowed".into());
    }
    if request.uris > 0 {
        return Err("URI subjectAltNames are not allowed".into());
    }
    exactly(usages, "server auth")
}

async fn reconcile(world: &World, authority: &Authority, name: String) -> Outcome {
    let Some(csr) = world.signing_requests.get(&(String::new(), name)) else { return Ok(None) };
    let request = Request::from_pem(&csr.spec.request.0);
    let api: Api<CertificateSigningRequest> = Api::all(world.client.clone());
    match plan(&csr, request) {
        Step::Keep(kept) => return clean(&api, &csr, kept).await,
        Step::Ask(questions) => {
            for (subresource, message) in questions {
                if granted(&world.client, &csr.spec, subresource).await? {
                    let approved = with_condition(&csr, "Approved", "AutoApproved", message);
                    let body = json!({"metadata": {"resourceVersion": csr.resource_version()},
                        "status": {"conditions": approved.status.map(|status| status.conditions)}});
                    let name = csr.name_any();
                    let patched = api.patch_approval(&name, &PatchParams::default(), &Patch::Merge(body)).await;
                    gone_is_fine(patched.map(drop))?;
                    return Ok(None);
                }
            }
            return clean(&api, &csr, PENDING_KEPT).await;
        }
        Step::Fail(fault) => {
            let failed = with_condition(&csr, "Failed", "SignerValidationFailure", &fault);
            let put = api.replace_status(&csr.name_any(), &PostParams::default(), &failed).await;
            gone_is_fine(put.map(drop))?;
        }
        Step::Sign(request) => {
            let asked = csr.spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let life = asked.map_or(LIFE, |seconds| Duration::from_secs(seconds).min(LIFE));
            match authority.answer(&request, csr.spec.usages.as_deref().unwrap_or_default(), life) {
                Ok(certificate) => {
                    let mut signed = CertificateSigningRequest::clone(&csr);
                    let status = signed.status.get_or_insert_default();
                    status.certificate = Some(k8s_openapi::ByteString(certificate.into_bytes()));
                    let put = api.replace_status(&csr.name_any(), &PostParams::default(), &signed).await;
                    gone_is_fine(put.map(drop))?;
                }
                Err(error) => tracing::warn!(csr = csr.name_any(), %error, "cannot sign a certificate"),
            }
        }
    }
    Ok(None)
}

fn with_condition(
    csr: &CertificateSigningRequest,
    kind: &str,
    reason: &str,
    message: &str,
) -> CertificateSigningRequest {
    let mut csr = csr.clone();
    let condition = json!({"type": kind, "status": "True", "reason": reason, "message": message,
        "lastUpdateTime": now(), "lastTransitionTime": now()});
    if let Ok(condition) = serde_json::from_value(condition) {
        csr.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
    }
    csr
}

/// Whether whoever made a request may have such certificates without being asked.
async fn granted(
    client: &Client,
    spec: &CertificateSigningRequestSpec,
    subresource: &str,
) -> Result<bool, kube::Error> {
    use k8s_openapi::api::authorization::v1::SubjectAccessReview;
    let review = json!({"metadata": {}, "spec": {"user": spec.username, "groups": spec.groups, "uid": spec.uid,
        "extra": spec.extra, "resourceAttributes": {"group": "certificates.k8s.io",
            "resource": "certificatesigningrequests", "verb": "create", "subresource": subresource}}});
    let Ok(review) = serde_json::from_value::<SubjectAccessReview>(review) else { return Ok(false) };
    let answer = Api::<SubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Removes a request that is old enough, or says when to look again.
async fn clean(api: &Api<CertificateSigningRequest>, csr: &CertificateSigningRequest, kept: Duration) -> Outcome {
    let born = csr.metadata.creation_timestamp.as_ref().map_or_else(Timestamp::now, |t| t.0);
    let age = Timestamp::now().duration_since(born).try_into().unwrap_or_default();
    match kept.checked_sub(age).filter(|left| !left.is_zero()) {
        Some(left) => Ok(Some(left)),
        None => {
            gone_is_fine(api.delete(&csr.name_any(), &Default::default()).await.map(drop))?;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::Value;

    fn request(change: impl FnOnce(&mut Request)) -> Request {
        let mut request = Request::default();
        request.common_name = "system:node:n".into();
        request.organizations = vec!["system:nodes".into()];
        change(&mut request);
        request
    }

    fn csr(signer: &str, user: &str, usages: &[&str], conditions: Value) -> CertificateSigningRequest {
        let made = json!({"metadata": {"name": "x"}, "spec": {"signerName": signer, "usages": usages, "username": user,
            "request": STANDARD.encode("x")}, "status": {"conditions": conditions}});
        serde_json::from_value(made).unwrap()
    }

    const CLIENT_USAGES: &[&str] = &["digital signature", "client auth"];
    const SERVER_USAGES: &[&str] = &["key encipherment", "server auth", "digital signature"];

    #[test]
    fn signers_sign_what_is_theirs_and_say_why_not() {
        let approved = json!([{"type": "Approved", "status": "True"}]);
        let fault = |signer, usages: &[&str], request: Request| match plan(
            &csr(signer, "u", usages, approved.clone()),
            Ok(request),
        ) {
            Step::Sign(_) => "signed".to_owned(),
            Step::Fail(fault) => fault,
            other => format!("{other:?}"),
        };
        let named = |r: &mut Request| r.dns_names.push("host".into());
        for (signer, usages, request, wanted) in [
            (CLIENT, &["client auth"][..], request(|_| {}), "signed"),
            (CLIENT, &["server auth"], request(|_| {}), "invalid usage for client certificate: server auth"),
            (KUBELET_CLIENT, CLIENT_USAGES, request(|_| {}), "signed"),
            (KUBELET_CLIENT, CLIENT_USAGES, request(named), "DNS subjectAltNames are not allowed"),
            (
                KUBELET_CLIENT,
                SERVER_USAGES,
                request(|_| {}),
                "usages did not match [client auth digital signature key encipherment]",
            ),
            (
                KUBELET_CLIENT,
                CLIENT_USAGES,
                request(|r| r.organizations.push("x".into())),
                "subject organization is not system:nodes",
            ),
            (
                KUBELET_CLIENT,
                CLIENT_USAGES,
                request(|r| r.common_name = "n".into()),
                "subject common name does not begin with system:node:",
            ),
            (KUBELET_SERVING, SERVER_USAGES, request(named), "signed"),
            (KUBELET_SERVING, SERVER_USAGES, request(|_| {}), "DNS or IP subjectAltName is required"),
            (
                KUBELET_SERVING,
                SERVER_USAGES,
                request(|r| (r.addresses, r.uris) = (1, 1)),
                "URI subjectAltNames are not allowed",
            ),
        ] {
            assert_eq!(fault(signer, usages, request), wanted, "{signer}");
        }
    }

    #[test]
    fn only_client_certificates_of_nodes_are_approved_unseen() {
        let node = "system:node:n";
        let asks = |signer, user| match plan(&csr(signer, user, CLIENT_USAGES, json!([])), Ok(request(|_| {}))) {
            Step::Ask(asks) => asks.into_iter().map(|(subresource, _)| subresource).collect(),
            _ => Vec::new(),
        };
        assert_eq!(asks(KUBELET_CLIENT, node), ["selfnodeclient", "nodeclient"]);
        assert_eq!(asks(KUBELET_CLIENT, "bootstrapper"), ["nodeclient"]);
        assert!(asks(CLIENT, node).is_empty());
        assert!(asks(KUBELET_SERVING, node).is_empty());
    }

    #[test]
    fn what_is_decided_is_left_alone() {
        for kind in ["Denied", "Failed"] {
            let decided = json!([{"type": "Approved", "status": "True"}, {"type": kind, "status": "True"}]);
            let csr = csr(CLIENT, "u", &["client auth"], decided);
            assert_eq!(plan(&csr, Ok(request(|_| {}))), Step::Keep(DECIDED_KEPT), "{kind}");
        }
        let foreign = csr("example.com/x", "u", &["client auth"], json!([{"type": "Approved", "status": "True"}]));
        assert_eq!(plan(&foreign, Ok(request(|_| {}))), Step::Keep(DECIDED_KEPT));
        assert_eq!(plan(&csr(CLIENT, "u", &[], json!([])), Err("garbage".into())), Step::Keep(PENDING_KEPT));
    }
}
