use super::*;
use crate::provider::PodRef;

fn pod(policy: &str, inits: &[(&str, bool)], containers: &[&str]) -> Pod {
    let container = |name: &str| json!({"name": name, "image": "i"});
    let init = |(name, sidecar): &(&str, bool)| match sidecar {
        true => json!({"name": name, "image": "i", "restartPolicy": "Always"}),
        false => container(name),
    };
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 2},
        "spec": {
            "restartPolicy": policy,
            "initContainers": inits.iter().map(init).collect::<Vec<_>>(),
            "containers": containers.iter().map(|n| container(n)).collect::<Vec<_>>(),
        },
    }))
    .unwrap()
}

/// `r` running, `w` waiting, `b` back-off after a failure, a digit: ended with that code.
fn container(name: &str, state: char) -> ContainerStatus {
    let ended = |code| json!({"terminated": {"exitCode": code}});
    let (now, last) = match state {
        'r' => (json!({"running": {}}), json!({})),
        'w' => (json!({"waiting": {"reason": "ContainerCreating"}}), json!({})),
        'b' => (json!({"waiting": {"reason": "CrashLoopBackOff"}}), ended(1)),
        code => (ended(code.to_digit(10).unwrap()), json!({})),
    };
    serde_json::from_value(json!({
        "name": name, "image": "i", "imageID": "", "restartCount": 0, "ready": state == 'r', "started": state == 'r',
        "state": now, "lastState": last,
    }))
    .unwrap()
}

