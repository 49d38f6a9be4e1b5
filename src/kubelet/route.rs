//! From a request's method and path to what it asks for and which right it needs.
//!
//! Both come from one reading of the path, so that what is permitted is what is answered. Paths are not
//! percent-decoded: no name in Kubernetes needs it, and what is not recognised needs the widest right.

use http::Method;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `/healthz` and its parts
    Healthz,
    /// `/pods`
    Pods,
    /// `/runningpods/`
    RunningPods,
    /// `/stats/summary`
    StatsSummary,
    /// `/metrics`
    Metrics,
    /// `/metrics/resource`
    MetricsResource,
    /// `/metrics/cadvisor`
    MetricsCadvisor,
    /// `/metrics/probes`
    MetricsProbes,
    /// `/configz`
    Configz,
    /// `/statusz`
    Statusz,
    /// `/flagz`
    Flagz,
    /// `/containerLogs/{namespace}/{pod}/{container}`
    ContainerLogs { namespace: &'a str, pod: &'a str, container: &'a str },
    /// `/exec/…`, `/attach/…`, `/portForward/…`, `/run/…`
    Session(SessionRoute<'a>),
    /// Anything else, in the part of the API that its first segment names.
    Unknown(Area),
}

/// Something to talk to in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SessionRoute<'a> {
    pub(super) kind: SessionKind,
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
    /// The pod's uid, when the path names it.
    pub(super) uid: Option<&'a str>,
    /// The container; `None` for a port-forward.
    pub(super) container: Option<&'a str>,
}

/// Kinds of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionKind {
    Exec,
    Attach,
    PortForward,
    Run,
}

impl SessionKind {
    fn of(segment: &str) -> Option<Self> {
        [Self::Exec, Self::Attach, Self::PortForward, Self::Run].into_iter().find(|kind| kind.name() == segment)
    }

    /// The first segment of its path, which also names it in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portForward",
            Self::Run => "run",
        }
    }
}

impl<'a> SessionRoute<'a> {
    fn of(segments: &[&'a str]) -> Option<Self> {
        let (first, rest) = segments.split_first()?;
        let kind = SessionKind::of(first)?;
        let (namespace, pod, uid, container) = match (kind, rest) {
            (SessionKind::PortForward, [namespace, pod]) => (namespace, pod, None, None),
            (SessionKind::PortForward, [namespace, pod, uid]) => (namespace, pod, Some(*uid), None),
            (SessionKind::PortForward, _) => return None,
            (_, [namespace, pod, container]) => (namespace, pod, None, Some(*container)),
            (_, [namespace, pod, uid, container]) => (namespace, pod, Some(*uid), Some(*container)),
            _ => return None,
        };
        Some(Self { kind, namespace, pod, uid, container })
    }
}

/// Parts of the API that have a right of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    Stats,
    Metrics,
    Logs,
    Checkpoint,
    Other,
}

