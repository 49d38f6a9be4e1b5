//! What an input changes. Answers that come too late, for an attempt that is over, change nothing.

use std::time::Duration;

use jiff::Timestamp;

use super::state::{End, Growing, ProbeKind, Probes, SandboxState, Stage, after};
use super::{Action, Failure, Input, Machine, NotStarted};
use crate::provider::EventType::{Normal, Warning};
use crate::provider::runtime::engine::Exit;

/// How long what failed without an answer waits at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long a container that could not be made waits.
const HELD: Duration = Duration::from_secs(10);
/// How long the error of a pull is shown before its back-off is.
const SHOWN: Duration = Duration::from_secs(2);
/// Why a container waits for what its configuration names. kubelet: `ErrCreateContainerConfig`.
const UNCONFIGURED: &str = "CreateContainerConfigError";
/// Exit code of a container that was made but could not be started. runc's.
const NOT_STARTED: i32 = 128;

fn longer(delay: Duration) -> Duration {
    (delay * 2).clamp(RETRY.0, RETRY.1)
}

impl Machine {
    pub(super) fn take(&mut self, input: Input, now: Timestamp, out: &mut Vec<Action>) {
        match input {
            Input::Tick => {}
            Input::Stop { grace } => self.stop(grace, now, out),
            Input::Measured { over } => self.measured(&over, now, out),
            Input::Configured { c } => {
                let run = &mut self.state.containers[c];
                if matches!(&run.stage, Stage::Held { reason, .. } if reason == UNCONFIGURED) {
                    run.stage = Stage::waiting();
                }
            }
            Input::Sandbox(result) => self.sandbox(result, now, out),
            Input::SandboxChanged(ips) => {
                if self.state.sandbox == SandboxState::Ready {
                    match ips {
                        Some(ips) => self.state.ips = ips,
                        None => self.state.sandbox = SandboxState::Wanted { not_before: now, delay: Duration::ZERO },
                    }
                }
            }
            Input::Image { c, result } => self.image(c, result, now, out),
            Input::Started { c, attempt, result } => self.started(c, attempt, result, now, out),
            Input::Exited { c, attempt, exit, message } => self.exited(c, attempt, exit, message),
            Input::Probed { c, attempt, kind, good, message } => {
                if self.is_current(c, attempt) {
                    self.probed(c, kind, good, &message, now, out);
                }
            }
            Input::Resized { c, attempt, resources, result } => {
                if self.is_current(c, attempt) {
                    self.resized(c, *resources, result, now, out);
                }
            }
            Input::PostStart { c, attempt, error } => {
                if self.is_current(c, attempt) {
                    self.hooked(c, error, now, out);
                }
            }
            Input::PreStop { c, attempt, error } => {
                if self.is_current(c, attempt) {
                    self.pre_stopped(c, error, out);
                }
            }
        }
    }

    fn is_current(&self, c: usize, attempt: u32) -> bool {
        self.state.containers.get(c).is_some_and(|run| run.is_alive() && run.attempt() == attempt)
    }

