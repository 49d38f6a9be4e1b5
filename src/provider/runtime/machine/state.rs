//! Where a pod is in its life. All of it but the probes in flight is kept on disk.

use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ResourceRequirements;
use serde::{Deserialize, Serialize};

use super::plan::{ContainerPlan, ProbePlan};
use crate::provider::runtime::engine::Exit;

/// `at` and so much more; the end of time at most.
pub(crate) fn after(at: Timestamp, wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait).ok().and_then(|wait| at.checked_add(wait).ok()).unwrap_or(Timestamp::MAX)
}

/// A pod's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodState {
    pub start_time: Timestamp,
    pub sandbox: SandboxState,
    /// The first addresses that it had, kept when it has ended.
    pub ips: Vec<IpAddr>,
    /// One for each container of the plan, in its order.
    pub containers: Vec<Run>,
    pub stopping: Option<Stopping>,
    /// All containers are ended, to run again from the first one.
    #[serde(default)]
    pub renewing: bool,
    /// Why the runtime ended the pod of its own accord: reason and message.
    pub ended: Option<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum SandboxState {
    /// It is to be made, not before this time.
    Wanted {
        not_before: Timestamp,
        delay: Duration,
    },
    /// It is being made.
    Making {
        delay: Duration,
    },
    Ready,
}

/// The pod is to end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stopping {
    /// When everything is killed.
    pub by: Timestamp,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub name: String,
    /// How many containers were made for it; the last one's attempt is one less.
    pub runs: u32,
    pub stage: Stage,
    /// How the run before the current one ended.
    pub last: Option<End>,
    /// Why it does not run, which users still see while it is tried again.
    #[serde(default)]
    pub shown: Option<(String, String)>,
    pub crashes: Option<Growing>,
    pub pulls: Option<Growing>,
    /// How long the last step that got no answer was waited for.
    pub retry: Duration,
    /// The engine's id of the last container that was made.
    pub id: String,
    pub image_id: String,
    /// Its startup probe has succeeded, if there is one.
    pub started: bool,
    pub ready: bool,
    /// It has been started (as a sidecar) or has succeeded once, so that what comes after it may begin.
    pub passed: bool,
    /// It is being ended.
    pub ending: Option<Ending>,
    /// Run it again whatever its end, since its image changed.
    pub changed: bool,
    /// Its end has made all containers run again; it is not to do so twice.
    #[serde(default)]
    pub renewed: bool,
    /// The resources that it was given; `None` before it was made.
    #[serde(default)]
    pub given: Option<ResourceRequirements>,
    #[serde(skip)]
    pub resizing: Resizing,
    #[serde(skip)]
    pub probes: Probes,
}

/// Whether a container is just being given other resources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Resizing {
    #[default]
    No,
    UnderWay,
    /// It did not succeed, and is tried again then.
    At(Timestamp),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// Not its turn yet, or not before a time because something could not be reached.
    Waiting {
        not_before: Option<Timestamp>,
    },
    /// Its image is being looked for.
    Pulling,
    /// It cannot be started at the moment: what users see, and when it is tried again.
    Held {
        reason: String,
        message: String,
        until: Timestamp,
        then: Option<Box<(String, String)>>,
    },
    /// It is being made and started.
    Starting,
    /// It runs, and its postStart hook is under way.
    Hooked {
        since: Timestamp,
    },
    Running {
        since: Timestamp,
    },
    /// It has ended and runs again after a while.
    BackOff {
        until: Timestamp,
        reason: String,
        message: String,
    },
    /// It has ended; whether it runs again is decided next.
    Exited(End),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct End {
    /// The engine's id; empty when no container was made.
    pub id: String,
    pub exit: Exit,
    /// From the termination message path, or the engine.
    pub message: Option<String>,
    /// It stays as it is.
    pub settled: bool,
}

/// A delay that doubles. client-go: `flowcontrol.Backoff`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Growing {
    pub delay: Duration,
    pub updated: Timestamp,
}

impl Growing {
    const FIRST: Duration = Duration::from_secs(10);
    pub const MAX: Duration = Duration::from_secs(300);

    /// After another try at `now`.
    pub fn next(old: Option<Self>, now: Timestamp) -> Self {
        let delay = old.map_or(Self::FIRST, |old| (old.delay * 2).min(Self::MAX));
        Self { delay, updated: now }
    }

    /// Forgotten when what failed at `at` had held for ten minutes.
    pub fn is_forgiven(self, at: Timestamp) -> bool {
        at > after(self.updated, Self::MAX * 2)
    }
}

