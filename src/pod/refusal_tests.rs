//! Scenarios: pods that a node does not take, or not as they are, and pods that wait through an outage.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;

use super::NodeFacts;
use super::test_world::{Faulty, World, delete, pod};
use crate::api::MockConfig;
use crate::provider::{Capabilities, PodFeature, PodFeatures};

fn small() -> NodeFacts {
    let amounts = [("pods", "3"), ("cpu", "1")];
    NodeFacts {
        provider: "acme".into(),
        allocatable: amounts.map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into(),
        ..NodeFacts::default()
    }
}

#[tokio::test(start_paused = true)]
async fn pods_beyond_what_the_node_has_are_rejected_and_room_comes_back() {
    let w = World::new();
    let provider = w.mock("n1", MockConfig::default());
    w.add_with("n1", provider, small());
    let sized = |name: &str, cpu: &str| {
        let mut p = pod(name, &format!("u-{name}"), "n1");
        p["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu}});
        p
    };
    w.api.put(sized("a", "600m"));
    w.until_phase("a", "Running").await;
    w.api.put(sized("b", "500m"));
    w.until_phase("b", "Failed").await;
    let status = w.api.pod("b").unwrap()["status"].clone();
    assert_eq!(status["reason"], "OutOfcpu");
    let words = "Node didn't have enough resource: cpu, requested: 500, used: 600, capacity: 1000";
    assert_eq!(status["message"], format!("Pod was rejected: {words}"));
    w.until("its event", |api| api.events().contains(&("OutOfcpu".into(), words.into()))).await;
    // All at once: only as many as there is room for.
    for n in 0..10 {
        w.api.put(pod(&format!("p{n}"), &format!("up{n}"), "n1"));
    }
    let phases = |api: &super::fake_api::FakeApi, phase: &str| {
        (0..10).filter(|n| api.phase(&format!("p{n}")).as_deref() == Some(phase)).count()
    };
    w.until("eight are rejected", |api| (phases(api, "Running"), phases(api, "Failed")) == (2, 8)).await;
    w.api.edit("a", |p| delete(p, 0));
    w.until("it is gone", |api| api.pod("a").is_none()).await;
    w.api.put(sized("c", "1"));
    w.until_phase("c", "Running").await;
}

#[tokio::test(start_paused = true)]
async fn pods_of_daemon_sets_are_left_alone_where_the_node_says_so() {
    let w = World::new();
    let provider = Faulty::around(w.mock("n1", MockConfig::default()));
    w.add_with("n1", provider.clone(), NodeFacts { daemon_set_pods: false, ..small() });
    let mut p = pod("a", "u1", "n1");
    p["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "proxy", "uid": "d", "controller": true}]);
    w.api.put(p);
    let mut mirror = pod("m", "u2", "n1");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    w.api.put(mirror);
    w.until("it is said why", |api| api.pod("a").unwrap()["status"]["reason"] == "DaemonSetPodsIgnored").await;
    w.settle().await;
    let status = w.api.pod("a").unwrap()["status"].clone();
    assert_eq!(status["phase"], "Pending");
    let ready = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap().clone();
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("DaemonSetPodsIgnored")));
    assert!(ready["message"].as_str().unwrap().contains("spec.daemonSetPods: Run"));
    assert_eq!((provider.creates.load(SeqCst), w.api.writes().len()), (0, 1), "one write, and none for the mirror");
    w.pods.set_facts("n1", NodeFacts { daemon_set_pods: true, ..small() }.into());
    w.until_phase("a", "Running").await;
    assert_eq!(w.api.pod("a").unwrap()["status"].get("reason"), None);
    w.api.edit("m", |p| delete(p, 30));
    w.until("a mirror goes when it is deleted", |api| api.pod("m").is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_provider_cannot_do_is_told_or_refused() {
    let w = World::new();
    let none =
        Capabilities { notifies: true, pod: PodFeatures::of(&[PodFeature::RestartPolicy]), ..Default::default() };
    w.add_with("n1", Faulty::able(w.mock("n1", MockConfig::default()), none), small());
    let probed = |name: &str, node: &str| {
        let mut p = pod(name, &format!("u-{name}"), node);
        p["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": 1}});
        p
    };
    w.api.put(probed("a", "n1"));
    w.until_phase("a", "Running").await;
    let field = "provider acme does not support spec.containers[0].livenessProbe (livenessProbes)";
    let told = |words: String| {
        move |api: &super::fake_api::FakeApi| api.events().contains(&("UnsupportedField".into(), words.clone()))
    };
    w.until("it is told", told(format!("{field}; they have no effect"))).await;
    let mut p = pod("claim", "u-claim", "n1");
    p["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]);
    w.api.put(p);
    w.until_phase("claim", "Failed").await;
    let status = w.api.pod("claim").unwrap()["status"].clone();
    assert_eq!(status["reason"], "UnsupportedField");
    assert!(status["message"].as_str().unwrap().contains("spec.volumes[0].persistentVolumeClaim"), "{status}");

    let strict = NodeFacts { reject_unsupported: true, ..small() };
    w.add_with("n2", Faulty::able(w.mock("n2", MockConfig::default()), none), strict);
    w.api.put(probed("b", "n2"));
    w.until_phase("b", "Failed").await;
    assert_eq!(w.api.pod("b").unwrap()["status"]["message"], format!("{field}; the pod is refused"));
}

#[tokio::test(start_paused = true)]
async fn a_resize_that_the_provider_cannot_do_is_shown_until_it_is_taken_back() {
    let w = World::new();
    let fixed =
        Capabilities { notifies: true, pod: PodFeatures::ALL.without(&[PodFeature::Resize]), ..Default::default() };
    w.add_with("n1", Faulty::able(w.mock("n1", MockConfig::default()), fixed), small());
    let mut p = pod("a", "u1", "n1");
    p["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}});
    w.api.put(p);
    w.until_phase("a", "Running").await;
    let cpu = |amount: &'static str| {
        move |p: &mut serde_json::Value| p["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!(amount)
    };
    let pending = |api: &super::fake_api::FakeApi| {
        let status = api.pod("a").unwrap()["status"].clone();
        let all = status["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == "PodResizePending")
    };
    w.api.edit("a", cpu("200m"));
    w.until("it is shown", |api| pending(api).is_some_and(|c| c["reason"] == "Infeasible")).await;
    w.api.edit("a", cpu("100m"));
    w.until("it is gone", |api| pending(api).is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_of_the_api_server_statuses_follow_within_seconds() {
    let w = World::new();
    w.add_mock("n1", MockConfig::default());
    w.settle().await;
    for n in 0..20 {
        w.api.put(pod(&format!("p{n}"), &format!("u{n}"), "n1"));
    }
    w.api.set_refusing_writes(true);
    // Long enough for the back-off to be at its longest.
    tokio::time::sleep(Duration::from_secs(3000)).await;
    assert!((0..20).all(|n| w.api.phase(&format!("p{n}")).as_deref() == Some("Pending")));
    w.api.set_refusing_writes(false);
    w.api.cut_watches(true);
    let begin = tokio::time::Instant::now();
    w.until("all run", |api| (0..20).all(|n| api.phase(&format!("p{n}")).as_deref() == Some("Running"))).await;
    assert!(begin.elapsed() < Duration::from_secs(15), "took {:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_of_a_provider_pods_are_tried_at_its_first_answer() {
    let w = World::new();
    let provider = Faulty::around(w.mock("n1", MockConfig::default()));
    w.add("n1", provider.clone());
    w.settle().await;
    provider.fail.store(usize::MAX, SeqCst);
    for n in 0..20 {
        w.api.put(pod(&format!("p{n}"), &format!("u{n}"), "n1"));
    }
    // It is not known to be unreachable, so that each pod has only its own back-off.
    tokio::time::sleep(Duration::from_secs(3000)).await;
    provider.fail.store(0, SeqCst);
    let begin = tokio::time::Instant::now();
    w.api.put(pod("news", "un", "n1"));
    w.until("all run", |api| (0..20).all(|n| api.phase(&format!("p{n}")).as_deref() == Some("Running"))).await;
    assert!(begin.elapsed() < Duration::from_secs(5), "took {:?}", begin.elapsed());
}
