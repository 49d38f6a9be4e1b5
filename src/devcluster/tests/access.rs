//! Who may do what: nodes, roles, impersonation, reviews, usage and disruption budgets.

use std::time::Duration;

use crate::common::{client, kubelet_tls, request, request_with, start};
use kube::Client;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

pub(crate) async fn create(client: &Client, path: &str, object: Value) -> Value {
    let (code, answer) = request(client, "POST", path, object).await;
    assert_eq!(code, 201, "{answer}");
    answer
}

pub(crate) async fn forbidden(client: &Client, method: &str, path: &str, body: Value, message: &str) {
    let (code, answer) = request(client, method, path, body).await;
    assert_eq!((code, answer["message"].as_str()), (403, Some(message)), "{method} {path}: {answer}");
}

/// Asks again until `done` says so.
pub(crate) async fn until(client: &Client, path: &str, done: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..200 {
        let (_, answer) = request(client, "GET", path, Value::Null).await;
        if done(&answer) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{path} never became what it should");
}

pub(crate) async fn bind(admin: &Client, name: &str, role: &str, user: &str) {
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": name}, "roleRef": {"kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "name": user}]});
    create(admin, &format!("{RBAC}/clusterrolebindings"), binding).await;
}

async fn namespace_with_pods(admin: &Client) {
    for name in ["n", "m"] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        create(admin, "/api/v1/nodes", node).await;
    }
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    create(admin, "/api/v1/namespaces/default/serviceaccounts", account).await;
    for name in ["s1", "s2"] {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
        create(admin, "/api/v1/namespaces/default/secrets", secret).await;
    }
    for (name, node, secret) in [("own", "n", "s1"), ("other", "m", "s2")] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "x"}},
            "spec": {"nodeName": node,
                "containers": [{"name": "c", "image": "x", "envFrom": [{"secretRef": {"name": secret}}]}]}});
        create(admin, "/api/v1/namespaces/default/pods", pod).await;
    }
}