fn observation(pod: &Pod, inits: &str, mains: &str) -> PodObservation {
    let spec = pod.spec.as_ref().unwrap();
    let all = |containers: &[Container], states: &str| {
        containers.iter().zip(states.chars()).map(|(c, s)| container(&c.name, s)).collect()
    };
    PodObservation {
        pod: PodRef::of(pod),
        start_time: Some(Timestamp::from_second(1_000).unwrap()),
        pod_ips: vec!["10.0.0.1".parse().unwrap()],
        host_ip: None,
        init_containers: all(spec.init_containers.as_deref().unwrap_or_default(), inits),
        containers: all(&spec.containers, mains),
        ephemeral_containers: Vec::new(),
        reason: None,
        message: None,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn compute(pod: &Pod, base: &PodStatus, story: Story<'_>, now: i64) -> PodStatus {
    status(&Situation {
        pod,
        base,
        story,
        host_ip: "192.0.2.1".parse().unwrap(),
        now: at(now),
        resize: Resize::Unknown,
    })
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a PodCondition {
    status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == kind).unwrap()
}

#[test]
fn the_phase_follows_from_container_states_and_restart_policy() {
    let cases = [
        ("Always", "", "w", "Pending"),
        ("Always", "", "r", "Running"),
        ("Always", "", "rw", "Pending"),
        ("Always", "", "rb", "Running"),
        ("Always", "", "b", "Running"),
        ("Always", "", "0", "Running"),
        ("OnFailure", "", "0", "Succeeded"),
        ("OnFailure", "", "1", "Running"),
        ("OnFailure", "", "b", "Running"),
        ("Never", "", "0", "Succeeded"),
        ("Never", "", "00", "Succeeded"),
        ("Never", "", "01", "Failed"),
        ("Never", "", "r1", "Running"),
        ("Never", "1", "w", "Failed"),
        ("Always", "1", "w", "Pending"),
        ("Always", "r", "w", "Pending"),
        ("Always", "0", "w", "Pending"),
        ("Always", "0", "r", "Running"),
    ];
    for (policy, inits, mains, want) in cases {
        let init_names: Vec<_> = ["i0", "i1"][..inits.len()].iter().map(|n| (*n, false)).collect();
        let pod = pod(policy, &init_names, &["c0", "c1"][..mains.len()]);
        assert_eq!(phase(&pod, &observation(&pod, inits, mains)), want, "{policy} {inits}/{mains}");
    }
}

#[test]
fn a_deleted_pod_ends_whatever_its_policy() {
    let mut pod = pod("Always", &[], &["a", "b"]);
    pod.metadata.deletion_timestamp = Some(Time(at(1)));
    assert_eq!(phase(&pod, &observation(&pod, "", "00")), "Succeeded");
    assert_eq!(phase(&pod, &observation(&pod, "", "01")), "Failed");
    assert_eq!(phase(&pod, &observation(&pod, "", "0r")), "Running");
}

#[test]
fn a_running_sidecar_lets_the_pod_start() {
    let pod = pod("Always", &[("s", true)], &["c"]);
    assert_eq!(phase(&pod, &observation(&pod, "r", "r")), "Running");
    let new = compute(&pod, &PodStatus::default(), Story::Observed(&observation(&pod, "r", "w")), 5);
    assert_eq!(condition(&new, "Initialized").status, "True");
}

#[test]
fn conditions_say_what_is_missing_and_keep_their_time() {
    let pod = pod("Always", &[("i", false)], &["c"]);
    let first = compute(&pod, &PodStatus::default(), Story::Observed(&observation(&pod, "r", "w")), 5);
    assert_eq!(condition(&first, "Initialized").message.as_deref(), Some("containers with incomplete status: [i]"));
    assert_eq!(condition(&first, "Ready").reason.as_deref(), Some("ContainersNotReady"));
    let later = compute(&pod, &first, Story::Observed(&observation(&pod, "0", "r")), 9);
    assert_eq!((condition(&later, "Ready").status.as_str(), later.phase.as_deref()), ("True", Some("Running")));
    assert_eq!(condition(&later, "Ready").last_transition_time, Some(Time(at(9))));
    assert_eq!(condition(&later, "PodScheduled").last_transition_time, Some(Time(at(5))));
    assert_eq!((later.pod_ip.as_deref(), later.host_ip.as_deref()), (Some("10.0.0.1"), Some("192.0.2.1")));
    assert_eq!((later.start_time, later.observed_generation), (Some(Time(at(1_000))), Some(2)));
}

#[test]
fn readiness_gates_hold_back_ready_only() {
    let mut pod = pod("Always", &[], &["c"]);
    pod.spec.as_mut().unwrap().readiness_gates = serde_json::from_value(json!([{"conditionType": "x/y"}])).unwrap();
    let seen = observation(&pod, "", "r");
    let without = compute(&pod, &PodStatus::default(), Story::Observed(&seen), 5);
    assert_eq!(condition(&without, "ContainersReady").status, "True");
    assert_eq!(condition(&without, "Ready").reason.as_deref(), Some("ReadinessGatesNotReady"));
    let mut base = without.clone();
    base.conditions.as_mut().unwrap().push(PodCondition {
        type_: "x/y".into(),
        status: "True".into(),
        ..Default::default()
    });
    let with = compute(&pod, &base, Story::Observed(&seen), 6);
    assert_eq!(condition(&with, "Ready").status, "True");
    assert_eq!(condition(&with, "x/y").status, "True", "the condition of somebody else is kept");
}

#[test]
fn a_pod_that_is_over_stays_over() {
    let pod = pod("Never", &[], &["c"]);
    let over = compute(&pod, &PodStatus::default(), Story::Observed(&observation(&pod, "", "0")), 5);
    assert_eq!(over.phase.as_deref(), Some("Succeeded"));
    assert_eq!(condition(&over, "Ready").reason.as_deref(), Some("PodCompleted"));
    let running = observation(&pod, "", "r");
    for story in [Story::Observed(&running), Story::Vanished, Story::Waiting("A", "b"), Story::Refused("A", "b")] {
        let after = compute(&pod, &over, story, 9);
        assert_eq!(after.phase.as_deref(), Some("Succeeded"));
        assert_eq!(after.container_statuses, over.container_statuses);
    }
}

#[test]
fn a_lost_pod_has_failed_with_its_containers_ended() {
    let pod = pod("Always", &[], &["a", "b"]);
    let base = compute(&pod, &PodStatus::default(), Story::Observed(&observation(&pod, "", "r0")), 5);
    let lost = compute(&pod, &base, Story::Vanished, 9);
    assert_eq!((lost.phase.as_deref(), lost.reason.as_deref()), (Some("Failed"), Some("NotFound")));
    let ends: Vec<_> = lost.container_statuses.as_ref().unwrap().iter().map(|c| terminated(c).unwrap()).collect();
    assert_eq!((ends[0].exit_code, ends[0].reason.as_deref()), (137, Some("NotFound")));
    assert_eq!(ends[1].exit_code, 0, "what had ended before keeps its own end");
}

#[test]
fn a_pod_that_cannot_start_yet_says_why() {
    let pod = pod("Always", &[], &["c"]);
    let new = compute(&pod, &PodStatus::default(), Story::Waiting("ProviderFailed", "no room"), 5);
    assert_eq!((new.phase.as_deref(), new.start_time), (Some("Pending"), None));
    let state = new.container_statuses.unwrap().remove(0).state.unwrap().waiting.unwrap();
    assert_eq!((state.reason.as_deref(), state.message.as_deref()), (Some("ProviderFailed"), Some("no room")));
}

#[test]
fn a_patch_holds_only_what_differs() {
    let pod = pod("Always", &[], &["c"]);
    let seen = observation(&pod, "", "r");
    let base = compute(&pod, &PodStatus::default(), Story::Observed(&seen), 5);
    let same = compute(&pod, &base, Story::Observed(&seen), 9);
    assert_eq!(patch("u", &base, &same), None, "nothing is written twice");
    let mut moved = base.clone();
    moved.pod_ips = Some(vec![PodIP { ip: "10.0.0.2".into() }]);
    moved.host_ip = None;
    moved.conditions.as_mut().unwrap()[0].status = "False".into();
    let patch = patch("u", &base, &moved).unwrap();
    assert_eq!(patch["metadata"], json!({"uid": "u"}));
    assert_eq!(patch["status"]["podIPs"], json!([{"ip": "10.0.0.2"}, {"$patch": "replace"}]));
    assert_eq!(patch["status"]["hostIP"], Value::Null);
    assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1);
    assert_eq!(patch["status"].as_object().unwrap().len(), 3);
}

#[test]
fn only_the_container_at_fault_says_that_it_cannot_be_configured() {
    let failed = [("b".to_owned(), "secret \"s\" not found".to_owned())].into();
    let reasons = |inits: &[(&str, bool)]| {
        let pod = pod("Always", inits, &["a", "b"]);
        let new = compute(&pod, &PodStatus::default(), Story::Unresolved(&failed), 1);
        assert_eq!((new.phase.as_deref(), new.start_time.is_none()), (Some("Pending"), true));
        let waiting = |c: ContainerStatus| c.state.unwrap().waiting.unwrap();
        let all = new.container_statuses.unwrap().into_iter().map(waiting);
        all.map(|w| (w.reason.unwrap(), w.message.unwrap_or_default())).collect::<Vec<_>>()
    };
    let b = ("CreateContainerConfigError".to_owned(), "secret \"s\" not found".to_owned());
    assert_eq!(reasons(&[]), [("ContainerCreating".to_owned(), String::new()), b.clone()]);
    assert_eq!(reasons(&[("i", false)]), [("PodInitializing".to_owned(), String::new()), b]);
}

#[test]
fn a_pod_that_is_left_alone_says_why() {
    let pod = pod("Always", &[], &["a"]);
    let new = compute(&pod, &PodStatus::default(), Story::Held("Word", "a sentence"), 1);
    assert_eq!((new.phase.as_deref(), new.reason.as_deref(), new.start_time), (Some("Pending"), Some("Word"), None));
    let ready = new.conditions.unwrap().into_iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_deref(), ready.message.as_deref()),
        ("False", Some("Word"), Some("a sentence"))
    );
}