    fn sandbox(&mut self, result: Result<Vec<std::net::IpAddr>, Failure>, now: Timestamp, out: &mut Vec<Action>) {
        let SandboxState::Making { delay } = self.state.sandbox else { return };
        match result {
            Ok(ips) => {
                self.state.ips = ips;
                self.state.sandbox = SandboxState::Ready;
            }
            Err(failure) => {
                if let Failure::Answer { reason, message } = failure {
                    let (reason, message) = match reason.as_str() {
                        "FailedMount" => ("FailedMount", message),
                        _ => ("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {message}")),
                    };
                    self.event(None, Warning, reason, message, out);
                }
                let delay = longer(delay);
                self.state.sandbox = SandboxState::Wanted { not_before: after(now, delay), delay };
            }
        }
    }

    fn retry_later(&mut self, c: usize, now: Timestamp) {
        let run = &mut self.state.containers[c];
        run.retry = longer(run.retry);
        run.stage = Stage::Waiting { not_before: Some(after(now, run.retry)) };
    }

    fn image(
        &mut self,
        c: usize,
        result: Result<crate::provider::runtime::engine::Image, Failure>,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        if self.state.containers[c].stage != Stage::Pulling {
            return;
        }
        match result {
            Ok(image) => {
                let run = &mut self.state.containers[c];
                run.image_id = image.id;
                (run.pulls, run.retry) = (None, Duration::ZERO);
                run.stage = Stage::Starting;
                run.given = Some(self.plan.containers[c].resources.clone());
                let attempt = run.runs;
                out.push(Action::Start { c, attempt });
            }
            Err(Failure::Unknown) => self.retry_later(c, now),
            Err(Failure::Answer { reason, message }) => {
                let image = self.plan.containers[c].image.clone();
                let reason = if reason.is_empty() { "ErrImagePull".to_owned() } else { reason };
                let said = match reason.as_str() {
                    "ErrImagePull" => format!("Failed to pull image {image:?}: {message}"),
                    _ => message.clone(),
                };
                // kubelet has a word of its own for this one.
                let word = if reason == "ErrImageNeverPull" { "ErrImageNeverPull" } else { "Failed" };
                self.event(Some(c), Warning, word, said, out);
                self.event(Some(c), Warning, "Failed", format!("Error: {reason}"), out);
                let run = &mut self.state.containers[c];
                let wait = Growing::next(run.pulls, now);
                run.pulls = Some(wait);
                let until = after(now, wait.delay);
                // Only a pull that was tried is backed off from.
                run.stage = if matches!(reason.as_str(), "ErrImageNeverPull" | "InvalidImageName") {
                    Stage::Held { reason, message, until, then: None }
                } else {
                    let then = format!("Back-off pulling image {image:?}: {reason}: {message}");
                    let then = Some(Box::new(("ImagePullBackOff".to_owned(), then)));
                    Stage::Held { reason, message, until: after(now, SHOWN.min(wait.delay)), then }
                };
            }
        }
    }

    fn started(
        &mut self,
        c: usize,
        attempt: u32,
        result: Result<(String, Timestamp), NotStarted>,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let run = &mut self.state.containers[c];
        if run.stage != Stage::Starting || run.runs != attempt {
            return;
        }
        let name = run.name.clone();
        if !matches!(
            result,
            Err(NotStarted::Create(Failure::Unknown) | NotStarted::Start { failure: Failure::Unknown, .. })
        ) {
            run.shown = None;
        }
        match result {
            Ok((id, since)) => {
                run.runs += 1;
                run.id = id;
                run.stage = Stage::Running { since };
                (run.started, run.ready, run.ending, run.changed) = (false, false, None, false);
                (run.renewed, run.resizing) = (false, super::state::Resizing::No);
                if let Some(attempt) = attempt.checked_sub(2) {
                    out.push(Action::Remove { c, attempt });
                }
                self.event(Some(c), Normal, "Created", format!("Created container: {name}"), out);
                self.event(Some(c), Normal, "Started", format!("Started container {name}"), out);
                if self.plan.containers[c].post_start {
                    self.state.containers[c].stage = Stage::Hooked { since };
                    out.push(Action::PostStart { c, attempt });
                } else {
                    self.runs(c, since, now);
                }
                self.end_if_stopping(c, now, out);
            }
            Err(NotStarted::Create(Failure::Unknown) | NotStarted::Start { failure: Failure::Unknown, .. }) => {
                self.retry_later(c, now);
            }
            Err(NotStarted::Create(Failure::Answer { reason, message })) => {
                let reason = if reason.is_empty() { "CreateContainerError".to_owned() } else { reason };
                run.stage = Stage::Held { reason, message: message.clone(), until: after(now, HELD), then: None };
                self.event(Some(c), Warning, "Failed", format!("Error: {message}"), out);
            }
            Err(NotStarted::Start { id, failure: Failure::Answer { reason, message } }) => {
                run.runs += 1;
                run.id.clone_from(&id);
                if let Some(attempt) = attempt.checked_sub(2) {
                    out.push(Action::Remove { c, attempt });
                }
                let reason = if reason.is_empty() { "StartError".to_owned() } else { reason };
                let exit = Exit {
                    code: NOT_STARTED,
                    signal: None,
                    started_at: None,
                    finished_at: now,
                    oom_killed: false,
                    reason: Some(reason),
                    message: None,
                };
                run.stage = Stage::Exited(End { id, exit, message: Some(message.clone()), settled: false });
                self.event(Some(c), Normal, "Created", format!("Created container: {name}"), out);
                self.event(Some(c), Warning, "Failed", format!("Error: {message}"), out);
            }
        }
    }

    /// The container runs and its postStart hook, if any, has succeeded.
    pub(super) fn runs(&mut self, c: usize, since: Timestamp, now: Timestamp) {
        let plan = &self.plan.containers[c];
        let run = &mut self.state.containers[c];
        run.stage = Stage::Running { since };
        run.probes = Probes::of(plan, since, now);
        run.started |= plan.startup.is_none();
        run.ready |= run.started && plan.readiness.is_none();
        run.passed |= run.started && plan.group == super::plan::Group::Sidecar;
    }

    fn hooked(&mut self, c: usize, error: Option<String>, now: Timestamp, out: &mut Vec<Action>) {
        let Stage::Hooked { since } = self.state.containers[c].stage else { return };
        match error {
            None => self.runs(c, since, now),
            Some(error) => {
                self.event(Some(c), Warning, "FailedPostStartHook", error, out);
                // It runs, so that it can be ended, but takes no probes.
                self.state.containers[c].stage = Stage::Running { since };
                self.begin_end(c, self.plan.grace, Some("FailedPostStartHook".into()), now, out);
            }
        }
    }

    fn exited(&mut self, c: usize, attempt: u32, exit: Exit, message: Option<String>) {
        if !self.is_current(c, attempt) {
            return;
        }
        let run = &mut self.state.containers[c];
        let message = message.filter(|m| !m.is_empty()).or_else(|| exit.message.clone());
        let end = End { id: run.id.clone(), exit, message, settled: false };
        run.stage = Stage::Exited(end);
        (run.started, run.ready, run.ending, run.probes) = (false, false, None, Probes::default());
    }

    fn probed(
        &mut self,
        c: usize,
        kind: ProbeKind,
        good: Option<bool>,
        message: &str,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let Some(probing) = self.state.containers[c].probes.get_mut(kind) else { return };
        probing.in_flight = false;
        let Some(good) = good else { return };
        let outcome = probing.answered(good, now);
        let grace = probing.plan.grace;
        if !good {
            self.event(Some(c), Warning, "Unhealthy", format!("{} probe failed: {message}", kind.word()), out);
        }
        let run = &mut self.state.containers[c];
        match (kind, outcome) {
            (_, None) => {}
            (ProbeKind::Readiness, Some(good)) => run.ready = good && run.started,
            (ProbeKind::Startup, Some(true)) => {
                run.started = true;
                run.probes.startup = None;
                let plan = &self.plan.containers[c];
                run.ready |= plan.readiness.is_none();
                run.passed |= plan.group == super::plan::Group::Sidecar;
            }
            (ProbeKind::Liveness, Some(true)) => {}
            (ProbeKind::Startup | ProbeKind::Liveness, Some(false)) => {
                if run.ending.is_none() {
                    let word = kind.word().to_lowercase();
                    let said = format!("Container {} failed {word} probe, will be restarted", run.name);
                    self.begin_end(c, grace.unwrap_or(self.plan.grace), Some(said), now, out);
                }
            }
        }
    }
}
