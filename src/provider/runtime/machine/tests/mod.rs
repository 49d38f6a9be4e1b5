//! A pod's life, told in inputs and times.
//!
//! | module | what it claims |
//! |---|---|
//! | [`lives`] | how containers start, fail, are probed and end |
//! | [`changes`] | what becomes of what runs when its pod, its sandbox or this process is another one |

mod changes;
mod lives;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::plan::Plan;
use super::state::Stage;
use super::*;
use crate::provider::PodObservation;
use crate::provider::runtime::engine::{ContainerRef, ContainerState, ListedContainer};

/// A pod, a clock, and an engine that does what it is asked as the test says.
struct Play {
    machine: Machine,
    now: Timestamp,
    log: Vec<String>,
    events: Vec<String>,
    /// Exit code and run time in seconds of each container, attempt after attempt; runs for ever without.
    ends: BTreeMap<String, Vec<(i32, u64)>>,
    exits: Vec<(Timestamp, usize, u32, i32)>,
    /// What the probes of a container answer.
    probes: BTreeMap<(String, &'static str), bool>,
    /// Seconds from a signal to the end; never without.
    obeys: Option<u64>,
    pull: Result<(), &'static str>,
    hooks: bool,
    resizes: bool,
    /// Volumes that hold too much.
    over: Vec<String>,
}

fn start() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

impl Play {
    fn of(spec: Value) -> Self {
        Self {
            machine: Machine::new(plan_of(spec), start()),
            now: start(),
            log: Vec::new(),
            events: Vec::new(),
            ends: BTreeMap::new(),
            exits: Vec::new(),
            probes: BTreeMap::new(),
            obeys: Some(0),
            pull: Ok(()),
            hooks: true,
            resizes: true,
            over: Vec::new(),
        }
    }

    fn end(mut self, name: &str, ends: &[(i32, u64)]) -> Self {
        self.ends.insert(name.into(), ends.to_vec());
        self
    }

    fn seconds(&self) -> i64 {
        self.now.as_second() - start().as_second()
    }

    fn note(&mut self, what: String) {
        let at = self.seconds();
        self.log.push(format!("{at} {what}"));
    }

