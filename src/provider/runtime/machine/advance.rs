//! What is next: the sandbox, then init containers and sidecars in order, then the containers.
//!
//! As in kubelet, one container is started at a time, so that a postStart hook holds up what comes after it.

use std::time::Duration;

use jiff::Timestamp;

use super::plan::Group;
use super::state::{End, Growing, ProbeKind, Run, SandboxState, Stage, after};
use super::{Action, Machine, Measuring};
use crate::provider::EventType::{Normal, Warning};
use crate::provider::runtime::engine::Exit;

/// Steps at one time; each changes a container's stage, so far fewer are taken.
const MAX_STEPS: usize = 1000;
/// How long a container that could not be started shows that, when it is tried again at once.
const SHOWN: Duration = Duration::from_secs(1);
/// How often volumes with a limit are looked at. kubelet: `evictionMonitoringPeriod`.
const MEASURE: Duration = Duration::from_secs(10);
/// What is left to a pod that is evicted. kubelet: `immediateEvictionGracePeriodSeconds`.
const EVICTED: Duration = Duration::from_secs(1);

impl Machine {
    pub(super) fn advance(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        self.wake = None;
        self.check_deadline(now, out);
        self.check_limits(now, out);
        for _ in 0..MAX_STEPS {
            if !self.step(now, out) {
                break;
            }
        }
        self.resize(now, out);
        self.probe(now, out);
    }

    fn step(&mut self, now: Timestamp, out: &mut Vec<Action>) -> bool {
        let mut changed = false;
        for c in 0..self.state.containers.len() {
            changed |= self.after_exit(c, now, out) | self.advance_end(c, now, out);
        }
        if changed {
            return true;
        }
        if self.state.stopping.is_some() {
            return self.settle_idle(now);
        }
        if self.state.renewing {
            return self.renew(now, out);
        }
        if self.is_over() {
            return self.wind_down(now, out);
        }
        match self.state.sandbox {
            SandboxState::Making { .. } => false,
            SandboxState::Wanted { not_before, delay } => {
                if self.due(not_before, now) {
                    self.state.sandbox = SandboxState::Making { delay };
                    out.push(Action::CreateSandbox);
                }
                false
            }
            SandboxState::Ready => self.show_pull_back_off(now, out) || self.start_next(now, out),
        }
    }

    /// No container will run again by itself.
    pub(crate) fn is_over(&self) -> bool {
        let containers = || self.plan.containers.iter().zip(&self.state.containers);
        let init_failed =
            containers().any(|(plan, run)| plan.group == Group::Init && !run.passed && run.end().is_some());
        init_failed || containers().filter(|(plan, _)| plan.group == Group::Main).all(|(_, run)| run.end().is_some())
    }