#[test]
fn the_quality_of_service_follows_from_the_resources() {
    for (resources, want) in [
        (json!({}), "BestEffort"),
        (json!({"requests": {"cpu": "0"}}), "BestEffort"),
        (json!({"requests": {"cpu": "1"}}), "Burstable"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}), "Guaranteed"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
    ] {
        let mut pod = pod("Always", &[], &["a"]);
        pod.spec.as_mut().unwrap().containers[0].resources = serde_json::from_value(resources.clone()).unwrap();
        assert_eq!(qos(&pod), want, "{resources}");
    }
}

#[test]
fn a_refused_resize_is_a_condition_that_goes_away() {
    let pod = pod("Always", &[], &["a"]);
    let told = observation(&pod, "", "r");
    let with = |base: &PodStatus, resize| {
        let host_ip = "192.0.2.1".parse().unwrap();
        status(&Situation { pod: &pod, base, story: Story::Observed(&told), host_ip, now: at(5), resize })
    };
    let plain = with(&PodStatus::default(), Resize::Unknown);
    let refused = with(&plain, Resize::Refused);
    let pending = |s: &PodStatus| s.conditions.iter().flatten().any(|c| c.type_ == "PodResizePending");
    assert!(!pending(&plain) && pending(&refused) && pending(&with(&refused, Resize::Unknown)));
    let back = with(&refused, Resize::Unchanged);
    assert!(!pending(&back));
    let patch = patch("u", &refused, &back).unwrap();
    assert_eq!(patch["status"]["conditions"], json!([{"type": "PodResizePending", "$patch": "delete"}]));
}

