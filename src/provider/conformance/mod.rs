//! The checks that every provider must pass, and what `vnode provider check` runs.
//!
//! ```ignore
//! #[tokio::test]
//! async fn my_provider_conforms() {
//!     conformance::run(|context| MyProvider::connect(context), conformance::Options::default()).await;
//! }
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `suite` | what checks are made of: a provider, what it has told, and waiting for something |
//! | `pods` | the pods that checks are made with |
//! | `seen` | reading what is reported of them |
//! | `server` | containers that serve HTTP |
//! | `lifecycle` | checks: creating, stopping, removing, and what is reported of it |
//! | `behaviour` | checks: what runs in a pod runs as its author wrote it, and sees what it should |
//! | `order` | checks: init containers and sidecars |
//! | `restarts` | checks: what is started again, and what is reported of it |
//! | `probes` | checks: probes of all kinds, and what comes of them |
//! | `endings` | checks: hooks, signals, last words, what cannot be started |
//! | `files` | checks: volumes, their parts, modes and limits |
//! | `changes` | checks: images, and what is changed while a pod runs |
//! | `streams` | checks: logs, exec, attach, ports, statistics |
//! | `faults` | checks: lost answers, calls at the same time, restarts |
//!
//! Every check has pods of its own, a deadline, and removes what it has made, so that one that fails does not make the
//! next one fail. A check that the provider's [`Capabilities`] do not call for is skipped with the reason. Checks that
//! look at their own pods alone run at the same time.

mod behaviour;
mod changes;
mod endings;
mod faults;
mod files;
mod lifecycle;
mod order;
mod pods;
mod probes;
mod restarts;
mod seen;
mod server;
mod streams;
mod suite;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use futures::{FutureExt as _, StreamExt as _, stream};
use tokio::time::{Instant, timeout};

use super::{Capabilities, PodFeature, Provider, ProviderContext, Result, VolumeFiles};
use suite::{Failure, Suite};

/// How the checks are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The longest to wait for something that must happen.
    pub patience: Duration,
    /// The image of the pods; it must be one that has a `sh` with the usual tools.
    pub image: String,
    /// The command of a pod that is to write a line and to keep running.
    pub command: Vec<String>,
    /// Containers are simulated: what would show that their commands are run is left out.
    pub simulated: bool,
    /// The provider has the pods of one node only and keeps no mark of whose they are.
    pub one_node: bool,
    /// Only checks whose name has one of these words in it; all of them when there is none.
    pub only: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(30),
            image: "busybox".into(),
            command: ["sh", "-c", "echo hello; sleep 3600"].map(str::to_owned).to_vec(),
            simulated: false,
            one_node: false,
            only: Vec::new(),
        }
    }
}

/// What a check wants of the provider before it is run.
#[derive(Clone, Copy, Debug)]
enum Need {
    /// Commands are really run.
    Commands,
    Logs,
    /// Logs that can be followed, and whose lines have a time and a source.
    LogLines,
    Exec,
    Attach,
    PortForward,
    Stats,
    /// Tells of changes by itself.
    Notifies,
    /// Pods outlive this process.
    Lasting,
    /// They do not.
    Volatile,
    /// Tells pods of one name apart.
    Uids,
    /// Knows of a pod's end until it is removed.
    Ends,
    /// Puts the files of volumes into place.
    Files,
    /// And replaces them.
    LiveFiles,
    /// Keeps whose pods are whose.
    Nodes,
    /// Starts containers while others wait for what they name.
    StartsApart,
    Feature(PodFeature),
}

impl Need {
    /// Why the check is skipped, if it is.
    fn lacking(self, can: &Capabilities, options: &Options) -> Option<String> {
        let (has, why) = match self {
            Self::Commands => (!options.simulated, "its containers are simulated"),
            Self::Logs => (can.logs, "it has no logs"),
            Self::LogLines => (can.logs && !can.plain_logs, "its logs are text alone"),
            Self::Exec => (can.exec, "it has no exec"),
            Self::Attach => (can.attach, "it has no attach"),
            Self::PortForward => (can.port_forward, "it has no port-forward"),
            Self::Stats => (can.stats, "it has no statistics"),
            Self::Notifies => (can.notifies, "it does not tell of changes by itself"),
            Self::Lasting => (!can.volatile, "its pods are gone with its process"),
            Self::Volatile => (can.volatile, "its pods outlive its process"),
            Self::Uids => (!can.by_name, "it knows pods by their names alone"),
            Self::Ends => (!can.forgets_stopped, "a pod that was stopped is gone there"),
            Self::Files => (can.volume_files != VolumeFiles::Ignored, "it has no files of volumes"),
            Self::LiveFiles => (can.volume_files == VolumeFiles::Live, "it does not replace files of volumes"),
            Self::StartsApart => (can.starts_apart, "its pods wait until all that they name is there"),
            Self::Nodes => (!options.one_node, "it has the pods of one node only"),
            Self::Feature(feature) if can.pod.has(feature) => return None,
            Self::Feature(feature) => return Some(format!("it does not declare {feature}")),
        };
        (!has).then(|| why.to_owned())
    }
}

/// One claim about providers.
struct Check {
    /// The claim, with underscores.
    name: &'static str,
    /// What to look at when it does not hold.
    hint: &'static str,
    needs: &'static [Need],
    run: for<'a> fn(&'a Suite<'_>) -> LocalBoxFuture<'a, Result<(), Failure>>,
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The claim holds.
    Passed,
    /// It does not; what was seen.
    Failed(String),
    /// The provider does not claim it; why.
    Skipped(String),
}

