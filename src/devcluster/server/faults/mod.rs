//! Faults on demand: what a client of a real cluster meets sooner or later, when a test wants it.
//!
//! ```text
//! POST /debug/faults --rule--> Faults.rules --asked at every request--> delay, error, hang, reset
//! POST /debug/faults/outage --> Network, which `listen` and every `Socket` watch
//! POST /debug/faults/cut-watches, /compact --> Store
//! ```
//!
//! [`rules`] decides and is pure; [`control`] is the endpoint, there only when asked for and for `system:masters` alone.

pub(crate) mod control;
pub(crate) mod rules;

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
    applied: u64,
    /// Cancelled when the rule is gone: what it holds up goes on.
    gone: CancellationToken,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

/// A connection as requests on it may see it: they can cut it.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pub(crate) cut: CancellationToken,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, rules: Mutex::default(), network: watch::Sender::default() }
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
        rules.active.push(Active { id, rule, until, matched: 0, applied: 0, gone });
        id
    }

    /// What the first rule that hits this request does to it.
    fn judge(&self, asked: &Asked<'_>) -> Option<(Action, CancellationToken)> {
        let mut rules = self.rules();
        let mut hit = None;
        for active in &mut rules.active {
            let spent = active.rule.count.is_some_and(|count| active.applied >= count);
            if hit.is_some() || spent || !active.rule.matches.covers(asked) {
                continue;
            }
            active.matched += 1;
            if rules::falls(self.seed, active.id, active.matched, active.rule.share) {
                active.applied += 1;
                hit = Some((active.rule.action.clone(), active.gone.clone()));
            }
        }
        hit
    }

    /// Does to a request what the rules say; when this returns `Ok`, it goes on.
    pub(crate) async fn interfere(&self, asked: &Asked<'_>, line: Option<&Arc<Line>>) -> Result<()> {
        let Some((action, gone)) = self.judge(asked) else { return Ok(()) };
        match action {
            Action::Status(fault) => Err(fault_answer(&fault)),
            Action::Delay { milliseconds } => {
                let _ = tokio::time::timeout(Duration::from_millis(milliseconds).min(LONGEST), gone.cancelled()).await;
                Ok(())
            }
            Action::Hang => {
                let _ = tokio::time::timeout(LONGEST, gone.cancelled()).await;
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

    /// Lets the network fail for a while, beginning when the answer that says so has left.
    fn outage(self: &Arc<Self>, network: Network, lasts: Duration) {
        let faults = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PARTING).await;
            faults.network.send_replace(network);
            tokio::time::sleep(lasts).await;
            faults.network.send_replace(Network::Up);
        });
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
