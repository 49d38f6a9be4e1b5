//! Taking up a pod that ran before this process did: what was noted down, compared with what the engine has.

use jiff::Timestamp;

use super::plan::{Group, Plan};
use super::state::{End, EndStep, PodState, Probes, Run, SandboxState, Stage};
use super::{Input, Machine};
use crate::provider::runtime::engine::{ContainerState, Exit, ListedContainer, ListedSandbox};

impl Machine {
    /// The pod as it was left, and what has happened to it since.
    ///
    /// Without notes (`None`) the state is made up from what the engine has. A step that was under way is
    /// taken again, since all are idempotent, signals among them: who noted one down may have died before it was sent.
    /// Only hooks are not run twice.
    pub fn resume(
        plan: Plan,
        notes: Option<PodState>,
        sandbox: Option<&ListedSandbox>,
        found: &[ListedContainer],
        now: Timestamp,
    ) -> (Self, Vec<Input>) {
        let known = notes.is_some();
        let mut state = notes.unwrap_or_else(|| {
            let since = sandbox.and_then(|s| s.created_at).unwrap_or(now);
            PodState { start_time: since, ..PodState::new(plan.containers.iter(), now) }
        });
        // Notes of another pod spec would not fit; containers go by name.
        let mut old = std::mem::take(&mut state.containers);
        for c in &plan.containers {
            let at = old.iter().position(|run| run.name == c.name);
            state.containers.push(at.map_or_else(|| Run::new(&c.name), |at| old.swap_remove(at)));
        }
        match sandbox {
            Some(sandbox) => {
                state.ips.clone_from(&sandbox.sandbox.ips);
                state.sandbox = SandboxState::Ready;
            }
            None => state.sandbox = SandboxState::Wanted { not_before: now, delay: std::time::Duration::ZERO },
        }
        let mut machine = Self { plan, state, wake: None, measuring: super::Measuring::Never };
        let mut inputs = Vec::new();
        for c in 0..machine.state.containers.len() {
            let name = machine.plan.containers[c].name.clone();
            let of_it: Vec<_> = found.iter().filter(|f| *f.container.name == *name).collect();
            inputs.extend(machine.resume_container(c, &of_it, known, now));
        }
        machine.state.assume_passed(&machine.plan, now);
        (machine, inputs)
    }

    fn resume_container(&mut self, c: usize, found: &[&ListedContainer], known: bool, now: Timestamp) -> Option<Input> {
        let plan = &self.plan.containers[c];
        let run = &mut self.state.containers[c];
        let attempt = match &run.stage {
            Stage::Pulling => {
                run.stage = Stage::waiting();
                return None;
            }
            // It may have been made.
            Stage::Starting => run.runs,
            Stage::Hooked { .. } | Stage::Running { .. } => run.attempt(),
            _ if !known => found.iter().map(|f| f.container.attempt).max()?,
            _ => return None,
        };
        let lost = Exit { reason: Some("ContainerStatusUnknown".into()), ..End::unknown(now).exit };
        let listed = found.iter().find(|f| f.container.attempt == attempt);
        let (since, exit) = match listed.map(|f| &f.state) {
            Some(ContainerState::Running { started_at }) => (*started_at, None),
            Some(ContainerState::Exited(exit)) => (exit.started_at.unwrap_or(now), Some(exit.clone())),
            Some(ContainerState::Created) | None if run.stage == Stage::Starting || !known => {
                (run.runs, run.stage) = (attempt, Stage::waiting());
                return None;
            }
            Some(ContainerState::Created) | None => (now, Some(lost)),
        };
        run.runs = attempt + 1;
        if let Some(listed) = listed {
            run.id.clone_from(&listed.container.id);
            run.image_id.clone_from(&listed.image_id);
        }
        if !known {
            run.started = true;
            run.passed |= plan.group == Group::Sidecar;
            run.last = found.iter().find(|f| f.container.attempt + 1 == attempt).and_then(|f| match &f.state {
                ContainerState::Exited(exit) => {
                    let id = f.container.id.clone();
                    Some(End { id, exit: exit.clone(), message: exit.message.clone(), settled: true })
                }
                _ => None,
            });
        }
        let since = match run.stage {
            Stage::Hooked { since } | Stage::Running { since } => since,
            _ => since,
        };
        let (started, ready) = (run.started, run.ready);
        run.probes = Probes::of(plan, since, now);
        run.stage = Stage::Running { since };
        if started {
            run.probes.startup = None;
        }
        run.started = started || plan.startup.is_none();
        run.ready = ready || (run.started && plan.readiness.is_none());
        if let Some(ending) = &mut run.ending {
            match ending.step {
                EndStep::PreStop | EndStep::Turn | EndStep::Asked => ending.step = EndStep::Turn,
                EndStep::Killed => ending.by = now,
            }
        }
        let message = exit.as_ref().and_then(|e| e.message.clone());
        exit.map(|exit| Input::Exited { c, attempt, exit, message })
    }
}

impl PodState {
    /// What comes after an init container has run, so it had succeeded, though it is no longer there.
    fn assume_passed(&mut self, plan: &Plan, now: Timestamp) {
        let Some(last) = self.containers.iter().rposition(|run| run.runs > 0) else { return };
        for (run, plan) in self.containers.iter_mut().zip(&plan.containers).take(last) {
            if plan.group == Group::Init && run.runs == 0 {
                run.passed = true;
                let exit = Exit { code: 0, reason: Some("Completed".into()), ..End::unknown(now).exit };
                run.stage = Stage::Exited(End { id: String::new(), exit, message: None, settled: true });
            }
        }
    }
}
