//! Asks the cluster about each link, and dials the node.

use std::net::SocketAddr;

use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{SelfSubjectAccessReview, SubjectAccessReview};
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, LogParams, PostParams};
use kube::client::Body;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use super::super::fleet::{self, within};
use super::super::peer;
use super::judge::{self, CRD};
use super::{Check, DoctorArgs, Verdict};
use crate::api::VirtualNode;

const CRD_NAMES: [&str; 2] = ["virtualnodes.vnode.dev", "virtualnodesets.vnode.dev"];
/// What the operator must be allowed, as `config/rbac/role.yaml` grants it: verb, group, resource, subresource and
/// namespace.
const RIGHTS: [(&str, &str, &str, &str, &str); 17] = [
    ("watch", "vnode.dev", "virtualnodes", "", ""),
    ("create", "vnode.dev", "virtualnodes", "", ""),
    ("watch", "vnode.dev", "virtualnodesets", "", ""),
    ("patch", "vnode.dev", "virtualnodesets", "status", ""),
    ("patch", "vnode.dev", "virtualnodes", "status", ""),
    ("watch", "", "nodes", "", ""),
    ("create", "", "nodes", "", ""),
    ("patch", "", "nodes", "status", ""),
    ("watch", "", "pods", "", ""),
    ("delete", "", "pods", "", ""),
    ("patch", "", "pods", "status", ""),
    ("create", "", "pods", "eviction", ""),
    ("create", "", "events", "", ""),
    ("patch", "coordination.k8s.io", "leases", "", "kube-node-lease"),
    ("create", "authentication.k8s.io", "tokenreviews", "", ""),
    ("create", "authorization.k8s.io", "subjectaccessreviews", "", ""),
    ("get", "", "configmaps", "", "kube-system"),
];

/// The links that all nodes share.
pub(super) async fn shared(client: &Client, args: &DoctorArgs) -> Vec<Check> {
    let mut checks = vec![match within(client.apiserver_version()).await {
        Ok(version) => Check::ok("API server", version.git_version),
        Err(error) => {
            let fix = "see that the kubeconfig names the right cluster: kubectl cluster-info";
            return vec![Check::broken("API server", error.to_string(), fix)];
        }
    }];
    checks.push(definitions(client).await);
    checks.push(operator(client, args).await);
    checks.push(rights(client, args).await);
    checks
}

/// Whether the kinds are served.
async fn definitions(client: &Client) -> Check {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for name in CRD_NAMES {
        match within(crds.get_opt(name)).await {
            Ok(Some(crd)) => {
                let conditions = crd.status.and_then(|s| s.conditions).unwrap_or_default();
                if !conditions.iter().any(|c| c.type_ == "Established" && c.status == "True") {
                    return Check::broken(
                        CRD,
                        format!("{name} is not established"),
                        format!("see kubectl describe crd {name}"),
                    );
                }
            }
            Ok(None) => return Check::broken(CRD, format!("{name} is missing"), "vnode crd | kubectl apply -f -"),
            Err(error) => return Check::new(CRD, Verdict::Skipped, error.to_string()),
        }
    }
    Check::ok(CRD, format!("{} are served", CRD_NAMES.join(" and ")))
}

