//! The controllers of the development cluster, plain clients of its API.
//!
//! ```text
//! watches (one a kind) → informers → handlers → queues of keys → reconciles → API
//! ```
//!
//! [`run_all`] runs them until told to stop. Decisions are pure functions beside the code that carries them out.

mod certificates;
mod daemon_set;
mod deployment;
mod discovery;
mod disruption;
mod endpoints;
mod garbage;
mod informer;
mod job;
mod labels;
mod namespace;
mod node_lifecycle;
mod pod_gc;
mod queue;
mod replica_set;
mod scheduler;
mod service_account;
mod stateful_set;
mod taint_eviction;
mod workload;
mod world;

use std::panic::AssertUnwindSafe;

use std::sync::Arc;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::world::{Task, World};
use crate::pki::Authority;

/// Runs all controllers until `shutdown`, and returns when all of them have stopped.
///
/// The authority signs certificates, and its own is published in every namespace. A failing reconcile is tried
/// again with back-off by its key and never disturbs another controller.
pub(crate) async fn run_all(client: kube::Client, shutdown: CancellationToken, authority: Arc<Authority>) {
    let world = World::new(client, authority.certificate_pem.clone());
    let mut tasks = JoinSet::new();
    let mut go = |name: &'static str, task: Task| {
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                ended = AssertUnwindSafe(task).catch_unwind() => {
                    if ended.is_err() {
                        tracing::error!(controller = name, "a controller panicked outside of its reconciles and is off");
                    }
                }
            }
        });
    };
    go("scheduler", Box::pin(scheduler::Scheduler::new(world.clone()).run()));
    go("node-lifecycle", Box::pin(node_lifecycle::start(&world)));
    go("taint-eviction", Box::pin(taint_eviction::start(&world)));
    go("pod-gc", Box::pin(pod_gc::start(&world)));
    go("service-account", Box::pin(service_account::start(&world)));
    go("namespace", Box::pin(namespace::start(&world)));
    go("garbage-collector", Box::pin(garbage::start(&world)));
    go("replica-set", Box::pin(replica_set::start(&world)));
    go("deployment", Box::pin(deployment::start(&world)));
    go("job", Box::pin(job::start(&world)));
    go("disruption", Box::pin(disruption::start(&world)));
    go("certificates", Box::pin(certificates::start(&world, authority)));
    go("daemon-set", Box::pin(daemon_set::start(&world)));
    go("stateful-set", Box::pin(stateful_set::start(&world)));
    go("endpoint-slice", Box::pin(endpoints::start(&world)));
    go("events", Box::pin(world.clone().post_events()));
    for watch in world.watches() {
        go("watch", watch);
    }
    while tasks.join_next().await.is_some() {}
    world.close();
}