/// One check and what came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it belongs to.
    pub group: &'static str,
    /// The claim, with underscores.
    pub name: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// What to look at when the claim does not hold.
    pub hint: &'static str,
    /// How long it took.
    pub took: Duration,
}

/// What came of all checks.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the provider says that it can do.
    pub capabilities: Capabilities,
    /// In the order in which they were run.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// The checks that failed, each with what was seen.
    pub fn failures(&self) -> impl Iterator<Item = (&Outcome, &str)> {
        self.outcomes.iter().filter_map(|o| match &o.verdict {
            Verdict::Failed(why) => Some((o, why.as_str())),
            _ => None,
        })
    }
}

/// Checks that belong together.
struct Group {
    name: &'static str,
    checks: &'static [Check],
    /// They look at all pods of the node, or restart the provider, so that each has it for itself.
    alone: bool,
}

const fn group(name: &'static str, checks: &'static [Check]) -> Group {
    Group { name, checks, alone: false }
}

/// All checks by group, in the order in which they are told of.
const GROUPS: [Group; 10] = [
    Group { alone: true, ..group("life-cycle", lifecycle::CHECKS) },
    group("behaviour", behaviour::CHECKS),
    group("order", order::CHECKS),
    group("restarts", restarts::CHECKS),
    group("probes", probes::CHECKS),
    group("endings", endings::CHECKS),
    group("files", files::CHECKS),
    group("changes", changes::CHECKS),
    group("streams", streams::CHECKS),
    Group { alone: true, ..group("faults", faults::CHECKS) },
];

/// How many checks run at the same time: half of what an agent has under way for a node.
const AT_A_TIME: usize = 8;

/// Runs every check that the provider's capabilities call for, and tells of each as it is done.
///
/// `make` is called more than once; each call must yield a provider that knows nothing of the pods of a volatile
/// provider made before, and all of those of another.
///
/// # Errors
/// When no provider can be made.
pub async fn check<F, Fut>(make: F, options: Options, mut told: impl FnMut(&Outcome)) -> Result<Report>
where
    F: Fn(ProviderContext) -> Fut,
    Fut: Future<Output = Result<Arc<dyn Provider>>>,
{
    let make = |context| -> LocalBoxFuture<'_, Result<Arc<dyn Provider>>> { Box::pin(make(context)) };
    let suite = Suite::new(&make, options).await?;
    let capabilities = suite.provider().capabilities();
    let only = &suite.options.only;
    let asked = |check: &&Check| only.is_empty() || only.iter().any(|word| check.name.contains(word.as_str()));
    let mut outcomes = Vec::new();
    for groups in GROUPS.chunk_by(|a, b| a.alone == b.alone) {
        let checks = groups.iter().flat_map(|group| group.checks.iter().filter(asked).map(|check| (group.name, check)));
        let done = checks.map(|(group, check)| {
            let suite = suite.another();
            async move {
                let begin = Instant::now();
                let lacking = check.needs.iter().find_map(|need| need.lacking(&capabilities, &suite.options));
                let verdict = match lacking {
                    Some(why) => Verdict::Skipped(why),
                    None => judge(&suite, check).await,
                };
                Outcome { group, name: check.name, verdict, hint: check.hint, took: begin.elapsed() }
            }
        });
        let mut done = stream::iter(done).buffered(if groups[0].alone { 1 } else { AT_A_TIME });
        while let Some(outcome) = done.next().await {
            told(&outcome);
            outcomes.push(outcome);
        }
    }
    Ok(Report { capabilities, outcomes })
}

/// Runs one check and removes what it leaves.
async fn judge(suite: &Suite<'_>, check: &Check) -> Verdict {
    // Room for a check that waits for several things, each for as long as it may take.
    let limit = suite.options.patience * 6;
    let verdict = match timeout(limit, AssertUnwindSafe((check.run)(suite)).catch_unwind()).await {
        Ok(Ok(Ok(()))) => Verdict::Passed,
        Ok(Ok(Err(failure))) => failure.into(),
        Ok(Err(_)) => Verdict::Failed("it panicked; see standard error".into()),
        Err(_) => Verdict::Failed(format!("not done after {} s", limit.as_secs())),
    };
    match suite.clear().await {
        Err(failure) if verdict == Verdict::Passed => failure.into(),
        _ => verdict,
    }
}

impl From<Failure> for Verdict {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Seen(why) => Self::Failed(why),
            Failure::NotClaimed(why) => Self::Skipped(why),
        }
    }
}

/// Runs every check that the provider's capabilities call for, and returns what came of each.
///
/// # Panics
/// With a sentence for each check that failed.
pub async fn run<F, Fut>(make: F, options: Options) -> Report
where
    F: Fn(ProviderContext) -> Fut,
    Fut: Future<Output = Result<Arc<dyn Provider>>>,
{
    let report = check(make, options, |_| {}).await.unwrap_or_else(|error| panic!("must make the provider: {error}"));
    let failures: Vec<_> =
        report.failures().map(|(o, why)| format!("{}: {why}\n    hint: {}", o.name, o.hint)).collect();
    let done = report.outcomes.iter().filter(|o| o.verdict == Verdict::Passed).count();
    assert!(failures.is_empty(), "{} checks failed, {done} passed\n{}", failures.len(), failures.join("\n"));
    assert!(done > 0, "no check was run");
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_claims_and_every_one_has_a_hint() {
        let all: Vec<_> = GROUPS.iter().flat_map(|group| group.checks).collect();
        let names: std::collections::BTreeSet<_> = all.iter().map(|c| c.name).collect();
        assert_eq!(names.len(), all.len());
        for check in all {
            assert!(check.name.contains('_') && check.name.is_ascii(), "{}", check.name);
            assert!(check.hint.len() > 20, "{}", check.name);
        }
    }
}
