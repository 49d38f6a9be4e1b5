//! The simulator behind an HTTP server on loopback, by either interface.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get, post};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use vnode::api::{ProviderSpec, WebConfig};
use vnode::provider::registry::Registry;
use vnode::provider::{PodObservation, PodRef, ProviderError, ResolvedContainer, ResolvedPod};

use super::{Deaf, Result, Simulators, Subject, context, status};

/// A service with interface V1. It has no pods of several nodes, so each node has a path of its own.
pub async fn v1() -> Result<Subject> {
    let routes = Router::new()
        .route("/{node}/createPod", post(V1::create))
        .route("/{node}/deletePod", delete(V1::delete))
        .route("/{node}/getPod", get(V1::get))
        .route("/{node}/getPods", get(V1::list))
        .with_state(V1::default());
    let url = serve(routes).await?;
    Ok(subject("web, V1", move |n| format!("{url}/node-{n}")))
}

/// A service with interface V2.
pub async fn v2() -> Result<Subject> {
    let about = || async { Json(json!({"interface": "vnode.dev/provider", "versions": ["v2"]})) };
    let routes = Router::new()
        .route("/v2/capabilities", get(about))
        .route("/v2/nodes/{node}/pods", get(V2::list).post(V2::create))
        .route("/v2/nodes/{node}/pods/{uid}", get(V2::get).delete(V2::delete))
        .with_state(V2::default());
    let url = serve(routes).await?;
    Ok(subject("web, V2", move |_| url.clone()))
}

async fn serve(routes: Router) -> Result<String> {
    use axum::serve::ListenerExt as _;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        // A socket that cannot be set up so is only slower.
        let _ = stream.set_nodelay(true);
    });
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(url)
}

fn subject(name: &'static str, url: impl Fn(usize) -> String + 'static) -> Subject {
    let registry = Registry::default();
    let node = move |n| {
        let spec = ProviderSpec::web(WebConfig { url: url(n), ..WebConfig::default() });
        registry.build(&spec, context(&format!("node-{n}"), Arc::new(Deaf)))
    };
    Subject { node: Box::new(node), ..Subject::new(name) }
}

/// A problem, as interface V2 has them.
type Problem = (StatusCode, [(&'static str, &'static str); 1], String);
type Answer<T = Response> = std::result::Result<T, Problem>;

fn failed(error: ProviderError) -> Problem {
    let status = if error.is_not_found() { StatusCode::NOT_FOUND } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if error.is_not_found() { "not-found" } else { "unavailable" };
    problem(status, word, &error.to_string())
}

fn problem(status: StatusCode, word: &str, detail: &str) -> Problem {
    let body = json!({"type": format!("https://vnode.dev/problems/{word}"), "detail": detail});
    (status, [("content-type", "application/problem+json")], body.to_string())
}

fn invalid(error: serde_json::Error) -> Problem {
    problem(StatusCode::BAD_REQUEST, "invalid", &error.to_string())
}

fn read(body: &[u8]) -> Answer<Value> {
    serde_json::from_slice(body).map_err(invalid)
}

/// The pod, without what the simulator does not look at.
fn resolved(pod: Value) -> Answer<ResolvedPod> {
    let pod: Pod = serde_json::from_value(pod).map_err(invalid)?;
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    let containers = containers.map(|c| (c.name.clone(), ResolvedContainer::default())).collect();
    Ok(ResolvedPod { pod: Arc::new(pod), containers, ..ResolvedPod::default() })
}

#[derive(Clone, Default)]
struct V2(Simulators);

impl V2 {
    fn say(o: PodObservation) -> Value {
        json!({
            "uid": &*o.pod.uid, "namespace": &*o.pod.namespace, "name": &*o.pod.name, "startTime": o.start_time,
            "podIPs": o.pod_ips, "containerStatuses": o.containers,
        })
    }

    fn reference(uid: &str) -> PodRef {
        PodRef { namespace: "default".into(), name: "".into(), uid: uid.into() }
    }

