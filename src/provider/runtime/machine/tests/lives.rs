//! Containers start in their order, are restarted and probed, and end as they are asked to.

use super::*;

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
