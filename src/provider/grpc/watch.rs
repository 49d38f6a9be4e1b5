//! The stream that brings the changes of all nodes of a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::Rng as _;
use tokio::time::{Instant, timeout};
use tonic::Status;
use vnode_proto::v1;
use vnode_proto::v1::watch_response::Change;

use super::channel::Channel;
use super::connect::wait;
use super::connection::Client;
use super::decode::{self, Bad};
use super::subscriptions::{Subscription, Subscriptions};
use crate::provider::PodRef;
use crate::provider::remote::sane::Complaint;

/// A stream that lasted so long is not counted as a failure.
const LASTED: Duration = Duration::from_secs(30);
/// What is told of again and again is told only so often.
const SELDOM: Duration = Duration::from_secs(60);

/// Keeps the stream open.
pub(super) struct Watch {
    pub endpoint: String,
    pub client: Client,
    /// What the client calls through.
    pub channel: Channel,
    pub subscriptions: Arc<Subscriptions>,
    pub lost: Arc<AtomicU64>,
    /// How long the service may take to begin.
    pub patience: Duration,
}

impl Watch {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let (mut failures, mut told) = (0u32, None::<Instant>);
        loop {
            self.subscriptions.some().await;
            let begun = Instant::now();
            let mut heard = false;
            let ended = self.follow(&mut heard).await;
            self.subscriptions.forget_availability();
            if heard {
                self.lost.fetch_add(1, Ordering::AcqRel);
            }
            failures = if begun.elapsed() >= LASTED { 1 } else { failures.saturating_add(1) };
            let pause = wait(failures, rand::rng().random_range(0.0..1.0));
            if told.is_none_or(|at| at.elapsed() >= SELDOM) {
                told = Some(Instant::now());
                let why = ended.message();
                tracing::warn!(endpoint = self.endpoint, ?pause, "the changes of pods cannot be followed: {why}");
            }
            // Whoever asks for something else may hear first that the service is back.
            let _ = timeout(pause, self.channel.revived()).await;
        }
    }

    /// Follows one stream to its end.
    async fn follow(&self, heard: &mut bool) -> Status {
        let mut client = self.client.clone();
        let mut stream = match timeout(self.patience, client.watch(self.subscriptions.requests())).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return status,
            Err(_) => return Status::deadline_exceeded("the service did not begin in time"),
        };
        let mut strange = None::<Instant>;
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    *heard = true;
                    // A node that was left just now is no stranger, but who knows it from one that never was ours?
                    match self.subscriptions.get(&message.node_uid) {
                        Some(node) => take(&node, message.change),
                        None if strange.is_none_or(|at| at.elapsed() >= SELDOM) => {
                            strange = Some(Instant::now());
                            let (endpoint, uid) = (&self.endpoint, &message.node_uid);
                            tracing::warn!(
                                endpoint,
                                uid,
                                "the service tells of a node that was not asked for; ignored"
                            );
                        }
                        None => {}
                    }
                }
                Ok(None) => return Status::unavailable("the service ended the stream"),
                Err(status) => return status,
            }
        }
    }
}

/// Takes in a change of a node.
fn take(node: &Subscription, change: Option<Change>) {
    match change {
        Some(Change::Pod(status)) => take_pod(node, &status),
        Some(Change::Event(event)) => {
            let said = event.pod.clone();
            match decode::event(event) {
                Ok(event) => node.context.notifier.event(event),
                Err(why) => complain(node, said.as_ref(), why),
            }
        }
        Some(Change::Availability(availability)) => {
            let why = match availability.message.as_str() {
                "" => "the service says that the machine behind the node cannot be used",
                message => message,
            };
            node.set_unavailable((!availability.available).then(|| why.to_owned()));
        }
        Some(Change::Synced(_)) => {
            for pod in node.synced() {
                node.context.notifier.missing(&pod);
            }
        }
        Some(Change::Gone(pod)) => match decode::pod_ref(Some(&pod)) {
            Ok(pod) => node.context.notifier.missing(&pod),
            Err(why) => complain(node, None, why),
        },
        // A change of a kind that is not known yet, from a newer service.
        None => {}
    }
}

fn take_pod(node: &Subscription, status: &v1::PodStatus) {
    match decode::observation(status, &node.node_uid) {
        Ok(said) => {
            node.told_of(&said.pod.uid);
            if let Some((holds, true)) = node.guard.take(said, Instant::now(), None) {
                node.context.notifier.changed(holds);
            }
        }
        Err(Bad::Foreign(why)) => tracing::warn!(node = %node.node, "{why}; the report is ignored"),
        Err(Bad::Senseless(why)) => complain(node, status.pod.as_ref(), why),
    }
}

/// Tells of what cannot be used: at the pod if it says which one, else in the log.
pub(super) fn complain(node: &Subscription, pod: Option<&v1::PodRef>, why: String) {
    match decode::pod_ref(pod) {
        Ok(pod) => complain_of(node, pod, why),
        Err(_) => tracing::warn!(node = %node.node, "the provider's service said what makes no sense: {why}"),
    }
}

pub(super) fn complain_of(node: &Subscription, pod: PodRef, why: String) {
    let message = format!("the provider's service said what makes no sense, which is ignored: {why}");
    node.guard.complain(pod, Complaint { reason: "BadPodStatus", message });
}
