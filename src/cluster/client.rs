//! The client of the API server: where it is, how long it is waited for, and what is counted.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, Layer, Service};

use crate::telemetry::metrics::metrics;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The kubeconfig cannot be read or names nothing usable.
    #[error("reading the kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// There is neither a kubeconfig nor a pod's ServiceAccount.
    #[error("finding the cluster (set --kubeconfig or KUBECONFIG, or run in a pod): {0}")]
    Infer(#[from] kube::config::InferConfigError),
    /// The configuration names unusable certificates or addresses.
    #[error("setting up the client: {0}")]
    Client(#[from] kube::Error),
}

/// The client for a kubeconfig file, or for what `KUBECONFIG`, `~/.kube/config` or the pod's own
/// ServiceAccount say.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    let config = match kubeconfig {
        Some(file) => {
            Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &KubeConfigOptions::default()).await?
        }
        None => Config::infer().await?,
    };
    from_config(config)
}

/// The client for a kubeconfig's text.
pub async fn connect_to(kubeconfig: &str) -> Result<Client, ClientError> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    from_config(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

fn from_config(mut config: Config) -> Result<Client, ClientError> {
    config.connect_timeout = Some(Duration::from_secs(10));
    // A watch is quiet for up to its bookmark interval; the API server ends each after at most 295 s.
    config.read_timeout = Some(Duration::from_secs(300));
    config.write_timeout = Some(Duration::from_secs(30));
    // 429 and 503 are obeyed with their Retry-After.
    config.default_retry = true;
    Ok(ClientBuilder::try_from(config)?.with_layer(&CountLayer).build())
}

/// Counts requests by verb, resource and answer.
struct CountLayer;

impl<S> Layer<S> for CountLayer {
    type Service = Count<S>;

    fn layer(&self, inner: S) -> Count<S> {
        Count { inner }
    }
}

#[derive(Clone)]
struct Count<S> {
    inner: S,
}

impl<S, B> Service<Request<Body>> for Count<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (verb, resource) = describe(request.method(), request.uri());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            metrics().api_request(verb, resource, answer.as_ref().map_or(0, |a| a.status().as_u16()));
            answer
        })
    }
}

/// The verb and resource of a request, from the fixed set that this program uses.
fn describe(method: &http::Method, uri: &http::Uri) -> (&'static str, &'static str) {
    const RESOURCES: [&str; 12] = [
        "virtualnodes",
        "nodes",
        "leases",
        "pods",
        "events",
        "secrets",
        "configmaps",
        "services",
        "tokenreviews",
        "subjectaccessreviews",
        "serviceaccounts",
        "eviction",
    ];
    let watch = uri.query().is_some_and(|q| q.split('&').any(|p| p == "watch=true" || p == "watch=1"));
    let verb = match method.as_str() {
        "GET" if watch => "watch",
        "GET" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "other",
    };
    // The last part that names a resource: `namespaces/x/pods/y/eviction` is an eviction.
    let parts = uri.path().rsplit('/');
    let resource = parts.filter_map(|p| RESOURCES.iter().find(|r| **r == p)).next().copied().unwrap_or("other");
    (verb, resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_named_by_verb_and_resource() {
        for (method, uri, verb, resource) in [
            ("GET", "/api/v1/pods?watch=true&fieldSelector=x", "watch", "pods"),
            ("GET", "/api/v1/nodes/pods-1", "get", "nodes"),
            ("POST", "/api/v1/namespaces/d/pods/p/eviction", "create", "eviction"),
            ("PATCH", "/apis/vnode.dev/v1alpha1/virtualnodes/edge/status", "patch", "virtualnodes"),
            ("PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge", "update", "leases"),
            ("GET", "/version", "get", "other"),
        ] {
            let method = method.parse().unwrap();
            assert_eq!(describe(&method, &uri.parse().unwrap()), (verb, resource), "{method} {uri}");
        }
    }
}
