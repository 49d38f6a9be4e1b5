//! An API server for tests: pods, ConfigMaps and Secrets in memory, behind a `kube::Client`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;

type Answer = UnsyncBoxBody<Bytes, Infallible>;

/// A watch of the pods of a node, or of all.
struct Watch {
    node: Option<String>,
    sender: mpsc::UnboundedSender<Value>,
}

impl Watch {
    fn of(query: &str, sender: mpsc::UnboundedSender<Value>) -> Self {
        let node = query.split('&').find_map(|p| p.strip_prefix("fieldSelector=spec.nodeName%3D")).map(str::to_owned);
        Self { node, sender }
    }

    fn wants(&self, pod: &Value) -> bool {
        self.node.as_deref().is_none_or(|node| pod["spec"]["nodeName"] == node)
    }
}

#[derive(Default)]
struct State {
    version: u64,
    pods: BTreeMap<(String, String), Value>,
    objects: BTreeMap<String, Value>,
    watches: Vec<Watch>,
    writes: Vec<String>,
    events: Vec<(String, String)>,
    down: bool,
    refusing_writes: bool,
    refusing_streams: bool,
    /// How many ConfigMaps and Secrets were asked for.
    reads: usize,
    /// Paths of tokens that were asked for.
    tokens: Vec<String>,
    token_seconds: u64,
}

#[derive(Clone, Default)]
pub(super) struct FakeApi(Arc<Mutex<State>>);

impl FakeApi {
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Creates or replaces a pod, as `kubectl` and the scheduler would.
    pub fn put(&self, mut pod: Value) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        pod["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let key = key(&pod);
        let kind = if state.pods.insert(key, pod.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        state.tell(kind, &pod);
    }

    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut pod = self.pod(name).unwrap();
        change(&mut pod);
        self.put(pod);
    }

