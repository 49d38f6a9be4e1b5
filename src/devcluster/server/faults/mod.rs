//! Faults on demand: what a client of a real cluster meets sooner or later, when a test wants it.
//!
//! ```text
//! POST /debug/faults --rule--> Faults.rules --asked at every request--> delay, error, hang, reset; or of its answer
//! POST /debug/faults/outage --> Network, which `listen` and every `Socket` watch
//! POST /debug/faults/cut-watches, /compact --> Store
//! ```
//!
//! [`rules`] decides and is pure; [`control`] is the endpoint, there only when asked for and for `system:masters` alone.

pub(crate) mod control;
pub(crate) mod rules;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::status::{ApiError, Result};
use rules::{Action, Asked, Fault, Rule};

/// Requests are not held longer than this, whatever a rule says.
const LONGEST: Duration = Duration::from_secs(3600);
/// An answer about to be cut off has this long to leave.
const PARTING: Duration = Duration::from_millis(100);
/// So many of the requests that it struck a rule remembers.
const REMEMBERED: usize = 2000;

/// How the network to the server is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Network {
    #[default]
    Up,
    /// Connections are accepted and reset at once.
    Reset,
    /// Nothing listens.
    Refuse,
    /// Connections stay, and nothing moves on them.
    Silent,
}

/// The faults that are asked for now.
#[derive(Debug)]
pub(crate) struct Faults {
    seed: u64,
    rules: Mutex<Rules>,
    network: watch::Sender<Network>,
    /// Those that are not over, the latest last: it is the one that is felt.
    outages: Mutex<Vec<(u64, Network)>>,
}

#[derive(Debug, Default)]
struct Rules {
    last: u64,
    active: Vec<Active>,
}

/// A rule at work.
#[derive(Debug)]
struct Active {
    id: u64,
    rule: Rule,
    until: Option<Instant>,
    matched: u64,
    /// Of its share, those that it let pass before it began to strike among them.
    passed: u64,
    applied: u64,
    /// The latest that it struck, as in `PUT /api/v1/nodes/a/status`.
    struck: VecDeque<String>,
    /// Others have it as long as a strike of this rule is on a request.
    held: Arc<()>,
    /// Cancelled when the rule is gone: what it holds up goes on.
    gone: CancellationToken,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

/// What a rule does to one request.
#[derive(Debug)]
pub(crate) struct Strike {
    action: Action,
    /// It falls on the answer: the request takes effect.
    pub(crate) after: bool,
    gone: CancellationToken,
    _held: Arc<()>,
}

/// A connection as requests on it may see it: they can cut it.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pub(crate) cut: CancellationToken,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, rules: Mutex::default(), network: watch::Sender::default(), outages: Mutex::default() }
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        rules.active.retain(|active| active.until.is_none_or(|until| until > now));
        rules
    }

    /// The network's state, to be followed.
    pub(crate) fn network(&self) -> watch::Receiver<Network> {
        self.network.subscribe()
    }

    fn add(&self, rule: Rule) -> u64 {
        let mut rules = self.rules();
        rules.last += 1;
        let id = rules.last;
        let until = rule.seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds).min(24 * LONGEST));
        let gone = CancellationToken::new();
        let (struck, held) = (VecDeque::new(), Arc::default());
        rules.active.push(Active { id, rule, until, matched: 0, passed: 0, applied: 0, struck, held, gone });
        id
    }

    /// What the first rule that hits this request does to it.
    pub(crate) fn judge(&self, asked: &Asked<'_>) -> Option<Strike> {
        let mut rules = self.rules();
        let mut hit = None;
        for active in &mut rules.active {
            let Rule { share, skip, count, after, ref action, ref matches, .. } = active.rule;
            let spent = count.is_some_and(|count| active.applied >= count);
            if hit.is_some() || spent || !matches.covers(asked) {
                continue;
            }
            active.matched += 1;
            if !rules::falls(self.seed, active.id, active.matched, share) {
                continue;
            }
            active.passed += 1;
            if active.passed <= skip {
                continue;
            }
            active.applied += 1;
            if active.struck.len() == REMEMBERED {
                active.struck.pop_front();
            }
            active.struck.push_back(format!("{} {}", asked.method, asked.path));
            let (gone, held) = (active.gone.clone(), active.held.clone());
            hit = Some(Strike { action: action.clone(), after, gone, _held: held });
        }
        hit
    }

    /// Lets the network fail for a while, beginning when the answer that says so has left.
    fn outage(self: &Arc<Self>, network: Network, lasts: Duration) {
        let faults = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PARTING).await;
            let id = faults.begin_outage(network);
            tokio::time::sleep(lasts).await;
            faults.end_outage(id);
        });
    }

    fn begin_outage(&self, network: Network) -> u64 {
        let mut outages = self.outages.lock().unwrap_or_else(PoisonError::into_inner);
        let id = outages.iter().map(|(id, _)| id + 1).max().unwrap_or(0);
        outages.push((id, network));
        self.network.send_replace(network);
        id
    }

    /// Ends one outage; another that is not over yet stays.
    fn end_outage(&self, id: u64) {
        let mut outages = self.outages.lock().unwrap_or_else(PoisonError::into_inner);
        outages.retain(|(other, _)| *other != id);
        self.network.send_replace(outages.last().map_or(Network::Up, |(_, network)| *network));
    }
}

impl Strike {
    /// Does what the rule says; when this returns `Ok`, the request or its answer goes on.
    pub(crate) async fn fall(&self, line: Option<&Arc<Line>>) -> Result<()> {
        match &self.action {
            Action::Status(fault) => Err(fault_answer(fault)),
            Action::Delay { milliseconds } => {
                let delay = Duration::from_millis(*milliseconds).min(LONGEST);
                let _ = tokio::time::timeout(delay, self.gone.cancelled()).await;
                Ok(())
            }
            Action::Hang => {
                let _ = tokio::time::timeout(LONGEST, self.gone.cancelled()).await;
                Ok(())
            }
            Action::Reset => {
                if let Some(line) = line {
                    line.cut.cancel();
                    // The connection's task ends this one.
                    let _ = tokio::time::timeout(PARTING, std::future::pending::<()>()).await;
                }
                Err(ApiError::internal("the connection was to be reset"))
            }
        }
    }
}

fn fault_answer(fault: &Fault) -> ApiError {
    let (reason, message) = match fault.code {
        429 => ("TooManyRequests", "Too many requests, please try again later."),
        500 => ("InternalError", "Internal error occurred: a fault on demand"),
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
        504 => ("Timeout", "Timeout: request did not complete within the allotted timeout"),
        _ => ("", "a fault on demand"),
    };
    let mut error = ApiError::new(fault.code, reason, fault.message.as_deref().unwrap_or(message));
    if let Some(seconds) = fault.retry_after_seconds {
        error.details = json!({"retryAfterSeconds": seconds});
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_does_not_end_another() {
        let faults = Faults::new(0);
        let felt = || *faults.network.borrow();
        let silent = faults.begin_outage(Network::Silent);
        let refused = faults.begin_outage(Network::Refuse);
        assert_eq!(felt(), Network::Refuse);
        faults.end_outage(silent);
        assert_eq!(felt(), Network::Refuse);
        let reset = faults.begin_outage(Network::Reset);
        faults.end_outage(reset);
        assert_eq!(felt(), Network::Refuse);
        faults.end_outage(refused);
        assert_eq!(felt(), Network::Up);
    }
}