    fn input(&mut self, input: Input) {
        let mut todo = self.machine.next(input, self.now);
        while !todo.is_empty() {
            for action in std::mem::take(&mut todo) {
                if let Some(answer) = self.act(action) {
                    todo.extend(self.machine.next(answer, self.now));
                }
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<Input> {
        let name = |c: usize| self.machine.plan.containers[c].name.clone();
        match action {
            Action::Event { reason, message, .. } => {
                self.events.push(format!("{reason}: {message}"));
                None
            }
            Action::CreateSandbox => Some(Input::Sandbox(Ok(vec!["10.0.0.1".parse().unwrap()]))),
            Action::EnsureImage { c } => {
                let result = match self.pull {
                    Ok(()) => Ok(Image::default()),
                    Err(reason) => Err(Failure::Answer { reason: reason.into(), message: "no".into() }),
                };
                Some(Input::Image { c, result })
            }
            Action::Start { c, attempt } => {
                let name = name(c);
                self.note(format!("start {name}"));
                let end = self.ends.get(&name).and_then(|ends| ends.get(attempt as usize));
                if let Some((code, after)) = end {
                    let at = state::after(self.now, Duration::from_secs(*after));
                    self.exits.push((at, c, attempt, *code));
                }
                Some(Input::Started { c, attempt, result: Ok((format!("{name}-{attempt}"), self.now)) })
            }
            Action::PostStart { c, attempt } => {
                let error = (!self.hooks).then(|| "PostStartHook failed: no".to_owned());
                Some(Input::PostStart { c, attempt, error })
            }
            Action::PreStop { c, attempt, within } => {
                let name = name(c);
                self.note(format!("preStop {name} within {}", within.as_secs()));
                self.hooks.then_some(Input::PreStop { c, attempt, error: None })
            }
            Action::Signal { c, attempt, signal } => {
                let name = name(c);
                self.note(format!("{} {name}", signal.0));
                let after = if signal.is_kill() { Some(0) } else { self.obeys };
                if let Some(after) = after {
                    let code = if signal.is_kill() { 137 } else { 143 };
                    self.exits.push((state::after(self.now, Duration::from_secs(after)), c, attempt, code));
                }
                None
            }
            Action::Probe { c, attempt, kind } => {
                let good = *self.probes.get(&(name(c), kind.word())).unwrap_or(&true);
                let message = "no".to_owned();
                Some(Input::Probed { c, attempt, kind, good: Some(good), message })
            }
            Action::Resize { c, attempt, resources } => {
                let name = name(c);
                self.note(format!("resize {name}"));
                let message = "no".to_owned();
                let refused = Failure::Answer { reason: String::new(), message };
                let result = if self.resizes { Ok(()) } else { Err(refused) };
                Some(Input::Resized { c, attempt, resources, result })
            }
            Action::Measure => Some(Input::Measured { over: self.over.clone() }),
            Action::Remove { .. } => None,
        }
    }

    /// Lives for so many seconds.
    fn run(&mut self, seconds: u64) -> &mut Self {
        let until = state::after(self.now, Duration::from_secs(seconds));
        self.input(Input::Tick);
        loop {
            let exit = self.exits.iter().map(|e| e.0).min();
            let Some(next) = exit.into_iter().chain(self.machine.wake()).min().filter(|at| *at <= until) else {
                self.now = until;
                return self;
            };
            self.now = self.now.max(next);
            let (due, later): (Vec<_>, Vec<_>) = self.exits.drain(..).partition(|e| e.0 <= self.now);
            self.exits = later;
            for (at, c, attempt, code) in due {
                let started = match self.machine.state.containers[c].stage {
                    Stage::Running { since } | Stage::Hooked { since } => Some(since),
                    _ => None,
                };
                let exit = Exit {
                    code,
                    signal: None,
                    started_at: started,
                    finished_at: at,
                    oom_killed: false,
                    reason: None,
                    message: None,
                };
                self.input(Input::Exited { c, attempt, exit, message: None });
            }
            self.input(Input::Tick);
        }
    }

    fn stop(&mut self, grace: u64) -> &mut Self {
        self.input(Input::Stop { grace: Duration::from_secs(grace) });
        self
    }

    fn seen(&self) -> PodObservation {
        self.machine.observation("test")
    }

    /// The states of all containers, in a word each.
    fn states(&self) -> Vec<String> {
        let seen = self.seen();
        let word = |c: &k8s_openapi::api::core::v1::ContainerStatus| {
            let state = c.state.clone().unwrap();
            let ready = if c.ready { "+" } else { "" };
            if let Some(w) = state.waiting {
                return format!("{} {}", c.name, w.reason.unwrap());
            }
            if let Some(t) = state.terminated {
                return format!("{} {}({})", c.name, t.reason.unwrap(), t.exit_code);
            }
            format!("{} running{ready}", c.name)
        };
        seen.init_containers.iter().chain(&seen.containers).map(word).collect()
    }

    fn has_event(&self, text: &str) -> bool {
        self.events.iter().any(|e| e.contains(text))
    }
}

fn main_only(more: Value) -> Value {
    let mut container = json!({"name": "m", "image": "i:1"});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"containers": [container]})
}

fn three_steps(policy: &str) -> Value {
    json!({
        "restartPolicy": policy,
        "initContainers": [
            {"name": "a", "image": "i:1"},
            {"name": "s", "image": "i:1", "restartPolicy": "Always",
             "startupProbe": {"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 60}},
            {"name": "b", "image": "i:1"},
        ],
        "containers": [{"name": "m", "image": "i:1"}, {"name": "n", "image": "i:1"}],
    })
}

fn plan_of(spec: Value) -> Plan {
    let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": spec});
    Plan::of(&serde_json::from_value(pod).unwrap())
}
