//! The roles and bindings that every cluster is born with.

use serde_json::{Value, json};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const ALL: &[&str] = &["*"];
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";

fn rule(verbs: &[&str], group: &str, resources: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": [group], "resources": resources})
}

fn paths(paths: &[&str]) -> Value {
    json!({"verbs": ["get"], "nonResourceURLs": paths})
}

fn role(name: &str, rules: Vec<Value>) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}},
        "rules": rules})
}

/// A role whose rules are those of all roles with its label.
fn aggregate(name: &str) -> Value {
    let mut role = role(name, Vec::new());
    role["aggregationRule"] =
        json!({"clusterRoleSelectors": [{"matchLabels": {format!("{AGGREGATE}{name}"): "true"}}]});
    role
}

/// A role that adds to an aggregated one.
fn part(of: &str, rules: Vec<Value>) -> Value {
    let mut role = role(&format!("system:aggregate-to-{of}"), rules);
    role["metadata"]["labels"][format!("{AGGREGATE}{of}")] = "true".into();
    role
}

/// Each aggregated role contains the one below it.
fn chain(mut aggregate: Value, into: &str) -> Value {
    aggregate["metadata"]["labels"][format!("{AGGREGATE}{into}")] = "true".into();
    aggregate
}

/// Whose client certificate requests for nodes are approved without a human. Bound to nobody at first.
fn signers(name: &str, subresource: &str) -> Value {
    let resource = format!("certificatesigningrequests/{subresource}");
    role(name, vec![rule(&["create"], "certificates.k8s.io", &[&resource])])
}

fn approver(signer: &str) -> Value {
    let mut rule = rule(&["approve"], "certificates.k8s.io", &["signers"]);
    rule["resourceNames"] = json!([format!("kubernetes.io/{signer}")]);
    role(&format!("system:certificates.k8s.io:{signer}-approver"), vec![rule])
}

/// What metrics-server brings along: usage may be seen by all who may see pods.
fn metrics_reader() -> Value {
    let mut role = role("system:aggregated-metrics-reader", vec![rule(READ, "metrics.k8s.io", &["pods", "nodes"])]);
    role["metadata"]["labels"] = json!({"k8s-app": "metrics-server"});
    for of in ["view", "edit", "admin"] {
        role["metadata"]["labels"][format!("{AGGREGATE}{of}")] = "true".into();
    }
    role
}

pub(crate) fn cluster_roles() -> Vec<Value> {
    let node = vec![
        rule(&["create", "get", "list", "watch", "delete", "patch", "update"], "", &["nodes"]),
        rule(&["patch", "update"], "", &["nodes/status"]),
        rule(&["get", "list", "watch", "create", "delete"], "", &["pods"]),
        rule(&["patch", "update"], "", &["pods/status"]),
        rule(&["create"], "", &["pods/eviction"]),
        rule(READ, "", &["services", "configmaps", "secrets", "persistentvolumeclaims", "persistentvolumes"]),
        rule(&["get", "create"], "", &["serviceaccounts", "serviceaccounts/token"]),
        rule(&["create", "patch", "update"], "", &["events"]),
        rule(&["create", "patch", "update"], "events.k8s.io", &["events"]),
        rule(&["create", "delete", "get", "patch", "update"], "coordination.k8s.io", &["leases"]),
        rule(&["get", "patch", "update"], "", &["persistentvolumeclaims/status"]),
        rule(&["create", "delete", "get", "patch", "update"], "storage.k8s.io", &["csinodes"]),
        rule(&["create"], "authentication.k8s.io", &["tokenreviews"]),
        rule(&["create"], "authorization.k8s.io", &["localsubjectaccessreviews", "subjectaccessreviews"]),
        rule(READ, "node.k8s.io", &["runtimeclasses"]),
        rule(READ, "storage.k8s.io", &["csidrivers", "csinodes", "volumeattachments"]),
        rule(&["create", "get", "list", "watch"], "certificates.k8s.io", &["certificatesigningrequests"]),
    ];
    vec![
        role("cluster-admin", vec![rule(ALL, "*", ALL), json!({"verbs": ["*"], "nonResourceURLs": ["*"]})]),
        aggregate("admin"),
        chain(aggregate("edit"), "admin"),
        chain(aggregate("view"), "edit"),
        part("view", view()),
        part("edit", edit()),
        part(
            "admin",
            vec![
                rule(&["create"], "authorization.k8s.io", &["localsubjectaccessreviews"]),
                rule(&[READ, WRITE].concat(), "rbac.authorization.k8s.io", &["roles", "rolebindings"]),
            ],
        ),
        role(
            "system:discovery",
            vec![paths(&[
                "/api",
                "/api/*",
                "/apis",
                "/apis/*",
                "/healthz",
                "/livez",
                "/openapi",
                "/openapi/*",
                "/readyz",
                "/version",
                "/version/",
            ])],
        ),
        role("system:public-info-viewer", vec![paths(&["/healthz", "/livez", "/readyz", "/version", "/version/"])]),
        role("system:monitoring", vec![paths(&["/metrics", "/livez/*", "/readyz/*", "/healthz/*", "/metrics/slis"])]),
        role(
            "system:basic-user",
            vec![
                rule(&["create"], "authorization.k8s.io", &["selfsubjectaccessreviews", "selfsubjectrulesreviews"]),
                rule(&["create"], "authentication.k8s.io", &["selfsubjectreviews"]),
            ],
        ),
        role(
            "system:auth-delegator",
            vec![
                rule(&["create"], "authentication.k8s.io", &["tokenreviews"]),
                rule(&["create"], "authorization.k8s.io", &["subjectaccessreviews"]),
            ],
        ),
        role(
            "system:kubelet-api-admin",
            vec![
                rule(READ, "", &["nodes"]),
                rule(&["proxy"], "", &["nodes"]),
                rule(
                    ALL,
                    "",
                    &[
                        "nodes/proxy",
                        "nodes/stats",
                        "nodes/log",
                        "nodes/metrics",
                        "nodes/spec",
                        "nodes/healthz",
                        "nodes/checkpoint",
                        "nodes/configz",
                        "nodes/pods",
                    ],
                ),
            ],
        ),
        role("system:node", node),
        metrics_reader(),
        role(
            "system:node-bootstrapper",
            vec![rule(&["create", "get", "list", "watch"], "certificates.k8s.io", &["certificatesigningrequests"])],
        ),
        signers("system:certificates.k8s.io:certificatesigningrequests:nodeclient", "nodeclient"),
        signers("system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", "selfnodeclient"),
        approver("kube-apiserver-client"),
        approver("kube-apiserver-client-kubelet"),
        approver("kubelet-serving"),
        role(
            "system:service-account-issuer-discovery",
            vec![paths(&[
                "/.well-known/openid-configuration",
                "/.well-known/openid-configuration/",
                "/openid/v1/jwks",
                "/openid/v1/jwks/",
            ])],
        ),
    ]
}

