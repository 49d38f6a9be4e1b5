//! What is written to the API server about pods.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::Request;
use kube::{Api, Resource as _};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::api::names::FIELD_MANAGER;
use crate::provider::PodRef;

const DEADLINE: Duration = Duration::from_secs(30);

/// What became of a write.
#[derive(Debug)]
pub(super) enum Written {
    /// It is done; the object's new version, 0 when unknown.
    Done(u64),
    /// There is no such pod.
    Missing,
    /// Another one has its name, or it has changed meanwhile.
    Conflict,
    /// The API server will not take it as it is.
    Refused(String),
    /// It may work later, after this time if the server said one.
    Later(String, Option<Duration>),
}

#[derive(Deserialize)]
struct Slim {
    #[serde(default)]
    metadata: SlimMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SlimMeta {
    resource_version: String,
}

fn failed(error: kube::Error) -> Written {
    match error {
        kube::Error::Api(status) => match status.code {
            404 => Written::Missing,
            409 => Written::Conflict,
            429 | 500.. => {
                let seconds = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0);
                Written::Later(status.message, seconds.map(|s| Duration::from_secs(s.into())))
            }
            401 | 403 => Written::Later(status.message, None),
            _ => Written::Refused(status.message),
        },
        other => Written::Later(other.to_string(), None),
    }
}

async fn send<T: serde::de::DeserializeOwned>(
    client: &kube::Client,
    request: Result<http::Request<Vec<u8>>, impl std::fmt::Display>,
) -> Result<T, Written> {
    let request = request.map_err(|e| Written::Refused(e.to_string()))?;
    match tokio::time::timeout(DEADLINE, client.request::<T>(request)).await {
        Ok(answer) => answer.map_err(failed),
        Err(_) => Err(Written::Later("the API server did not answer in time".into(), None)),
    }
}

/// Patches `status`. Only the version is read of the answer, which is most of the work of reading it.
pub(super) async fn patch_status(client: &kube::Client, pod: &PodRef, patch: &Value) -> Written {
    let request = Request::new(Pod::url_path(&(), Some(&pod.namespace))).patch_subresource(
        "status",
        &pod.name,
        &PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() },
        &Patch::Strategic(patch),
    );
    match send::<Slim>(client, request).await {
        Ok(slim) => Written::Done(slim.metadata.resource_version.parse().unwrap_or(0)),
        Err(other) => other,
    }
}

/// Deletes the pod without grace, if it still is this one.
pub(super) async fn delete(client: &kube::Client, pod: &PodRef) -> Written {
    let preconditions = Preconditions { uid: Some(pod.uid.to_string()), resource_version: None };
    let params =
        DeleteParams { grace_period_seconds: Some(0), preconditions: Some(preconditions), ..DeleteParams::default() };
    let request = Request::new(Pod::url_path(&(), Some(&pod.namespace))).delete(&pod.name, &params);
    match send::<IgnoredAny>(client, request).await {
        Ok(_) => Written::Done(0),
        Err(other) => other,
    }
}

/// The pods bound to a node, in pages.
pub(super) async fn list_of_node(client: &kube::Client, node: &str) -> Result<Vec<Pod>, String> {
    let api: Api<Pod> = Api::all(client.clone());
    let mut params = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(500);
    let mut pods = Vec::new();
    loop {
        let page = tokio::time::timeout(DEADLINE, api.list(&params)).await;
        let page = page.map_err(|_| "the API server did not answer in time".to_owned())?.map_err(|e| e.to_string())?;
        pods.extend(page.items.into_iter().map(|mut pod| {
            pod.metadata.managed_fields = None;
            pod
        }));
        match page.metadata.continue_.filter(|c| !c.is_empty()) {
            Some(more) => params = params.continue_token(&more),
            None => return Ok(pods),
        }
    }
}

/// True when the API server has this very pod.
pub(super) async fn exists(client: &kube::Client, pod: &PodRef) -> Result<bool, String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    match tokio::time::timeout(DEADLINE, api.get_metadata_opt(&pod.name)).await {
        Ok(Ok(found)) => Ok(found.is_some_and(|p| p.metadata.uid.as_deref() == Some(&*pod.uid))),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the API server did not answer in time".into()),
    }
}
