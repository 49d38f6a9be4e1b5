//! Services that do everything wrong: what is concluded from it, and what is said to those who can put it right.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vnode::api::{WebConfig, WebInterface, WebPoll};
use vnode::provider::{Provider, ProviderError};

use crate::example::{NODE_UID, Told, config, eventually, pod, provider};
use crate::fake::{Authority, Fake, Reply, Request, json as answer, status};

const UID: &str = "0c0f0000-0000-4000-8000-000000000001";

/// A pod as a service with interface V1 has it.
fn at_service(name: &str, uid: &str, node: &str, mark: Option<&str>, phase: &str) -> Value {
    json!({
        "metadata": {"namespace": "ns", "name": name, "uid": uid,
            "annotations": mark.map(|m| json!({"vnode.dev/node-uid": m}))},
        "spec": {"nodeName": node, "restartPolicy": "Never", "containers": [{"name": "main"}]},
        "status": {"phase": phase},
    })
}

fn v1(service: &Fake) -> (Arc<dyn Provider>, Arc<Told>) {
    let poll = Some(WebPoll { min_ms: Some(100), max_ms: Some(200) });
    let interface = Some(WebInterface::V1);
    let (made, told) =
        provider(WebConfig { poll, interface, timeout_seconds: Some(2), ..config(&service.url) }, None, 1);
    (made.unwrap(), told)
}

/// A service with interface V1 that has these pods.
fn having(pods: Arc<Mutex<Vec<Value>>>) -> impl Fn(&Request) -> Reply + Send + Sync {
    move |request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/getPods") => answer(json!(*pods.lock().unwrap())),
        ("GET", "/getPod") => match pods.lock().unwrap().first() {
            Some(pod) => answer(pod),
            None => status(404),
        },
        ("POST", _) | ("PUT", _) | ("DELETE", _) => status(200),
        _ => status(404),
    }
}

fn unavailable(error: &ProviderError) -> bool {
    matches!(error, ProviderError::Unavailable { .. })
}

