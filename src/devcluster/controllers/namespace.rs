//! Terminating namespaces: delete all there is in them, then let go of the finalizer.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use super::discovery::{self, Kind};
use super::queue::{Outcome, Queue};
use super::world::{World, gone_is_fine, now};

/// While something is still on its way out.
const AGAIN: Duration = Duration::from_millis(500);

/// What is left of one kind.
struct Left {
    resource: String,
    objects: usize,
    finalizers: Vec<String>,
}

/// The namespace's conditions for what is left in it.
fn conditions(left: &[Left], errors: &[String], now: &str) -> Value {
    let condition = |kind: &str, bad: bool, reason: &str, message: String| {
        json!({"type": kind, "status": if bad { "True" } else { "False" }, "reason": reason, "message": message,
            "lastTransitionTime": now})
    };
    let named = |l: &Left| format!("{} has {} resource instances", l.resource, l.objects);
    let mut held: Vec<_> = left.iter().flat_map(|l| &l.finalizers).cloned().collect();
    held.sort();
    let mut counted: Vec<(String, usize)> = Vec::new();
    for finalizer in held {
        match counted.last_mut() {
            Some((last, n)) if *last == finalizer => *n += 1,
            _ => counted.push((finalizer, 1)),
        }
    }
    let content: Vec<_> = left.iter().map(named).collect();
    let holding: Vec<_> = counted.iter().map(|(f, n)| format!("{f} in {n} resource instances")).collect();
    let list = |none: &str, some: &str, all: &[String]| {
        if all.is_empty() { none.to_string() } else { format!("{some}{}", all.join(", ")) }
    };
    json!([
        condition(
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".into()
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".into()
        ),
        condition(
            "NamespaceDeletionContentFailure",
            !errors.is_empty(),
            if errors.is_empty() { "ContentDeleted" } else { "ContentDeletionFailed" },
            list(
                "All content successfully deleted, may be waiting on finalization",
                "Failed to delete all resource types, remaining: ",
                errors
            )
        ),
        condition(
            "NamespaceContentRemaining",
            !left.is_empty(),
            if left.is_empty() { "ContentRemoved" } else { "SomeResourcesRemain" },
            list("All content successfully removed", "Some resources are remaining: ", &content)
        ),
        condition(
            "NamespaceFinalizersRemaining",
            !holding.is_empty(),
            if holding.is_empty() { "ContentHasNoFinalizers" } else { "SomeFinalizersRemain" },
            list(
                "All content-preserving finalizers finished",
                "Some content in the namespace has finalizers remaining: ",
                &holding
            )
        ),
    ])
}

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<String>> = Queue::new();
    let q = queue.clone();
    world.namespaces.on_change(move |change| {
        if let Some(namespace) = change.new.filter(|n| n.metadata.deletion_timestamp.is_some()) {
            q.add(namespace.name_any());
        }
    });
    let world = world.clone();
    async move { queue.work("namespace", 8, |name| reconcile(&world, name)).await }
}

async fn reconcile(world: &World, name: String) -> Outcome {
    let client = &world.client;
    let api: Api<Namespace> = Api::all(client.clone());
    let Some(namespace) = api.get_opt(&name).await?.filter(|n| n.metadata.deletion_timestamp.is_some()) else {
        return Ok(None);
    };
    let ours = |f: &String| f == "kubernetes";
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(ours) {
        return Ok(None);
    }
    let (mut left, mut errors) = (Vec::new(), Vec::new());
    let mut kinds: Vec<_> = discovery::kinds(client).await?.into_iter().filter(|k| k.namespaced).collect();
    let is_pods = |kind: &Kind| kind.resource.group.is_empty() && kind.resource.plural == "pods";
    kinds.sort_by_key(|kind| !is_pods(kind));
    let mut waits = false;
    for kind in kinds {
        match empty(client, &name, &kind).await {
            Ok(None) => {}
            // While there are pods, what they use stays, and nothing is said of what remains. KEP-5080.
            Ok(Some(_)) if is_pods(&kind) => {
                waits = true;
                break;
            }
            Ok(Some(some)) => left.push(some),
            // The kind went away since discovery, and its objects with it.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => {}
            Err(error) => errors.push(format!("{}: {error}", kind.resource.plural)),
        }
    }
    let Some(mut done) = tell(&api, namespace, conditions(&left, &errors, &now())).await? else { return Ok(None) };
    if waits || !left.is_empty() || !errors.is_empty() {
        return Ok(Some(AGAIN));
    }
    if let Some(spec) = &mut done.spec {
        spec.finalizers = Some(finalizers.into_iter().filter(|f| !ours(f)).collect());
    }
    let body = serde_json::to_vec(&done).map_err(kube::Error::SerdeError)?;
    let request = Request::put(format!("/api/v1/namespaces/{name}/finalize"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(kube::Error::HttpError)?;
    gone_is_fine(client.request::<Value>(request).await.map(drop))?;
    Ok(None)
}

/// Writes conditions that say something new, and returns the namespace with them; `None` when it is gone.
async fn tell(api: &Api<Namespace>, namespace: Namespace, conditions: Value) -> Result<Option<Namespace>, kube::Error> {
    let told = |v: &Value| -> Vec<(Value, Value)> {
        v.as_array().into_iter().flatten().map(|c| (c["type"].clone(), c["message"].clone())).collect()
    };
    let before = serde_json::to_value(namespace.status.as_ref().and_then(|s| s.conditions.as_ref()));
    if told(&before.unwrap_or_default()) == told(&conditions) {
        return Ok(Some(namespace));
    }
    let body = Patch::Merge(json!({"status": {"conditions": conditions}}));
    match api.patch_status(&namespace.name_any(), &PatchParams::default(), &body).await {
        Ok(namespace) => Ok(Some(namespace)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Deletes all objects of a kind in a namespace and says what is left.
async fn empty(client: &Client, namespace: &str, kind: &Kind) -> Result<Option<Left>, kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind.resource);
    let list = ListParams::default().limit(500);
    if api.list_metadata(&list).await?.items.is_empty() {
        return Ok(None);
    }
    match api.delete_collection(&DeleteParams::background(), &ListParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 405 => {
            for object in api.list_metadata(&list).await?.items {
                gone_is_fine(api.delete(&object.name_any(), &DeleteParams::background()).await.map(drop))?;
            }
        }
        Err(error) => return Err(error),
    }
    let rest = api.list_metadata(&list).await?.items;
    Ok((!rest.is_empty()).then(|| Left {
        // With its dot even without a group: so it reads everywhere.
        resource: format!("{}.{}", kind.resource.plural, kind.resource.group),
        objects: rest.len(),
        finalizers: rest.iter().flat_map(|o| o.finalizers().to_vec()).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_name_what_is_left_and_what_holds_it() {
        let held = Left { resource: "pods.".into(), objects: 2, finalizers: vec!["x/y".into(), "x/y".into()] };
        let got = conditions(&[held], &[], "now");
        assert_eq!(got[3]["message"], "Some resources are remaining: pods. has 2 resource instances");
        assert_eq!(
            got[4]["message"],
            "Some content in the namespace has finalizers remaining: x/y in 2 resource instances"
        );
        assert!(conditions(&[], &[], "now").as_array().unwrap().iter().all(|c| c["status"] == "False"));
    }
}
