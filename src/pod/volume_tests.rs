//! Scenarios: volumes and environments, as a provider receives them and as they change.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use serde_json::{Value, json};

use super::test_world::{Faulty, World, pod};
use crate::api::MockConfig;
use crate::provider::{Capabilities, PodFeatures, ResolvedPod, ResolvedVolume, VolumeFile, VolumeFiles};

const LIVE: Capabilities =
    Capabilities { notifies: true, volume_files: VolumeFiles::Live, ..Capabilities::serving_all(PodFeatures::ALL) };

fn live(w: &World) -> Arc<Faulty> {
    let provider = Faulty::able(w.mock("n1", MockConfig::default()), LIVE);
    w.add("n1", provider.clone());
    provider
}

fn config_map(w: &World, name: &str, data: Value) {
    let object = json!({"metadata": {"name": name, "namespace": "default"}, "data": data});
    w.api.add_object(&format!("/api/v1/namespaces/default/configmaps/{name}"), object);
}

fn secret(w: &World, name: &str, data: Value) {
    let object = json!({"metadata": {"name": name, "namespace": "default"}, "data": data});
    w.api.add_object(&format!("/api/v1/namespaces/default/secrets/{name}"), object);
}

fn files(pod: &ResolvedPod, volume: &str) -> Vec<VolumeFile> {
    match &pod.volumes[volume] {
        ResolvedVolume::Files(set) => set.files.clone(),
        other => panic!("{other:?} has no files"),
    }
}

