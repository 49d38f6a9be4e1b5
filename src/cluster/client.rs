//! The client of the API server: where it is, how long it is waited for, and what is counted.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::time::Sleep;
use tower::buffer::BufferLayer;
use tower::retry::{Policy, RetryLayer};
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
    let config = read(kubeconfig, None).await?;
    // 429 and 503 are obeyed with their Retry-After.
    from_config(config, true)
}

/// The same for a command of a person's, by any context of the kubeconfig. Answers are passed on as they come: nobody
/// waits for the API server to get better.
pub async fn connect_as(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Client, ClientError> {
    let config = read(kubeconfig, context).await?;
    from_config(config, false)
}

async fn read(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Config, ClientError> {
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    Ok(match kubeconfig {
        Some(file) => Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &options).await?,
        None if context.is_some() => Config::from_kubeconfig(&options).await?,
        None => Config::infer().await?,
    })
}

/// The client for a kubeconfig's text.
pub async fn connect_to(kubeconfig: &str) -> Result<Client, ClientError> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    from_config(config, true)
}

fn from_config(mut config: Config, retry: bool) -> Result<Client, ClientError> {
    config.connect_timeout = Some(Duration::from_secs(10));
    // A watch is quiet for up to its bookmark interval; the API server ends each after at most 295 s.
    config.read_timeout = Some(Duration::from_secs(300));
    config.write_timeout = Some(Duration::from_secs(30));
    // Ours knows an exception.
    config.default_retry = false;
    let retries = RetryLayer::new(Retries(retry.then(RetryPolicy::server_retry)));
    // A retry needs a service that can be cloned.
    let shared = BufferLayer::new(1024);
    Ok(ClientBuilder::try_from(config)?.with_layer(&shared).with_layer(&retries).with_layer(&CountLayer).build())
}

/// 429 and 503 are obeyed with their Retry-After; but the 429 of an eviction is the answer of a PodDisruptionBudget,
/// which its caller wants to hear. Without a policy nothing is tried again.
#[derive(Clone)]
struct Retries(Option<RetryPolicy>);

impl<B> Policy<Request<Body>, Response<B>, BoxError> for Retries {
    type Future = Sleep;

    fn retry(&mut self, request: &mut Request<Body>, answer: &mut Result<Response<B>, BoxError>) -> Option<Sleep> {
        if request.uri().path().ends_with("/eviction") {
            return None;
        }
        self.0.as_mut()?.retry(request, answer)
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Policy::<_, Response<B>, BoxError>::clone_request(self.0.as_mut()?, request)
    }
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
