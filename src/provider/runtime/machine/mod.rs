//! A pod as a pure state machine that is told the time: what was seen goes in, what is to be done comes out.
//!
//! ```text
//!  Input ─▶ take ─▶ state ─▶ advance ─▶ Vec<Action>, and when to look again
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`plan`] | what the spec asks for |
//! | [`state`] | where the pod is |
//! | `take` | what an input changes |
//! | `advance` | what is next: sandbox, init containers, sidecars, containers, restarts, probes |
//! | `renew` | all containers of a pod once more |
//! | `resize` | other resources for what runs |
//! | `ending` | how containers are ended: hooks, order, signals |
//! | `resume` | taking up a pod that ran before |
//! | `status` | what the agent is told |
//!
//! The rules are kubelet's (`pkg/kubelet/kuberuntime`, `pkg/kubelet/prober`). Times come from the caller and
//! nothing here waits, so every rule can be tested in no time.

mod advance;
mod ending;
pub(crate) mod plan;
mod renew;
mod resize;
mod resume;
pub(crate) mod state;
mod status;
mod take;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceRequirements;

use crate::provider::EventType;
use crate::provider::runtime::engine::{Exit, Image, Signal};
use plan::Plan;
use state::{PodState, ProbeKind};

/// Why a step did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The answer was no: a word for users (the step's own when empty) and a sentence.
    Answer { reason: String, message: String },
    /// Nobody knows. It is tried again, and nothing is concluded.
    Unknown,
}

/// Something was seen. Containers go by their index in the plan.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Input {
    /// The sandbox is there, and the volumes are; or not.
    Sandbox(Result<Vec<IpAddr>, Failure>),
    /// A sandbox that was there has other addresses, or is gone.
    SandboxChanged(Option<Vec<IpAddr>>),
    /// The image is there, or not.
    Image {
        c: usize,
        result: Result<Image, Failure>,
    },
    /// The container was made and started.
    Started {
        c: usize,
        attempt: u32,
        result: Result<(String, Timestamp), NotStarted>,
    },
    /// It has ended; the message is what it left at its termination message path.
    Exited {
        c: usize,
        attempt: u32,
        exit: Exit,
        message: Option<String>,
    },
    /// An answer to a probe; `None` when it could not be asked, which proves nothing.
    Probed {
        c: usize,
        attempt: u32,
        kind: ProbeKind,
        good: Option<bool>,
        message: String,
    },
    /// The hook has ended; the error is for users.
    PostStart {
        c: usize,
        attempt: u32,
        error: Option<String>,
    },
    PreStop {
        c: usize,
        attempt: u32,
        error: Option<String>,
    },
    /// The container has these resources now, or not.
    Resized {
        c: usize,
        attempt: u32,
        resources: Box<ResourceRequirements>,
        result: Result<(), Failure>,
    },
    /// What was missing for the container's configuration is there.
    Configured {
        c: usize,
    },
    /// These volumes hold more than they may.
    Measured {
        over: Vec<String>,
    },
    /// The pod is to end.
    Stop {
        grace: Duration,
    },
    /// Only time has passed.
    Tick,
}

/// Where a start failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum NotStarted {
    /// No container was made.
    Create(Failure),
    /// A container was made, of this id, and did not start.
    Start { id: String, failure: Failure },
}

/// Something is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    CreateSandbox,
    EnsureImage {
        c: usize,
    },
    Start {
        c: usize,
        attempt: u32,
    },
    PostStart {
        c: usize,
        attempt: u32,
    },
    /// To be given up after `within`.
    PreStop {
        c: usize,
        attempt: u32,
        within: Duration,
    },
    Signal {
        c: usize,
        attempt: u32,
        signal: Signal,
    },
    Probe {
        c: usize,
        attempt: u32,
        kind: ProbeKind,
    },
    /// Give it other resources while it runs.
    Resize {
        c: usize,
        attempt: u32,
        resources: Box<ResourceRequirements>,
    },
    /// Look how much is in volumes with a limit.
    Measure,
    /// An attempt that nobody asks for any more.
    Remove {
        c: usize,
        attempt: u32,
    },
    Event {
        field: Option<String>,
        kind: EventType,
        reason: &'static str,
        message: String,
    },
}

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Machine {
    pub plan: Plan,
    pub state: PodState,
    wake: Option<Timestamp>,
    measuring: Measuring,
}

/// When volumes with a limit are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Measuring {
    #[default]
    Never,
    At(Timestamp),
    UnderWay,
}

impl Machine {
    /// A pod that is accepted at `now`.
    pub fn new(plan: Plan, now: Timestamp) -> Self {
        let state = PodState::new(plan.containers.iter(), now);
        Self { plan, state, wake: None, measuring: Measuring::Never }
    }

    /// Takes what was seen and says what is to be done.
    pub fn next(&mut self, input: Input, now: Timestamp) -> Vec<Action> {
        let mut out = Vec::new();
        self.take(input, now, &mut out);
        self.advance(now, &mut out);
        out
    }

    /// When a [`Tick`](Input::Tick) is due, if nothing happens before.
    pub fn wake(&self) -> Option<Timestamp> {
        self.wake
    }

    /// True when the time has come; otherwise it is noted as a time to look again.
    fn due(&mut self, at: Timestamp, now: Timestamp) -> bool {
        if at > now && self.wake.is_none_or(|wake| at < wake) {
            self.wake = Some(at);
        }
        at <= now
    }

    fn event(&self, c: Option<usize>, kind: EventType, reason: &'static str, message: String, out: &mut Vec<Action>) {
        let field = c.map(|c| self.plan.containers[c].field.clone());
        out.push(Action::Event { field, kind, reason, message });
    }
}