#[test]
fn a_resize_is_a_condition_as_long_as_it_takes() {
    let mut pod = pod("Always", &[], &["a"]);
    let of =
        |cpu: &str| serde_json::from_value(json!({"requests": {"cpu": cpu}, "limits": {"memory": "1Gi"}})).unwrap();
    pod.spec.as_mut().unwrap().containers[0].resources = Some(of("200m"));
    let mut told = observation(&pod, "", "r");
    let with = |base: &PodStatus, told: &PodObservation| {
        let (host_ip, resize) = ("192.0.2.1".parse().unwrap(), Resize::Unknown);
        status(&Situation { pod: &pod, base, story: Story::Observed(told), host_ip, now: at(5), resize })
    };
    let in_progress = |s: &PodStatus| s.conditions.iter().flatten().any(|c| c.type_ == "PodResizeInProgress");
    assert!(!in_progress(&with(&PodStatus::default(), &told)), "it has what it was made with");
    told.containers[0].resources = Some(of("100m"));
    let under_way = with(&PodStatus::default(), &told);
    assert!(in_progress(&under_way));
    assert_eq!(under_way.container_statuses.as_ref().unwrap()[0].resources, Some(of("100m")));
    told.containers[0].resources = Some(of("0.2"));
    assert!(!in_progress(&with(&under_way, &told)), "the same amount, written otherwise");
}

#[test]
fn a_condition_that_holds_again_loses_the_reason_why_it_did_not() {
    let with = |condition: serde_json::Value| -> PodStatus {
        serde_json::from_value(json!({"conditions": [condition]})).unwrap()
    };
    let before = with(json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"}));
    let now = with(json!({"type": "Ready", "status": "True"}));
    let patch = patch("u", &before, &now).unwrap();
    let condition = &patch["status"]["conditions"][0];
    assert_eq!(condition["status"], "True");
    for field in ["reason", "message"] {
        assert!(condition.as_object().unwrap().get(field).is_some_and(serde_json::Value::is_null), "{condition}");
    }
    assert!(!condition.as_object().unwrap().contains_key("observedGeneration"), "what never was is not spoken of");
}