#[tokio::test]
async fn a_node_keeps_to_itself_and_its_pods() {
    let (cluster, admin) = start(false).await;
    namespace_with_pods(&admin).await;
    let node = client(&cluster.kubeconfig("system:node:n", &["system:nodes"]).unwrap()).await;
    let at = |path: &str| format!("/api/v1/namespaces/default/{path}");
    for (method, path, body) in [
        ("GET", at("secrets/s1"), Value::Null),
        ("GET", at("pods/own"), Value::Null),
        ("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn".into(), Value::Null),
        ("GET", "/api/v1/nodes?fieldSelector=metadata.name%3Dn".into(), Value::Null),
        ("PATCH", at("pods/own/status"), json!({"status": {"phase": "Running"}})),
        ("PATCH", "/api/v1/nodes/n".into(), json!({"metadata": {"labels": {"a": "b"}}})),
    ] {
        let (code, answer) = request(&node, method, &path, body).await;
        assert_eq!(code, 200, "{method} {path}: {answer}");
    }
    let user = "User \"system:node:n\"";
    let unrelated = "no relationship found between node 'n' and this object";
    for (method, path, body, message) in [
        (
            "GET",
            at("secrets/s2"),
            Value::Null,
            format!("secrets \"s2\" is forbidden: {user} cannot get resource \"secrets\" in API group \"\" in the namespace \"default\": {unrelated}"),
        ),
        (
            "GET",
            at("secrets"),
            Value::Null,
            format!("secrets is forbidden: {user} cannot list resource \"secrets\" in API group \"\" in the namespace \"default\": No Object name found"),
        ),
        (
            "GET",
            "/api/v1/pods".into(),
            Value::Null,
            format!("pods is forbidden: {user} cannot list resource \"pods\" in API group \"\" at the cluster scope: can only list/watch pods with spec.nodeName field selector"),
        ),
        (
            "PATCH",
            "/api/v1/nodes/m/status".into(),
            json!({"status": {"phase": "x"}}),
            "nodes \"m\" is forbidden: node \"n\" is not allowed to modify node \"m\"".into(),
        ),
        (
            "PATCH",
            "/api/v1/nodes/n".into(),
            json!({"metadata": {"labels": {"node-role.kubernetes.io/x": ""}}}),
            "nodes \"n\" is forbidden: is not allowed to modify labels: node-role.kubernetes.io/x".into(),
        ),
        (
            "PATCH",
            "/api/v1/nodes/n".into(),
            json!({"spec": {"taints": []}}),
            "nodes \"n\" is forbidden: node \"n\" is not allowed to modify taints".into(),
        ),
        (
            "PATCH",
            at("pods/other/status"),
            json!({"status": {"phase": "Running"}}),
            "pods \"other\" is forbidden: node \"n\" can only update pod status for pods with spec.nodeName set to itself".into(),
        ),
        (
            "PATCH",
            at("pods/own/status"),
            json!({"metadata": {"labels": {"x": "y"}}}),
            "pods \"own\" is forbidden: node \"n\" cannot update labels through pod status".into(),
        ),
        (
            "DELETE",
            at("pods/other"),
            Value::Null,
            "pods \"other\" is forbidden: node \"n\" can only delete pods with spec.nodeName set to itself".into(),
        ),
        (
            "POST",
            at("pods/other/eviction"),
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "other"}}),
            "pods \"other\" is forbidden: node n can only evict pods with spec.nodeName set to itself".into(),
        ),
        (
            "POST",
            at("serviceaccounts/default/token"),
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}),
            "serviceaccounts \"default\" is forbidden: node requested token not bound to a pod".into(),
        ),
    ] {
        forbidden(&node, method, &path, body, &message).await;
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn nobody_grants_more_than_they_have() {
    let (cluster, admin) = start(false).await;
    let role = |kind: &str, name: &str, rules: Value| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "rules": rules});
    let pods = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
    let writer = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "verbs": ["create", "get", "patch"],
        "resources": ["roles", "rolebindings", "clusterroles", "clusterrolebindings"]}, pods]);
    create(&admin, &format!("{RBAC}/clusterroles"), role("ClusterRole", "writer", writer)).await;
    bind(&admin, "writer", "writer", "eve").await;
    let eve = client(&cluster.kubeconfig("eve", &[]).unwrap()).await;
    let roles = format!("{RBAC}/namespaces/default/roles");
    create(&eve, &roles, role("Role", "fine", json!([pods]))).await;
    let more = json!([{"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get", "list"]}]);
    let escalates = "is forbidden: user \"eve\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC \
                     permissions not currently held:\n";
    let lacking = "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\"]}\n\
                   {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}";
    let message = format!("roles.rbac.authorization.k8s.io \"more\" {escalates}{lacking}");
    forbidden(&eve, "POST", &roles, role("Role", "more", more.clone()), &message).await;
    let message = format!("roles.rbac.authorization.k8s.io \"fine\" {escalates}{lacking}");
    forbidden(&eve, "PATCH", &format!("{roles}/fine"), json!({"rules": more}), &message).await;
    let (code, _) = request(&eve, "PATCH", &format!("{roles}/fine"), json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!(code, 200);

    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "name": "eve"}]});
    let bindings = format!("{RBAC}/clusterrolebindings");
    let message = format!(
        "clusterrolebindings.rbac.authorization.k8s.io \"b\" {escalates}{{APIGroups:[\"*\"], Resources:[\"*\"], \
         Verbs:[\"*\"]}}\n{{NonResourceURLs:[\"*\"], Verbs:[\"*\"]}}"
    );
    forbidden(&eve, "POST", &bindings, binding.clone(), &message).await;
    let aggregated = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "agg"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
    let message = "clusterroles.rbac.authorization.k8s.io \"agg\" is forbidden: must have cluster-admin privileges to \
                   use the aggregationRule";
    forbidden(&eve, "POST", &format!("{RBAC}/clusterroles"), aggregated.clone(), message).await;

    let verbs = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "verbs": ["bind", "escalate"],
        "resources": ["roles", "clusterroles"]}]);
    create(&admin, &format!("{RBAC}/clusterroles"), role("ClusterRole", "may", verbs)).await;
    bind(&admin, "may", "may", "eve").await;
    create(&eve, &roles, role("Role", "more", more)).await;
    create(&eve, &bindings, binding).await;

    create(&admin, &format!("{RBAC}/clusterroles"), aggregated).await;
    let mut part = role("ClusterRole", "part", json!([pods]));
    part["metadata"]["labels"] = json!({"a": "b"});
    create(&admin, &format!("{RBAC}/clusterroles"), part).await;
    let filled = until(&admin, &format!("{RBAC}/clusterroles/agg"), |r| r["rules"][0].is_object()).await;
    assert_eq!(filled["rules"], json!([pods]));
    cluster.shutdown().await;
}

