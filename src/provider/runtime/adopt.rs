//! Finding what ran before, and following what happens: one task for each node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::time::timeout;

use super::core::{Core, Message};
use super::engine::{ContainerRef, EngineEvent, Listing};
use super::machine::Machine;
use super::machine::plan::Plan;
use super::record;
use super::runner::{Runner, Start, of_pod};
use crate::provider::{PodRef, ResolvedPod, Result};

const LIST: Duration = Duration::from_secs(30);
/// How long to wait after a listing that failed, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Runs until the node is let go.
pub(super) async fn follow(core: Arc<Core>) {
    let mut wait = RETRY.0;
    loop {
        let engine = core.engine();
        // Subscribed first, so that nothing between the listing and the stream is missed.
        let mut events = engine.events();
        let running = running(&core);
        match timeout(LIST, engine.list()).await {
            Ok(Ok(listing)) => {
                wait = RETRY.0;
                if *core.adopted.borrow() {
                    compare(&core, &listing, running).await;
                } else if let Err(error) = adopt(&core, &listing).await {
                    tracing::warn!(node = %core.node, %error, "what ran before could not be read; tried again");
                    tokio::time::sleep(RETRY.1).await;
                    continue;
                } else {
                    core.adopted.send_replace(true);
                }
            }
            failed => {
                if let Ok(Err(error)) = failed {
                    tracing::debug!(node = %core.node, %error, "the containers could not be listed; tried again");
                }
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = core.replaced.notified() => {}
                }
                wait = (wait * 2).min(RETRY.1);
                continue;
            }
        }
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = core.replaced.notified() => None,
            };
            match event {
                Some(EngineEvent::Container { container, state }) => {
                    deliver(&core, &container.clone(), Message::State(container, state)).await;
                }
                Some(EngineEvent::Sandbox { pod, sandbox }) => {
                    if let Some(entry) = core.find(&pod.uid) {
                        // Fails only when the pod has just gone.
                        let _ = entry.send(Message::Sandbox(sandbox.map(|s| s.ips))).await;
                    }
                }
                Some(EngineEvent::Lost) | None => break,
            }
        }
        // An engine whose stream ends at once is not asked in a hot loop.
        tokio::time::sleep(RETRY.0).await;
    }
}

async fn deliver(core: &Core, container: &ContainerRef, message: Message) {
    if let Some(entry) = core.find(&container.pod.uid) {
        // Fails only when the pod has just gone.
        let _ = entry.send(message).await;
    }
}

fn running(core: &Core) -> Vec<ContainerRef> {
    let all = core.entries();
    let containers = all.iter().flat_map(|entry| entry.view().containers);
    containers.filter(|c| c.alive).filter_map(|c| c.current).collect()
}

/// Tells the pods what they may have missed.
async fn compare(core: &Core, listing: &Listing, running: Vec<ContainerRef>) {
    for found in &listing.containers {
        let message = Message::State(found.container.clone(), found.state.clone());
        deliver(core, &found.container, message).await;
    }
    for container in running {
        let same = |c: &ContainerRef| {
            c.pod.uid == container.pod.uid && c.name == container.name && c.attempt == container.attempt
        };
        if !listing.containers.iter().any(|f| same(&f.container)) {
            deliver(core, &container.clone(), Message::Missing(container)).await;
        }
    }
}

/// Starts the tasks of all pods that were written down, and of those that only the engine knows.
async fn adopt(core: &Arc<Core>, listing: &Listing) -> Result<()> {
    let now = core.now();
    let failed = |error| super::files::failed("reading", &core.dir, error);
    tokio::fs::create_dir_all(&core.dir).await.map_err(failed)?;
    let mut dirs = tokio::fs::read_dir(&core.dir).await.map_err(failed)?;
    let mut count = 0;
    while let Some(dir) = dirs.next_entry().await.map_err(failed)? {
        let (pod, state) = match record::load(&dir.path()).await {
            Ok(found) => found,
            Err(error) => {
                // Without a record it is nobody's; what the engine has of it is taken up below.
                tracing::debug!(path = %dir.path().display(), %error, "a pod's folder without a record");
                continue;
            }
        };
        let reference = pod.pod_ref();
        let (sandbox, found) = of_pod(listing, &reference.uid);
        let (machine, inputs) = Machine::resume(Plan::of(&pod.pod), Some(state), sandbox.as_ref(), &found, now);
        let start = Start { pod, machine, inputs, synthetic: false, accepted: None };
        count += usize::from(Runner::spawn(core, start));
    }
    let mut strays: HashMap<Arc<str>, PodRef> = HashMap::new();
    let of_sandboxes = listing.sandboxes.iter().map(|s| &s.pod);
    for pod in of_sandboxes.chain(listing.containers.iter().map(|c| &c.container.pod)) {
        strays.entry(pod.uid.clone()).or_insert_with(|| pod.clone());
    }
    for pod in strays.into_values().filter(|pod| core.find(&pod.uid).is_none()) {
        let (sandbox, found) = of_pod(listing, &pod.uid);
        let pod = made_up(&pod, &found);
        let (machine, inputs) = Machine::resume(Plan::of(&pod.pod), None, sandbox.as_ref(), &found, now);
        count += usize::from(Runner::spawn(core, Start { pod, machine, inputs, synthetic: true, accepted: None }));
    }
    if count > 0 {
        tracing::info!(node = %core.node, pods = count, "took up the pods that ran before");
    }
    Ok(())
}

/// A pod of which only its containers are known. Nothing of it is restarted until the agent brings the real one.
fn made_up(pod: &PodRef, found: &[super::engine::ListedContainer]) -> ResolvedPod {
    let mut containers: Vec<Container> = Vec::new();
    for f in found {
        if !containers.iter().any(|c| *c.name == *f.container.name) {
            let (name, image) = (f.container.name.to_string(), Some(f.image.clone()));
            containers.push(Container { name, image, ..Container::default() });
        }
    }
    let pod = Pod {
        metadata: ObjectMeta {
            namespace: Some(pod.namespace.to_string()),
            name: Some(pod.name.to_string()),
            uid: Some(pod.uid.to_string()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { containers, restart_policy: Some("Never".into()), ..PodSpec::default() }),
        status: None,
    };
    ResolvedPod { pod: Arc::new(pod), ..ResolvedPod::default() }
}
