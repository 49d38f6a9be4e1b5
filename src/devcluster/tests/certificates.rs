//! Requests for certificates: who may make, approve and sign them, and what comes of them.

use crate::access::{bind, create, forbidden, until};
use crate::common::{client, request, start};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::Client;
use serde_json::{Value, json};

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn asked(organization: &str, name: &str, hosts: &[&str]) -> (String, rcgen::KeyPair) {
    let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(hosts).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate().unwrap();
    (STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap()), key)
}

fn csr(name: &str, signer: &str, usages: &[&str], request: &str) -> Value {
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"signerName": format!("kubernetes.io/{signer}"), "usages": usages, "request": request,
            "expirationSeconds": 3600, "username": "somebody else"}})
}

async fn approve(client: &Client, name: &str) -> (u16, Value) {
    let condition = json!({"type": "Approved", "status": "True", "reason": "Test", "message": "yes"});
    let body = json!({"status": {"conditions": [condition]}});
    request(client, "PATCH", &format!("{CSRS}/{name}/approval"), body).await
}

#[tokio::test]
async fn an_approved_request_becomes_a_certificate_that_works() {
    let (cluster, admin) = start(true).await;
    let (pem, key) = asked("builders", "jane", &[]);
    let made = create(&admin, CSRS, csr("jane", "kube-apiserver-client", &["client auth"], &pem)).await;
    assert_eq!(made["spec"]["username"], "kubernetes-admin");
    let (code, answer) = approve(&admin, "jane").await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(answer["status"]["conditions"][0]["type"], "Approved");
    assert!(answer["status"]["conditions"][0]["lastUpdateTime"].is_string());
    let signed = until(&admin, &format!("{CSRS}/jane"), |csr| csr["status"]["certificate"].is_string()).await;
    let mut config: Value = serde_json::from_str(&cluster.admin_kubeconfig().unwrap()).unwrap();
    config["users"][0]["user"] = json!({"client-certificate-data": signed["status"]["certificate"],
        "client-key-data": STANDARD.encode(key.serialize_pem())});
    let jane = client(&config.to_string()).await;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let who = create(&jane, "/apis/authentication.k8s.io/v1/selfsubjectreviews", review).await;
    let info = &who["status"]["userInfo"];
    assert_eq!(info["username"], "jane");
    assert_eq!(info["groups"], json!(["builders", "system:authenticated"]));
    let id = info["extra"]["authentication.kubernetes.io/credential-id"][0].as_str().unwrap();
    assert!(id.starts_with("X509SHA256="), "{id}");

    let (pem, _) = asked("x", "bob", &[]);
    create(&admin, CSRS, csr("bob", "kube-apiserver-client", &["server auth"], &pem)).await;
    approve(&admin, "bob").await;
    let failed = until(&admin, &format!("{CSRS}/bob"), |csr| csr["status"]["conditions"][1].is_object()).await;
    let condition = &failed["status"]["conditions"][1];
    assert_eq!(condition["reason"], "SignerValidationFailure");
    assert_eq!(condition["message"], "invalid usage for client certificate: server auth");
    cluster.shutdown().await;
}

#[tokio::test]
async fn requests_are_kept_to_those_who_may_make_approve_and_sign_them() {
    let (cluster, admin) = start(false).await;
    let (pem, _) = asked("system:masters", "jane", &[]);
    let masters = csr("m", "kube-apiserver-client", &["client auth"], &pem);
    let message = "certificatesigningrequests.certificates.k8s.io \"m\" is forbidden: use of \
                   kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed";
    forbidden(&admin, "POST", CSRS, masters, message).await;
    let node = client(&cluster.kubeconfig("system:node:n", &["system:nodes"]).unwrap()).await;
    let usages = ["server auth", "digital signature"];
    let (pem, _) = asked("system:nodes", "system:node:other", &["10.0.0.1"]);
    let message = "certificatesigningrequests.certificates.k8s.io \"s\" is forbidden: can only create a node CSR with \
                   CN=system:node:n";
    forbidden(&node, "POST", CSRS, csr("s", "kubelet-serving", &usages, &pem), message).await;
    let (pem, _) = asked("system:nodes", "system:node:n", &["10.0.0.1"]);
    create(&node, CSRS, csr("s", "kubelet-serving", &usages, &pem)).await;

    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "r"},
        "rules": [{"apiGroups": ["certificates.k8s.io"], "verbs": ["get", "patch", "update"],
            "resources": ["certificatesigningrequests/approval", "certificatesigningrequests/status"]}]});
    create(&admin, &format!("{RBAC}/clusterroles"), role).await;
    bind(&admin, "r", "r", "bob").await;
    let bob = client(&cluster.kubeconfig("bob", &[]).unwrap()).await;
    let (code, answer) = approve(&bob, "s").await;
    let wanted = "certificatesigningrequests.certificates.k8s.io \"s\" is forbidden: user not permitted to approve \
                  requests with signerName \"kubernetes.io/kubelet-serving\"";
    assert_eq!((code, answer["message"].as_str()), (403, Some(wanted)));
    bind(&admin, "a", "system:certificates.k8s.io:kubelet-serving-approver", "bob").await;
    assert_eq!(approve(&bob, "s").await.0, 200);
    let status = json!({"status": {"certificate": STANDARD.encode("x")}});
    let (code, _) = request(&bob, "PATCH", &format!("{CSRS}/s/status"), status).await;
    assert_eq!(code, 403);
    let (code, answer) =
        request(&admin, "PATCH", &format!("{CSRS}/s/approval"), json!({"status": {"conditions": []}})).await;
    assert_eq!(code, 422, "{answer}");
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_nodes_own_certificate_is_approved_unseen_once_a_role_says_so() {
    let (cluster, admin) = start(true).await;
    let node = client(&cluster.kubeconfig("system:node:n", &["system:nodes"]).unwrap()).await;
    let usages = ["client auth", "digital signature"];
    let group = json!({"kind": "Group", "name": "system:nodes"});
    let role = "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient";
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "auto"}, "roleRef": {"kind": "ClusterRole", "name": role}, "subjects": [group]});
    create(&admin, &format!("{RBAC}/clusterrolebindings"), binding).await;
    let (pem, _) = asked("system:nodes", "system:node:n", &[]);
    create(&node, CSRS, csr("c", "kube-apiserver-client-kubelet", &usages, &pem)).await;
    let signed = until(&admin, &format!("{CSRS}/c"), |csr| csr["status"]["certificate"].is_string()).await;
    let condition = &signed["status"]["conditions"][0];
    assert_eq!(condition["reason"], "AutoApproved");
    let said = "Auto approving self kubelet client certificate after SubjectAccessReview.";
    assert_eq!(condition["message"], said);
    cluster.shutdown().await;
}
