//! The table of built-in kinds.

use super::{ALL_VERBS, Kind, Subresource, common_fields, field};
use crate::schema;
use crate::store::ResourceId;

/// One line of the table.
struct Row {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    namespaced: bool,
    verbs: &'static [&'static str],
    /// Path of the definition's name between `io.k8s.` and the kind.
    definition: &'static str,
    status: bool,
    generation: bool,
    fields: &'static [(&'static str, &'static str)],
    subresources: &'static [Sub],
}

type Sub = (&'static str, &'static str, &'static str, &'static str, &'static [&'static str]);

const RW: &[&str] = &["get", "patch", "update"];
const READ: &[&str] = &["get", "list"];
const CREATE: &[&str] = &["create"];
const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const SCALE: Sub = ("scale", "autoscaling", "v1", "Scale", RW);
/// Namespaces have no deletecollection, so that one request cannot empty a cluster.
const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];

const N: bool = true;
const C: bool = false;

const fn row(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str, ns: bool) -> Row {
    Row {
        group,
        version,
        kind,
        plural,
        short: &[],
        categories: &[],
        namespaced: ns,
        verbs: ALL_VERBS,
        definition: "",
        status: false,
        generation: false,
        fields: &[],
        subresources: &[],
    }
}

impl Row {
    const fn short(mut self, short: &'static [&'static str]) -> Self {
        self.short = short;
        self
    }
    const fn of(mut self, definition: &'static str) -> Self {
        self.definition = definition;
        self
    }
    const fn all(mut self) -> Self {
        self.categories = &["all"];
        self
    }
    const fn categories(mut self, categories: &'static [&'static str]) -> Self {
        self.categories = categories;
        self
    }
    const fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }
    const fn status(mut self) -> Self {
        self.status = true;
        self
    }
    const fn generation(mut self) -> Self {
        self.generation = true;
        self
    }
    const fn fields(mut self, fields: &'static [(&'static str, &'static str)]) -> Self {
        self.fields = fields;
        self
    }
    const fn subs(mut self, subresources: &'static [Sub]) -> Self {
        self.subresources = subresources;
        self
    }
    /// Only `create` is possible and nothing is stored.
    const fn review(self) -> Self {
        self.verbs(CREATE)
    }
}

const CORE: &str = "api.core.v1";
const APPS: &str = "api.apps.v1";
const BATCH: &str = "api.batch.v1";
const RBAC: &str = "api.rbac.v1";
const NET: &str = "api.networking.v1";
const STORAGE: &str = "api.storage.v1";
const AUTHN: &str = "api.authentication.v1";
const AUTHZ: &str = "api.authorization.v1";

const POD_FIELDS: &[(&str, &str)] = &[
    ("spec.nodeName", ""),
    ("spec.restartPolicy", ""),
    ("spec.schedulerName", ""),
    ("spec.serviceAccountName", ""),
    ("spec.hostNetwork", "false"),
    ("status.phase", ""),
    ("status.podIP", ""),
    ("status.nominatedNodeName", ""),
];

const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject.kind", ""),
    ("involvedObject.namespace", ""),
    ("involvedObject.name", ""),
    ("involvedObject.uid", ""),
    ("involvedObject.apiVersion", ""),
    ("involvedObject.resourceVersion", ""),
    ("involvedObject.fieldPath", ""),
    ("reason", ""),
    ("reportingComponent", ""),
    ("source", ""),
    ("type", ""),
];

const POD_SUBS: &[Sub] = &[
    ("attach", "", "v1", "PodAttachOptions", CONNECT),
    ("binding", "", "v1", "Binding", CREATE),
    ("ephemeralcontainers", "", "v1", "Pod", RW),
    ("eviction", "policy", "v1", "Eviction", CREATE),
    ("exec", "", "v1", "PodExecOptions", CONNECT),
    ("log", "", "v1", "Pod", &["get"]),
    ("portforward", "", "v1", "PodPortForwardOptions", CONNECT),
    ("proxy", "", "v1", "PodProxyOptions", PROXY),
    ("resize", "", "v1", "Pod", RW),
];

