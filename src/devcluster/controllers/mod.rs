//! The controllers of the development cluster, plain clients of its API.
//!
//! ```text
//! watches (one a kind) → informers → handlers → queues of keys → reconciles → API
//! ```
//!
//! [`run_all`] runs them until told to stop. Decisions are pure functions beside the code that carries them out.

mod certificates;
mod claim_protection;
mod cron_job;
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
mod revision;
mod scheduler;
mod service_account;
mod stateful_set;
mod taint_eviction;
mod volume;
mod workload;
mod world;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::world::{Task, World};
use crate::pki::Authority;

/// Begins a controller; called again when it has ended in a panic.
pub(crate) type Start = Box<dyn Fn() -> Task + Send + Sync>;

/// How long a controller that has panicked is off.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs a controller until told to stop, and again after a panic: one that lies outside of its reconciles must not leave
/// the cluster without it.
async fn supervise(name: &'static str, start: Start, shutdown: CancellationToken) {
    loop {
        // What it begins with may panic as well as what it goes on with.
        let run = AssertUnwindSafe(async { start().await }).catch_unwind();
        tokio::select! {
            () = shutdown.cancelled() => return,
            ended = run => if ended.is_ok() { return },
        }
        tracing::error!(controller = name, "a controller panicked outside of its reconciles and begins again");
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Runs all controllers until `shutdown`, and returns when all of them have stopped.
///
/// The authority signs certificates, and its own is published in every namespace. A failing reconcile is tried
/// again with back-off by its key and never disturbs another controller.
pub(crate) async fn run_all(client: kube::Client, shutdown: CancellationToken, authority: Arc<Authority>) {
    let world = World::new(client, authority.certificate_pem.clone());
    let mut tasks = JoinSet::new();
    let mut go = |name: &'static str, start: Start| drop(tasks.spawn(supervise(name, start, shutdown.clone())));
    let with = |start: fn(&Arc<World>) -> Task| -> Start {
        let world = world.clone();
        Box::new(move || start(&world))
    };
    go("scheduler", with(|world| Box::pin(scheduler::Scheduler::new(world.clone()).run())));
    go("node-lifecycle", with(|world| Box::pin(node_lifecycle::start(world))));
    go("taint-eviction", with(|world| Box::pin(taint_eviction::start(world))));
    go("pod-gc", with(|world| Box::pin(pod_gc::start(world))));
    go("service-account", with(|world| Box::pin(service_account::start(world))));
    go("namespace", with(|world| Box::pin(namespace::start(world))));
    go("garbage-collector", with(|world| Box::pin(garbage::start(world))));
    go("replica-set", with(|world| Box::pin(replica_set::start(world))));
    go("deployment", with(|world| Box::pin(deployment::start(world))));
    go("job", with(|world| Box::pin(job::start(world))));
    go("cron-job", with(|world| Box::pin(cron_job::start(world))));
    go("claim-protection", with(|world| Box::pin(claim_protection::start(world))));
    go("volume", with(|world| Box::pin(volume::start(world))));
    go("disruption", with(|world| Box::pin(disruption::start(world))));
    let signing = world.clone();
    go("certificates", Box::new(move || Box::pin(certificates::start(&signing, authority.clone()))));
    go("daemon-set", with(|world| Box::pin(daemon_set::start(world))));
    go("stateful-set", with(|world| Box::pin(stateful_set::start(world))));
    go("endpoint-slice", with(|world| Box::pin(endpoints::start(world))));
    go("events", with(|world| Box::pin(world.clone().post_events())));
    for watch in world.watches() {
        go("watch", watch);
    }
    while tasks.join_next().await.is_some() {}
    world.close();
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_panics_begins_again() {
        let begun = Arc::new(AtomicU32::new(0));
        let count = begun.clone();
        let start: Start = Box::new(move || {
            let nth = count.fetch_add(1, Ordering::SeqCst);
            assert!(nth != 0, "as it begins");
            Box::pin(async move { assert!(nth != 1, "as it goes on") })
        });
        supervise("test", start, CancellationToken::new()).await;
        assert_eq!(begun.load(Ordering::SeqCst), 3);
    }
}