async fn operator(client: &Client, args: &DoctorArgs) -> Check {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &args.operator_namespace);
    let found = match within(pods.list(&ListParams::default().labels("app.kubernetes.io/name=vnode"))).await {
        Ok(found) => found.items,
        Err(error) => return Check::new("operator", Verdict::Skipped, error.to_string()),
    };
    let ready = found.iter().filter(|p| is_ready(p)).count();
    let seen = format!("{ready} of {} pods ready in {}", found.len(), args.operator_namespace);
    match (found.len(), ready) {
        (0, _) => {
            let seen = format!("no pod of it in {}", args.operator_namespace);
            let fix = "fine for `vnode dev`, where it is no pod; else install it, or name its --operator-namespace";
            Check::new("operator", Verdict::Note, seen).with_fix(fix)
        }
        (_, 0) => Check::broken("operator", seen, format!("kubectl -n {} describe pods", args.operator_namespace)),
        _ => Check::ok("operator", seen),
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether the operator's ServiceAccount may do what it does.
async fn rights(client: &Client, args: &DoctorArgs) -> Check {
    const LINK: &str = "operator's rights";
    let (namespace, account) = (&args.operator_namespace, &args.operator_account);
    let user = format!("system:serviceaccount:{namespace}:{account}");
    let groups =
        json!(["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated"]);
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for (verb, group, resource, subresource, within_namespace) in RIGHTS {
        let name = if resource == "configmaps" { "extension-apiserver-authentication" } else { "" };
        let review = json!({"spec": {"user": user, "groups": groups, "resourceAttributes": {
            "verb": verb, "group": group, "resource": resource, "subresource": subresource,
            "namespace": within_namespace, "name": name}}});
        // A literal of the type's own fields is always one of it.
        let Ok(review) = serde_json::from_value(review) else { continue };
        match within(reviews.create(&PostParams::default(), &review)).await {
            Ok(answer) if answer.status.as_ref().is_some_and(|s| s.allowed) => {}
            Ok(_) => {
                let slash = if subresource.is_empty() { "" } else { "/" };
                let place = if within_namespace.is_empty() { String::new() } else { format!(" in {within_namespace}") };
                missing.push(format!("{verb} {resource}{slash}{subresource}{place}"));
            }
            Err(error) => return Check::new(LINK, Verdict::Skipped, format!("they cannot be asked for: {error}")),
        }
    }
    if missing.is_empty() {
        return Check::ok(LINK, format!("{account} in {namespace} may do all {} things", RIGHTS.len()));
    }
    let fix = format!("apply config/rbac, or the chart with rbac.create, for the ServiceAccount {namespace}/{account}");
    Check::broken(LINK, format!("{account} in {namespace} may not: {}", missing.join(", ")), fix)
}

/// The links of one node.
pub(super) async fn node(client: &Client, vn: &VirtualNode, args: &DoctorArgs) -> Vec<Check> {
    let name = vn.name_any();
    let mut checks = judge::conditions(vn);
    checks.extend(secret(client, vn, args).await);
    let node = match within(Api::<Node>::all(client.clone()).get_opt(&name)).await {
        Ok(node) => node,
        Err(error) => {
            checks.push(Check::new("Node", Verdict::Skipped, error.to_string()));
            return checks;
        }
    };
    checks.extend(judge::registered(vn, node.as_ref()));
    let Some(node) = node else { return checks };
    checks.push(match fleet::lease(client, &name).await {
        Ok(lease) => judge::lease(lease.as_ref(), Timestamp::now()),
        Err(error) => Check::new(judge::LEASE, Verdict::Skipped, error.to_string()),
    });
    if let Some(address) = address(&node) {
        let shown = peer::certificate(address).await;
        checks.extend(judge::certificate(&shown, address.ip(), Timestamp::now()));
    }
    checks.push(healthz(client, &name).await);
    checks.extend(through_a_pod(client, &name, args).await);
    checks
}

/// The operator says that the Secret is missing; this says whether it is there by now.
async fn secret(client: &Client, vn: &VirtualNode, args: &DoctorArgs) -> Option<Check> {
    let name = &vn.spec.credentials_secret_ref.as_ref()?.name;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &args.operator_namespace);
    // Its metadata is enough: no secret value is read.
    Some(match within(secrets.get_metadata_opt(name)).await {
        Ok(Some(_)) => Check::ok("credentials Secret", format!("{}/{name} is there", args.operator_namespace)),
        Ok(None) => Check::broken(
            "credentials Secret",
            format!("there is no Secret {name} in {}", args.operator_namespace),
            format!("kubectl -n {} create secret generic {name} --from-file=…", args.operator_namespace),
        ),
        Err(error) => Check::new("credentials Secret", Verdict::Skipped, error.to_string()),
    })
}