    /// `activeDeadlineSeconds`: counts from the pod's start, restarts included.
    fn check_deadline(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Some(deadline) = self.plan.deadline else { return };
        if self.state.stopping.is_some() || self.state.ended.is_some() || self.is_over() {
            return;
        }
        if self.due(after(self.state.start_time, deadline), now) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.state.ended = Some(("DeadlineExceeded".into(), message.into()));
            self.event(None, Normal, "DeadlineExceeded", message.into(), out);
            self.stop(self.plan.grace, now, out);
        }
    }

    /// `emptyDir.sizeLimit`: looked at now and then, as kubelet's eviction manager does.
    fn check_limits(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let idle = self.state.sandbox != SandboxState::Ready || self.state.stopping.is_some() || self.is_over();
        if self.plan.limits.is_empty() || idle {
            return;
        }
        let at = match self.measuring {
            Measuring::UnderWay => return,
            Measuring::At(at) => at,
            Measuring::Never => after(now, MEASURE),
        };
        self.measuring = Measuring::At(at);
        if self.due(at, now) {
            self.measuring = Measuring::UnderWay;
            out.push(Action::Measure);
        }
    }

    pub(super) fn measured(&mut self, over: &[String], now: Timestamp, out: &mut Vec<Action>) {
        self.measuring = Measuring::At(after(now, MEASURE));
        let found = self.plan.limits.iter().find(|(name, _)| over.contains(name));
        let Some((name, limit)) = found.filter(|_| self.state.stopping.is_none()) else { return };
        let message = format!("Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. ");
        self.state.ended = Some(("Evicted".into(), message.clone()));
        self.event(None, Warning, "Evicted", message, out);
        self.stop(EVICTED, now, out);
    }

    /// Decides whether a container that has ended runs again.
    fn after_exit(&mut self, c: usize, now: Timestamp, out: &mut Vec<Action>) -> bool {
        let plan = &self.plan.containers[c];
        let stays = self.state.stopping.is_some() || (plan.group == Group::Sidecar && self.is_over());
        let run = &mut self.state.containers[c];
        let Stage::Exited(end) = &mut run.stage else { return false };
        if end.settled {
            return false;
        }
        if !stays && self.state.renewing {
            return false;
        }
        if !stays && !run.renewed && plan.restarts_all_after(end.exit.code) {
            run.renewed = true;
            self.state.renewing = true;
            return true;
        }
        if stays || !(run.changed || plan.restarts_after(end.exit.code)) {
            end.settled = true;
            run.passed |= plan.group == Group::Init && end.exit.code == 0;
            return true;
        }
        let finished = end.exit.finished_at;
        let not_started = (end.exit.started_at.is_none() && end.exit.reason.is_some())
            .then(|| end.message.clone().unwrap_or_default());
        run.last = Some(end.clone());
        if run.crashes.is_some_and(|crashes| crashes.is_forgiven(finished)) {
            run.crashes = None;
        }
        let until = match run.crashes {
            _ if run.changed => now,
            Some(crashes) => after(finished, crashes.delay),
            None => now,
        };
        if until <= now {
            match not_started {
                // Seen for a moment, or nobody would know why it starts again and again.
                Some(message) => {
                    let until = after(now, SHOWN);
                    run.stage = Stage::BackOff { until, reason: "RunContainerError".into(), message };
                }
                None => run.again(now),
            }
            return true;
        }
        let pod = &self.plan.pod;
        let pod = format!("{}_{}({})", pod.name, pod.namespace, pod.uid);
        let seconds = run.crashes.map_or(0, |crashes| crashes.delay.as_secs());
        let message = format!("back-off {seconds}s restarting failed container={} pod={pod}", run.name);
        let said = format!("Back-off restarting failed container {} in pod {pod}", run.name);
        run.stage = Stage::BackOff { until, reason: "CrashLoopBackOff".into(), message };
        self.event(Some(c), Warning, "BackOff", said, out);
        true
    }

    fn start_next(&mut self, now: Timestamp, out: &mut Vec<Action>) -> bool {
        if self.state.containers.iter().any(Run::is_starting) {
            return false;
        }
        // They are for those who want to know why the others do not start.
        let is_ephemeral = |c: &usize| self.plan.containers[*c].group == Group::Ephemeral;
        let ephemeral: Vec<usize> = (0..self.state.containers.len()).filter(is_ephemeral).collect();
        if ephemeral.into_iter().any(|c| self.start(c, now, out)) {
            return true;
        }
        for c in 0..self.state.containers.len() {
            let group = self.plan.containers[c].group;
            if group == Group::Init && self.state.containers[c].passed {
                continue;
            }
            if self.start(c, now, out) {
                return true;
            }
            let holds_up = match group {
                Group::Init => true,
                Group::Sidecar => !self.state.containers[c].passed,
                Group::Main | Group::Ephemeral => false,
            };
            if holds_up {
                return false;
            }
        }
        false
    }

    /// Starts a container if it is time.
    fn start(&mut self, c: usize, now: Timestamp, out: &mut Vec<Action>) -> bool {
        let at = match &self.state.containers[c].stage {
            Stage::Waiting { not_before } => not_before.unwrap_or(now),
            Stage::Held { until, then: None, .. } | Stage::BackOff { until, .. } => *until,
            _ => return false,
        };
        if !self.due(at, now) {
            return false;
        }
        let run = &mut self.state.containers[c];
        if let Stage::Held { reason, message, .. } | Stage::BackOff { reason, message, .. } = &run.stage {
            run.shown = Some((reason.clone(), message.clone()));
        }
        if matches!(run.stage, Stage::BackOff { .. }) {
            run.again(now);
        }
        run.stage = Stage::Pulling;
        out.push(Action::EnsureImage { c });
        true
    }

    /// kubelet shows the error of a pull first, and the back-off from the next look on.
    fn show_pull_back_off(&mut self, now: Timestamp, out: &mut Vec<Action>) -> bool {
        for c in 0..self.state.containers.len() {
            let Stage::Held { until, then: Some(_), .. } = self.state.containers[c].stage else { continue };
            if !self.due(until, now) {
                continue;
            }
            let run = &mut self.state.containers[c];
            let pulls = run.pulls.unwrap_or(Growing { delay: Growing::MAX, updated: now });
            if let Stage::Held { reason, message, until, then } = &mut run.stage
                && let Some(next) = then.take()
            {
                (*reason, *message) = *next;
                *until = after(pulls.updated, pulls.delay);
                let (reason, image) = (reason.clone(), self.plan.containers[c].image.clone());
                self.event(Some(c), Normal, "BackOff", format!("Back-off pulling image {image:?}"), out);
                self.event(Some(c), Warning, "Failed", format!("Error: {reason}"), out);
                return true;
            }
        }
        false
    }

    fn probe(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        for c in 0..self.state.containers.len() {
            for kind in ProbeKind::ALL {
                let run = &mut self.state.containers[c];
                if !matches!(run.stage, Stage::Running { .. }) || run.ending.is_some() {
                    break;
                }
                // Until it has started only that is of interest.
                if run.started == (kind == ProbeKind::Startup) {
                    continue;
                }
                let attempt = run.attempt();
                let Some(next) = run.probes.get_mut(kind).filter(|p| !p.in_flight).map(|p| p.next) else { continue };
                if self.due(next, now)
                    && let Some(probing) = self.state.containers[c].probes.get_mut(kind)
                {
                    probing.sent(now);
                    out.push(Action::Probe { c, attempt, kind });
                }
            }
        }
    }

    /// The pod is over: sidecars and ephemeral containers that still run are ended.
    fn wind_down(&mut self, now: Timestamp, out: &mut Vec<Action>) -> bool {
        let mut changed = false;
        for c in (0..self.state.containers.len()).rev() {
            if !matches!(self.plan.containers[c].group, Group::Sidecar | Group::Ephemeral) {
                continue;
            }
            let run = &mut self.state.containers[c];
            if run.is_alive() && run.ending.is_none() {
                self.begin_end(c, self.plan.grace, None, now, out);
                changed = true;
            } else if run.runs > 0 {
                changed |= run.settle(now);
            }
        }
        changed
    }

    /// The pod is to end: what does not run will not.
    fn settle_idle(&mut self, now: Timestamp) -> bool {
        let mut changed = false;
        for (plan, run) in self.plan.containers.iter().zip(&mut self.state.containers) {
            if plan.group == Group::Main || run.runs > 0 {
                changed |= run.settle(now);
            }
        }
        changed
    }
}

impl Run {
    /// May start again, and the next time later.
    fn again(&mut self, now: Timestamp) {
        if !std::mem::take(&mut self.changed) {
            self.crashes = Some(Growing::next(self.crashes, now));
        }
        self.stage = Stage::waiting();
    }

    /// Ends what is idle for good: with its last run's end, or as never having run.
    fn settle(&mut self, now: Timestamp) -> bool {
        if !matches!(self.stage, Stage::Waiting { .. } | Stage::Pulling | Stage::Held { .. } | Stage::BackOff { .. }) {
            return false;
        }
        let end = self.last.take().unwrap_or_else(|| End::unknown(now));
        self.stage = Stage::Exited(End { settled: true, ..end });
        true
    }
}

impl End {
    /// Of a container that is not there.
    pub(super) fn unknown(now: Timestamp) -> Self {
        let exit = Exit {
            code: 137,
            signal: None,
            started_at: None,
            finished_at: now,
            oom_killed: false,
            reason: Some("ContainerStatusUnknown".into()),
            message: None,
        };
        let message = "The container could not be located when the pod was terminated";
        Self { id: String::new(), exit, message: Some(message.into()), settled: true }
    }
}