/// The steps in which a container is ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ending {
    pub step: EndStep,
    /// When it is killed.
    pub by: Timestamp,
    /// It is killed without being asked.
    pub at_once: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum EndStep {
    /// Its preStop hook is under way.
    PreStop,
    /// It waits for the containers that end before it.
    Turn,
    /// It was asked to end.
    Asked,
    /// It was killed; once more at [`Ending::by`].
    Killed,
}

/// The probes of a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Probes {
    pub startup: Option<Probing>,
    pub readiness: Option<Probing>,
    pub liveness: Option<Probing>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Probing {
    pub plan: ProbePlan,
    pub next: Timestamp,
    pub in_flight: bool,
    /// Answers of the same kind in a row.
    row: u32,
    good: Option<bool>,
}

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

impl ProbeKind {
    pub const ALL: [Self; 3] = [Self::Startup, Self::Readiness, Self::Liveness];

    /// As kubelet writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

impl Probing {
    fn new(plan: &ProbePlan, since: Timestamp, now: Timestamp) -> Self {
        let next = after(since, plan.initial_delay).max(now);
        Self { plan: plan.clone(), next, in_flight: false, row: 0, good: None }
    }

    /// Takes an answer; `Some` when enough of a kind came in a row.
    pub fn answered(&mut self, good: bool, now: Timestamp) -> Option<bool> {
        self.next = self.next.max(now);
        self.row = if self.good == Some(good) { self.row.saturating_add(1) } else { 1 };
        self.good = Some(good);
        let enough = if good { self.plan.success } else { self.plan.failure };
        (self.row >= enough).then_some(good)
    }

    /// Notes that one was sent.
    pub fn sent(&mut self, now: Timestamp) {
        self.in_flight = true;
        self.next = after(now, self.plan.period);
    }
}

impl Probes {
    /// For a container that runs since `since`.
    pub fn of(plan: &ContainerPlan, since: Timestamp, now: Timestamp) -> Self {
        let new = |p: &Option<ProbePlan>| p.as_ref().map(|p| Probing::new(p, since, now));
        Self { startup: new(&plan.startup), readiness: new(&plan.readiness), liveness: new(&plan.liveness) }
    }

    pub fn get_mut(&mut self, kind: ProbeKind) -> Option<&mut Probing> {
        match kind {
            ProbeKind::Startup => self.startup.as_mut(),
            ProbeKind::Readiness => self.readiness.as_mut(),
            ProbeKind::Liveness => self.liveness.as_mut(),
        }
    }
}

impl Run {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            runs: 0,
            stage: Stage::waiting(),
            last: None,
            shown: None,
            crashes: None,
            pulls: None,
            retry: Duration::ZERO,
            id: String::new(),
            image_id: String::new(),
            started: false,
            ready: false,
            passed: false,
            ending: None,
            changed: false,
            renewed: false,
            given: None,
            resizing: Resizing::No,
            probes: Probes::default(),
        }
    }

    /// The attempt of the last container that was made; 0 also when none was.
    pub fn attempt(&self) -> u32 {
        self.runs.saturating_sub(1)
    }

    /// Its main process runs, as far as is known.
    pub fn is_alive(&self) -> bool {
        matches!(self.stage, Stage::Hooked { .. } | Stage::Running { .. })
    }

    /// It has ended for good.
    pub fn end(&self) -> Option<&End> {
        match &self.stage {
            Stage::Exited(end) if end.settled => Some(end),
            _ => None,
        }
    }

    /// Something is under way that must not be overtaken.
    pub fn is_starting(&self) -> bool {
        matches!(self.stage, Stage::Pulling | Stage::Starting | Stage::Hooked { .. })
    }
}

impl Stage {
    pub fn waiting() -> Self {
        Self::Waiting { not_before: None }
    }
}

impl PodState {
    /// Without what is not kept on disk.
    pub fn durable(&self) -> Self {
        let mut state = self.clone();
        for run in &mut state.containers {
            (run.probes, run.resizing) = (Probes::default(), Resizing::No);
        }
        state
    }

    /// A pod that is accepted at `now`.
    pub fn new<'a>(containers: impl Iterator<Item = &'a ContainerPlan>, now: Timestamp) -> Self {
        Self {
            start_time: now,
            sandbox: SandboxState::Wanted { not_before: now, delay: Duration::ZERO },
            ips: Vec::new(),
            containers: containers.map(|c| Run::new(&c.name)).collect(),
            stopping: None,
            renewing: false,
            ended: None,
        }
    }
}