    /// Removes a pod at once, as a forced deletion does.
    pub fn remove(&self, name: &str) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        let pod = state.pods.remove(&("default".to_owned(), name.to_owned())).unwrap();
        state.tell("DELETED", &pod);
    }

    /// Sends an event once more, or one that was overtaken, as a server does whose cache is behind.
    pub fn say_again(&self, kind: &str, pod: &Value) {
        self.0.lock().unwrap().send(kind, pod);
    }

    pub fn remove_unseen(&self, name: &str) {
        self.0.lock().unwrap().pods.remove(&("default".to_owned(), name.to_owned())).unwrap();
    }

    pub fn pod(&self, name: &str) -> Option<Value> {
        self.0.lock().unwrap().pods.get(&("default".to_owned(), name.to_owned())).cloned()
    }

    pub fn phase(&self, name: &str) -> Option<String> {
        Some(self.pod(name)?["status"]["phase"].as_str().unwrap_or("").to_owned())
    }

    /// Creates or replaces an object.
    pub fn add_object(&self, path: &str, mut object: Value) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.objects.insert(path.to_owned(), object);
    }

    /// From now on lists are not streamed, as by servers before 1.32.
    pub fn refuse_streams(&self) {
        self.0.lock().unwrap().refusing_streams = true;
    }

    /// While true, no status is taken.
    pub fn set_refusing_writes(&self, refusing: bool) {
        self.0.lock().unwrap().refusing_writes = refusing;
    }

    /// Tokens are good for so long; their text is their number.
    pub fn set_token_seconds(&self, seconds: u64) {
        self.0.lock().unwrap().token_seconds = seconds;
    }

    pub fn reads(&self) -> usize {
        self.0.lock().unwrap().reads
    }

    pub fn tokens(&self) -> Vec<String> {
        self.0.lock().unwrap().tokens.clone()
    }

    pub fn events(&self) -> Vec<(String, String)> {
        self.0.lock().unwrap().events.clone()
    }

    pub fn remove_object(&self, path: &str) {
        self.0.lock().unwrap().objects.remove(path);
    }

    pub fn set_down(&self, down: bool) {
        self.0.lock().unwrap().down = down;
    }

    /// Cuts every watch, the first answer to the next one being 410 if `expired`.
    pub fn cut_watches(&self, expired: bool) {
        let mut state = self.0.lock().unwrap();
        for watch in std::mem::take(&mut state.watches) {
            if expired {
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"});
                let _ = watch.sender.send(json!({"type": "ERROR", "object": status}));
            }
        }
    }

    pub fn writes(&self) -> Vec<String> {
        self.0.lock().unwrap().writes.clone()
    }

    pub fn event_reasons(&self) -> Vec<String> {
        self.0.lock().unwrap().events.iter().map(|(reason, _)| reason.clone()).collect()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        if self.0.lock().unwrap().down {
            return status(503, "ServiceUnavailable");
        }
        match (&parts.method, path.as_slice()) {
            (&Method::GET, ["api", "v1", "pods"])
                if query.contains("sendInitialEvents") && self.0.lock().unwrap().refusing_streams =>
            {
                status(422, "Invalid")
            }
            (&Method::GET, ["api", "v1", "pods"]) if query.contains("watch=") => self.watch(&query),
            (&Method::GET, ["api", "v1", "pods"]) => {
                let state = self.0.lock().unwrap();
                let items: Vec<_> = state.pods.values().cloned().collect();
                ok(
                    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": state.version.to_string()}, "items": items}),
                )
            }
            (&Method::GET, ["api", "v1", "services"]) if query.contains("watch=") => {
                Response::new(StreamBody::new(futures::stream::pending()).boxed_unsync())
            }
            (&Method::GET, ["api", "v1", "services"]) => {
                let state = self.0.lock().unwrap();
                let items: Vec<_> =
                    state.objects.iter().filter(|(p, _)| p.contains("/services/")).map(|(_, o)| o.clone()).collect();
                ok(
                    json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}),
                )
            }
            (&Method::POST, [.., "serviceaccounts", _, "token"]) => {
                let mut state = self.0.lock().unwrap();
                state.tokens.push(parts.uri.path().to_owned());
                let seconds = if state.token_seconds == 0 { 3600 } else { state.token_seconds };
                let mut answer: Value = serde_json::from_slice(&body).unwrap();
                let expires = jiff::Timestamp::now() + std::time::Duration::from_secs(seconds);
                answer["spec"]["expirationSeconds"] = json!(seconds);
                answer["status"] = json!({"token": format!("token-{}", state.tokens.len()), "expirationTimestamp": expires.to_string()});
                ok(answer)
            }
            (&Method::POST, [.., "events"]) => {
                let event: Value = serde_json::from_slice(&body).unwrap();
                let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
                self.0.lock().unwrap().events.push((text("reason"), text("message")));
                ok(event)
            }
            (&Method::PATCH, [.., "events", _]) => ok(json!({"metadata": {}})),
            (&Method::GET, ["api", "v1", "namespaces", ns, "pods", name]) => {
                match self.0.lock().unwrap().pods.get(&((*ns).to_owned(), (*name).to_owned())) {
                    Some(pod) => ok(pod.clone()),
                    None => status(404, "NotFound"),
                }
            }
            (&Method::PATCH, ["api", "v1", "namespaces", ns, "pods", name, "status"]) => {
                let patch: Value = serde_json::from_slice(&body).unwrap();
                let mut state = self.0.lock().unwrap();
                if state.refusing_writes {
                    return status(503, "ServiceUnavailable");
                }
                state.writes.push(format!("status {name} {}", patch["status"]["phase"].as_str().unwrap_or("-")));
                let key = ((*ns).to_owned(), (*name).to_owned());
                let Some(mut pod) = state.pods.get(&key).cloned() else { return status(404, "NotFound") };
                if pod["metadata"]["uid"] != patch["metadata"]["uid"] {
                    return status(409, "Conflict");
                }
                merge(&mut pod["status"], &patch["status"]);
                state.version += 1;
                pod["metadata"]["resourceVersion"] = json!(state.version.to_string());
                state.pods.insert(key, pod.clone());
                state.tell("MODIFIED", &pod);
                ok(pod)
            }
            (&Method::DELETE, ["api", "v1", "namespaces", ns, "pods", name]) => {
                let options: Value = serde_json::from_slice(&body).unwrap();
                let mut state = self.0.lock().unwrap();
                state.writes.push(format!("delete {name}"));
                let key = ((*ns).to_owned(), (*name).to_owned());
                let Some(pod) = state.pods.get(&key).cloned() else { return status(404, "NotFound") };
                assert_eq!(options["gracePeriodSeconds"], 0);
                if pod["metadata"]["uid"] != options["preconditions"]["uid"] {
                    return status(409, "Conflict");
                }
                state.pods.remove(&key);
                state.version += 1;
                state.tell("DELETED", &pod);
                ok(pod)
            }
            (&Method::GET, _) => {
                let mut state = self.0.lock().unwrap();
                state.reads += 1;
                match state.objects.get(parts.uri.path()) {
                    Some(object) => ok(object.clone()),
                    None => status(404, "NotFound"),
                }
            }
            _ => status(405, "MethodNotAllowed"),
        }
    }

    /// The nodes whose pods are watched, `*` for all pods.
    pub fn watched_nodes(&self) -> Vec<String> {
        let state = self.0.lock().unwrap();
        let open = state.watches.iter().filter(|w| !w.sender.is_closed());
        let mut nodes: Vec<_> = open.map(|w| w.node.clone().unwrap_or_else(|| "*".into())).collect();
        nodes.sort();
        nodes
    }

    fn watch(&self, query: &str) -> Response<Answer> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.0.lock().unwrap();
        let watch = Watch::of(query, sender.clone());
        if query.contains("sendInitialEvents") {
            for pod in state.pods.values().filter(|p| watch.wants(p)) {
                sender.send(json!({"type": "ADDED", "object": pod})).unwrap();
            }
            let meta = json!({"resourceVersion": state.version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}});
            let bookmark = json!({"kind": "Pod", "apiVersion": "v1", "metadata": meta, "spec": {"containers": []}});
            sender.send(json!({"type": "BOOKMARK", "object": bookmark})).unwrap();
        }
        state.watches.push(watch);
        let lines = futures::stream::unfold(receiver, |mut r| async move { r.recv().await.map(|event| (event, r)) });
        let frames = lines.map(|event| Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(format!("{event}\n")))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

