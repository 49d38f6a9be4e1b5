//! Scenarios: pods on simulated nodes against an API server in memory, under paused time.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use serde_json::json;

use super::fake_api::FakeApi;
use super::test_world::{Faulty, World, delete, pod};
use super::{PodConfig, PodWatch};
use crate::api::{MockConfig, ProviderSpec};
use crate::provider::{PodObservation, Provider, ProviderContext, ResolvedPod};

#[tokio::test(start_paused = true)]
async fn a_bound_pod_runs_with_one_write_and_nothing_is_written_twice() {
    let w = World::new();
    w.add_mock("n1", MockConfig::default());
    w.api.put(pod("a", "u1", "n1"));
    w.api.put(pod("foreign", "u2", "elsewhere"));
    w.until_phase("a", "Running").await;
    w.settle().await;
    assert_eq!(w.api.writes(), ["status a Running"]);
    let status = &w.api.pod("a").unwrap()["status"];
    assert_eq!((status["hostIP"].as_str(), status["qosClass"].as_str()), (Some("192.0.2.1"), Some("BestEffort")));
    assert!(status["podIP"].as_str().unwrap().starts_with("10."));
    let counts = w.pods.counts("n1");
    assert_eq!((counts.total, counts.running, counts.pending), (1, 1, 0));
    assert!(w.pods.find("n1", "default", "a").is_some());
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_node_that_was_let_go_before_they_were_listed_are_found_when_it_is_back() {
    let w = World::new();
    w.api.put(pod("a", "u1", "n1"));
    w.settle().await;
    w.add_mock("n1", MockConfig::default());
    w.pods.release_node("n1");
    w.add_mock("n1", MockConfig::default());
    w.until_phase("a", "Running").await;
}

#[tokio::test(start_paused = true)]
async fn deletion_honours_the_grace_period_and_waits_for_the_containers() {
    let w = World::new();
    let provider = w.add_mock("n1", MockConfig { stop_latency_ms: Some(60_000), ..Default::default() });
    w.run("a", "u1", "n1").await;
    let begin = tokio::time::Instant::now();
    w.api.edit("a", |p| delete(p, 20));
    w.until("the pod is gone", |api| api.pod("a").is_none()).await;
    assert_eq!(begin.elapsed().as_secs(), 20);
    w.settle().await;
    assert!(provider.list_pods().await.unwrap().is_empty());
    assert_eq!(w.api.writes()[1..], ["status a Failed".to_owned(), "delete a".to_owned()], "killed after its grace");
    assert_eq!(w.pods.counts("n1").total, 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_deleted_before_it_started_is_gone_at_once() {
    let w = World::new();
    let mut doomed = pod("a", "u1", "n1");
    delete(&mut doomed, 30);
    w.api.put(doomed);
    let provider = Faulty::around(w.mock("n1", MockConfig::default()));
    w.add("n1", provider.clone());
    w.until("the pod is gone", |api| api.pod("a").is_none()).await;
    assert_eq!(provider.creates.load(SeqCst), 0);
    assert_eq!(w.api.writes(), ["delete a"]);
}

#[tokio::test(start_paused = true)]
async fn a_force_deleted_pod_is_removed_from_the_provider() {
    let w = World::new();
    let provider = w.add_mock("n1", MockConfig { stop_latency_ms: Some(60_000), ..Default::default() });
    w.run("a", "u1", "n1").await;
    w.api.remove("a");
    w.settle().await;
    assert!(provider.list_pods().await.unwrap().is_empty());
    assert!(w.pods.pods("n1").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_vanished_while_the_watch_was_cut_off_is_removed() {
    for expired in [false, true] {
        let w = World::new();
        let provider = w.add_mock("n1", MockConfig::default());
        w.run("a", "u1", "n1").await;
        w.run("b", "u2", "n1").await;
        w.api.remove_unseen("a");
        w.api.cut_watches(expired);
        tokio::time::sleep(Duration::from_secs(400)).await;
        let left: Vec<_> = provider.list_pods().await.unwrap().into_iter().map(|o| o.pod.name).collect();
        if expired {
            assert_eq!(left, [Arc::from("b")]);
        }
        w.run("c", "u3", "n1").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_restores_pods_and_starts_none_anew() {
    let w = World::new();
    w.add_mock("n1", MockConfig::default());
    for n in 0..50 {
        w.api.put(pod(&format!("p{n}"), &format!("u{n}"), "n1"));
    }
    w.until("all run", |api| (0..50).all(|n| api.phase(&format!("p{n}")).as_deref() == Some("Running"))).await;
    let api = w.api.clone();
    let status = |n: usize| api.pod(&format!("p{n}")).unwrap()["status"].clone();
    let before: Vec<_> = (0..50).map(status).collect();
    let writes = api.writes().len();
    drop(w);
    tokio::time::sleep(Duration::from_secs(60)).await;
    api.cut_watches(false);

    let w = World::with(api.clone());
    let provider = Faulty::around(w.mock("n1", MockConfig::default()));
    w.add("n1", provider.clone());
    w.settle().await;
    assert_eq!(provider.creates.load(SeqCst), 0, "nothing is created anew");
    assert_eq!(provider.list_pods().await.unwrap().len(), 50);
    let after: Vec<_> = (0..50).map(status).collect();
    assert_eq!(before, after, "start times and states are kept");
    assert_eq!(api.writes().len(), writes, "so nothing had to be written");
}

#[tokio::test(start_paused = true)]
async fn strangers_at_the_provider_are_removed_after_the_caches_have_synced() {
    let w = World::new();
    let provider = w.mock("n1", MockConfig::default());
    let stray: k8s_openapi::api::core::v1::Pod = serde_json::from_value(pod("stray", "u9", "n1")).unwrap();
    let known = serde_json::from_value(pod("known", "u1", "n1")).unwrap();
    for pod in [stray, known] {
        provider.create_pod(&ResolvedPod { pod: Arc::new(pod), ..ResolvedPod::default() }).await.unwrap();
    }
    w.api.put(pod("known", "u1", "n1"));
    w.api.set_down(true);
    w.add("n1", provider.clone());
    w.settle().await;
    assert_eq!(provider.list_pods().await.unwrap().len(), 2, "nothing is concluded from what is not known");
    w.api.set_down(false);
    w.until_phase("known", "Running").await;
    w.settle().await;
    let left: Vec<_> = provider.list_pods().await.unwrap().into_iter().map(|o| o.pod.name).collect();
    assert_eq!(left, [Arc::from("known")]);
}

#[tokio::test(start_paused = true)]
async fn terminal_pods_are_never_created_again() {
    let w = World::new();
    let mut over = pod("a", "u1", "n1");
    over["status"] = json!({"phase": "Succeeded", "startTime": "2020-01-01T00:00:00Z"});
    w.api.put(over);
    let provider = Faulty::around(w.mock("n1", MockConfig::default()));
    w.add("n1", provider.clone());
    w.settle().await;
    assert_eq!((provider.creates.load(SeqCst), provider.list_pods().await.unwrap().len()), (0, 0));
    assert!(w.api.writes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_provider_lost_has_failed() {
    let w = World::new();
    let provider = w.add_mock("n1", MockConfig::default());
    w.run("a", "u1", "n1").await;
    let reference = provider.list_pods().await.unwrap().remove(0).pod;
    provider.remove_pod(&reference).await.unwrap();
    w.until_phase("a", "Failed").await;
    let status = &w.api.pod("a").unwrap()["status"];
    assert_eq!(status["reason"], "NotFound");
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
    w.settle().await;
    assert!(provider.list_pods().await.unwrap().is_empty(), "it is not created again");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_shown_and_retried_and_a_refusal_is_final() {
    let w = World::new();
    let provider = Faulty::around(w.mock("n1", MockConfig::default()));
    provider.fail.store(2, SeqCst);
    w.add("n1", provider.clone());
    w.api.put(pod("a", "u1", "n1"));
    w.until("the trouble is shown", |api| {
        api.pod("a").unwrap()["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ProviderFailed"
    })
    .await;
    w.until_phase("a", "Running").await;
    assert_eq!(provider.creates.load(SeqCst), 3);
    provider.refuse.store(true, SeqCst);
    w.api.put(pod("b", "u2", "n1"));
    w.until_phase("b", "Failed").await;
    assert_eq!(w.api.pod("b").unwrap()["status"]["reason"], "QuotaExceeded");
    w.settle().await;
    assert_eq!(provider.creates.load(SeqCst), 4, "a refusal is not retried");
    assert!(w.api.event_reasons().contains(&"ProviderCreateFailed".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_provider_counts_as_an_outage() {
    let w = World::new();
    let provider = Faulty::around(w.mock("n1", MockConfig::default()));
    provider.panic.store(1, SeqCst);
    w.add("n1", provider.clone());
    w.run("a", "u1", "n1").await;
    assert_eq!(provider.creates.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_provider_delays_no_other_node() {
    let w = World::new();
    let hanging: Vec<_> = (0..4)
        .map(|n| {
            let name = format!("h{n}");
            let provider = Faulty::around(w.mock(&name, MockConfig::default()));
            w.add(&name, provider.clone());
            provider
        })
        .collect();
    w.add_mock("good", MockConfig::default());
    w.settle().await;
    hanging.iter().for_each(|p| p.hang.store(true, SeqCst));
    for n in 0..200 {
        w.api.put(pod(&format!("h{n}"), &format!("uh{n}"), &format!("h{}", n % 4)));
    }
    w.settle().await;
    let begin = tokio::time::Instant::now();
    for n in 0..100 {
        w.api.put(pod(&format!("g{n}"), &format!("ug{n}"), "good"));
    }
    w.until("the good node's pods run", |api| {
        (0..100).all(|n| api.phase(&format!("g{n}")).as_deref() == Some("Running"))
    })
    .await;
    assert!(begin.elapsed() < Duration::from_secs(2), "took {:?}", begin.elapsed());
    hanging.iter().for_each(|p| p.hang.store(false, SeqCst));
    w.until("the others come back", |api| (0..200).all(|n| api.phase(&format!("h{n}")).as_deref() == Some("Running")))
        .await;
}

#[tokio::test(start_paused = true)]
async fn work_that_was_done_and_answered_too_late_is_not_done_twice() {
    let w = World::new();
    let config = MockConfig { stop_latency_ms: Some(60_000), ..Default::default() };
    let provider = Faulty::around(w.mock("n1", config));
    w.add("n1", provider.clone());
    provider.late.store(1, SeqCst);
    w.run("a", "u1", "n1").await;
    let first = w.api.pod("a").unwrap()["status"]["containerStatuses"].clone();
    // Until the call is given up and asked for again.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(provider.creates.load(SeqCst) > 0 && provider.late.load(SeqCst) == 0);
    let now = w.api.pod("a").unwrap()["status"].clone();
    assert_eq!((&now["phase"], &now["containerStatuses"]), (&json!("Running"), &first), "it is the same run");

    provider.late.store(1, SeqCst);
    w.api.edit("a", |p| p["spec"]["containers"][0]["image"] = json!("other"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(provider.late.load(SeqCst), 0, "an update");
    assert!(provider.given.lock().unwrap().len() > 2, "it is asked for again");

    // The signal; and when the API server has forgotten the pod, another one and the removal.
    provider.late.store(3, SeqCst);
    let begin = tokio::time::Instant::now();
    w.api.edit("a", |p| delete(p, 20));
    w.until("the pod is gone", |api| api.pod("a").is_none()).await;
    let took = begin.elapsed().as_secs();
    assert!((20..100).contains(&took), "a second signal does not lengthen its grace: {took} s");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(provider.late.load(SeqCst), 0);
    assert!(provider.inner().list_pods().await.unwrap().is_empty());
    let ends = w.api.writes().iter().filter(|write| *write == "delete a").count();
    assert_eq!(ends, 1, "{:?}", w.api.writes());
}

#[tokio::test(start_paused = true)]
async fn events_that_come_twice_late_or_out_of_order_change_nothing() {
    let w = World::new();
    let provider = Faulty::around(w.mock("n1", MockConfig::default()));
    w.add("n1", provider.clone());
    w.api.put(pod("a", "u1", "n1"));
    let young = w.api.pod("a").unwrap();
    w.until_phase("a", "Running").await;
    let running = w.api.pod("a").unwrap();
    w.api.edit("a", |p| p["metadata"]["labels"] = json!({"edited": "yes"}));
    w.settle().await;
    let (handed, writes) = (provider.given.lock().unwrap().len(), w.api.writes());
    for old in [&young, &running, &w.api.pod("a").unwrap(), &young] {
        w.api.say_again("MODIFIED", old);
        w.settle().await;
    }
    assert_eq!(provider.given.lock().unwrap().len(), handed, "what it was is not handed over again");
    assert_eq!(w.api.writes(), writes);

    w.api.edit("a", |p| delete(p, 0));
    w.until("the pod is gone", |api| api.pod("a").is_none()).await;
    w.settle().await;
    // A server that is behind still has it, as it was before it ever ran.
    w.api.say_again("ADDED", &young);
    w.settle().await;
    assert!(provider.inner().list_pods().await.unwrap().is_empty(), "who is gone is not served for long");
    assert_eq!(w.pods.counts("n1").total, 0);
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_node_is_left_alone_until_it_is_back() {
    let w = World::new();
    let provider = Faulty::around(w.mock("n1", MockConfig::default()));
    w.add("n1", provider.clone());
    w.settle().await;
    w.pods.set_reachable("n1", false);
    w.api.put(pod("a", "u1", "n1"));
    w.settle().await;
    assert_eq!((provider.creates.load(SeqCst), w.api.writes().len()), (0, 0));
    w.pods.set_reachable("n1", true);
    w.until_phase("a", "Running").await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_secret_holds_the_pod_back_until_it_is_there() {
    let w = World::new();
    w.add_mock("n1", MockConfig::default());
    let mut needy = pod("a", "u1", "n1");
    needy["spec"]["containers"][0]["env"] =
        json!([{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
    w.api.put(needy);
    w.until("it is said why", |api| {
        let waiting = &api.pod("a").unwrap()["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["reason"] == "CreateContainerConfigError"
    })
    .await;
    w.until("an event too", |api| api.event_reasons().contains(&"Failed".to_owned())).await;
    let secret = json!({"metadata": {"name": "s", "namespace": "default"}, "data": {"k": "dg=="}});
    w.api.add_object("/api/v1/namespaces/default/secrets/s", secret);
    w.until_phase("a", "Running").await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_same_name_is_another_pod() {
    let w = World::new();
    let provider = w.add_mock("n1", MockConfig::default());
    w.run("a", "u1", "n1").await;
    w.api.remove("a");
    w.run("a", "u2", "n1").await;
    w.settle().await;
    let uids: Vec<_> = provider.list_pods().await.unwrap().into_iter().map(|o| o.pod.uid).collect();
    assert_eq!(uids, [Arc::from("u2")]);
}

#[tokio::test(start_paused = true)]
async fn a_node_added_late_finds_the_pods_that_were_dropped() {
    let config = PodConfig { watch: PodWatch::Shared, ..PodConfig::default() };
    let w = World::configured(FakeApi::default(), config);
    w.api.put(pod("a", "u1", "late"));
    w.pods.wait_known("late").await;
    w.settle().await;
    w.add_mock("late", MockConfig::default());
    w.until_phase("a", "Running").await;
}

#[tokio::test(start_paused = true)]
async fn removing_a_node_clears_its_provider_and_honours_the_deadline() {
    let w = World::new();
    let provider = w.add_mock("n1", MockConfig::default());
    w.run("a", "u1", "n1").await;
    assert_eq!(w.pods.remove_node("n1", Duration::from_secs(5)).await, 0);
    assert!(provider.list_pods().await.unwrap().is_empty());
    assert!(w.api.pod("a").is_some(), "what the API server has is not touched");

    let hanging = Faulty::around(w.mock("n2", MockConfig::default()));
    w.add("n2", hanging.clone());
    w.settle().await;
    hanging.hang.store(true, SeqCst);
    let begin = tokio::time::Instant::now();
    w.pods.remove_node("n2", Duration::from_secs(5)).await;
    assert!(begin.elapsed() <= Duration::from_secs(6));
}

#[tokio::test(start_paused = true)]
async fn a_crashing_container_backs_off_and_a_job_succeeds() {
    let w = World::new();
    w.add_mock("n1", MockConfig { run_duration_ms: Some(1000), exit_code: Some(1), ..Default::default() });
    w.api.put(pod("crash", "u1", "n1"));
    let mut job = pod("job", "u2", "n1");
    job["spec"]["restartPolicy"] = json!("Never");
    job["metadata"]["annotations"] = json!({"mock.vnode.dev/exitCode": "0"});
    w.api.put(job);
    let mut bad = pod("bad", "u3", "n1");
    bad["metadata"]["annotations"] = json!({"mock.vnode.dev/exitCode": "many"});
    w.api.put(bad);
    w.until_phase("job", "Succeeded").await;
    w.until_phase("bad", "Failed").await;
    assert!(
        w.api.pod("bad").unwrap()["status"]["message"]
            .as_str()
            .unwrap()
            .contains("metadata.annotations[mock.vnode.dev/exitCode]")
    );
    w.until("the crash backs off", |api| {
        let c = &api.pod("crash").unwrap()["status"]["containerStatuses"][0];
        c["state"]["waiting"]["reason"] == "CrashLoopBackOff" && c["lastState"]["terminated"]["exitCode"] == 1
    })
    .await;
    w.until("it restarts", |api| {
        api.pod("crash").unwrap()["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(3)
    })
    .await;
    assert_eq!(w.api.phase("crash").as_deref(), Some("Running"));
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_does_not_notify_is_polled() {
    struct Silence;
    impl crate::provider::PodNotifier for Silence {
        fn changed(&self, _: PodObservation) {}
    }
    let w = World::new();
    let context = ProviderContext {
        node: "n1".into(),
        node_uid: "uid-of-n1".into(),
        notifier: Arc::new(Silence),
        credentials: None,
        epoch: 0,
    };
    let config = MockConfig { start_latency_ms: Some(12_000), stop_latency_ms: Some(3_000), ..Default::default() };
    let inner = w.registry.build(&ProviderSpec::mock(config), context).unwrap();
    w.add("n1", Arc::new(Faulty { inner: Some(inner), mute: true, ..Default::default() }));
    w.api.put(pod("a", "u1", "n1"));
    let begin = tokio::time::Instant::now();
    w.until_phase("a", "Running").await;
    assert!(begin.elapsed() < Duration::from_secs(20), "took {:?}", begin.elapsed());
    w.api.edit("a", |p| delete(p, 30));
    w.until("the pod is gone", |api| api.pod("a").is_none()).await;
    assert!(begin.elapsed() < Duration::from_secs(40), "took {:?}", begin.elapsed());
}
