//! A simulated pod as a state machine: pure, told the time, exact about when things happened.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    Pod,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::settings::{Settings, draw};
use crate::provider::runtime::machine::plan::{self, ContainerPlan};
use crate::provider::{PodObservation, PodRef};

/// kubelet forgives earlier crashes after twice the longest back-off.
const FORGIVEN_AFTER: SignedDuration = SignedDuration::from_secs(600);
/// A bound on what one call does, for pods that come back after a long time.
const MAX_STEPS: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restart {
    Always,
    OnFailure,
    Never,
}

impl From<Restart> for plan::Restart {
    fn from(restart: Restart) -> Self {
        match restart {
            Restart::Always => Self::Always,
            Restart::OnFailure => Self::OnFailure,
            Restart::Never => Self::Never,
        }
    }
}

/// How one run of a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub started: Option<Timestamp>,
    pub finished: Timestamp,
    pub code: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Running { since: Timestamp, until: Option<Timestamp> },
    BackOff { until: Timestamp, delay_ms: u64 },
    Terminated(End),
}

#[derive(Clone, Debug)]
pub(super) struct SimContainer {
    pub name: Box<str>,
    image: Box<str>,
    pub state: State,
    pub last: Option<End>,
    restarts: i32,
    crashes: u32,
    restart: Restart,
    /// Number among all containers of the pod, for drawing.
    index: u64,
}

/// A simulated pod.
pub(super) struct SimPod {
    pub reference: PodRef,
    pub settings: Arc<Settings>,
    pub seed: u64,
    pub start_time: Timestamp,
    pub ip: Ipv4Addr,
    /// When images would be pulled and containers may start.
    ready_at: Timestamp,
    init: Box<[SimContainer]>,
    main: Box<[SimContainer]>,
    /// How long it may be active: `activeDeadlineSeconds`.
    deadline: Option<SignedDuration>,
    /// It was active for longer.
    expired: bool,
    /// When the containers end because they were asked to, and when they would have been killed.
    stopping: Option<(Timestamp, Timestamp)>,
    /// Counts scheduled looks, so that a stale one is told.
    pub timer: u32,
    /// When the engine looks next.
    pub due: Option<Timestamp>,
}

fn add_ms(t: Timestamp, ms: u64) -> Timestamp {
    t.saturating_add(SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX))).unwrap_or(Timestamp::MAX)
}

impl SimContainer {
    fn new(c: &Container, index: u64, restart: Restart) -> Self {
        Self {
            name: c.name.as_str().into(),
            image: c.image.as_deref().unwrap_or_default().into(),
            state: State::Waiting,
            last: None,
            restarts: 0,
            crashes: 0,
            restart,
            index,
        }
    }

    fn start(&mut self, at: Timestamp, settings: &Settings, seed: u64, run: Option<u64>) {
        let luck = draw(seed, b"run", self.index << 32 | u64::from(self.restarts.unsigned_abs()));
        let until = run.map(|ms| add_ms(at, settings.jittered(ms, luck)));
        self.state = State::Running { since: at, until };
    }

    fn end(&mut self, at: Timestamp, code: i32) {
        let started = match self.state {
            State::Running { since, .. } => Some(since),
            State::Terminated(_) => return,
            State::Waiting | State::BackOff { .. } => None,
        };
        // A container in back-off has ended already; that run is the one to show.
        let end = match (self.state, self.last) {
            (State::BackOff { .. }, Some(last)) => last,
            _ => End { started, finished: at, code },
        };
        self.state = State::Terminated(end);
    }

    /// The next moment at which something happens by itself.
    fn next(&self) -> Option<Timestamp> {
        match self.state {
            State::Running { until, .. } => until,
            State::BackOff { until, .. } => Some(until),
            State::Waiting | State::Terminated(_) => None,
        }
    }