    async fn create(State(all): State<Self>, Path(node): Path<String>, body: Bytes) -> Answer {
        let pod = resolved(read(&body)?["pod"].take())?;
        all.0.of(&node).map_err(failed)?.create_pod(&pod).await.map_err(failed)?;
        Ok(StatusCode::CREATED.into_response())
    }

    async fn get(State(all): State<Self>, Path((node, uid)): Path<(String, String)>) -> Answer {
        let found = all.0.of(&node).map_err(failed)?.get_pod(&Self::reference(&uid)).await.map_err(failed)?;
        Ok(Json(Self::say(found)).into_response())
    }

    async fn list(State(all): State<Self>, Path(node): Path<String>) -> Answer {
        let found = all.0.of(&node).map_err(failed)?.list_pods().await.map_err(failed)?;
        let pods: Vec<Value> = found.into_iter().map(Self::say).collect();
        Ok(Json(json!({"pods": pods})).into_response())
    }

    async fn delete(State(all): State<Self>, Path((node, uid)): Path<(String, String)>) -> Answer {
        all.0.of(&node).map_err(failed)?.remove_pod(&Self::reference(&uid)).await.map_err(failed)?;
        Ok(StatusCode::NO_CONTENT.into_response())
    }
}

/// Keeps pods as they came, by node, namespace and name.
#[derive(Clone, Default)]
struct V1(Simulators, Arc<Mutex<HashMap<(String, String), Value>>>);

#[derive(serde::Deserialize)]
struct Named {
    namespace: String,
    name: String,
}

impl V1 {
    fn pods(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Value>> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(pod: &Value) -> String {
        format!(
            "{}/{}",
            pod["metadata"]["namespace"].as_str().unwrap_or(""),
            pod["metadata"]["name"].as_str().unwrap_or("")
        )
    }

    /// The pod as it came, with the status that the simulator gives it.
    async fn seen(&self, node: &str, mut pod: Value) -> Answer<Value> {
        let reference = resolved(pod.clone())?.pod_ref();
        let o = self.0.of(node).map_err(failed)?.get_pod(&reference).await.map_err(failed)?;
        let running = o.containers.iter().all(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()));
        let phase = Some(if running { "Running" } else { "Pending" }.into());
        pod["status"] = json!(PodStatus { phase, ..status(o) });
        Ok(pod)
    }

    async fn create(State(all): State<Self>, Path(node): Path<String>, body: Bytes) -> Answer {
        let pod = read(&body)?;
        all.0.of(&node).map_err(failed)?.create_pod(&resolved(pod.clone())?).await.map_err(failed)?;
        all.pods().insert((node, Self::name(&pod)), pod);
        Ok(StatusCode::OK.into_response())
    }

    async fn delete(State(all): State<Self>, Path(node): Path<String>, body: Bytes) -> Answer {
        let pod = read(&body)?;
        all.pods().remove(&(node.clone(), Self::name(&pod)));
        all.0.of(&node).map_err(failed)?.remove_pod(&resolved(pod)?.pod_ref()).await.map_err(failed)?;
        Ok(StatusCode::OK.into_response())
    }

    async fn get(State(all): State<Self>, Path(node): Path<String>, Query(named): Query<Named>) -> Answer {
        let key = (node, format!("{}/{}", named.namespace, named.name));
        let found = all.pods().get(&key).cloned();
        match found {
            Some(pod) => Ok(Json(all.seen(&key.0, pod).await?).into_response()),
            None => Err(problem(StatusCode::NOT_FOUND, "not-found", "there is no such pod")),
        }
    }

    async fn list(State(all): State<Self>, Path(node): Path<String>) -> Answer {
        let found: Vec<Value> = all.pods().iter().filter(|((n, _), _)| *n == node).map(|(_, p)| p.clone()).collect();
        let mut pods = Vec::new();
        for pod in found {
            pods.push(all.seen(&node, pod).await?);
        }
        Ok(Json(json!(pods)).into_response())
    }
}
