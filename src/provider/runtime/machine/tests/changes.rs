//! What runs is kept where it can be, through edits, additions, evictions and restarts of ours.

use super::*;
use crate::provider::runtime::{ListedSandbox, Sandbox};

fn listed(machine: &Machine, name: &str, attempt: u32, state: ContainerState) -> ListedContainer {
    let container =
        ContainerRef { pod: machine.plan.pod.clone(), name: name.into(), attempt, id: format!("{name}-{attempt}") };
    ListedContainer { container, image: "i:1".into(), image_id: String::new(), state }
}

fn sandbox_of(plan: &Plan) -> ListedSandbox {
    let sandbox = Sandbox { ips: vec!["10.0.0.1".parse().unwrap()] };
    ListedSandbox { pod: plan.pod.clone(), sandbox, created_at: None }
}

#[test]
fn a_signal_that_was_noted_and_perhaps_not_sent_is_sent_again() {
    for (obeys_term, log) in [
        (true, vec!["0 start m", "1 TERM m", "5 TERM m"]),
        (false, vec!["0 start m", "1 TERM m", "5 TERM m", "31 KILL m"]),
    ] {
        let mut play = Play::of(main_only(json!({})));
        play.obeys = None;
        play.run(1).stop(30).run(4);
        let resume = |play: &mut Play| {
            let (plan, notes) = (play.machine.plan.clone(), play.machine.state.durable());
            let running = listed(&play.machine, "m", 0, ContainerState::Running { started_at: start() });
            let sandbox = sandbox_of(&plan);
            (play.machine, _) = Machine::resume(plan, Some(notes), Some(&sandbox), &[running], play.now);
        };
        resume(&mut play);
        play.obeys = obeys_term.then_some(0);
        play.run(25);
        if !obeys_term {
            play.now = state::after(play.now, Duration::from_secs(1));
            let lost = play.machine.next(Input::Tick, play.now);
            assert!(matches!(&lost[..], [Action::Signal { .. }]), "{lost:?}");
            resume(&mut play);
            play.run(0);
        }
        assert!(!play.machine.state.containers[0].is_alive());
        assert_eq!(play.log, log, "the deadline stays where it was");
    }
}

#[test]
fn a_restart_of_ours_is_not_one_of_the_pod() {
    let mut play = Play::of(main_only(json!({}))).end("m", &[(1, 1)]);
    play.run(60);
    let (plan, notes) = (play.machine.plan.clone(), play.machine.state.durable());
    let text = serde_json::to_string(&notes).unwrap();
    let notes: state::PodState = serde_json::from_str(&text).unwrap();
    let sandbox = sandbox_of(&plan);
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

fn debugged(mut spec: Value, names: &[&str]) -> Plan {
    spec["ephemeralContainers"] = names.iter().map(|n| json!({"name": n, "image": "d:1"})).collect();
    plan_of(spec)
}

impl Play {
    fn replan(&mut self, plan: Plan) {
        for action in self.machine.replan(plan, self.now) {
            if let Some(answer) = self.act(action) {
                self.input(answer);
            }
        }
    }

    fn ephemeral(&self) -> Vec<k8s_openapi::api::core::v1::ContainerStatus> {
        self.seen().ephemeral_containers
    }
}

#[test]
fn an_ephemeral_container_is_started_once_and_changes_nothing_of_the_pod() {
    let spec = main_only(json!({}));
    let mut play = Play::of(spec.clone()).end("look", &[(3, 5)]);
    play.run(1);
    play.replan(debugged(spec, &["look"]));
    play.run(1);
    assert_eq!(play.states(), ["m running+"]);
    let look = &play.ephemeral()[0];
    assert!(look.state.as_ref().unwrap().running.is_some() && !look.ready);
    play.run(60);
    assert_eq!(play.log, ["0 start m", "1 start look"], "not again");
    assert_eq!(play.ephemeral()[0].state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);
    assert!(play.has_event("Started container look"));
}

#[test]
fn an_ephemeral_container_starts_though_the_init_containers_do_not_get_on() {
    let spec = three_steps("Always");
    let mut play = Play::of(spec.clone());
    play.run(1);
    play.replan(debugged(spec, &["look"]));
    play.run(1);
    assert_eq!(play.log, ["0 start a", "1 start look"]);
}

#[test]
fn ephemeral_containers_end_with_the_pod() {
    let mut spec = main_only(json!({}));
    spec["restartPolicy"] = json!("Never");
    let mut over = Play::of(spec.clone()).end("m", &[(0, 5)]);
    over.run(1).replan(debugged(spec.clone(), &["look"]));
    over.run(30);
    assert_eq!(over.log[2..], ["5 TERM look"], "when it is over");
    assert!(over.seen().is_terminated());
    let mut stopped = Play::of(spec.clone());
    stopped.run(1).replan(debugged(spec, &["look"]));
    stopped.run(1).stop(10).run(1);
    assert_eq!(stopped.log[2..], ["2 TERM m", "2 TERM look"], "when it is ended");
}

#[test]
fn a_container_starts_as_soon_as_its_configuration_is_there() {
    let mut play = Play::of(main_only(json!({})));
    play.machine.state.containers[0].stage = Stage::Held {
        reason: "CreateContainerConfigError".into(),
        message: "no".into(),
        until: state::after(start(), Duration::from_secs(1000)),
        then: None,
    };
    play.run(5);
    assert!(play.log.is_empty());
    play.input(Input::Configured { c: 0 });
    assert_eq!(play.log, ["5 start m"]);
}

#[test]
fn a_pod_whose_volume_outgrows_its_limit_is_evicted() {
    let mut spec = main_only(json!({}));
    spec["volumes"] = json!([{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "w", "emptyDir": {}}]);
    let mut play = Play::of(spec);
    play.run(60);
    assert_eq!(play.log, ["0 start m"], "it holds what it may");
    play.over = vec!["v".into()];
    play.run(15);
    assert_eq!(play.log[1..], ["70 TERM m"]);
    let seen = play.seen();
    assert_eq!(seen.reason.as_deref(), Some("Evicted"));
    assert_eq!(seen.message.as_deref(), Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". "));
    assert!(seen.is_terminated() && play.has_event("Evicted: Usage"));
}