    /// Goes one step if its time has come.
    fn step(&mut self, now: Timestamp, settings: &Settings, seed: u64, run: Option<u64>, code: i32) -> bool {
        match self.state {
            State::Running { since, until: Some(until) } if until <= now => {
                self.end(until, code);
                let again = match self.restart {
                    Restart::Always => true,
                    Restart::OnFailure => code != 0,
                    Restart::Never => false,
                };
                if again {
                    if until.duration_since(since) >= FORGIVEN_AFTER {
                        self.crashes = 0;
                    }
                    self.crashes += 1;
                    if let State::Terminated(end) = self.state {
                        self.last = Some(end);
                    }
                    let delay_ms = settings.backoff(self.crashes);
                    self.state = State::BackOff { until: add_ms(until, delay_ms), delay_ms };
                }
                true
            }
            State::BackOff { until, .. } if until <= now => {
                self.restarts += 1;
                self.start(until, settings, seed, run);
                true
            }
            _ => false,
        }
    }

    fn is_sidecar(&self) -> bool {
        self.restart == Restart::Always
    }

    /// For an init container: the next one may start.
    fn lets_next(&self) -> Option<Timestamp> {
        match self.state {
            State::Running { since, .. } if self.is_sidecar() => Some(since),
            // A sidecar that has run once does not hold up the others any more.
            State::BackOff { until, .. } if self.is_sidecar() => Some(until),
            State::Terminated(end) if end.code == 0 => Some(end.finished),
            _ => None,
        }
    }