impl<'a> Route<'a> {
    /// Reads a path.
    pub(super) fn of(path: &'a str) -> Self {
        let path = path.strip_prefix('/').unwrap_or(path);
        let segments: Vec<&str> = path.strip_suffix('/').unwrap_or(path).splitn(7, '/').collect();
        if segments.iter().any(|s| s.is_empty() || matches!(*s, "." | "..")) {
            return Self::Unknown(Area::Other);
        }
        match segments[..] {
            ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] => Self::Healthz,
            ["pods"] => Self::Pods,
            ["runningpods"] => Self::RunningPods,
            ["stats", "summary"] => Self::StatsSummary,
            ["stats", ..] => Self::Unknown(Area::Stats),
            ["metrics"] => Self::Metrics,
            ["metrics", "resource"] => Self::MetricsResource,
            ["metrics", "cadvisor"] => Self::MetricsCadvisor,
            ["metrics", "probes"] => Self::MetricsProbes,
            ["metrics", ..] => Self::Unknown(Area::Metrics),
            ["logs", ..] => Self::Unknown(Area::Logs),
            ["checkpoint", ..] => Self::Unknown(Area::Checkpoint),
            ["configz"] => Self::Configz,
            ["statusz"] => Self::Statusz,
            ["flagz"] => Self::Flagz,
            ["containerLogs", namespace, pod, container] => Self::ContainerLogs { namespace, pod, container },
            ref other => SessionRoute::of(other).map_or(Self::Unknown(Area::Other), Self::Session),
        }
    }

    /// The subresources of the node of which one must be granted, the finest first (KEP-2862).
    pub(super) fn subresources(&self) -> &'static [&'static str] {
        match self {
            Self::Healthz => &["healthz", "proxy"],
            Self::Pods | Self::RunningPods => &["pods", "proxy"],
            Self::StatsSummary | Self::Unknown(Area::Stats) => &["stats"],
            Self::Metrics
            | Self::MetricsResource
            | Self::MetricsCadvisor
            | Self::MetricsProbes
            | Self::Unknown(Area::Metrics) => &["metrics"],
            Self::Unknown(Area::Logs) => &["log"],
            Self::Unknown(Area::Checkpoint) => &["checkpoint"],
            Self::Configz => &["configz", "proxy"],
            Self::Statusz => &["statusz", "proxy"],
            Self::Flagz => &["flagz", "proxy"],
            Self::ContainerLogs { .. } | Self::Session(_) | Self::Unknown(Area::Other) => &["proxy"],
        }
    }

    /// The verb of the right. Running something in a pod is always `create`: a WebSocket begins with a
    /// GET, which would otherwise turn a right to read into one to execute.
    pub(super) fn verb(&self, method: &Method, path: &str) -> &'static str {
        // Judged by the first segment, so that a malformed session path asks for no less.
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let is_session = ["exec", "attach", "portforward", "run"].iter().any(|s| first.eq_ignore_ascii_case(s));
        if is_session || matches!(self, Self::Session(_)) {
            return "create";
        }
        match *method {
            Method::GET | Method::HEAD | Method::OPTIONS => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "create",
        }
    }

    /// The route's name in metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Healthz => "healthz",
            Self::Pods => "pods",
            Self::RunningPods => "runningpods",
            Self::StatsSummary => "stats/summary",
            Self::Metrics => "metrics",
            Self::MetricsResource => "metrics/resource",
            Self::MetricsCadvisor => "metrics/cadvisor",
            Self::MetricsProbes => "metrics/probes",
            Self::Configz => "configz",
            Self::Statusz => "statusz",
            Self::Flagz => "flagz",
            Self::ContainerLogs { .. } => "containerLogs",
            Self::Session(session) => session.kind.name(),
            Self::Unknown(_) => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_one_meaning_and_the_right_that_goes_with_it() {
        use SessionKind::{Attach, Exec, PortForward, Run};
        let logs = Route::ContainerLogs { namespace: "ns", pod: "p", container: "c" };
        let session =
            |kind, uid, container| Route::Session(SessionRoute { kind, namespace: "ns", pod: "p", uid, container });
        for (path, route, rights) in [
            ("/healthz", Route::Healthz, &["healthz", "proxy"][..]),
            ("/healthz/", Route::Healthz, &["healthz", "proxy"]),
            ("/healthz/syncloop", Route::Healthz, &["healthz", "proxy"]),
            ("/pods", Route::Pods, &["pods", "proxy"]),
            ("/pods/", Route::Pods, &["pods", "proxy"]),
            ("/runningpods/", Route::RunningPods, &["pods", "proxy"]),
            ("/stats/summary", Route::StatsSummary, &["stats"]),
            ("/stats/other", Route::Unknown(Area::Stats), &["stats"]),
            ("/metrics", Route::Metrics, &["metrics"]),
            ("/metrics/resource", Route::MetricsResource, &["metrics"]),
            ("/metrics/cadvisor", Route::MetricsCadvisor, &["metrics"]),
            ("/metrics/probes", Route::MetricsProbes, &["metrics"]),
            ("/metrics/slis", Route::Unknown(Area::Metrics), &["metrics"]),
            ("/logs/syslog", Route::Unknown(Area::Logs), &["log"]),
            ("/configz", Route::Configz, &["configz", "proxy"]),
            ("/statusz", Route::Statusz, &["statusz", "proxy"]),
            ("/flagz", Route::Flagz, &["flagz", "proxy"]),
            ("/checkpoint/ns/p/c", Route::Unknown(Area::Checkpoint), &["checkpoint"]),
            ("/containerLogs/ns/p/c", logs, &["proxy"]),
            ("/containerLogs/ns/p", Route::Unknown(Area::Other), &["proxy"]),
            ("/containerLogs/ns/../c", Route::Unknown(Area::Other), &["proxy"]),
            ("/containerLogs/ns//c", Route::Unknown(Area::Other), &["proxy"]),
            ("/containerLogs/ns/p/c/d/e/f/g/h", Route::Unknown(Area::Other), &["proxy"]),
            ("/exec/ns/p/c", session(Exec, None, Some("c")), &["proxy"]),
            ("/exec/ns/p/uid/c", session(Exec, Some("uid"), Some("c")), &["proxy"]),
            ("/attach/ns/p/c", session(Attach, None, Some("c")), &["proxy"]),
            ("/attach/ns/p/uid/c/", session(Attach, Some("uid"), Some("c")), &["proxy"]),
            ("/portForward/ns/p", session(PortForward, None, None), &["proxy"]),
            ("/portForward/ns/p/uid", session(PortForward, Some("uid"), None), &["proxy"]),
            ("/portForward/ns/p/uid/c", Route::Unknown(Area::Other), &["proxy"]),
            ("/portForward/ns", Route::Unknown(Area::Other), &["proxy"]),
            ("/exec/ns/p", Route::Unknown(Area::Other), &["proxy"]),
            ("/exec/ns/p/uid/c/more", Route::Unknown(Area::Other), &["proxy"]),
            ("/run/ns/p/c", session(Run, None, Some("c")), &["proxy"]),
            ("/", Route::Unknown(Area::Other), &["proxy"]),
            ("", Route::Unknown(Area::Other), &["proxy"]),
            ("*", Route::Unknown(Area::Other), &["proxy"]),
            ("//pods", Route::Unknown(Area::Other), &["proxy"]),
            ("/Pods", Route::Unknown(Area::Other), &["proxy"]),
            ("/%70ods", Route::Unknown(Area::Other), &["proxy"]),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
            assert_eq!(route.subresources(), rights, "{path}");
        }
    }

    #[test]
    fn running_something_needs_create_whatever_the_method() {
        for (method, path, verb) in [
            (Method::GET, "/pods", "get"),
            (Method::HEAD, "/pods", "get"),
            (Method::POST, "/pods", "create"),
            (Method::PUT, "/pods", "update"),
            (Method::PATCH, "/pods", "patch"),
            (Method::DELETE, "/pods", "delete"),
            (Method::TRACE, "/pods", "create"),
            (Method::GET, "/exec/ns/p/c", "create"),
            (Method::POST, "/attach/ns/p/c", "create"),
            (Method::GET, "/portForward/ns/p", "create"),
            (Method::GET, "/run/ns/p/c", "create"),
            (Method::GET, "/exec/odd", "create"),
            (Method::GET, "//exec/ns/p/c", "create"),
            (Method::GET, "/containerLogs/ns/p/c", "get"),
        ] {
            assert_eq!(Route::of(path).verb(&method, path), verb, "{method} {path}");
        }
    }
}
