//! Leases and probes: each one queue for the whole fleet, so that the beats of all nodes are spread evenly
//! and cost no task or timer of their own.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use rand::Rng as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::agent::Agent;
use super::plan::Reached;
use super::{Fleet, REQUEST_DEADLINE, is_conflict, is_not_found};
use crate::api::names::{FIELD_MANAGER, LEASE_NAMESPACE, LEASE_RENEWAL};
use crate::cluster::queue::{Backoff, Outcome};
use crate::node::lease;
use crate::provider::ProviderError;
use crate::telemetry::metrics::metrics;

/// Of a Lease that could not be renewed: soon, since it is good for only 40 s.
pub(super) const BACKOFF: Backoff = Backoff { base: Duration::from_millis(500), max: Duration::from_secs(5) };
/// Beats come in small groups, five a second, instead of one by one.
pub(super) const GRID: Duration = Duration::from_millis(200);
/// Renewals under way at a time.
const BEATS: usize = 32;
/// Probes under way at a time. Hanging providers hold their places only for the deadline.
const PROBES: usize = 256;
/// How often a provider is asked whether it is there. Virtual Kubelet: `DefaultPingInterval`.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// How long it may take to answer.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// How often a provider that answers is asked what its machine looks like.
const DESCRIBE_EVERY: Duration = Duration::from_secs(300);
/// How soon a provider that does not answer is asked again.
const PROBE_AGAIN: Duration = Duration::from_secs(3);

impl Fleet {
    /// Renews the Leases of all nodes until `shutdown`.
    pub(super) async fn beat(self: Arc<Self>, shutdown: CancellationToken) {
        let queue = self.beats.clone();
        queue.run(BEATS, shutdown, move |name| self.clone().renew(name)).await;
    }

    /// Begins the heartbeat of a node, at once.
    pub(super) fn start_beating(&self, name: &Arc<str>) {
        self.beats.add(name.clone());
    }

    async fn renew(self: Arc<Self>, name: Arc<str>) -> Outcome {
        let Some(agent) = self.agent(&name) else { return Outcome::Done };
        let (node_uid, owner) = {
            let state = agent.state();
            (state.node_uid.clone(), state.lease_owner.clone())
        };
        let Some(node_uid) = node_uid else { return Outcome::Done };
        let start = Instant::now();
        // A renewal that takes longer than the interval is worth less than a new one.
        let first = owner.is_none();
        match tokio::time::timeout(LEASE_RENEWAL, self.write_lease(&agent, &node_uid, owner)).await {
            Ok(Ok(())) => {
                metrics().lease_renew.observe(start.elapsed().as_secs_f64());
                // The first interval is random, so that a fleet that starts together does not beat together.
                let share = if first { rand::rng().random_range(0.3..1.0) } else { 1.0 };
                Outcome::After(LEASE_RENEWAL.mul_f64(share).saturating_sub(start.elapsed()))
            }
            Ok(Err(error)) => {
                tracing::debug!(node = %name, %error, "the Lease could not be renewed");
                Outcome::Retry
            }
            Err(_) => Outcome::Retry,
        }
    }

    async fn write_lease(&self, agent: &Agent, node_uid: &Arc<str>, owner: Option<Arc<str>>) -> kube::Result<()> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let (name, params) = (&*agent.name, PatchParams::apply(FIELD_MANAGER));
        let now = Timestamp::now();
        if owner.as_ref() == Some(node_uid) {
            match api.patch_metadata(name, &params, &Patch::Merge(lease::renew(now))).await {
                Err(error) if is_not_found(&error) => {}
                answer => return answer.map(drop),
            }
        } else {
            let adopt = lease::adopt(name, node_uid, &self.config.identity, now);
            match api.patch_metadata(name, &params, &Patch::Merge(adopt)).await {
                Err(error) if is_not_found(&error) => {}
                Ok(_) => {
                    agent.state().lease_owner = Some(node_uid.clone());
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        let create = lease::create(name, node_uid, &self.config.identity, now);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        match api.create(&params, &create).await {
            // Somebody else was faster: it is adopted by the retry.
            Err(error) if is_conflict(&error) => agent.state().lease_owner = None,
            answer => {
                answer?;
                agent.state().lease_owner = Some(node_uid.clone());
            }
        }
        Ok(())
    }

    /// Asks the providers of all nodes whether they are there, until `shutdown`.
    pub(super) async fn probe(self: Arc<Self>, shutdown: CancellationToken) {
        let queue = self.probes.clone();
        queue.run(PROBES, shutdown, move |name| self.clone().ask(name)).await;
    }

    async fn ask(self: Arc<Self>, name: Arc<str>) -> Outcome {
        let Some(agent) = self.agent(&name) else { return Outcome::Done };
        let Some(provider) = agent.current_provider() else { return Outcome::Done };
        let describe = {
            let state = agent.state();
            state.description.is_none() || state.described.is_none_or(|at| at.elapsed() >= DESCRIBE_EVERY)
        };
        let asked = provider.clone();
        let question = AssertUnwindSafe(async move {
            asked.ping().await?;
            if describe { asked.describe_node().await.map(Some) } else { Ok(None) }
        });
        let answer = match tokio::time::timeout(PROBE_DEADLINE, question.catch_unwind()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ProviderError::unavailable("it panicked; see the operator's log")),
            Err(_) => Err(ProviderError::unavailable(format!("no answer within {} s", PROBE_DEADLINE.as_secs()))),
        };
        // Another provider may have been put under the node meanwhile: then this says nothing of it.
        if !agent.current_provider().is_some_and(|p| Arc::ptr_eq(&p, &provider)) {
            return Outcome::After(Duration::ZERO);
        }
        if self.note(&agent, answer) {
            self.queue.add(name);
        }
        let jitter = rand::rng().random_range(0.9..1.1);
        let reached = agent.state().reached == Reached::Yes;
        Outcome::After(if reached { PROBE_INTERVAL } else { PROBE_AGAIN }.mul_f64(jitter))
    }

    /// Notes an answer; true when it changes anything.
    fn note(&self, agent: &Agent, answer: crate::provider::Result<Option<crate::provider::NodeDescription>>) -> bool {
        let mut state = agent.state();
        let before = (state.reached.clone(), state.description.clone());
        match answer {
            Ok(description) => {
                state.reached = Reached::Yes;
                state.unreachable_since = None;
                if let Some(new) = description {
                    state.described = Some(Instant::now());
                    if state.description.as_deref() != Some(&new) {
                        state.description = Some(Arc::new(new));
                    }
                }
            }
            Err(error) => {
                state.reached = Reached::No(error.to_string());
                let since = *state.unreachable_since.get_or_insert_with(Instant::now);
                // Look again when the grace is over, to tell the Node.
                let left = self.config.provider_grace.saturating_sub(since.elapsed());
                self.queue.add_after(agent.name.clone(), left.min(REQUEST_DEADLINE));
            }
        }
        let changed = (&state.reached, &state.description) != (&before.0, &before.1);
        let (reached, runs_pods) = (state.reached == Reached::Yes, state.runs_pods);
        drop(state);
        if changed && runs_pods {
            self.pods.set_reachable(&agent.name, reached);
        }
        changed
    }
}