#[tokio::test]
async fn answers_that_make_no_sense_fail_no_pod_and_are_told_in_words() {
    type Make = fn() -> Reply;
    let cases: [(&str, Make, &str); 8] = [
        (
            "an HTML page",
            || Reply::Whole(200, "text/html", "<html>hello".into()),
            "HTML page in place of JSON; is spec.provider.web.url right?",
        ),
        ("half a JSON", || answer("[{\"metadata\": {\"na"), "breaks off in the middle of its JSON"),
        ("half a body", || Reply::Half(1000, "[{".into()), "GET /getPods: "),
        (
            "an error inside",
            || answer(json!({"error": "database is down"})),
            "200 with an error in it: database is down",
        ),
        ("10 GB", || Reply::Endless, "longer than 64 MiB"),
        ("never", || Reply::Never, "no answer within 2 s"),
        ("a redirect", || status(302), "redirects are not followed"),
        ("something else", || answer("{\"a\": 1}"), "must be a list of pods"),
    ];
    for (what, reply, want) in cases {
        let service = Fake::start(move |r| if r.path == "/getPods" { reply() } else { status(404) }).await;
        let (made, _) = v1(&service);
        let begun = Instant::now();
        let error = made.list_pods().await.unwrap_err();
        let said = error.to_string();
        assert!(unavailable(&error) && said.contains(want), "{what}: {said}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        assert!(made.ping().await.is_err(), "{what}: the node is not ready");
    }
}

#[tokio::test]
async fn only_a_definite_refusal_fails_a_pod() {
    for (code, refused) in [(400, true), (422, true), (500, false), (503, false), (401, false), (404, false)] {
        let service = Fake::start(move |r| if r.path == "/createPod" { status(code) } else { status(404) }).await;
        let error = v1(&service).0.create_pod(&pod("a", 1, "true")).await.unwrap_err();
        assert_eq!(error.is_final(), refused, "{code}: {error}");
        assert!(code != 401 || error.to_string().contains("token, tls.crt"), "{error}");
    }
    let service = Fake::start(|r| match r.path.as_str() {
        "/createPod" => answer(json!({"status": "Failure", "message": "no space"})),
        _ => status(404),
    });
    let error = v1(&service.await).0.create_pod(&pod("a", 1, "true")).await.unwrap_err();
    assert!(unavailable(&error) && error.to_string().contains("200 with an error in it: no space"), "{error}");
}

#[tokio::test]
async fn a_pod_is_gone_only_when_the_service_says_so_itself() {
    let pods = Arc::new(Mutex::new(vec![at_service("a", UID, "conformance", Some(NODE_UID), "Running")]));
    let proxy = Arc::new(AtomicBool::new(false));
    let (handler, in_between) = (having(pods.clone()), proxy.clone());
    let service = Fake::start(move |r| match in_between.load(Ordering::Relaxed) {
        true => Reply::Whole(404, "text/html", "<html>default backend".into()),
        false => handler(r),
    })
    .await;
    let (made, told) = v1(&service);
    assert_eq!(made.list_pods().await.unwrap().len(), 1);
    let reference = pod("a", 1, "").pod_ref();
    proxy.store(true, Ordering::Relaxed);
    let error = made.get_pod(&reference).await.unwrap_err();
    assert!(unavailable(&error), "a page of something in between is no answer: {error}");
    assert!(unavailable(&made.list_pods().await.unwrap_err()));
    assert!(told.missing.lock().unwrap().is_empty());
    proxy.store(false, Ordering::Relaxed);
    pods.lock().unwrap()[0]["metadata"]["uid"] = json!("another");
    eventually("what the service forgot is told", async || told.missing.lock().unwrap().first().cloned()).await;
    assert!(made.get_pod(&reference).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn pods_of_other_nodes_and_pods_of_nobody_are_left_alone() {
    let pods = Arc::new(Mutex::new(vec![
        at_service("a", UID, "conformance", None, "Running"),
        at_service("b", "2", "another", None, "Running"),
        at_service("c", "3", "conformance", Some("another"), "Running"),
    ]));
    let service = Fake::start(having(pods)).await;
    let (made, told) = v1(&service);
    let listed = made.list_pods().await.unwrap();
    assert_eq!(listed.iter().map(|o| &*o.pod.name).collect::<Vec<_>>(), ["a"]);
    made.remove_pod(&listed[0].pod).await.unwrap();
    assert_eq!(service.count("DELETE", "/deletePod"), 0, "what was not given from here is not deleted");
    let event = told.events.lock().unwrap().remove(0);
    assert_eq!(event.reason, "UnknownPodAtProvider");
    assert!(event.message.contains("left alone") && event.message.contains("ns/a"), "{}", event.message);
    assert!(made.list_pods().await.unwrap().is_empty(), "and it is nobody's business any more");

    // One that was taken over is another matter: an update puts the mark on it.
    made.update_pod(&pod("a", 1, "true")).await.unwrap();
    let sent = service.asked.lock().unwrap().iter().rfind(|r| r.path == "/updatePod").unwrap().body.clone();
    let sent: Value = serde_json::from_str(&sent).unwrap();
    assert_eq!(sent["metadata"]["annotations"]["vnode.dev/node-uid"], NODE_UID);
    made.remove_pod(&listed[0].pod).await.unwrap();
    assert_eq!(service.count("DELETE", "/deletePod"), 1);
}

#[tokio::test]
async fn a_pod_that_has_succeeded_does_not_run_again() {
    let pods = Arc::new(Mutex::new(Vec::new()));
    let service = Fake::start(having(pods.clone())).await;
    let (made, told) = v1(&service);
    made.create_pod(&pod("a", 1, "true")).await.unwrap();
    pods.lock().unwrap().push(at_service("a", UID, "conformance", Some(NODE_UID), "Succeeded"));
    let listed = made.list_pods().await.unwrap();
    assert!(listed[0].is_terminated());
    pods.lock().unwrap()[0]["status"]["phase"] = json!("Running");
    assert_eq!(made.list_pods().await.unwrap(), listed);
    assert!(made.get_pod(&listed[0].pod).await.unwrap().is_terminated());
    let events = told.events.lock().unwrap();
    assert_eq!(events.iter().map(|e| e.reason).collect::<Vec<_>>(), ["PodCameBack"], "told once");
}

#[tokio::test]
async fn a_list_that_cannot_be_read_in_full_is_no_list() {
    let nameless = at_service("a", "", "conformance", None, "Running");
    let broken = json!({"metadata": {"namespace": "ns", "name": "b", "uid": "2"}, "spec": {"containers": "none"}});
    let pods = Arc::new(Mutex::new(vec![nameless]));
    let service = Fake::start(having(pods.clone())).await;
    let (made, _) = v1(&service);
    let error = made.list_pods().await.unwrap_err();
    assert!(unavailable(&error) && error.to_string().contains("pod ns/a has no metadata.uid"), "{error}");
    *pods.lock().unwrap() = vec![broken];
    assert_eq!(made.list_pods().await.unwrap().len(), 1, "it is there, though nothing else is known of it");
}

#[tokio::test]
async fn a_service_that_is_not_well_has_not_said_which_interface_it_has() {
    let well = Arc::new(AtomicBool::new(false));
    let is_well = well.clone();
    let about = json!({"interface": "vnode.dev/provider", "versions": ["v2"], "abilities": {"exec": true}});
    let service = Fake::start(move |r| match (is_well.load(Ordering::Relaxed), r.path.as_str()) {
        (false, _) => status(503),
        (true, "/v2/capabilities") => answer(about.clone()),
        _ => answer("[]"),
    })
    .await;
    let (made, _) = provider(config(&service.url), None, 1);
    let made = made.unwrap();
    assert!(unavailable(&made.ping().await.unwrap_err()));
    assert_eq!(service.count("GET", "/getPods"), 0, "it was not taken for one of V1");
    well.store(true, Ordering::Relaxed);
    made.ping().await.unwrap();
    assert!(made.capabilities().exec);

    let old = Fake::start(|r| if r.path == "/getPods" { answer("null") } else { status(404) }).await;
    let strict = WebConfig { interface: Some(WebInterface::V2), ..config(&old.url) };
    let error = provider(strict, None, 1).0.unwrap().ping().await.unwrap_err();
    assert!(error.to_string().contains("interface V2"), "{error}");
    let (made, _) = provider(config(&old.url), None, 1);
    made.unwrap().ping().await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_expires_while_connected_is_noticed_and_its_successor_taken() {
    let authority = Authority::new();
    let serving = Arc::new(Mutex::new(authority.server(Duration::from_secs(4))));
    let service =
        Fake::start_tls(serving.clone(), |r| if r.path == "/getPods" { answer("[]") } else { status(404) }).await;
    let interface = Some(WebInterface::V1);
    let web = WebConfig { interface, ..config(&service.url) };
    let (made, _) = provider(web.clone(), Some(authority.secret()), 1);
    let made = made.unwrap();
    made.ping().await.unwrap();
    let said = eventually("it expires", async || made.ping().await.err()).await.to_string();
    assert!(said.contains("expired") && said.contains("renew it"), "{said}");
    *serving.lock().unwrap() = authority.server(Duration::from_secs(3600));
    eventually("the new one is taken", async || made.ping().await.ok()).await;

    let (made, _) = provider(web.clone(), Some(Authority::new().secret()), 1);
    let said = made.unwrap().ping().await.unwrap_err().to_string();
    assert!(said.contains("ca.crt of the credentials Secret"), "{said}");
    let plain = Fake::start(|_| answer("[]")).await;
    let web = WebConfig { url: plain.url.replace("http://127.0.0.1", "https://localhost"), ..web };
    let said = provider(web, Some(authority.secret()), 1).0.unwrap().ping().await.unwrap_err().to_string();
    assert!(said.contains("is https:// right?"), "{said}");
}

#[tokio::test]
async fn nobody_listens_and_nobody_is_blamed_for_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    drop(listener);
    let (made, told) = provider(config(&url), None, 1);
    let made = made.unwrap();
    for error in [
        made.ping().await.unwrap_err(),
        made.list_pods().await.unwrap_err(),
        made.create_pod(&pod("a", 1, "true")).await.unwrap_err(),
        made.get_pod(&pod("a", 1, "true").pod_ref()).await.unwrap_err(),
    ] {
        assert!(unavailable(&error) && error.to_string().contains("refused"), "{error}");
    }
    assert!(told.missing.lock().unwrap().is_empty());
    let said = made.ping().await.unwrap_err().to_string();
    let authority = url.trim_start_matches("http://");
    assert!(
        said.contains(authority) && said.contains("is the service running") && !said.contains("client error"),
        "{said}"
    );
}