#[test]
fn a_rule_can_restart_all_containers_from_the_first_init_container() {
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "i", "image": "i:1"}, {"name": "s", "image": "i:1", "restartPolicy": "Always"}],
        "containers": [
            {"name": "m", "image": "i:1", "restartPolicyRules":
                [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]},
            {"name": "n", "image": "i:1"},
        ],
    });
    let mut play = Play::of(spec).end("i", &[(0, 1), (0, 1), (0, 1)]).end("m", &[(42, 10), (42, 5), (0, 5)]);
    play.run(15);
    assert_eq!(
        play.log,
        [
            "0 start i",
            "1 start s",
            "1 start m",
            "1 start n",
            "11 KILL s",
            "11 KILL n",
            "11 start i",
            "12 start s",
            "12 start m",
            "12 start n",
        ],
        "nobody is asked, and the order is that of the start"
    );
    assert_eq!(play.states(), ["i Completed(0)", "s running+", "m running+", "n running+"]);
    assert!(!play.seen().is_terminated());
    play.run(30);
    let again: Vec<_> = play.log[10..].iter().map(String::as_str).collect();
    assert_eq!(again[..5], ["17 KILL s", "17 KILL n", "17 start i", "18 start s", "18 start n"]);
    assert_eq!(again[5], "27 start m", "the one that does it again and again is backed off from");
    let seen = play.seen();
    assert_eq!(seen.containers.iter().map(|c| c.restart_count).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn a_sandbox_that_is_gone_is_made_again_and_new_addresses_are_told() {
    let mut play = Play::of(json!({"containers": [{"name": "main"}]}));
    play.input(Input::Tick);
    play.input(Input::SandboxChanged(Some(vec!["10.0.0.9".parse().unwrap()])));
    assert_eq!(play.machine.state.ips, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
    play.input(Input::SandboxChanged(None));
    assert_eq!(play.machine.state.ips, ["10.0.0.1".parse::<IpAddr>().unwrap()], "those of the new one");
    assert_eq!(play.log, ["0 start main"], "what runs is left alone");
}

fn sized(cpu: &str, restarts: bool) -> Value {
    let policy = if restarts { "RestartContainer" } else { "NotRequired" };
    main_only(json!({
        "resources": {"requests": {"cpu": cpu}},
        "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy}],
    }))
}

#[test]
fn other_resources_are_given_to_what_runs() {
    let mut play = Play::of(sized("1", false));
    play.run(1);
    play.replan(plan_of(sized("2", false)));
    play.run(1);
    assert_eq!(play.log, ["0 start m", "1 resize m"]);
    assert_eq!(play.seen().containers[0].resources, None, "they are those of its spec");
    assert!(play.has_event("ResizeCompleted"));
    play.run(300);
    assert_eq!(play.log.len(), 2, "once");
}

#[test]
fn resources_that_it_cannot_have_are_said_and_tried_again() {
    let mut play = Play::of(sized("1", false));
    play.resizes = false;
    play.run(1);
    play.replan(plan_of(sized("2", false)));
    play.run(10);
    let seen = play.seen().containers[0].clone();
    let cpu = seen.allocated_resources.unwrap()["cpu"].clone();
    assert_eq!((cpu.0.as_str(), seen.restart_count), ("1", 0), "what it has is shown");
    assert!(play.has_event("ResizeError: Container m not resized: no"));
    play.resizes = true;
    play.run(60);
    assert_eq!(play.log, ["0 start m", "1 resize m", "61 resize m"]);
    assert_eq!(play.seen().containers[0].allocated_resources, None);
}

#[test]
fn a_resize_policy_can_ask_for_a_restart() {
    let mut play = Play::of(sized("1", true));
    play.run(1);
    play.replan(plan_of(sized("2", true)));
    play.run(1);
    assert_eq!(play.log, ["0 start m", "1 TERM m", "1 start m"]);
    assert!(play.has_event("Killing: Container m resize requires restart"));
    assert_eq!(play.seen().containers[0].restart_count, 1);
    play.run(300);
    assert_eq!(play.log.len(), 3, "once");
}
