//! Interface V1, against the examples in Python and Node.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use vnode::api::{ProviderSpec, WebConfig, WebPoll};
use vnode::provider::conformance::{self, Options};
use vnode::provider::registry::Registry;
use vnode::provider::{LogOptions, PodObservation, PodRef, Provider, ProviderError, SessionIo};

use crate::checked;
use crate::example::{Example, PATIENCE, config, eventually, pod, provider};

fn running(o: &PodObservation) -> bool {
    !o.containers.is_empty() && o.containers.iter().all(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()))
}

async fn log(provider: &Arc<dyn Provider>, pod: &PodRef, tail: Option<u64>) -> String {
    let options = LogOptions { tail, ..LogOptions::default() };
    let lines = provider.logs(pod, "main", &options).await.unwrap().collect::<Vec<_>>().await;
    lines.into_iter().map(|l| String::from_utf8_lossy(&l.unwrap().text).into_owned()).collect()
}

/// All that a service with this interface has to do, by the provider that does not know which language it is in.
async fn does_what_the_interface_says(service: &Example) {
    let poll = Some(WebPoll { min_ms: Some(100), max_ms: Some(500) });
    let (made, told) = provider(WebConfig { poll, ..config(&service.url) }, None, 1);
    let made = made.unwrap();
    made.ping().await.unwrap();
    let can = made.capabilities();
    assert!(can.logs && can.notifies && !can.exec && !can.stats, "the interface was found out: {can:?}");
    assert!(made.list_pods().await.unwrap().is_empty());

    let unknown = pod("unknown", 9, "true").pod_ref();
    assert!(matches!(made.get_pod(&unknown).await, Err(ProviderError::NotFound(_))));
    assert!(matches!(made.stop_pod(&unknown, Duration::ZERO).await, Err(ProviderError::NotFound(_))));
    made.remove_pod(&unknown).await.unwrap();

    let web = pod("web", 1, "echo one; echo \"two $GREETING\"; sleep 1000");
    let reference = web.pod_ref();
    made.create_pod(&web).await.unwrap();
    made.create_pod(&web).await.unwrap();
    eventually("news of the pod come", async || {
        let told = told.changed.lock().unwrap();
        told.iter().any(|o| o.pod == reference && running(o)).then_some(())
    })
    .await;
    let seen = made.get_pod(&reference).await.unwrap();
    assert_eq!((seen.pod_ips.len(), seen.containers[0].name.as_str()), (1, "main"));
    assert_eq!(made.list_pods().await.unwrap().len(), 1);
    made.update_pod(&web).await.unwrap();
    assert_eq!(made.get_pod(&reference).await.unwrap().start_time, seen.start_time, "an update restarts nothing");

    // The same name, and another pod: the interface cannot have both.
    let twin = pod("web", 2, "sleep 1000");
    let waits = made.create_pod(&twin).await.unwrap_err();
    assert!(!waits.is_final() && waits.to_string().contains("waits for the old one"), "{waits}");
    assert!(matches!(made.get_pod(&twin.pod_ref()).await, Err(ProviderError::NotFound(_))));

    let text = eventually("the log is there", async || {
        let text = log(&made, &reference, None).await;
        text.contains("two").then_some(text)
    })
    .await;
    assert_eq!(text, "one\ntwo hello\n", "with the environment as values");
    assert_eq!(log(&made, &reference, Some(1)).await, "two hello\n");
    assert_eq!(log(&made, &reference, Some(0)).await, "");
    let missing = made.logs(&reference, "nobody", &LogOptions::default()).await;
    assert!(matches!(missing.err(), Some(ProviderError::NotFound(_))));
    for options in
        [LogOptions { follow: true, ..LogOptions::default() }, LogOptions { previous: true, ..LogOptions::default() }]
    {
        let refused = made.logs(&reference, "main", &options).await.err();
        assert!(matches!(refused, Some(ProviderError::Unsupported(_))), "{options:?}");
    }
    let io = SessionIo { stdin: None, stdout: None, stderr: None, tty: false, resize: None };
    assert!(matches!(made.exec(&reference, "main", &["true".into()], io).await, Err(ProviderError::Unsupported(_))));

    // Another operator finds the pod, and the pods that end by themselves.
    let (other, _) = provider(config(&service.url), None, 2);
    let other = other.unwrap();
    let found = other.list_pods().await.unwrap();
    assert_eq!((found.len(), &found[0].pod), (1, &reference));
    let failing = pod("failing", 3, "exit 3");
    made.create_pod(&failing).await.unwrap();
    let ended = eventually("it ends", async || {
        let seen = made.get_pod(&failing.pod_ref()).await.unwrap();
        seen.is_terminated().then_some(seen)
    })
    .await;
    assert_ne!(ended.containers[0].state.clone().unwrap().terminated.unwrap().exit_code, 0);
    other.remove_pod(&failing.pod_ref()).await.unwrap();
    assert!(other.get_pod(&failing.pod_ref()).await.unwrap_err().is_not_found());
    eventually("a pod that went away is told of", async || {
        told.missing.lock().unwrap().contains(&failing.pod_ref()).then_some(())
    })
    .await;

    made.stop_pod(&reference, Duration::from_secs(2)).await.unwrap();
    made.stop_pod(&reference, Duration::ZERO).await.unwrap();
    eventually("the end of the pod is told", async || {
        let told = told.changed.lock().unwrap();
        told.iter().any(|o| o.pod == reference && o.is_terminated()).then_some(())
    })
    .await;
    assert!(made.get_pod(&reference).await.unwrap().is_terminated(), "it has ended until it is removed");
    assert_eq!(made.list_pods().await.unwrap().len(), 1);
    made.remove_pod(&reference).await.unwrap();
    assert!(made.get_pod(&reference).await.unwrap_err().is_not_found());
    assert!(made.list_pods().await.unwrap().is_empty());
    made.create_pod(&twin).await.unwrap();
    made.remove_pod(&twin.pod_ref()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_in_python_works_unchanged() {
    let Some(service) = Example::start("python3", "web-v1-python/endpoint.py", &[]) else { return };
    does_what_the_interface_says(&service).await;
    let (made, _) = provider(config(&service.url), None, 1);
    let described = made.unwrap().describe_node().await.unwrap();
    assert_eq!(described.capacity["pods"].0, "20");
}

/// What the service in Python does with a pod; this interface has no way to ask it.
const FEATURES: [&str; 2] = ["multipleContainers", "serviceLinks"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_in_python_conforms_as_far_as_the_interface_goes() {
    let Some(service) = Example::start("python3", "web-v1-python/endpoint.py", &[]) else { return };
    let poll = Some(WebPoll { min_ms: Some(100), max_ms: Some(500) });
    let features = Some(FEATURES.map(str::to_owned).to_vec());
    let spec = ProviderSpec::web(WebConfig { poll, features, ..config(&service.url) });
    let make = |context| std::future::ready(Registry::default().build(&spec, context));
    let report = conformance::run(make, Options { patience: PATIENCE, ..Options::default() }).await;
    checked::record("web V1", &report);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_in_node_that_does_the_least_works_unchanged() {
    let Some(service) = Example::start("node", "web-v1-node/endpoint.mjs", &[]) else { return };
    does_what_the_interface_says(&service).await;
    let (made, _) = provider(config(&service.url), None, 1);
    let described = made.unwrap().describe_node().await.unwrap();
    assert!(described.capacity.is_empty() && described.conditions.is_empty(), "what is absent is left out");
}
