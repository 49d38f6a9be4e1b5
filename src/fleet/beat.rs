//! Leases and probes: each one queue for the whole fleet, so that the beats of all nodes are spread evenly
//! and cost no task or timer of their own.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use rand::Rng as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::agent::Agent;
use super::plan::Reached;
use super::{Fleet, REQUEST_DEADLINE};
use crate::api::names::LEASE_RENEWAL;
use crate::cluster::queue::{Backoff, Outcome};
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
        // The hold is confirmed for the term in which the request is sent.
        let Some(term) = self.members.fence.term() else { return Outcome::After(GRID) };
        let first = {
            let state = agent.state();
            let Some(held) = state.held.as_ref().filter(|_| !state.leaving) else { return Outcome::Done };
            held.node.is_none()
        };
        let start = Instant::now();
        // A renewal that takes longer than the interval is worth less than a new one.
        match tokio::time::timeout(LEASE_RENEWAL, self.renew_lease(&agent, term)).await {
            Ok(Ok(true)) => {
                metrics().lease_renew.observe(start.elapsed().as_secs_f64());
                if let Some(before) = agent.state().renewed.replace(Instant::now()) {
                    let late = before.elapsed().saturating_sub(LEASE_RENEWAL);
                    metrics().lease_lateness.observe(late.as_secs_f64());
                }
                // The first interval is random, so that a fleet that starts together does not beat together.
                let share = if first { rand::rng().random_range(0.3..1.0) } else { 1.0 };
                Outcome::After(LEASE_RENEWAL.mul_f64(share).saturating_sub(start.elapsed()))
            }
            Ok(Ok(false)) => {
                tracing::warn!(node = %name, "the node is another replica's by now");
                self.let_go(&agent);
                self.queue.add(name);
                Outcome::Done
            }
            Ok(Err(error)) => {
                tracing::debug!(node = %name, %error, "the Lease could not be renewed");
                Outcome::Retry
            }
            Err(_) => Outcome::Retry,
        }
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
        let start = Instant::now();
        let (answer, outcome) = match tokio::time::timeout(PROBE_DEADLINE, question.catch_unwind()).await {
            Ok(Ok(Ok(answer))) => (Ok(answer), "ok"),
            Ok(Ok(Err(error))) => (Err(error), "error"),
            Ok(Err(_)) => (Err(ProviderError::unavailable("it panicked; see the operator's log")), "panic"),
            Err(_) => {
                let error = format!("no answer within {} s", PROBE_DEADLINE.as_secs());
                (Err(ProviderError::unavailable(error)), "timeout")
            }
        };
        if let Some(vn) = self.virtual_node(&name) {
            metrics().provider_call(vn.spec.provider.kind.as_str(), "ping", outcome, start.elapsed());
        }
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
        // While the state is held, or the pods would be told by two, the older word last.
        if changed && state.runs_pods {
            self.pods.set_reachable(&agent.name, state.reached == Reached::Yes);
        }
        changed
    }
}
