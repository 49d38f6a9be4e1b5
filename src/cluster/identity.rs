//! In whose name requests for a node are made.
//!
//! What the pods of a node need (Secrets, ConfigMaps, tokens) can be read by the operator's own account, or as the
//! node itself: then the API server's Node authorizer gives only what pods bound to that node refer to, whatever the
//! operator is made to ask for. All nodes share one client; the name travels in each request's headers, so a node
//! costs no connection.
//!
//! Kubernetes has two ways of acting for a node. With constrained impersonation (KEP-5284) the right covers nodes
//! alone, and a request names nothing but the user: the API server adds the group. Before it, the right covers any
//! user, and the request names the group as well. Each way refuses the other's requests, so the API server is asked
//! once which of them makes a node of us.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::Client;
use kube::api::PostParams;
use kube::core::Request;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
/// The group of all nodes.
pub const NODES: &str = "system:nodes";
/// How long the answer holds: rights change, and clusters are upgraded.
const REMEMBERED: Duration = Duration::from_secs(600);
const DEADLINE: Duration = Duration::from_secs(10);

/// Whose rights count when something is read for a node's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeIdentity {
    /// The node's own.
    Impersonate,
    /// The operator's.
    #[default]
    Operator,
}

/// How the API server lets us act for nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The user alone: constrained impersonation.
    User,
    /// User and group: any user could be named.
    UserAndGroup,
}

/// The user that a node is.
pub fn user_of(node: &str) -> String {
    format!("system:node:{node}")
}

/// Sends requests on behalf of nodes, all over one client.
#[derive(Clone)]
pub struct NodeClient {
    client: Client,
    identity: NodeIdentity,
    form: Arc<Mutex<Option<(Form, Instant)>>>,
    /// Held while the API server is asked, so that only one asks.
    asking: Arc<tokio::sync::Mutex<()>>,
}

impl NodeClient {
    /// Requests go through `client`.
    pub fn new(client: Client, identity: NodeIdentity) -> Self {
        Self { client, identity, form: Arc::default(), asking: Arc::default() }
    }

    /// The client beneath, which speaks for the operator.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Who is seen to ask for this node; `None` is the operator. Answers may only be shared by nodes for which this
    /// is the same.
    pub fn speaker(&self, node: &Arc<str>) -> Option<Arc<str>> {
        (self.identity == NodeIdentity::Impersonate).then(|| node.clone())
    }

    /// Sends a request in the name of a [`speaker`](Self::speaker).
    pub async fn request<T: DeserializeOwned>(
        &self,
        speaker: Option<&str>,
        mut request: http::Request<Vec<u8>>,
    ) -> kube::Result<T> {
        if let Some(node) = speaker {
            let form = self.form(node).await;
            dress(&mut request, node, form)?;
        }
        self.client.request(request).await
    }

    async fn form(&self, node: &str) -> Form {
        if let Some(form) = self.remembered() {
            return form;
        }
        let _one = self.asking.lock().await;
        if let Some(form) = self.remembered() {
            return form;
        }
        let form = match timeout(DEADLINE, self.ask(node)).await {
            Ok(Ok(form)) => form,
            // Not an answer: the request itself will tell what is wrong.
            Ok(Err(_)) | Err(_) => return Form::UserAndGroup,
        };
        tracing::debug!(?form, "how requests are made in the name of nodes");
        *self.form.lock().unwrap_or_else(PoisonError::into_inner) = Some((form, Instant::now()));
        form
    }

    fn remembered(&self) -> Option<Form> {
        let form = self.form.lock().unwrap_or_else(PoisonError::into_inner);
        form.filter(|(_, at)| at.elapsed() < REMEMBERED).map(|(form, _)| form)
    }

    /// Asks who a request is from that names the node alone.
    async fn ask(&self, node: &str) -> kube::Result<Form> {
        let review = serde_json::to_vec(&SelfSubjectReview::default()).map_err(kube::Error::SerdeError)?;
        let request = Request::new("/apis/authentication.k8s.io/v1/selfsubjectreviews");
        let mut request = request.create(&PostParams::default(), review).map_err(kube::Error::BuildRequest)?;
        dress(&mut request, node, Form::User)?;
        match self.client.request::<SelfSubjectReview>(request).await {
            Ok(review) => Ok(form_of(&review)),
            // It may not be done so, or not be asked.
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 404 | 405) => Ok(Form::UserAndGroup),
            Err(error) => Err(error),
        }
    }
}

/// A user without the group of nodes is no node.
fn form_of(review: &SelfSubjectReview) -> Form {
    let user = review.status.as_ref().and_then(|s| s.user_info.as_ref());
    match user.and_then(|u| u.groups.as_ref()).is_some_and(|groups| groups.iter().any(|g| g == NODES)) {
        true => Form::User,
        false => Form::UserAndGroup,
    }
}

fn dress(request: &mut http::Request<Vec<u8>>, node: &str, form: Form) -> kube::Result<()> {
    let user = HeaderValue::from_str(&user_of(node)).map_err(|e| kube::Error::HttpError(e.into()))?;
    let headers = request.headers_mut();
    headers.insert(USER, user);
    if form == Form::UserAndGroup {
        headers.insert(GROUP, HeaderValue::from_static(NODES));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};
    use k8s_openapi::api::core::v1::Secret;
    use kube::client::Body;
    use serde_json::json;

    /// An API server of one of the two kinds, which notes how it was asked for a Secret.
    fn api(constrained: bool, reviews: Arc<AtomicUsize>) -> Client {
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let (constrained, reviews) = (constrained, reviews.clone());
            async move {
                let text = |name| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
                let (user, group) = (text("impersonate-user"), text("impersonate-group"));
                let answer = if request.uri().path().ends_with("selfsubjectreviews") {
                    reviews.fetch_add(1, Ordering::SeqCst);
                    let groups = if constrained { vec![NODES] } else { vec!["system:authenticated"] };
                    json!({"status": {"userInfo": {"username": user, "groups": groups}}})
                } else {
                    json!({"metadata": {"name": format!("{user} {group}")}})
                };
                let body = Full::new(Bytes::from(answer.to_string())).boxed_unsync();
                Ok::<_, Infallible>(http::Response::new(body))
            }
        });
        Client::new(service, "default")
    }

    async fn asked(client: &NodeClient, node: &str) -> String {
        let request = Request::new("/api/v1/namespaces/ns/secrets");
        let request = request.get("s", &kube::api::GetParams::default()).unwrap();
        let speaker = client.speaker(&node.into());
        let secret: Secret = client.request(speaker.as_deref(), request).await.unwrap();
        secret.metadata.name.unwrap()
    }

    #[tokio::test]
    async fn a_node_is_named_as_the_api_server_wants_it_and_is_asked_once() {
        for (constrained, want) in [(true, "system:node:a "), (false, "system:node:a system:nodes")] {
            let reviews = Arc::new(AtomicUsize::new(0));
            let client = NodeClient::new(api(constrained, reviews.clone()), NodeIdentity::Impersonate);
            assert_eq!(asked(&client, "a").await, want);
            assert!(asked(&client, "b").await.starts_with("system:node:b"));
            assert_eq!(reviews.load(Ordering::SeqCst), 1);
        }
    }

    #[tokio::test]
    async fn the_operator_asks_in_its_own_name() {
        let client = NodeClient::new(api(true, Arc::default()), NodeIdentity::Operator);
        assert_eq!(client.speaker(&"a".into()), None);
        assert_eq!(asked(&client, "a").await, " ");
    }
}