fn listing(pod: &ResolvedPod, volume: &str) -> Vec<String> {
    let line = |f: VolumeFile| {
        let text = String::from_utf8_lossy(&f.content).into_owned();
        format!("{} {:o} {text}{}", f.path, f.mode, if f.secret { " (secret)" } else { "" })
    };
    files(pod, volume).into_iter().map(line).collect()
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_volume_reaches_the_provider_as_content() {
    let w = World::new();
    let provider = live(&w);
    config_map(&w, "c", json!({"a.conf": "A", "b.conf": "B"}));
    secret(&w, "s", json!({"key": "aGlkZGVu"}));
    let bundle = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----";
    w.api.add_object(
        "/apis/certificates.k8s.io/v1beta1/clustertrustbundles/t",
        json!({"spec": {"trustBundle": bundle}}),
    );
    let mut p = pod("a", "u1", "n1");
    p["metadata"]["labels"] = json!({"app": "x"});
    p["spec"]["securityContext"] = json!({"fsGroup": 7});
    p["spec"]["volumes"] = json!([
        {"name": "all", "configMap": {"name": "c", "defaultMode": 0o600}},
        {"name": "some", "configMap": {"name": "c", "items": [{"key": "a.conf", "path": "sub/a", "mode": 0o444}]}},
        {"name": "sec", "secret": {"secretName": "s"}},
        {"name": "maybe", "secret": {"secretName": "none", "optional": true}},
        {"name": "down", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "requests.cpu", "divisor": "1m"}},
        ]}},
        {"name": "proj", "projected": {"defaultMode": 0o440, "sources": [
            {"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 600}},
            {"configMap": {"name": "c", "items": [{"key": "b.conf", "path": "b"}]}},
            {"secret": {"name": "s"}},
            {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            {"clusterTrustBundle": {"name": "t", "path": "ca.pem"}},
        ]}},
        {"name": "dir", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "host", "hostPath": {"path": "/srv", "type": "Directory"}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "x"}},
    ]);
    p["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "250m"}});
    p["spec"]["containers"][0]["env"] = json!([{"name": "WHO", "value": "me"}]);
    p["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "dir", "mountPath": "/d", "subPathExpr": "logs/$(WHO)"},
        {"name": "all", "mountPath": "/c", "readOnly": true},
    ]);
    w.api.put(p);
    w.until_phase("a", "Running").await;
    let (given, _) = provider.last();
    assert_eq!(listing(&given, "all"), ["a.conf 600 A", "b.conf 600 B"]);
    assert_eq!(listing(&given, "some"), ["sub/a 444 A"]);
    assert_eq!(listing(&given, "sec"), ["key 644 hidden (secret)"]);
    assert!(listing(&given, "maybe").is_empty());
    assert_eq!(listing(&given, "down"), ["cpu 644 250", "labels 644 app=\"x\""]);
    let pem = format!("ca.pem 440 {bundle}\n");
    let want = ["b 440 B", &pem, "key 440 hidden (secret)", "ns 440 default", "token 600 token-1 (secret)"];
    assert_eq!(listing(&given, "proj"), want);
    assert_eq!(given.volumes["dir"], ResolvedVolume::EmptyDir { medium: "Memory".into(), size_limit: Some(1 << 20) });
    assert_eq!(given.volumes["host"], ResolvedVolume::HostPath { path: "/srv".into(), type_: "Directory".into() });
    assert_eq!(given.volumes["claim"], ResolvedVolume::Other { kind: "persistentVolumeClaim" });
    assert_eq!(given.fs_group(), Some(7));
    let mounts = &given.containers["c"].mounts;
    assert_eq!((mounts[0].sub_path.as_deref(), mounts[1].read_only), (Some("logs/me"), true));
    assert_eq!(w.api.tokens(), ["/api/v1/namespaces/default/serviceaccounts/default/token"]);
    let shown = format!("{given:?}");
    assert!(!shown.contains("hidden") && !shown.contains("token-1"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_volume_is_told_as_kubelet_does_and_the_pod_starts_when_it_appears() {
    let w = World::new();
    let provider = live(&w);
    let mut p = pod("a", "u1", "n1");
    p["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "c", "items": [{"key": "k", "path": "k"}]}}]);
    p["spec"]["initContainers"] = json!([{"name": "i", "image": "i"}]);
    w.api.put(p);
    let told = |text: &str| {
        let text = text.to_owned();
        move |api: &super::fake_api::FakeApi| api.events().contains(&("FailedMount".to_owned(), text.clone()))
    };
    w.until("it is told", told("MountVolume.SetUp failed for volume \"v\" : configmap \"c\" not found")).await;
    let status = w.api.pod("a").unwrap()["status"].clone();
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!(status["phase"], "Pending");
    config_map(&w, "c", json!({"other": "x"}));
    w.until(
        "the key is missed",
        told("MountVolume.SetUp failed for volume \"v\" : configmap references non-existent config key: k"),
    )
    .await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let begin = tokio::time::Instant::now();
    config_map(&w, "c", json!({"k": "x"}));
    w.until_phase("a", "Running").await;
    assert!(begin.elapsed() < Duration::from_secs(12), "took {:?}", begin.elapsed());
    assert_eq!(provider.creates.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_missing_variable_holds_up_its_container_with_kubelets_words() {
    let w = World::new();
    w.add_mock("n1", MockConfig::default());
    config_map(&w, "c", json!({"x": "1"}));
    let cases = [
        ("missing", json!({"configMapKeyRef": {"name": "none", "key": "k"}}), "configmap \"none\" not found"),
        ("key", json!({"configMapKeyRef": {"name": "c", "key": "k"}}), "couldn't find key k in ConfigMap default/c"),
        ("secret", json!({"secretKeyRef": {"name": "none", "key": "k"}}), "secret \"none\" not found"),
        (
            "file",
            json!({"fileKeyRef": {"volumeName": "v", "path": "p", "key": "k"}}),
            "fileKeyRef is not supported on virtual nodes",
        ),
    ];
    for (name, source, message) in cases {
        let mut p = pod(name, name, "n1");
        p["spec"]["containers"] = json!([
            {"name": "c", "image": "i", "env": [{"name": "V", "valueFrom": source}]}, {"name": "fine", "image": "i"},
        ]);
        w.api.put(p);
        w.until(message, |api| {
            let all = &api.pod(name).unwrap()["status"]["containerStatuses"];
            let waiting = &all[0]["state"]["waiting"];
            waiting["reason"] == "CreateContainerConfigError"
                && waiting["message"] == message
                && all[1]["state"]["waiting"]["reason"] == "ContainerCreating"
        })
        .await;
        w.until("its event", |api| api.events().contains(&("Failed".into(), format!("Error: {message}")))).await;
    }
    let count = |w: &World| w.api.events().len();
    let before = count(&w);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(count(&w), before, "the same trouble is not told at every try");
}

#[tokio::test(start_paused = true)]
async fn the_environment_is_made_in_kubelets_order() {
    let w = World::new();
    let service = json!({"metadata": {"name": "db", "namespace": "default"},
        "spec": {"clusterIP": "10.9.9.9", "ports": [{"port": 5432}]}});
    w.api.add_object("/api/v1/namespaces/default/services/db", service);
    config_map(&w, "c", json!({"A": "from-map", "DB_SERVICE_HOST": "mine", "bad=name": "x"}));
    secret(&w, "s", json!({"P": "cGFzcw=="}));
    let provider = live(&w);
    let mut p = pod("a", "u1", "n1");
    p["spec"]["containers"][0]["envFrom"] = json!([
        {"configMapRef": {"name": "c"}}, {"prefix": "S_", "secretRef": {"name": "s"}},
        {"secretRef": {"name": "none", "optional": true}},
    ]);
    p["spec"]["containers"][0]["env"] = json!([
        {"name": "A", "value": "own"},
        {"name": "URL", "value": "$(DB_SERVICE_HOST):$(DB_SERVICE_PORT)/$(A)/$(S_P)/$$(A)/$(NONE)"},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "GONE", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "none", "optional": true}}},
    ]);
    p["spec"]["containers"][0]["command"] = json!(["run", "--node=$(NODE)"]);
    p["spec"]["containers"][0]["args"] = json!(["$(S_P)"]);
    w.api.put(p);
    w.until_phase("a", "Running").await;
    let (given, _) = provider.last();
    let container = given.containers["c"].with_pod_ips(&["10.1.2.3".parse().unwrap()]);
    let value = |name: &str| container.env.iter().find(|v| v.name == name).map(|v| (v.value.clone(), v.secret));
    assert_eq!(value("URL"), Some(("mine:5432/own/pass/$(A)/$(NONE)".into(), true)));
    assert_eq!(value("DB_PORT_5432_TCP_ADDR"), Some(("10.9.9.9".into(), false)));
    assert_eq!(value("IP"), Some(("10.1.2.3".into(), false)));
    assert_eq!(value("GONE"), None);
    assert_eq!((container.command, container.args), (vec!["run".into(), "--node=n1".into()], vec!["pass".into()]));
    assert!(!format!("{given:?}").contains("pass"));
    let words = "Keys [bad=name] from the EnvFrom configMap default/c were skipped since they are considered invalid environment variable names.";
    w.until("the bad name is told", |api| {
        api.events().contains(&("InvalidEnvironmentVariableNames".into(), words.into()))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_change_reaches_running_pods_within_a_minute_and_nothing_else_is_called() {
    let w = World::new();
    let provider = live(&w);
    config_map(&w, "c", json!({"k": "1"}));
    config_map(&w, "quiet", json!({"k": "1"}));
    let mut p = pod("a", "u1", "n1");
    p["spec"]["volumes"] =
        json!([{"name": "v", "configMap": {"name": "c"}}, {"name": "q", "configMap": {"name": "quiet"}}]);
    w.api.put(p);
    w.until_phase("a", "Running").await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(provider.given.lock().unwrap().len(), 1, "nothing changed, so nothing is told");
    config_map(&w, "c", json!({"k": "2"}));
    let begin = tokio::time::Instant::now();
    w.until("it is told", |_| provider.given.lock().unwrap().len() == 2).await;
    assert!(begin.elapsed() < Duration::from_secs(60), "took {:?}", begin.elapsed());
    let (given, changed) = provider.last();
    assert_eq!((listing(&given, "v"), changed), (vec!["k 644 2".to_owned()], Some(vec!["v".to_owned()])));

    // A provider that does not answer is told again.
    provider.hang.store(true, SeqCst);
    config_map(&w, "c", json!({"k": "3"}));
    tokio::time::sleep(Duration::from_secs(120)).await;
    provider.hang.store(false, SeqCst);
    w.until("it is told at last", |_| listing(&provider.last().0, "v") == ["k 644 3"]).await;

    // What is taken away leaves the files as they are, and comes back.
    w.api.remove_object("/api/v1/namespaces/default/configmaps/c");
    w.until("that is told", |api| api.event_reasons().contains(&"FailedMount".to_owned())).await;
    assert_eq!(w.api.phase("a").as_deref(), Some("Running"));
    config_map(&w, "c", json!({"k": "4"}));
    w.until("it is there again", |_| listing(&provider.last().0, "v") == ["k 644 4"]).await;
}

#[tokio::test(start_paused = true)]
async fn labels_reach_files_at_once_and_tokens_are_renewed_before_they_expire() {
    let w = World::new();
    let provider = live(&w);
    w.api.set_token_seconds(600);
    let mut p = pod("a", "u1", "n1");
    p["metadata"]["labels"] = json!({"v": "1"});
    p["spec"]["volumes"] = json!([
        {"name": "d", "downwardAPI": {"items": [{"path": "v", "fieldRef": {"fieldPath": "metadata.labels['v']"}}]}},
        {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
    ]);
    w.api.put(p);
    w.until_phase("a", "Running").await;
    w.api.edit("a", |p| p["metadata"]["labels"]["v"] = json!("2"));
    w.until("the label is there", |_| provider.last().1 == Some(vec!["d".to_owned()])).await;
    assert_eq!(listing(&provider.last().0, "d"), ["v 644 2"]);
    assert_eq!(w.api.tokens().len(), 1, "the token is kept");
    let begin = tokio::time::Instant::now();
    w.until("the token is new", |_| provider.last().1 == Some(vec!["t".to_owned()])).await;
    let after = begin.elapsed().as_secs();
    assert!((460..=485).contains(&after), "after {after} s of 600");
    assert_eq!(listing(&provider.last().0, "t"), ["token 644 token-2 (secret)"]);
    w.api.remove("a");
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert_eq!(w.api.tokens().len(), 2, "a pod that is gone needs none");
}

#[tokio::test(start_paused = true)]
async fn a_provider_without_use_for_content_gets_none_and_costs_no_token() {
    let w = World::new();
    let provider = Faulty::around(w.mock("n1", MockConfig::default()));
    w.add("n1", provider.clone());
    config_map(&w, "c", json!({"k": "1"}));
    let mut p = pod("a", "u1", "n1");
    p["spec"]["volumes"] = json!([
        {"name": "v", "configMap": {"name": "c"}},
        {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
    ]);
    w.api.put(p);
    w.until_phase("a", "Running").await;
    assert!(files(&provider.last().0, "v").is_empty());
    config_map(&w, "c", json!({"k": "2"}));
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!((w.api.tokens().len(), provider.given.lock().unwrap().len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn pull_secrets_are_handed_over_and_a_missing_one_is_told() {
    let w = World::new();
    let provider = live(&w);
    // {"auths":{"quay.io":{"username":"me","password":"pw"}}}
    secret(
        &w,
        "r",
        json!({".dockerconfigjson": "eyJhdXRocyI6eyJxdWF5LmlvIjp7InVzZXJuYW1lIjoibWUiLCJwYXNzd29yZCI6InB3In19fQ=="}),
    );
    let mut p = pod("a", "u1", "n1");
    p["spec"]["imagePullSecrets"] = json!([{"name": "r"}, {"name": "none"}]);
    w.api.put(p);
    w.until_phase("a", "Running").await;
    let (given, _) = provider.last();
    assert_eq!(given.credentials_for("quay.io/a/b").first().map(|c| c.password.as_str()), Some("pw"));
    assert!(given.credentials_for("busybox").is_empty());
    w.until("the other is told", |api| api.event_reasons().contains(&"FailedToRetrieveImagePullSecret".to_owned()))
        .await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_provider_that_kept_its_pods_gets_all_files_once_more() {
    let w = World::new();
    let provider = live(&w);
    config_map(&w, "c", json!({"k": "1"}));
    let mut p = pod("a", "u1", "n1");
    p["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "c"}}, {"name": "d", "emptyDir": {}}]);
    w.api.put(p);
    w.until_phase("a", "Running").await;
    let api = w.api.clone();
    drop(w);
    tokio::time::sleep(Duration::from_secs(60)).await;
    api.cut_watches(false);

    let w = World::with(api);
    config_map(&w, "c", json!({"k": "changed while nobody looked"}));
    w.add("n1", provider.clone());
    w.until("the files are there", |_| provider.last().1 == Some(vec!["v".to_owned()])).await;
    assert_eq!(listing(&provider.last().0, "v"), ["k 644 changed while nobody looked"]);
    w.settle().await;
    let handed_over = provider.given.lock().unwrap().len();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(provider.given.lock().unwrap().len(), handed_over, "and followed from then on, without a word");
    assert_eq!(provider.creates.load(SeqCst), 1);
}

/// What a rollout costs: a thousand pods with an environment and a volume of their own each.
#[tokio::test(start_paused = true)]
async fn a_thousand_pods_with_a_config_map_each_read_each_once() {
    let w = World::new();
    let provider = live(&w);
    w.settle().await;
    for n in 0..1000 {
        config_map(&w, &format!("c{n}"), json!({"k": "v"}));
    }
    let before = w.api.reads();
    for n in 0..1000 {
        let mut p = pod(&format!("p{n}"), &format!("u{n}"), "n1");
        p["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": format!("c{n}")}}]);
        p["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": format!("c{n}")}}]);
        w.api.put(p);
    }
    w.until("all run", |api| (0..1000).all(|n| api.phase(&format!("p{n}")).as_deref() == Some("Running"))).await;
    assert_eq!(provider.creates.load(SeqCst), 1000);
    assert_eq!(w.api.reads() - before, 1000, "once for both");
    let before = w.api.reads();
    tokio::time::sleep(Duration::from_secs(100)).await;
    let looks = w.api.reads() - before;
    assert!((4000..6500).contains(&looks), "{looks} looks in 100 s: each every 20 s, never faster");
}