const ROWS: &[Row] = &[
    row("", "v1", "Binding", "bindings", N).of(CORE).review(),
    row("", "v1", "ConfigMap", "configmaps", N).of(CORE).short(&["cm"]),
    row("", "v1", "Endpoints", "endpoints", N).of(CORE).short(&["ep"]),
    row("", "v1", "Event", "events", N).of(CORE).short(&["ev"]).fields(EVENT_FIELDS),
    row("", "v1", "LimitRange", "limitranges", N).of(CORE).short(&["limits"]),
    row("", "v1", "Namespace", "namespaces", C)
        .of(CORE)
        .short(&["ns"])
        .verbs(NO_COLLECTION)
        .status()
        .fields(&[("status.phase", "")])
        .subs(&[("finalize", "", "v1", "Namespace", &["update"])]),
    row("", "v1", "Node", "nodes", C)
        .of(CORE)
        .short(&["no"])
        .status()
        .fields(&[("spec.unschedulable", "false")])
        .subs(&[("proxy", "", "v1", "NodeProxyOptions", PROXY)]),
    row("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", N).of(CORE).short(&["pvc"]).status(),
    row("", "v1", "PersistentVolume", "persistentvolumes", C).of(CORE).short(&["pv"]).status(),
    row("", "v1", "Pod", "pods", N)
        .of(CORE)
        .short(&["po"])
        .all()
        .status()
        .generation()
        .fields(POD_FIELDS)
        .subs(POD_SUBS),
    row("", "v1", "PodTemplate", "podtemplates", N).of(CORE).generation(),
    row("", "v1", "ReplicationController", "replicationcontrollers", N)
        .of(CORE)
        .short(&["rc"])
        .all()
        .status()
        .generation()
        .fields(&[("status.replicas", "0")])
        .subs(&[SCALE]),
    row("", "v1", "ResourceQuota", "resourcequotas", N).of(CORE).short(&["quota"]).status(),
    row("", "v1", "Secret", "secrets", N).of(CORE).fields(&[("type", "")]),
    row("", "v1", "ServiceAccount", "serviceaccounts", N).of(CORE).short(&["sa"]).subs(&[(
        "token",
        "authentication.k8s.io",
        "v1",
        "TokenRequest",
        CREATE,
    )]),
    row("", "v1", "Service", "services", N)
        .of(CORE)
        .short(&["svc"])
        .all()
        .status()
        .fields(&[("spec.clusterIP", ""), ("spec.type", "")])
        .subs(&[("proxy", "", "v1", "ServiceProxyOptions", PROXY)]),
    row("apiregistration.k8s.io", "v1", "APIService", "apiservices", C)
        .of("kube-aggregator.pkg.apis.apiregistration.v1")
        .categories(&["api-extensions"])
        .status(),
    row("apps", "v1", "ControllerRevision", "controllerrevisions", N).of(APPS),
    row("apps", "v1", "DaemonSet", "daemonsets", N).of(APPS).short(&["ds"]).all().status().generation(),
    row("apps", "v1", "Deployment", "deployments", N)
        .of(APPS)
        .short(&["deploy"])
        .all()
        .status()
        .generation()
        .subs(&[SCALE]),
    row("apps", "v1", "ReplicaSet", "replicasets", N)
        .of(APPS)
        .short(&["rs"])
        .all()
        .status()
        .generation()
        .fields(&[("status.replicas", "0")])
        .subs(&[SCALE]),
    row("apps", "v1", "StatefulSet", "statefulsets", N)
        .of(APPS)
        .short(&["sts"])
        .all()
        .status()
        .generation()
        .subs(&[SCALE]),
    row("events.k8s.io", "v1", "Event", "events", N).of("api.events.v1").short(&["ev"]).fields(EVENT_FIELDS),
    row("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", C).of(AUTHN).review(),
    row("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", C).of(AUTHN).review(),
    row("authorization.k8s.io", "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", N).of(AUTHZ).review(),
    row("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", C).of(AUTHZ).review(),
    row("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", C).of(AUTHZ).review(),
    row("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", C).of(AUTHZ).review(),
    row("batch", "v1", "CronJob", "cronjobs", N).of(BATCH).short(&["cj"]).all().status().generation(),
    row("batch", "v1", "Job", "jobs", N).of(BATCH).all().status().generation().fields(&[("status.successful", "0")]),
    row("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests", C)
        .of("api.certificates.v1")
        .short(&["csr"])
        .status()
        .fields(&[("spec.signerName", "")])
        .subs(&[("approval", "certificates.k8s.io", "v1", "CertificateSigningRequest", RW)]),
    row("networking.k8s.io", "v1", "IngressClass", "ingressclasses", C).of(NET).generation(),
    row("networking.k8s.io", "v1", "Ingress", "ingresses", N).of(NET).short(&["ing"]).status().generation(),
    row("networking.k8s.io", "v1", "IPAddress", "ipaddresses", C).of(NET).short(&["ip"]),
    row("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", C).of(NET).status(),
    row("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", N).of(NET).short(&["netpol"]).generation(),
    row("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", N)
        .of("api.policy.v1")
        .short(&["pdb"])
        .status()
        .generation(),
    row("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", C).of(RBAC),
    row("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", C).of(RBAC),
    row("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", N).of(RBAC),
    row("rbac.authorization.k8s.io", "v1", "Role", "roles", N).of(RBAC),
    row("storage.k8s.io", "v1", "CSIDriver", "csidrivers", C).of(STORAGE),
    row("storage.k8s.io", "v1", "CSINode", "csinodes", C).of(STORAGE),
    row("storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities", N).of(STORAGE),
    row("storage.k8s.io", "v1", "StorageClass", "storageclasses", C).of(STORAGE).short(&["sc"]),
    row("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", C).of(STORAGE).status(),
    row("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", C)
        .of("apiextensions-apiserver.pkg.apis.apiextensions.v1")
        .short(&["crd", "crds"])
        .categories(&["api-extensions"])
        .status()
        .generation(),
    row("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", C)
        .of("api.scheduling.v1")
        .short(&["pc"])
        .generation(),
    row("coordination.k8s.io", "v1", "Lease", "leases", N).of("api.coordination.v1"),
    row("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", C).of("api.node.v1"),
    row("metrics.k8s.io", "v1beta1", "NodeMetrics", "nodes", C).verbs(READ),
    row("metrics.k8s.io", "v1beta1", "PodMetrics", "pods", N).verbs(READ),
    row("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", N).of("api.discovery.v1").generation(),
];

