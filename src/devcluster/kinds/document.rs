//! The table of built-in kinds as documentation shows it.

use std::fmt::Write;

use super::{Kind, builtin};

/// What the cluster does with objects of a kind, beyond keeping them.
fn acted_on(kind: &Kind) -> &'static str {
    match (&*kind.group, &*kind.plural) {
        ("", "namespaces") => "emptied when deleted",
        ("", "nodes") => "node lifecycle, scheduler",
        ("", "pods") => "scheduler, taint eviction, pod garbage collection; run by the node",
        ("", "bindings") => "places a pod",
        ("", "services") => "addresses, EndpointSlices and Endpoints",
        ("", "serviceaccounts") => "tokens; `default` in every namespace",
        ("", "configmaps" | "secrets" | "events") | ("events.k8s.io", "events") => "needs nothing",
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets") | ("batch", "jobs" | "cronjobs") => {
            "its controller"
        }
        ("apps", "controllerrevisions") => "kept by its owners",
        ("apiextensions.k8s.io", _) => "its kinds are served",
        ("authentication.k8s.io" | "authorization.k8s.io", _) => "answered at once",
        ("certificates.k8s.io", _) => {
            "signed once approved: `kube-apiserver-client`, `kube-apiserver-client-kubelet`, `kubelet-serving`"
        }
        ("coordination.k8s.io", _) => "node lifecycle",
        ("", "endpoints") | ("discovery.k8s.io", _) => "written for Services",
        ("metrics.k8s.io", _) => "read from the nodes when asked for",
        ("policy", _) => "honoured by evictions",
        ("rbac.authorization.k8s.io", _) => "enforced",
        ("scheduling.k8s.io", _) => "order of scheduling, no preemption",
        _ => "",
    }
}

/// The built-in kinds as a table in Markdown.
///
/// ```
/// assert!(vnode_devcluster::supported_kinds().contains("| Pod |"));
/// ```
pub fn supported_kinds() -> String {
    let mut table = String::from(
        "| Group | Kind | Short names | Subresources | What the cluster does with it |\n|---|---|---|---|---|\n",
    );
    for kind in builtin::table() {
        let group = if kind.group.is_empty() { "core".to_owned() } else { format!("`{}`", kind.group) };
        let list = |items: Vec<&str>| items.iter().map(|item| format!("`{item}`")).collect::<Vec<_>>().join(", ");
        let short = list(kind.short_names.iter().map(|name| &**name).collect());
        let subresources = list(kind.subresources.iter().map(|sub| sub.name).collect());
        let acted = if acted_on(&kind).is_empty() { "keeps it" } else { acted_on(&kind) };
        // Writing into a string cannot fail.
        let _ = writeln!(table, "| {group} {} | {} | {short} | {subresources} | {acted} |", kind.version, kind.kind);
    }
    table
}
