use super::*;
use crate::provider::PodNotifier;
use crate::provider::registry::Registry;
use futures::StreamExt as _;
use serde_json::json;

#[derive(Default)]
struct Seen(Mutex<Vec<PodObservation>>);

impl PodNotifier for Seen {
    fn changed(&self, observation: PodObservation) {
        self.0.lock().unwrap().push(observation);
    }
}

fn provider(registry: &Registry, config: MockConfig) -> (Arc<dyn Provider>, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let context = ProviderContext {
        node: "n".into(),
        node_uid: "nu".into(),
        notifier: seen.clone(),
        credentials: None,
        epoch: 0,
    };
    (registry.build(&ProviderSpec::mock(config), context).unwrap(), seen)
}

fn pod(uid: &str, spec: serde_json::Value, annotations: serde_json::Value) -> ResolvedPod {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c", "image": "i"}]);
    }
    let pod = json!({
        "metadata": {"name": uid, "namespace": "d", "uid": uid, "annotations": annotations},
        "spec": spec,
    });
    ResolvedPod { pod: Arc::new(serde_json::from_value(pod).unwrap()), ..ResolvedPod::default() }
}

#[tokio::test(start_paused = true)]
async fn an_instant_pod_runs_before_create_returns() {
    let (provider, seen) = provider(&Registry::default(), MockConfig::default());
    provider.create_pod(&pod("u", json!({}), json!({}))).await.unwrap();
    let seen = seen.0.lock().unwrap();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].containers[0].ready);
    assert_eq!(seen[0].pod_ips.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_and_sidecars_stay() {
    let (provider, seen) = provider(&Registry::default(), MockConfig::default());
    let spec = json!({"initContainers": [
        {"name": "a", "image": "i"}, {"name": "s", "image": "i", "restartPolicy": "Always"}, {"name": "b", "image": "i"},
    ]});
    let pod = pod("u", spec, json!({"mock.vnode.dev/initDurationMs": "1000"}));
    provider.create_pod(&pod).await.unwrap();
    tokio::time::sleep(Duration::from_millis(3500)).await;
    let all = seen.0.lock().unwrap().clone();
    let word = |c: &k8s_openapi::api::core::v1::ContainerStatus| {
        let state = c.state.as_ref().unwrap();
        if state.running.is_some() {
            'r'
        } else if state.terminated.is_some() {
            't'
        } else {
            'w'
        }
    };
    let story: Vec<String> =
        all.iter().map(|o| o.init_containers.iter().chain(&o.containers).map(word).collect()).collect();
    assert_eq!(story, ["rwww", "trrw", "trtr"]);
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_life() {
    let mut lives = Vec::new();
    for _ in 0..2 {
        let config = MockConfig {
            start_latency_ms: Some(1000),
            jitter_percent: Some(50),
            create_failure_percent: Some(50),
            seed: Some(7),
            ..MockConfig::default()
        };
        let (provider, seen) = provider(&Registry::default(), config);
        let mut life = Vec::new();
        for n in 0..20 {
            let pod = pod(&format!("u{n}"), json!({}), json!({}));
            let begin = tokio::time::Instant::now();
            if provider.create_pod(&pod).await.is_err() {
                life.push(0);
                continue;
            }
            while !seen.0.lock().unwrap().iter().any(|o| o.pod == pod.pod_ref() && o.containers[0].ready) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            life.push(begin.elapsed().as_millis() / 10);
        }
        assert!(life.contains(&0) && life.iter().any(|l| *l > 0), "{life:?}");
        lives.push(life);
    }
    assert_eq!(lives[0], lives[1]);
}

#[tokio::test(start_paused = true)]
async fn a_new_configuration_keeps_the_pods() {
    let registry = Registry::default();
    let (old, _) = provider(&registry, MockConfig::default());
    old.create_pod(&pod("u", json!({}), json!({}))).await.unwrap();
    let (new, _) = provider(&registry, MockConfig { seed: Some(3), ..MockConfig::default() });
    drop(old);
    assert_eq!(new.list_pods().await.unwrap().len(), 1);
    let (unreachable, _) = provider(&registry, MockConfig { fault: "unreachable".into(), ..MockConfig::default() });
    assert!(matches!(unreachable.ping().await, Err(ProviderError::Unavailable { .. })));
    let (hanging, _) = provider(&registry, MockConfig { fault: "hang".into(), ..MockConfig::default() });
    assert!(tokio::time::timeout(Duration::from_secs(60), hanging.ping()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn following_a_log_waits_for_its_lines_and_ends_with_the_container() {
    let config = MockConfig { log_lines_per_minute: Some(60), run_duration_ms: Some(10_000), ..MockConfig::default() };
    let (provider, _) = provider(&Registry::default(), config);
    let pod = pod("u", json!({"restartPolicy": "Never"}), json!({"mock.vnode.dev/logText": "hello"}));
    provider.create_pod(&pod).await.unwrap();
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let stream = provider.logs(&pod.pod_ref(), "c", &options).await.unwrap();
    let begin = tokio::time::Instant::now();
    let lines: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert_eq!(begin.elapsed().as_secs(), 10);
    assert_eq!((lines.len(), &*lines[5].text), (11, b"hello\n".as_slice()));
}

#[tokio::test(start_paused = true)]
async fn a_port_answers_with_a_page() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (provider, _) = provider(&Registry::default(), MockConfig::default());
    let pod = pod("u", json!({}), json!({}));
    provider.create_pod(&pod).await.unwrap();
    let mut port = provider.port_forward(&pod.pod_ref(), 8080).await.unwrap();
    port.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut text = String::new();
    port.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("d/u, port 8080"), "{text}");
}

#[tokio::test]
async fn creating_pods_is_cheap() {
    let (provider, _) = provider(&Registry::default(), MockConfig::default());
    let pods: Vec<_> = (0..5_000).map(|n| pod(&format!("u{n}"), json!({}), json!({}))).collect();
    let begin = std::time::Instant::now();
    for pod in &pods {
        provider.create_pod(pod).await.unwrap();
    }
    let rate = 5_000.0 / begin.elapsed().as_secs_f64();
    println!("{rate:.0} creations a second");
    // Far below what it is, so that a busy machine does not fail it.
    assert!(rate > 2_000.0, "{rate:.0} creations a second");
    let ips: std::collections::HashSet<_> =
        provider.list_pods().await.unwrap().into_iter().flat_map(|o| o.pod_ips).collect();
    assert_eq!(ips.len(), 5_000, "addresses are unique");
}
