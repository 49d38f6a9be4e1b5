//! A pod's life, told in inputs and times.

use std::collections::BTreeMap;

use serde_json::{Value, json};

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
}

fn start() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

impl Play {
    fn of(spec: Value) -> Self {
        let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": spec});
        let plan = Plan::of(&serde_json::from_value(pod).unwrap());
        Self {
            machine: Machine::new(plan, start()),
            now: start(),
            log: Vec::new(),
            events: Vec::new(),
            ends: BTreeMap::new(),
            exits: Vec::new(),
            probes: BTreeMap::new(),
            obeys: Some(0),
            pull: Ok(()),
            hooks: true,
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

#[test]
fn a_container_starts_and_runs() {
    let mut play = Play::of(main_only(json!({})));
    assert_eq!(play.states(), ["m ContainerCreating"]);
    play.run(1);
    assert_eq!(play.states(), ["m running+"]);
    assert_eq!(play.seen().pod_ips.len(), 1);
    assert!(play.has_event("Created container: m") && play.has_event("Started container m"));
}

#[test]
fn crashes_back_off_and_ten_good_minutes_are_forgiven() {
    let mut play = Play::of(main_only(json!({}))).end("m", &[(1, 1); 7]);
    play.run(400);
    assert_eq!(
        play.log,
        ["0 start m", "1 start m", "12 start m", "33 start m", "74 start m", "155 start m", "316 start m"],
        "at once, then 10 s, 20 s, 40 s, 80 s, 160 s"
    );
    assert_eq!(play.states(), ["m CrashLoopBackOff"]);
    let status = &play.seen().containers[0];
    assert_eq!(status.restart_count, 6);
    assert_eq!(status.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    assert!(play.has_event("BackOff: Back-off restarting failed container m in pod p_d(u)"));

    let mut play = Play::of(main_only(json!({}))).end("m", &[(1, 1), (1, 1), (1, 700), (1, 1)]);
    play.run(2000);
    assert_eq!(play.log[2..], ["12 start m", "712 start m", "723 start m"], "forgotten after ten minutes");
}

#[test]
fn restart_policies_and_rules_decide_what_an_end_means() {
    let rules = |action: &str, op: &str| json!([{"action": action, "exitCodes": {"operator": op, "values": [42]}}]);
    for (claim, pod, own, rules, code, again) in [
        ("Always restarts success", "Always", None, None, 0, true),
        ("OnFailure keeps success", "OnFailure", None, None, 0, false),
        ("OnFailure restarts failure", "OnFailure", None, None, 1, true),
        ("Never keeps failure", "Never", None, None, 1, false),
        ("a container's own policy goes first", "Never", Some("OnFailure"), None, 1, true),
        ("its own Never too", "Always", Some("Never"), None, 1, false),
        ("a rule that matches restarts", "Never", Some("Never"), Some(rules("Restart", "In")), 42, true),
        ("one that does not, does not", "Never", Some("Never"), Some(rules("Restart", "In")), 1, false),
        ("NotIn is the opposite", "Never", Some("Never"), Some(rules("Restart", "NotIn")), 1, true),
    ] {
        let mut spec = main_only(json!({"restartPolicy": own, "restartPolicyRules": rules}));
        spec["restartPolicy"] = json!(pod);
        let mut play = Play::of(spec).end("m", &[(code, 1)]);
        play.run(5);
        assert_eq!(play.log.len() == 2, again, "{claim}: {:?}", play.log);
    }
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

#[test]
fn init_containers_and_sidecars_start_in_order() {
    let mut play = Play::of(three_steps("Always")).end("a", &[(0, 5)]).end("b", &[(0, 5)]);
    play.probes.insert(("s".into(), "Startup"), false);
    play.run(7);
    assert_eq!(play.log, ["0 start a", "5 start s"], "the sidecar's startup probe holds up the next");
    assert_eq!(play.states()[3], "m PodInitializing");
    play.probes.insert(("s".into(), "Startup"), true);
    play.run(20);
    let order: Vec<_> = play.log.iter().map(|l| l.split(' ').nth(2).unwrap()).collect();
    assert_eq!(order, ["a", "s", "b", "m", "n"]);
    assert_eq!(play.states(), ["a Completed(0)", "s running+", "b Completed(0)", "m running+", "n running+"]);
}

#[test]
fn a_failed_init_container_is_run_again_or_fails_the_pod() {
    let mut play = Play::of(three_steps("Always")).end("a", &[(1, 1), (0, 1)]);
    play.run(5);
    assert_eq!(play.log[..3], ["0 start a", "1 start a", "2 start s"]);
    let mut play = Play::of(three_steps("Never")).end("a", &[(1, 1)]);
    play.run(60);
    assert_eq!(play.log, ["0 start a"]);
    assert_eq!(play.states()[..2], ["a Error(1)", "s PodInitializing"]);
}

#[test]
fn sidecars_end_after_the_containers_in_reverse_order() {
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [
            {"name": "s", "image": "i:1", "restartPolicy": "Always"},
            {"name": "t", "image": "i:1", "restartPolicy": "Always"},
        ],
        "containers": [{"name": "m", "image": "i:1"}],
    });
    let mut job = Play::of(spec.clone()).end("m", &[(0, 10)]);
    job.obeys = Some(2);
    job.run(60);
    assert_eq!(job.log[3..], ["10 TERM t", "12 TERM s"], "when the containers have ended by themselves");
    assert!(job.seen().is_terminated());

    let mut stopped = Play::of(spec);
    stopped.obeys = Some(2);
    stopped.run(1).stop(30).run(60);
    assert_eq!(stopped.log[3..], ["1 TERM m", "3 TERM t", "5 TERM s"], "and when they were asked to");
}

#[test]
fn stopping_asks_waits_and_kills() {
    let mut play = Play::of(main_only(json!({})));
    play.obeys = None;
    play.run(1).stop(30).run(100);
    assert_eq!(play.log, ["0 start m", "1 TERM m", "31 KILL m"]);
    assert_eq!(play.states(), ["m Error(137)"]);
    assert!(play.has_event("Killing: Stopping container m"));

    let mut play = Play::of(main_only(json!({"lifecycle": {"stopSignal": "SIGUSR1"}})));
    play.run(1).stop(30).run(100);
    assert_eq!(play.log, ["0 start m", "1 USR1 m"]);

    let mut play = Play::of(main_only(json!({})));
    play.obeys = None;
    play.run(1).stop(30).run(3);
    play.stop(5).run(100);
    assert_eq!(play.log[1..], ["1 TERM m", "9 KILL m"], "a second call shortens the time");

    let mut play = Play::of(main_only(json!({})));
    play.run(1).stop(0).run(1);
    assert_eq!(play.log[1..], ["1 KILL m"], "no grace is no question");
}

#[test]
fn a_pre_stop_hook_counts_against_the_grace() {
    let hook = json!({"lifecycle": {"preStop": {"exec": {"command": ["x"]}}}});
    let mut play = Play::of(main_only(hook.clone()));
    play.run(1).stop(30).run(1);
    assert_eq!(play.log[1..], ["1 preStop m within 30", "1 TERM m"]);
    let mut play = Play::of(main_only(hook));
    (play.hooks, play.obeys) = (false, None);
    play.run(1).stop(10).run(60);
    assert_eq!(play.log[1..], ["1 preStop m within 10", "11 TERM m", "13 KILL m"], "two seconds are always left");
}

#[test]
fn a_failed_post_start_hook_ends_the_container() {
    let mut play = Play::of(main_only(json!({"lifecycle": {"postStart": {"exec": {"command": ["x"]}}}})));
    play.hooks = false;
    play.run(5);
    assert!(play.has_event("FailedPostStartHook: PostStartHook failed: no"));
    assert_eq!(play.log[..2], ["0 start m", "0 TERM m"]);
}

#[test]
fn what_is_idle_when_the_pod_stops_is_over() {
    let mut play = Play::of(main_only(json!({})));
    play.pull = Err("");
    play.run(30).stop(30).run(1);
    assert!(play.seen().is_terminated(), "never started: {:?}", play.states());
    assert_eq!(play.states(), ["m ContainerStatusUnknown(137)"]);
    let mut play = Play::of(main_only(json!({}))).end("m", &[(3, 1), (3, 1)]);
    play.run(5).stop(30).run(1);
    assert_eq!(play.states(), ["m Error(3)"], "in back-off: its last end");
}

#[test]
fn a_pod_past_its_deadline_is_ended() {
    let mut spec = main_only(json!({}));
    spec["activeDeadlineSeconds"] = json!(60);
    let mut play = Play::of(spec);
    play.run(100);
    assert_eq!(play.log, ["0 start m", "60 TERM m"]);
    let seen = play.seen();
    assert_eq!(seen.reason.as_deref(), Some("DeadlineExceeded"));
    assert!(seen.is_terminated());
}

#[test]
fn images_are_backed_off_from() {
    let mut play = Play::of(main_only(json!({})));
    play.pull = Err("");
    play.run(1);
    assert_eq!(play.states(), ["m ErrImagePull"]);
    play.run(5);
    assert_eq!(play.states(), ["m ImagePullBackOff"]);
    assert!(play.has_event("BackOff: Back-off pulling image \"i:1\"") && play.has_event("Failed: Error: ErrImagePull"));
    play.pull = Ok(());
    play.run(10);
    assert_eq!(play.states(), ["m running+"]);
    let mut play = Play::of(main_only(json!({})));
    play.pull = Err("ErrImageNeverPull");
    play.run(5);
    assert_eq!(play.states(), ["m ErrImageNeverPull"]);
}

#[test]
fn readiness_follows_its_probe() {
    let probe = json!({"readinessProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 5, "failureThreshold": 2}});
    let mut play = Play::of(main_only(probe));
    play.probes.insert(("m".into(), "Readiness"), false);
    play.run(12);
    assert_eq!(play.states(), ["m running"]);
    assert!(play.has_event("Unhealthy: Readiness probe failed: no"));
    play.probes.insert(("m".into(), "Readiness"), true);
    play.run(5);
    assert_eq!(play.states(), ["m running+"]);
    play.probes.insert(("m".into(), "Readiness"), false);
    play.run(5);
    assert_eq!(play.states(), ["m running+"], "one failure is not enough");
    play.run(5);
    assert_eq!(play.states(), ["m running"]);
}

#[test]
fn liveness_restarts_and_startup_goes_before_it() {
    let probe = json!({"exec": {"command": ["x"]}, "periodSeconds": 10, "failureThreshold": 3});
    let mut play = Play::of(main_only(json!({"livenessProbe": probe.clone()})));
    play.probes.insert(("m".into(), "Liveness"), false);
    play.run(21);
    assert_eq!(play.log[..2], ["0 start m", "20 TERM m"]);
    assert!(play.has_event("Killing: Container m failed liveness probe, will be restarted"));
    let startup = json!({"exec": {"command": ["x"]}, "periodSeconds": 10, "failureThreshold": 30});
    let mut play = Play::of(main_only(json!({"livenessProbe": probe, "startupProbe": startup})));
    play.probes.insert(("m".into(), "Liveness"), false);
    play.probes.insert(("m".into(), "Startup"), false);
    play.run(100);
    assert_eq!(play.log, ["0 start m"], "nothing else is asked until it has started");
    assert_eq!(play.seen().containers[0].started, Some(false));
}

#[test]
fn an_engine_that_does_not_answer_changes_nothing() {
    let mut play = Play::of(main_only(json!({"livenessProbe": {"exec": {"command": ["x"]}, "failureThreshold": 1}})));
    play.run(1);
    for _ in 0..10 {
        let kind = ProbeKind::Liveness;
        play.input(Input::Probed { c: 0, attempt: 0, kind, good: None, message: String::new() });
    }
    assert_eq!(play.log, ["0 start m"]);
    let mut machine = Machine::new(Play::of(main_only(json!({}))).machine.plan, start());
    machine.next(Input::Tick, start());
    machine.next(Input::Sandbox(Err(Failure::Unknown)), start());
    assert_eq!(machine.wake(), Some(state::after(start(), Duration::from_secs(1))));
}

fn listed(machine: &Machine, name: &str, attempt: u32, state: ContainerState) -> ListedContainer {
    let container =
        ContainerRef { pod: machine.plan.pod.clone(), name: name.into(), attempt, id: format!("{name}-{attempt}") };
    ListedContainer { container, image: "i:1".into(), image_id: String::new(), state }
}

#[test]
fn a_restart_of_ours_is_not_one_of_the_pod() {
    let mut play = Play::of(main_only(json!({}))).end("m", &[(1, 1)]);
    play.run(60);
    let (plan, notes) = (play.machine.plan.clone(), play.machine.state.durable());
    let text = serde_json::to_string(&notes).unwrap();
    let notes: state::PodState = serde_json::from_str(&text).unwrap();
    let sandbox = crate::provider::runtime::ListedSandbox {
        pod: plan.pod.clone(),
        sandbox: crate::provider::runtime::Sandbox { ips: vec!["10.0.0.1".parse().unwrap()] },
        created_at: None,
    };
    let running = listed(&play.machine, "m", 1, ContainerState::Running { started_at: start() });
    let (machine, inputs) = Machine::resume(plan.clone(), Some(notes.clone()), Some(&sandbox), &[running], play.now);
    assert!(inputs.is_empty());
    assert_eq!(machine.observation("test"), play.seen(), "nothing has changed");

    let (_, inputs) = Machine::resume(plan.clone(), Some(notes), Some(&sandbox), &[], play.now);
    let lost = matches!(&inputs[..], [Input::Exited { exit, attempt: 1, .. }] if exit.code == 137);
    assert!(lost, "what is gone has ended: {inputs:?}");

    let running = listed(&play.machine, "m", 4, ContainerState::Running { started_at: start() });
    let (machine, _) = Machine::resume(plan, None, Some(&sandbox), &[running], play.now);
    assert_eq!(machine.observation("test").containers[0].restart_count, 4, "without notes the engine's word counts");
}

#[test]
fn a_new_image_is_a_new_run() {
    let mut play = Play::of(main_only(json!({})));
    play.run(1);
    let mut plan = play.machine.plan.clone();
    plan.containers[0].image = "i:2".into();
    for action in play.machine.replan(plan, play.now) {
        play.act(action);
    }
    play.run(5);
    assert_eq!(play.log, ["0 start m", "1 TERM m", "1 start m"]);
    assert!(play.has_event("definition changed, will be restarted"));
}