const WORKLOADS: &[&str] = &[
    "daemonsets",
    "deployments",
    "deployments/scale",
    "replicasets",
    "replicasets/scale",
    "statefulsets",
    "statefulsets/scale",
];

fn view() -> Vec<Value> {
    vec![
        rule(
            READ,
            "",
            &[
                "configmaps",
                "endpoints",
                "persistentvolumeclaims",
                "persistentvolumeclaims/status",
                "pods",
                "replicationcontrollers",
                "replicationcontrollers/scale",
                "serviceaccounts",
                "services",
                "services/status",
                "bindings",
                "events",
                "limitranges",
                "namespaces/status",
                "pods/log",
                "pods/status",
                "replicationcontrollers/status",
                "resourcequotas",
                "resourcequotas/status",
                "namespaces",
            ],
        ),
        rule(READ, "discovery.k8s.io", &["endpointslices"]),
        rule(
            READ,
            "apps",
            &[
                WORKLOADS,
                &[
                    "controllerrevisions",
                    "daemonsets/status",
                    "deployments/status",
                    "replicasets/status",
                    "statefulsets/status",
                ],
            ]
            .concat(),
        ),
        rule(READ, "batch", &["cronjobs", "cronjobs/status", "jobs", "jobs/status"]),
        rule(READ, "policy", &["poddisruptionbudgets", "poddisruptionbudgets/status"]),
        rule(READ, "networking.k8s.io", &["ingresses", "ingresses/status", "networkpolicies"]),
        rule(READ, "coordination.k8s.io", &["leases"]),
        rule(READ, "events.k8s.io", &["events"]),
    ]
}

fn edit() -> Vec<Value> {
    vec![
        rule(READ, "", &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"]),
        rule(&["impersonate"], "", &["serviceaccounts"]),
        rule(
            WRITE,
            "",
            &[
                "pods",
                "pods/attach",
                "pods/exec",
                "pods/portforward",
                "pods/proxy",
                "configmaps",
                "endpoints",
                "events",
                "persistentvolumeclaims",
                "replicationcontrollers",
                "replicationcontrollers/scale",
                "secrets",
                "serviceaccounts",
                "services",
                "services/proxy",
            ],
        ),
        rule(&["create"], "", &["pods/eviction", "serviceaccounts/token"]),
        rule(WRITE, "apps", &[WORKLOADS, &["deployments/rollback"]].concat()),
        rule(WRITE, "batch", &["cronjobs", "jobs"]),
        rule(WRITE, "policy", &["poddisruptionbudgets"]),
        rule(WRITE, "networking.k8s.io", &["ingresses", "networkpolicies"]),
        rule(WRITE, "coordination.k8s.io", &["leases"]),
        rule(WRITE, "events.k8s.io", &["events"]),
    ]
}

/// Cluster role, then the groups that have it.
pub(crate) fn cluster_bindings() -> Vec<Value> {
    let bind = |role: &str, groups: &[&str]| {
        let subjects: Vec<_> = groups
            .iter()
            .map(|g| json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": g}))
            .collect();
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": role, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
                "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": subjects})
    };
    let authenticated = &["system:authenticated"];
    vec![
        bind("cluster-admin", &["system:masters"]),
        bind("system:discovery", authenticated),
        bind("system:basic-user", authenticated),
        bind("system:public-info-viewer", &["system:authenticated", "system:unauthenticated"]),
        bind("system:monitoring", &["system:monitoring"]),
        bind("system:service-account-issuer-discovery", &["system:serviceaccounts"]),
        // The Node authorizer gives nodes their rules; the binding is there, as in Kubernetes, and binds nobody.
        bind("system:node", &[]),
    ]
}

/// Namespaced roles: readers of what the API server publishes for extensions.
pub(crate) fn roles() -> Vec<Value> {
    vec![json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "extension-apiserver-authentication-reader", "namespace": "kube-system",
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}},
        "rules": [{"verbs": READ, "apiGroups": [""], "resources": ["configmaps"],
            "resourceNames": ["extension-apiserver-authentication"]}]})]
}
