//! `docs/provider-http.yaml` describes what is asked, all of it and nothing else.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use vnode::provider::{PodFeature, SessionIo};

use crate::example::{NODE_UID, config, eventually, pod, provider};
use crate::fake::{Fake, json as answer, status};

fn description() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/provider-http.yaml");
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn no_io() -> SessionIo {
    SessionIo { stdin: None, stdout: None, stderr: None, tty: false, resize: None }
}

#[tokio::test]
async fn every_request_is_described_and_every_description_is_of_a_request() {
    let abilities = json!({"logs": true, "exec": true, "attach": true, "portForward": true, "stats": true,
        "watch": true, "volumeFiles": "Live"});
    let about = json!({"interface": "vnode.dev/provider", "versions": ["v2"], "abilities": abilities});
    let service = Fake::start(move |r| match r.path.as_str() {
        "/v2/capabilities" => answer(about.clone()),
        path if r.method == "GET" && path.ends_with("/pods") => answer(json!({"pods": [], "cursor": "1"})),
        _ => status(500),
    })
    .await;
    let (made, _) = provider(config(&service.url), None, 1);
    let (made, pod) = (made.unwrap(), pod("a", 1, "true"));
    let of = pod.pod_ref();
    made.ping().await.unwrap();
    made.list_pods().await.unwrap();
    let _ = made.describe_node().await;
    let _ = made.create_pod(&pod).await;
    let _ = made.get_pod(&of).await;
    let _ = made.update_pod(&pod).await;
    let _ = made.update_volumes(&pod, &["a".into()]).await;
    let _ = made.stop_pod(&of, Duration::from_secs(1)).await;
    let _ = made.remove_pod(&of).await;
    let _ = made.logs(&of, "main", &Default::default()).await.is_ok();
    let _ = made.exec(&of, "main", &["true".into()], no_io()).await;
    let _ = made.attach(&of, "main", no_io()).await;
    let _ = made.port_forward(&of, 1).await.is_ok();
    let _ = made.stats().await;
    eventually("the change feed is asked for", async || {
        service.asked.lock().unwrap().iter().any(|r| r.path.ends_with("/events")).then_some(())
    })
    .await;

    let template = |path: &str| {
        let path = path.replace(NODE_UID, "{node}").replace(&format!("/{}", of.uid), "/{uid}");
        // Both uids begin alike, so the pod's may have been taken for the node's.
        path.replace("/pods/{node}", "/pods/{uid}").replace("/containers/main/", "/containers/{container}/")
    };
    let asked: BTreeSet<String> = {
        let asked = service.asked.lock().unwrap();
        asked.iter().map(|r| format!("{} {}", r.method, template(&r.path))).collect()
    };
    let paths = description()["paths"].as_object().unwrap().clone();
    let methods = |(path, item): (&String, &Value)| {
        let methods = item.as_object().unwrap().keys().filter(|k| *k != "parameters").cloned().collect::<Vec<_>>();
        methods.into_iter().map(|m| format!("{} {path}", m.to_uppercase())).collect::<Vec<_>>()
    };
    let described: BTreeSet<String> = paths.iter().flat_map(methods).collect();
    assert_eq!(asked, described);
    let marked =
        |r: &crate::fake::Request| r.headers.contains_key("vnode-epoch") && r.headers.contains_key("vnode-node");
    let asked = service.asked.lock().unwrap();
    assert!(asked.iter().filter(|r| r.path.starts_with("/v2/nodes/")).all(marked), "each request says whose it is");
    let created: Value = serde_json::from_str(&asked.iter().find(|r| r.method == "POST").unwrap().body).unwrap();
    let schema = &description()["components"]["schemas"]["GivenPod"];
    for key in schema["required"].as_array().unwrap() {
        assert!(created.get(key.as_str().unwrap()).is_some(), "{key}");
    }
    assert!(created.as_object().unwrap().keys().all(|k| schema["properties"].get(k).is_some()), "{created}");
}

#[test]
fn the_words_for_what_a_pod_may_ask_for_are_those_of_the_program() {
    let description = description();
    let words = description["components"]["schemas"]["PodFeature"]["enum"].as_array().unwrap();
    let words: Vec<&str> = words.iter().map(|w| w.as_str().unwrap()).collect();
    let known: Vec<&str> =
        PodFeature::ALL.iter().filter(|f| **f != PodFeature::PodIpInEnvironment).map(|f| f.word()).collect();
    assert_eq!(words, known);
}