impl State {
    fn tell(&mut self, kind: &str, pod: &Value) {
        let mut pod = pod.clone();
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.send(kind, &pod);
    }

    fn send(&mut self, kind: &str, pod: &Value) {
        self.watches.retain(|w| !w.wants(pod) || w.sender.send(json!({"type": kind, "object": pod})).is_ok());
    }
}

fn key(pod: &Value) -> (String, String) {
    let text = |name: &str| pod["metadata"][name].as_str().unwrap().to_owned();
    (text("namespace"), text("name"))
}

fn ok(value: Value) -> Response<Answer> {
    Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync())
}

fn status(code: u16, reason: &str) -> Response<Answer> {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason});
    let mut response = ok(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

/// Strategic merge, as far as pod status needs it.
fn merge(to: &mut Value, patch: &Value) {
    if !to.is_object() {
        *to = json!({});
    }
    for (name, value) in patch.as_object().unwrap() {
        match (name.as_str(), value) {
            (_, Value::Null) => {
                to.as_object_mut().unwrap().remove(name);
            }
            ("conditions", Value::Array(new)) => {
                let mut all = to["conditions"].as_array().cloned().unwrap_or_default();
                for condition in new {
                    if condition["$patch"] == "delete" {
                        all.retain(|c| c["type"] != condition["type"]);
                        continue;
                    }
                    match all.iter_mut().find(|c| c["type"] == condition["type"]) {
                        Some(slot) => *slot = condition.clone(),
                        None => all.push(condition.clone()),
                    }
                }
                to["conditions"] = all.into();
            }
            (_, Value::Array(items)) => {
                to[name] = items.iter().filter(|i| i.get("$patch").is_none()).cloned().collect();
            }
            (_, value) => to[name] = value.clone(),
        }
    }
}
