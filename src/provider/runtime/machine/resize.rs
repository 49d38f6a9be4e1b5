//! Other resources for a container that runs. KEP-1287.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceRequirements;

use super::state::{Resizing, after};
use super::{Action, Failure, Machine};
use crate::provider::EventType::{Normal, Warning};

/// How long a change waits that the engine refused, or that it gave no answer to.
const REFUSED: Duration = Duration::from_secs(60);
const UNANSWERED: Duration = Duration::from_secs(2);

impl Machine {
    /// Asks for what containers should have and were not given.
    pub(super) fn resize(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        if self.state.stopping.is_some() {
            return;
        }
        for c in 0..self.state.containers.len() {
            let plan = &self.plan.containers[c];
            let run = &mut self.state.containers[c];
            if !run.is_alive() || run.ending.is_some() {
                continue;
            }
            // What an earlier program started has what it was to have then, which nobody knows any more.
            let given = run.given.get_or_insert_with(|| plan.resources.clone());
            if *given == plan.resources {
                run.resizing = Resizing::No;
                continue;
            }
            if plan.restarts_for(given) {
                run.changed = true;
                let said = format!("Container {} resize requires restart", run.name);
                self.begin_end(c, self.plan.grace, Some(said), now, out);
                continue;
            }
            let at = match run.resizing {
                Resizing::No => now,
                Resizing::UnderWay => continue,
                Resizing::At(at) => at,
            };
            if self.due(at, now) {
                let (plan, run) = (&self.plan.containers[c], &mut self.state.containers[c]);
                run.resizing = Resizing::UnderWay;
                out.push(Action::Resize { c, attempt: run.attempt(), resources: Box::new(plan.resources.clone()) });
            }
        }
    }

    pub(super) fn resized(
        &mut self,
        c: usize,
        resources: ResourceRequirements,
        result: Result<(), Failure>,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let run = &mut self.state.containers[c];
        let name = run.name.clone();
        match result {
            Ok(()) => {
                (run.given, run.resizing) = (Some(resources), Resizing::No);
                self.event(Some(c), Normal, "ResizeCompleted", format!("Container {name} was resized"), out);
            }
            Err(Failure::Unknown) => run.resizing = Resizing::At(after(now, UNANSWERED)),
            Err(Failure::Answer { message, .. }) => {
                run.resizing = Resizing::At(after(now, REFUSED));
                self.event(Some(c), Warning, "ResizeError", format!("Container {name} not resized: {message}"), out);
            }
        }
    }
}