/// All built-in kinds with their schemas.
pub(super) fn table() -> Vec<Kind> {
    ROWS.iter().map(kind).collect()
}

fn kind(row: &Row) -> Kind {
    let definition = format!("io.k8s.{}.{}", row.definition, row.kind);
    let event = row.plural == "events";
    let mut fields = common_fields(row.namespaced);
    fields.extend(row.fields.iter().map(|(name, default)| field(name, default)));
    for field in &mut fields {
        if event && &*field.name == "source" {
            (field.pointer, field.otherwise) = ("/source/component".into(), "/reportingComponent");
        }
        if row.group == "events.k8s.io" {
            // The objects are stored in their core form; only the names to ask by differ.
            field.name = field.name.replace("involvedObject", "regarding").into();
            if &*field.name == "reportingComponent" {
                field.name = "reportingController".into();
            }
        }
    }
    let api_version =
        if row.group.is_empty() { row.version.to_string() } else { format!("{}/{}", row.group, row.version) };
    let mut subresources: Vec<_> = row.subresources.iter().map(subresource).collect();
    if row.status {
        subresources.push(subresource(&("status", row.group, row.version, row.kind, RW)));
    }
    subresources.sort_by_key(|s| s.name);
    Kind {
        group: row.group.into(),
        version: row.version.into(),
        kind: row.kind.into(),
        list_kind: format!("{}List", row.kind).into(),
        plural: row.plural.into(),
        singular: row.kind.to_lowercase().into(),
        short_names: row.short.iter().map(|s| (*s).into()).collect(),
        categories: row.categories.iter().map(|s| (*s).into()).collect(),
        namespaced: row.namespaced,
        verbs: row.verbs,
        subresources,
        schema: schema::builtin(&definition),
        definition: definition.into(),
        fields,
        storage: if event { ResourceId::new("", "events") } else { ResourceId::new(row.group, row.plural) },
        storage_version: if event { "v1".into() } else { api_version.into() },
        generation: row.generation,
        status: row.status,
        scale: None,
        columns: None,
        deprecation: None,
        custom: false,
    }
}

fn subresource((name, group, version, kind, verbs): &Sub) -> Subresource {
    Subresource { name, group: (*group).into(), version: (*version).into(), kind: (*kind).into(), verbs }
}
