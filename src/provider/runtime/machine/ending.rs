//! How containers are ended: preStop hook, their turn, the signal, the kill.
//!
//! The hook's time counts against the grace period, and so does a sidecar's wait for the containers it
//! serves. Whatever is left of it, a container has a moment between the signal and the kill. KEP-753.

use std::time::Duration;

use jiff::Timestamp;

use super::plan::Group;
use super::state::{EndStep, Ending, Stage, Stopping, after};
use super::{Action, Machine};
use crate::provider::EventType::{Normal, Warning};
use crate::provider::runtime::engine::Signal;

/// The least time between the signal and the kill. kubelet: `minimumGracePeriodInSeconds`.
const LEAST: Duration = Duration::from_secs(2);
/// When a kill that had no effect is repeated.
const AGAIN: Duration = Duration::from_secs(10);

impl Machine {
    /// Ends the pod. A second call can only shorten the time.
    pub(super) fn stop(&mut self, grace: Duration, now: Timestamp, out: &mut Vec<Action>) {
        let by = after(now, grace);
        let by = self.state.stopping.map_or(by, |old| old.by.min(by));
        self.state.stopping = Some(Stopping { by });
        for c in 0..self.state.containers.len() {
            self.end_if_stopping(c, now, out);
        }
    }

    pub(super) fn end_if_stopping(&mut self, c: usize, now: Timestamp, out: &mut Vec<Action>) {
        let Some(Stopping { by }) = self.state.stopping else { return };
        let run = &mut self.state.containers[c];
        if !run.is_alive() {
            return;
        }
        match &mut run.ending {
            Some(ending) => {
                ending.by = ending.by.min(by);
                ending.at_once |= by <= now;
            }
            None => {
                let grace = Duration::try_from(by.duration_since(now)).unwrap_or_default();
                self.begin_end(c, grace, None, now, out);
            }
        }
    }

    /// Begins to end a container that runs. `said` is told in an event.
    pub(super) fn begin_end(
        &mut self,
        c: usize,
        grace: Duration,
        said: Option<String>,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let run = &mut self.state.containers[c];
        if run.ending.is_some() {
            return;
        }
        let said = said.unwrap_or_else(|| format!("Stopping container {}", run.name));
        let hook = self.plan.containers[c].pre_stop && !grace.is_zero() && matches!(run.stage, Stage::Running { .. });
        let step = if hook { EndStep::PreStop } else { EndStep::Turn };
        run.ending = Some(Ending { step, by: after(now, grace), at_once: grace.is_zero() });
        let attempt = run.attempt();
        self.event(Some(c), Normal, "Killing", said, out);
        if hook {
            out.push(Action::PreStop { c, attempt, within: grace });
        }
    }

    pub(super) fn pre_stopped(&mut self, c: usize, error: Option<String>, out: &mut Vec<Action>) {
        if let Some(ending) = &mut self.state.containers[c].ending
            && ending.step == EndStep::PreStop
        {
            ending.step = EndStep::Turn;
            if let Some(error) = error {
                self.event(Some(c), Warning, "FailedPreStopHook", error, out);
            }
        }
    }

    /// True when it went a step.
    pub(super) fn advance_end(&mut self, c: usize, now: Timestamp, out: &mut Vec<Action>) -> bool {
        let run = &self.state.containers[c];
        let Some(ending) = run.ending.filter(|_| run.is_alive()) else { return false };
        let attempt = run.attempt();
        let (step, by) = match ending.step {
            EndStep::PreStop if ending.at_once || self.due(ending.by, now) => (EndStep::Turn, ending.by),
            EndStep::Turn | EndStep::Asked if ending.at_once => (EndStep::Killed, after(now, AGAIN)),
            EndStep::Turn if self.has_turn(c) || self.due(ending.by, now) => {
                (EndStep::Asked, ending.by.max(after(now, LEAST)))
            }
            EndStep::Asked if self.due(ending.by, now) => (EndStep::Killed, after(now, AGAIN)),
            EndStep::Killed if self.due(ending.by, now) => (EndStep::Killed, after(now, AGAIN)),
            _ => return false,
        };
        let signal = match step {
            EndStep::Asked => Some(self.plan.containers[c].stop_signal.clone()),
            EndStep::Killed => Some(Signal::kill()),
            EndStep::PreStop | EndStep::Turn => None,
        };
        out.extend(signal.map(|signal| Action::Signal { c, attempt, signal }));
        let at_once = ending.at_once && step != EndStep::Killed;
        self.state.containers[c].ending = Some(Ending { step, by, at_once });
        true
    }

    /// A sidecar ends after the containers and after the sidecars that were started after it.
    fn has_turn(&self, c: usize) -> bool {
        let whole_pod = self.state.stopping.is_some() || self.is_over();
        if !whole_pod || self.plan.containers[c].group != Group::Sidecar {
            return true;
        }
        let lives = |i: usize| {
            let run = &self.state.containers[i];
            run.is_alive() || run.stage == Stage::Starting
        };
        (c + 1..self.state.containers.len()).all(|i| !lives(i))
    }

    /// Takes another version of the pod's spec. Containers whose image changed are run anew.
    pub(crate) fn replan(&mut self, plan: super::plan::Plan, now: Timestamp) -> Vec<Action> {
        let mut out = Vec::new();
        // Ephemeral containers may have been added; nothing else ever is.
        let begin = plan.containers.iter().map(|c| &c.name).take(self.plan.containers.len());
        if !begin.eq(self.plan.containers.iter().map(|c| &c.name)) {
            return out;
        }
        let old = std::mem::replace(&mut self.plan, plan);
        let added = self.plan.containers[old.containers.len()..].iter();
        self.state.containers.extend(added.map(|c| super::state::Run::new(&c.name)));
        for c in 0..old.containers.len() {
            let run = &mut self.state.containers[c];
            let same = old.containers[c].image == self.plan.containers[c].image;
            if same || self.state.stopping.is_some() {
                continue;
            }
            run.pulls = None;
            if run.is_alive() && run.ending.is_none() {
                run.changed = true;
                let said = format!("Container {} definition changed, will be restarted", run.name);
                self.begin_end(c, self.plan.grace, Some(said), now, &mut out);
            } else if matches!(run.stage, Stage::Held { .. }) {
                run.stage = Stage::waiting();
            }
        }
        self.advance(now, &mut out);
        out
    }
}