#[tokio::test]
async fn impersonation_is_granted_part_by_part() {
    let (cluster, admin) = start(false).await;
    let rules = json!([{"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": ["jane"]},
        {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": ["g"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["uids"], "verbs": ["impersonate"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"], "verbs": ["impersonate"],
            "resourceNames": ["a"]}]);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "imp"},
        "rules": rules});
    create(&admin, &format!("{RBAC}/clusterroles"), role).await;
    bind(&admin, "imp", "imp", "imp").await;
    let imp = client(&cluster.kubeconfig("imp", &[]).unwrap()).await;
    let reviews = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let review = || json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let (code, who) = request_with(
        &imp,
        "POST",
        reviews,
        &[
            ("impersonate-user", "jane"),
            ("impersonate-group", "g"),
            ("impersonate-uid", "u"),
            ("impersonate-extra-scopes", "a"),
        ],
        review(),
    )
    .await;
    assert_eq!(code, 201, "{who}");
    assert_eq!(
        who["status"]["userInfo"],
        json!({"username": "jane", "uid": "u", "groups": ["g", "system:authenticated"], "extra": {"scopes": ["a"]}})
    );
    for (headers, code, message) in [
        (
            &[("impersonate-user", "bob")][..],
            403,
            "users \"bob\" is forbidden: User \"imp\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
        ),
        (
            &[("impersonate-user", "jane"), ("impersonate-group", "system:masters")],
            403,
            "groups \"system:masters\" is forbidden: User \"imp\" cannot impersonate resource \"groups\" in API group \"\" at the cluster scope",
        ),
        (
            &[("impersonate-user", "jane"), ("impersonate-extra-scopes", "v")],
            403,
            "userextras.authentication.k8s.io \"v\" is forbidden: User \"imp\" cannot impersonate resource \"userextras/scopes\" in API group \"authentication.k8s.io\" at the cluster scope",
        ),
        (
            &[("impersonate-group", "a")],
            400,
            "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"a\"}, Extra:map[string][]string(nil)} without impersonating a user name",
        ),
    ] {
        let (got, answer) = request_with(&imp, "POST", reviews, headers, review()).await;
        assert_eq!((got, answer["message"].as_str()), (code, Some(message)));
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn reviews_answer_with_reasons() {
    let (cluster, admin) = start(false).await;
    namespace_with_pods(&admin).await;
    bind(&admin, "viewers", "view", "jane").await;
    let review = |kind: &str, spec: Value| json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": {}, "spec": spec});
    let authz = "/apis/authorization.k8s.io/v1";
    let pods = json!({"verb": "get", "resource": "pods", "namespace": "default"});
    let secret = |name: &str| json!({"verb": "get", "resource": "secrets", "namespace": "default", "name": name});
    let because = "RBAC: allowed by ClusterRoleBinding \"viewers\" of ClusterRole \"view\" to User \"jane\"";
    for (spec, status) in [
        (json!({"user": "jane", "resourceAttributes": pods}), json!({"allowed": true, "reason": because})),
        (json!({"user": "joe", "resourceAttributes": pods}), json!({"allowed": false})),
        (
            json!({"user": "system:node:n", "groups": ["system:nodes"], "resourceAttributes": secret("s2")}),
            json!({"allowed": false, "reason": "no relationship found between node 'n' and this object"}),
        ),
        (
            json!({"user": "system:node:n", "groups": ["system:nodes"], "resourceAttributes": secret("s1")}),
            json!({"allowed": true}),
        ),
    ] {
        let made = create(&admin, &format!("{authz}/subjectaccessreviews"), review("SubjectAccessReview", spec)).await;
        assert_eq!(made["status"], status);
    }
    let local = format!("{authz}/namespaces/default/localsubjectaccessreviews");
    for (spec, message) in [
        (
            json!({"user": "jane", "resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "x"}}),
            ".authorization.k8s.io \"\" is invalid: spec.resourceAttributes.namespace: Invalid value: \"x\": must match metadata.namespace",
        ),
        (
            json!({"user": "jane", "nonResourceAttributes": {"verb": "get", "path": "/x"}}),
            ".authorization.k8s.io \"\" is invalid: spec.nonResourceAttributes: Invalid value: {\"Path\":\"/x\",\"Verb\":\"get\"}: disallowed on this kind of request",
        ),
    ] {
        let mut review = review("LocalSubjectAccessReview", spec);
        review["metadata"]["namespace"] = "default".into();
        let (code, answer) = request(&admin, "POST", &local, review).await;
        assert_eq!((code, answer["message"].as_str()), (422, Some(message)));
    }
    let jane = client(&cluster.kubeconfig("jane", &[]).unwrap()).await;
    let rules = format!("{authz}/selfsubjectrulesreviews");
    let made = create(&jane, &rules, review("SelfSubjectRulesReview", json!({"namespace": "default"}))).await;
    let held = made["status"]["resourceRules"].as_array().unwrap();
    assert!(held.iter().any(|rule| rule["resources"].as_array().unwrap().contains(&json!("pods/log"))), "{held:?}");
    let (code, answer) = request(&jane, "POST", &rules, review("SelfSubjectRulesReview", json!({}))).await;
    assert_eq!((code, answer["message"].as_str()), (400, Some("no namespace on request")));
    cluster.shutdown().await;
}

#[tokio::test]
async fn usage_is_read_from_the_nodes() {
    let (cluster, admin) = start(false).await;
    namespace_with_pods(&admin).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = kubelet_tls(&cluster.admin_kubeconfig().unwrap());
    tokio::spawn(async move {
        for asked in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tls.accept(stream).await.unwrap();
            crate::common::head(&mut stream).await;
            let ms = 1_700_000_000_000_u64 + asked * 10_000;
            let container = "container=\"c\",namespace=\"default\",pod=\"own\"";
            let cpu = asked * 5;
            let body = format!(
                "node_cpu_usage_seconds_total {cpu} {ms}\nnode_memory_working_set_bytes 2097152 {ms}\n\
                 container_cpu_usage_seconds_total{{{container}}} {cpu} {ms}\n\
                 container_memory_working_set_bytes{{{container}}} 1048576 {ms}\n"
            );
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    request(&admin, "PATCH", "/api/v1/nodes/n/status", status).await;
    let metrics = "/apis/metrics.k8s.io/v1beta1";
    let (code, list) = request(&admin, "GET", &format!("{metrics}/nodes"), Value::Null).await;
    assert_eq!((code, &list["kind"]), (200, &json!("NodeMetricsList")), "{list}");
    let names: Vec<_> = list["items"].as_array().unwrap().iter().map(|i| &i["metadata"]["name"]).collect();
    assert_eq!(names, ["n"], "a node that does not answer is left out");
    assert_eq!(list["items"][0]["usage"], json!({"cpu": "500000000n", "memory": "2048Ki"}));
    assert_eq!(list["items"][0]["window"], "10s");
    let pods = format!("{metrics}/namespaces/default/pods");
    let (_, list) = request(&admin, "GET", &format!("{pods}?labelSelector=app%3Dx"), Value::Null).await;
    let item = &list["items"][0];
    assert_eq!(item["metadata"]["labels"], json!({"app": "x"}));
    let container = json!({"name": "c", "usage": {"cpu": "500000000n", "memory": "1024Ki"}});
    assert_eq!(item["containers"], json!([container]));
    let (_, none) = request(&admin, "GET", &format!("{pods}?labelSelector=app%3Dy"), Value::Null).await;
    assert_eq!(none["items"], json!([]));
    let (code, answer) = request(&admin, "GET", &format!("{pods}/other"), Value::Null).await;
    let wanted = "podmetrics.metrics.k8s.io \"default/other\" not found";
    assert_eq!((code, answer["message"].as_str()), (404, Some(wanted)));
    let service = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io";
    let (_, service) = request(&admin, "GET", service, Value::Null).await;
    assert_eq!(service["status"]["conditions"][0]["status"], "True", "{service}");
    cluster.shutdown().await;
}

#[tokio::test]
async fn an_eviction_that_a_budget_forbids_is_refused_for_now() {
    let (cluster, admin) = start(true).await;
    let account = "/api/v1/namespaces/default/serviceaccounts/default";
    until(&admin, account, |account| account["kind"] == "ServiceAccount").await;
    let pods = "/api/v1/namespaces/default/pods";
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    create(&admin, "/api/v1/nodes", node).await;
    for name in ["a", "b"] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "x"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "x"}]}});
        create(&admin, pods, pod).await;
        let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        let (code, answer) = request(&admin, "PATCH", &format!("{pods}/{name}/status"), status).await;
        assert_eq!(code, 200, "{answer}");
    }
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}});
    create(&admin, budgets, budget).await;
    let kept = until(&admin, &format!("{budgets}/b"), |b| b["status"]["disruptionsAllowed"] == 1).await;
    assert_eq!(kept["status"]["currentHealthy"], 2);
    assert_eq!(kept["status"]["desiredHealthy"], 1);
    let evict = |name: &str| {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        let (admin, path) = (admin.clone(), format!("{pods}/{name}/eviction"));
        async move { request(&admin, "POST", &path, eviction).await }
    };
    let (code, answer) = evict("a").await;
    assert_eq!(code, 201, "{answer}");
    until(&admin, &format!("{budgets}/b"), |b| b["status"]["disruptionsAllowed"] == 0).await;
    let (code, answer) = evict("b").await;
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    assert_eq!(
        (code, answer["message"].as_str(), answer["reason"].as_str()),
        (429, Some(message), Some("TooManyRequests"))
    );
    let cause = json!({"reason": "DisruptionBudget",
        "message": "The disruption budget b needs 1 healthy pods and has 1 currently"});
    assert_eq!(answer["details"]["causes"], json!([cause]));
    cluster.shutdown().await;
}