    fn status(&self, pod: &PodRef, initializing: bool) -> ContainerStatus {
        let time = |t: Timestamp| Some(Time(t));
        let id = |restarts: i32| {
            let half = |n| draw(n, pod.uid.as_bytes(), self.index << 32 | u64::from(restarts.unsigned_abs()));
            format!("mock://{:016x}{:016x}{:016x}{:016x}", half(1), half(2), half(3), half(4))
        };
        let ended = |end: End, restarts: i32| ContainerState {
            terminated: Some(ContainerStateTerminated {
                container_id: end.started.map(|_| id(restarts)),
                exit_code: end.code,
                started_at: end.started.and_then(time),
                finished_at: time(end.finished),
                reason: Some(if end.code == 0 { "Completed" } else { "Error" }.to_owned()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let waiting = |reason: &str, message: Option<String>| ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
            ..Default::default()
        };
        let running = matches!(self.state, State::Running { .. });
        let completed = matches!(self.state, State::Terminated(End { code: 0, .. }));
        let state = match self.state {
            State::Waiting if initializing => waiting("PodInitializing", None),
            State::Waiting => waiting("ContainerCreating", None),
            State::Running { since, .. } => ContainerState {
                running: Some(ContainerStateRunning { started_at: time(since) }),
                ..Default::default()
            },
            State::BackOff { delay_ms, .. } => waiting(
                "CrashLoopBackOff",
                Some(format!(
                    "back-off {}s restarting failed container={} pod={}_{}({})",
                    delay_ms.div_ceil(1000),
                    self.name,
                    pod.name,
                    pod.namespace,
                    pod.uid
                )),
            ),
            State::Terminated(end) => ended(end, self.restarts),
        };
        let has_run =
            running || matches!(self.state, State::BackOff { .. } | State::Terminated(End { started: Some(_), .. }));
        ContainerStatus {
            name: self.name.to_string(),
            image: self.image.to_string(),
            image_id: if has_run { format!("mock://{}", self.image) } else { String::new() },
            container_id: has_run.then(|| id(self.restarts)),
            // An init container that has done its work is ready.
            ready: running || (completed && self.restart != Restart::Always && self.index >= INIT),
            started: Some(running),
            restart_count: self.restarts,
            last_state: self
                .last
                .map(|end| ended(end, self.restarts - i32::from(running)))
                .or(Some(ContainerState::default())),
            state: Some(state),
            ..Default::default()
        }
    }
}

/// Indices of init containers start here.
const INIT: u64 = 1 << 16;

impl SimPod {
    /// A pod that is accepted at `now`.
    pub fn new(pod: &Pod, settings: Arc<Settings>, seed: u64, ip: Ipv4Addr, now: Timestamp) -> Self {
        let spec = pod.spec.as_ref();
        let restart = match spec.and_then(|s| s.restart_policy.as_deref()) {
            Some("Never") => Restart::Never,
            Some("OnFailure") => Restart::OnFailure,
            _ => Restart::Always,
        };
        let init_restart = |c: &Container| match c.restart_policy.as_deref() {
            Some("Always") => Restart::Always,
            _ if restart == Restart::Never => Restart::Never,
            _ => Restart::OnFailure,
        };
        // It ends with one exit code only, so that its rules come to a policy.
        let own_restart = |c: &Container| match (&c.restart_policy, &c.restart_policy_rules) {
            (None, None) => restart,
            _ if ContainerPlan::of(c, false, restart.into()).restarts_after(settings.exit_code) => Restart::Always,
            _ => Restart::Never,
        };
        let init = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
        let main = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
        let latency = settings.jittered(settings.start_latency, draw(seed, b"start", 0));
        Self {
            reference: PodRef::of(pod),
            start_time: now,
            ready_at: add_ms(now, latency),
            init: init.iter().zip(INIT..).map(|(c, n)| SimContainer::new(c, n, init_restart(c))).collect(),
            main: main.iter().zip(0..).map(|(c, n)| SimContainer::new(c, n, own_restart(c))).collect(),
            settings,
            seed,
            ip,
            deadline: spec.and_then(|s| s.active_deadline_seconds).map(SignedDuration::from_secs),
            expired: false,
            stopping: None,
            timer: 0,
            due: None,
        }
    }

    /// Takes up where the status that a former process wrote leaves off.
    pub fn restore(&mut self, pod: &Pod, now: Timestamp) {
        let Some(status) = &pod.status else { return };
        if let Some(start) = &status.start_time {
            self.ready_at = self.ready_at.saturating_sub(now.duration_since(start.0)).unwrap_or(now);
            self.start_time = start.0;
        }
        let groups = [
            (&mut self.init, status.init_container_statuses.as_deref(), Some(self.settings.init_duration)),
            (&mut self.main, status.container_statuses.as_deref(), self.settings.run_duration),
        ];
        for (containers, statuses, run) in groups {
            for c in containers.iter_mut() {
                if let Some(was) = statuses.unwrap_or_default().iter().find(|s| s.name == *c.name) {
                    c.restore(was, &self.settings, self.seed, run, now);
                }
            }
        }
    }

    /// Lives up to `now`. True when anything changed.
    pub fn advance(&mut self, now: Timestamp) -> bool {
        let mut changed = false;
        for _ in 0..MAX_STEPS {
            if !self.step(now) {
                break;
            }
            changed = true;
        }
        changed
    }

    fn step(&mut self, now: Timestamp) -> bool {
        if let Some((at, kill)) = self.stopping {
            if at > now {
                return false;
            }
            let over = self.all_ended();
            for c in self.init.iter_mut().chain(self.main.iter_mut()) {
                let code = match c.state {
                    // It did not end in time.
                    State::Running { .. } if at >= kill && self.settings.stop_latency > 0 => 137,
                    State::Running { .. } => 0,
                    _ => 137,
                };
                c.end(at, code);
            }
            return !over;
        }
        if self.is_over() {
            return false;
        }
        if let Some(at) = self.expires().filter(|at| *at <= now) {
            self.expired = true;
            for c in self.init.iter_mut().chain(self.main.iter_mut()) {
                c.end(at, 137);
            }
            return true;
        }
        if self.ready_at > now {
            return false;
        }
        let (settings, seed) = (&*self.settings, self.seed);
        let mut from = self.ready_at;
        for c in self.init.iter_mut() {
            let run = (!c.is_sidecar()).then_some(settings.init_duration);
            if c.step(now, settings, seed, run, settings.init_exit_code) {
                return true;
            }
            if c.state == State::Waiting {
                c.start(from, settings, seed, run);
                return true;
            }
            match c.lets_next() {
                Some(at) => from = from.max(at),
                None => return false,
            }
        }
        for c in self.main.iter_mut() {
            if c.state == State::Waiting {
                c.start(from, settings, seed, settings.run_duration);
                return true;
            }
            if c.step(now, settings, seed, settings.run_duration, settings.exit_code) {
                return true;
            }
        }
        // Sidecars end after the main containers.
        if let Some(last) = self.main_over() {
            let mut any = false;
            for c in self.init.iter_mut().filter(|c| c.is_sidecar() && !matches!(c.state, State::Terminated(_))) {
                c.end(last, 0);
                any = true;
            }
            return any;
        }
        false
    }

    fn expires(&self) -> Option<Timestamp> {
        self.start_time.saturating_add(self.deadline?).ok()
    }

    fn main_over(&self) -> Option<Timestamp> {
        let ends = self.main.iter().map(|c| match c.state {
            State::Terminated(end) => Some(end.finished),
            _ => None,
        });
        ends.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    fn all_ended(&self) -> bool {
        self.containers().all(|c| matches!(c.state, State::Terminated(_)))
    }

    /// Nothing will happen any more by itself.
    fn is_over(&self) -> bool {
        self.all_ended()
            || self
                .init
                .iter()
                .any(|c| matches!(c.state, State::Terminated(end) if end.code != 0 && c.restart == Restart::Never))
    }

    /// When it is worth looking again.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        let next = match self.stopping {
            _ if self.all_ended() => None,
            Some((at, _)) => Some(at),
            None if self.is_over() => None,
            None => {
                let next = match self.ready_at > now {
                    true => Some(self.ready_at),
                    false => self.init.iter().chain(&self.main).filter_map(SimContainer::next).min(),
                };
                next.into_iter().chain(self.expires()).min()
            }
        };
        // After a bounded catch-up the rest happens a little later.
        next.map(|at| if at <= now { add_ms(now, 100) } else { at })
    }

    /// Asks the containers to end, and kills them after `grace_ms`.
    pub fn stop(&mut self, now: Timestamp, grace_ms: u64) {
        let takes = self.settings.jittered(self.settings.stop_latency, draw(self.seed, b"stop", 0));
        let kill = add_ms(now, grace_ms);
        let at = add_ms(now, takes).min(kill);
        self.stopping = Some(match self.stopping {
            Some((was, was_kill)) => (was.min(at).min(kill), was_kill.min(kill)),
            None => (at, kill),
        });
    }

    pub fn container(&self, name: &str) -> Option<&SimContainer> {
        self.init.iter().chain(&self.main).find(|c| *c.name == *name)
    }

    pub fn containers(&self) -> impl Iterator<Item = &SimContainer> {
        self.init.iter().chain(&self.main)
    }

    /// What an agent is told.
    pub fn observation(&self) -> PodObservation {
        let pod = &self.reference;
        let initializing = self.init.iter().any(|c| c.lets_next().is_none());
        PodObservation {
            pod: pod.clone(),
            start_time: Some(self.start_time),
            pod_ips: if matches!(self.main.first().map(|c| c.state), Some(State::Waiting))
                && self.init.iter().all(|c| c.state == State::Waiting)
            {
                Vec::new()
            } else {
                vec![IpAddr::V4(self.ip)]
            },
            host_ip: None,
            init_containers: self.init.iter().map(|c| c.status(pod, initializing)).collect(),
            containers: self.main.iter().map(|c| c.status(pod, initializing)).collect(),
            ephemeral_containers: Vec::new(),
            reason: self.expired.then(|| "DeadlineExceeded".into()),
            message: self.expired.then(|| "Pod was active on the node longer than the specified deadline".into()),
        }
    }
}

impl SimContainer {
    fn restore(&mut self, was: &ContainerStatus, settings: &Settings, seed: u64, run: Option<u64>, now: Timestamp) {
        let end = |state: Option<&ContainerState>| {
            let t = state?.terminated.as_ref()?;
            let started = t.started_at.as_ref().map(|t| t.0);
            Some(End { started, finished: t.finished_at.as_ref().map_or(now, |t| t.0), code: t.exit_code })
        };
        self.restarts = was.restart_count;
        self.crashes = was.restart_count.unsigned_abs();
        self.last = end(was.last_state.as_ref());
        let Some(state) = &was.state else { return };
        if let Some(running) = &state.running {
            let run = if self.is_sidecar() && self.index >= INIT { None } else { run };
            self.start(running.started_at.as_ref().map_or(now, |t| t.0), settings, seed, run);
        } else if let Some(end) = end(Some(state)) {
            self.state = State::Terminated(end);
        } else if state.waiting.as_ref().is_some_and(|w| w.reason.as_deref() == Some("CrashLoopBackOff")) {
            self.crashes += 1;
            let delay_ms = settings.backoff(self.crashes);
            self.state = State::BackOff { until: add_ms(now, delay_ms), delay_ms };
        }
    }
}