/// Where the API server dials, by its default order of preference among addresses that are numbers.
pub(super) fn address(node: &Node) -> Option<SocketAddr> {
    let status = node.status.as_ref()?;
    let port = status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?.port;
    let addresses = status.addresses.as_ref()?;
    let of = |kind: &str| addresses.iter().find(|a| a.type_ == kind).and_then(|a| a.address.parse().ok());
    let ip = of("InternalIP").or_else(|| of("ExternalIP"))?;
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
}

async fn healthz(client: &Client, node: &str) -> Check {
    const LINK: &str = "API server → node";
    let request = Request::get(format!("/api/v1/nodes/{node}/proxy/healthz")).body(Vec::new());
    let Ok(request) = request else { return Check::new(LINK, Verdict::Skipped, "the node's name is no path") };
    judge::round_trip(LINK, within(client.request_text(request)).await.map(|t| t.trim().to_owned()).map_err(refusal))
}

/// What the API server answered, or what became of the request.
fn refusal(error: kube::Error) -> (u16, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.message.clone()),
        error => (0, error.to_string()),
    }
}

/// A line of a log and a command, through a pod that runs there.
async fn through_a_pod(client: &Client, node: &str, args: &DoctorArgs) -> Vec<Check> {
    let running = match fleet::pods_on(client, node).await {
        Ok(pods) => pods.into_iter().find(is_ready),
        Err(error) => return vec![Check::new("logs", Verdict::Skipped, format!("{error:#}"))],
    };
    let Some(pod) = running else {
        return vec![Check::new("logs and exec", Verdict::Skipped, "no pod is ready on the node")];
    };
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let container = pod.spec.as_ref().and_then(|s| s.containers.first()).map(|c| c.name.clone());
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let params = LogParams { container: container.clone(), tail_lines: Some(1), ..LogParams::default() };
    let seen = format!("of pod {namespace}/{name}");
    let mut checks =
        vec![judge::round_trip("logs", within(pods.logs(&name, &params)).await.map(|_| seen.clone()).map_err(refusal))];
    if args.no_exec {
        checks.push(Check::new("exec", Verdict::Skipped, "--no-exec"));
    } else if may_exec(client, &namespace).await == Some(false) {
        checks.push(Check::new("exec", Verdict::Skipped, format!("you may not create pods/exec in {namespace}")));
    } else {
        let container = container.unwrap_or_default();
        checks.push(judge::round_trip("exec", exec(client, &namespace, &name, &container).await.map(|()| seen)));
    }
    checks
}

async fn may_exec(client: &Client, namespace: &str) -> Option<bool> {
    let review = json!({"spec": {"resourceAttributes": {
        "verb": "create", "resource": "pods", "subresource": "exec", "namespace": namespace}}});
    let review = serde_json::from_value(review).ok()?;
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    within(reviews.create(&PostParams::default(), &review)).await.ok()?.status.map(|s| s.allowed)
}

/// Runs `true`, far enough to see that the way is open: the answer 101 comes once the node has agreed.
async fn exec(client: &Client, namespace: &str, pod: &str, container: &str) -> Result<(), (u16, String)> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/exec?command=true&container={container}&stdout=true");
    let request = Request::get(path)
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "v5.channel.k8s.io")
        .header("sec-websocket-key", websocket_key())
        .body(Body::empty());
    let request = request.map_err(|e| (0, e.to_string()))?;
    let answer = within(client.send(request)).await.map_err(refusal)?;
    if answer.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        return Ok(());
    }
    let code = answer.status().as_u16();
    let body = tokio::time::timeout(fleet::DEADLINE, http_body_util::BodyExt::collect(answer.into_body())).await;
    let text = match body {
        Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        _ => String::new(),
    };
    let status: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let message = status.as_ref().and_then(|s| s["message"].as_str()).map(str::to_owned);
    Err((code, message.unwrap_or(text)))
}

/// Sixteen bytes, as RFC 6455 wants them.
fn websocket_key() -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>())
}
