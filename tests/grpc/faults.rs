//! What a service does wrong hurts nothing but itself, and is told in a sentence.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tonic::Status;
use vnode::provider::grpc::GrpcFactory;
use vnode::provider::{LogOptions, PodObservation, ProviderError};
use vnode_proto::v1;

use crate::world::{Node, Twisted, Way, pod, runs, until};

const ENDLESS: &str = "echo hello; sleep 3600";

fn sentence<T: std::fmt::Debug>(result: Result<T, ProviderError>) -> String {
    match result {
        Err(error @ ProviderError::Unavailable { .. }) => error.to_string(),
        other => panic!("nothing can be concluded from this: {other:?}"),
    }
}

#[tokio::test]
async fn a_call_that_is_never_answered_ends_at_its_deadline_and_hurts_no_other() {
    let service = Twisted::default();
    let node = Node::new("n", service.serve().await);
    let provider = node.build(&GrpcFactory::default());
    provider.ping().await.unwrap();
    service.0.hangs.lock().unwrap().insert("CreatePod");
    let begin = Instant::now();
    let (a, b) = (pod("a", ENDLESS, "Always"), pod("b", ENDLESS, "Always"));
    let (hung, pinged) = tokio::join!(provider.create_pod(&a), provider.ping());
    let text = sentence(hung);
    assert!(text.contains("CreatePod of pod ns/a") && text.contains("in time"), "{text}");
    assert!((2..4).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    pinged.unwrap();
    service.0.hangs.lock().unwrap().clear();
    provider.create_pod(&b).await.unwrap();
    provider.remove_pod(&b.pod_ref()).await.unwrap();
}

#[tokio::test]
async fn a_service_that_is_away_is_unavailable_and_everything_goes_on_when_it_is_back() {
    let service = Twisted::default();
    let way = Way::to(service.serve().await).await;
    let node = Node::new("n", way.address);
    let provider = node.build(&GrpcFactory::default());
    let a = pod("a", "trap 'exit 7' TERM; while true; do echo tick; sleep 0.1; done", "Never");
    provider.create_pod(&a).await.unwrap();
    let reference = a.pod_ref();
    until("it runs", async || node.ear.last(&reference).is_some_and(|o| runs(&o))).await;
    let follow = LogOptions { follow: true, ..LogOptions::default() };
    let mut log = provider.logs(&reference, "main", &follow).await.unwrap();
    assert!(log.next().await.unwrap().is_ok());

    way.cut();
    let broken = tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            match log.next().await {
                Some(Err(error)) => return Some(error),
                Some(Ok(_)) => {}
                None => return None,
            }
        }
    });
    let broken = broken.await.unwrap().expect("a log that breaks off does not end as if it were whole");
    assert!(matches!(broken, ProviderError::Unavailable { .. }), "{broken:?}");
    until("it is noticed", async || provider.ping().await.is_err()).await;
    sentence(provider.list_pods().await);
    sentence(provider.get_pod(&reference).await);

    way.mend();
    until("it is back", async || provider.ping().await.is_ok()).await;
    assert_eq!(provider.list_pods().await.unwrap().len(), 1, "the pod is still there");
    provider.stop_pod(&reference, Duration::from_secs(5)).await.unwrap();
    until("changes come again", async || node.ear.last(&reference).is_some_and(|o| o.is_terminated())).await;
    let code = |o: PodObservation| o.containers[0].state.clone().unwrap().terminated.unwrap().exit_code;
    assert_eq!(node.ear.last(&reference).map(code), Some(7));
    provider.remove_pod(&reference).await.unwrap();
}

#[tokio::test]
async fn pods_that_a_service_has_lost_are_missed_as_soon_as_it_is_back() {
    let service = Twisted::default();
    let way = Way::to(service.serve().await).await;
    let node = Node::new("n", way.address);
    let provider = node.build(&GrpcFactory::default());
    let a = pod("a", ENDLESS, "Always");
    provider.create_pod(&a).await.unwrap();
    until("it runs", async || node.ear.last(&a.pod_ref()).is_some_and(|o| runs(&o))).await;
    assert!(node.ear.missing.lock().unwrap().is_empty());
    way.cut();
    // Started anew, it knows of nothing.
    way.lead_to(Twisted::default().serve().await);
    way.mend();
    until("it is missed", async || *node.ear.missing.lock().unwrap() == [a.pod_ref()]).await;
    let gone = provider.get_pod(&a.pod_ref()).await;
    assert!(matches!(gone, Err(ProviderError::NotFound(_))), "{gone:?}");
}

#[tokio::test]
async fn while_a_service_is_away_it_is_not_called_more_often_than_makes_sense() {
    let service = Twisted::default();
    let way = Way::to(service.serve().await).await;
    way.cut();
    let provider = Node::new("n", way.address).build(&GrpcFactory::default());
    let begin = Instant::now();
    let mut texts = Vec::new();
    while begin.elapsed() < Duration::from_secs(1) {
        texts.push(sentence(provider.get_pod(&pod("a", ENDLESS, "Always").pod_ref()).await));
    }
    assert!(texts.len() > 20, "calls fail at once meanwhile, but there were only {}", texts.len());
    let attempts = texts.iter().filter(|t| !t.contains("tried again in")).count();
    assert!(attempts <= 6, "{attempts} attempts within a second");
}

#[tokio::test]
async fn an_answer_about_another_pod_is_not_believed() {
    let service = Twisted::default();
    let node = Node::new("n", service.serve().await);
    let provider = node.build(&GrpcFactory::default());
    let a = pod("a", ENDLESS, "Always");
    provider.create_pod(&a).await.unwrap();
    service.0.say(|mut status| {
        if let Some(pod) = &mut status.pod {
            pod.uid = "wrong".into();
        }
        status
    });
    let text = sentence(provider.get_pod(&a.pod_ref()).await);
    assert!(text.contains("\"wrong\"") && text.contains("\"uid-a\""), "{text}");
    provider.remove_pod(&a.pod_ref()).await.unwrap();
}

#[tokio::test]
async fn pods_of_another_node_are_left_out_of_the_list_and_change_nothing() {
    let service = Twisted::default();
    let node = Node::new("n", service.serve().await);
    let provider = node.build(&GrpcFactory::default());
    let (a, b) = (pod("a", ENDLESS, "Always"), pod("b", ENDLESS, "Always"));
    service.0.say(|mut status| {
        if status.pod.as_ref().is_some_and(|p| p.name == "b") {
            status.node_uid = "uid-of-another".into();
        }
        status
    });
    provider.create_pod(&a).await.unwrap();
    provider.create_pod(&b).await.unwrap();
    until("a runs", async || node.ear.last(&a.pod_ref()).is_some_and(|o| runs(&o))).await;
    let listed = provider.list_pods().await.unwrap();
    assert_eq!(listed.iter().map(|o| &*o.pod.name).collect::<Vec<_>>(), ["a"]);
    assert!(node.ear.last(&b.pod_ref()).is_none());
    let text = sentence(provider.get_pod(&b.pod_ref()).await);
    assert!(text.contains("another node"), "{text}");
    for pod in [a, b] {
        provider.remove_pod(&pod.pod_ref()).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_no_status_fails_the_question_and_is_told_at_the_pod() {
    let service = Twisted::default();
    let node = Node::new("n", service.serve().await);
    let provider = node.build(&GrpcFactory::default());
    let a = pod("a", ENDLESS, "Always");
    service.0.say(|status| v1::PodStatus { json: r#"{"kind": "Table", "rows": []}"#.into(), ..status });
    provider.create_pod(&a).await.unwrap();
    for text in [sentence(provider.get_pod(&a.pod_ref()).await), sentence(provider.list_pods().await)] {
        assert!(text.contains("ns/a") && text.contains("PodStatus") && text.contains("kind, rows"), "{text}");
    }
    until("it is told", async || node.ear.told("BadPodStatus").is_some()).await;
    assert!(node.ear.last(&a.pod_ref()).is_none());
    service.0.say(|status| status);
    assert!(provider.get_pod(&a.pod_ref()).await.is_ok());
    provider.remove_pod(&a.pod_ref()).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_has_ended_for_good_does_not_run_again() {
    let service = Twisted::default();
    let node = Node::new("n", service.serve().await);
    let provider = node.build(&GrpcFactory::default());
    let a = pod("a", "true", "Never");
    provider.create_pod(&a).await.unwrap();
    until("it ends", async || node.ear.last(&a.pod_ref()).is_some_and(|o| o.is_terminated())).await;
    let again = r#"{"containerStatuses": [{"name": "main", "state": {"running": {}}}]}"#;
    service.0.say(move |status| v1::PodStatus { json: again.into(), ..status });
    assert!(provider.get_pod(&a.pod_ref()).await.unwrap().is_terminated());
    assert!(provider.list_pods().await.unwrap()[0].is_terminated());
    let told = node.ear.told("PodCameBack").expect("an event");
    assert!(told.contains("has ended"), "{told}");
    provider.remove_pod(&a.pod_ref()).await.unwrap();
}

#[tokio::test]
async fn a_message_above_the_limit_is_not_read() {
    let service = Twisted::default();
    let node = Node::new("n", service.serve().await);
    let provider = node.build(&GrpcFactory::default());
    let a = pod("a", ENDLESS, "Always");
    provider.create_pod(&a).await.unwrap();
    let big = format!(r#"{{"message": "{}"}}"#, "x".repeat(5 << 20));
    service.0.say(move |status| v1::PodStatus { json: big.clone().into(), ..status });
    for text in [sentence(provider.get_pod(&a.pod_ref()).await), sentence(provider.list_pods().await)] {
        assert!(text.contains("too large") && text.len() < 500, "{text}");
    }
    provider.ping().await.unwrap();
    provider.remove_pod(&a.pod_ref()).await.unwrap();
}

#[tokio::test]
async fn a_service_of_another_version_is_unavailable_and_says_which() {
    let service = Twisted::default();
    service.0.version.store(9, Ordering::Relaxed);
    let provider = Node::new("n", service.serve().await).build(&GrpcFactory::default());
    let text = sentence(provider.create_pod(&pod("a", ENDLESS, "Always")).await);
    assert!(text.contains("version 9") && text.contains("upgrade") && text.contains("vnode-example-grpc"), "{text}");
    sentence(provider.ping().await);
}

#[tokio::test]
async fn only_a_definite_refusal_refuses_a_pod() {
    let service = Twisted::default();
    let provider = Node::new("n", service.serve().await).build(&GrpcFactory::default());
    let mut quota = Status::failed_precondition("no more today");
    quota.metadata_mut().insert("vnode-reason", "QuotaExceeded".parse().unwrap());
    let mut later = Status::unavailable("busy");
    later.metadata_mut().insert("grpc-retry-pushback-ms", "700".parse().unwrap());
    let create = async |status: Status| {
        service.0.refuses.lock().unwrap().insert("CreatePod", status);
        provider.create_pod(&pod("a", ENDLESS, "Always")).await.unwrap_err()
    };
    let refused = create(quota).await;
    assert_eq!((refused.is_final(), refused.reason()), (true, "QuotaExceeded"));
    let busy = create(later).await;
    assert!(
        matches!(&busy, ProviderError::Unavailable { retry_after: Some(after), .. } if after.as_millis() == 700),
        "{busy:?}"
    );
    for status in [Status::unimplemented("x"), Status::internal("x"), Status::permission_denied("x")] {
        let error = create(status).await;
        assert!(!error.is_final(), "{error:?}");
    }
    service.0.refuses.lock().unwrap().clear();
    // The example's own refusal names the field.
    let mut bare = pod("a", ENDLESS, "Always");
    bare.containers.clear();
    let invalid = provider.create_pod(&bare).await.unwrap_err();
    assert!(
        matches!(&invalid, ProviderError::Invalid { field, .. } if field == "spec.containers[0].command"),
        "{invalid:?}"
    );
    // That a service knows no node does not mean that its pods are gone.
    service.0.refuses.lock().unwrap().insert("ListPods", Status::not_found("what node?"));
    sentence(provider.list_pods().await);
}

#[tokio::test]
async fn another_server_at_the_endpoint_is_told_apart() {
    // One that speaks HTTP/1 and answers pages.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::AsyncWriteExt as _;
            let page = "HTTP/1.1 400 Bad Request\r\nContent-Length: 6\r\n\r\n<html>";
            let _ = stream.write_all(page.as_bytes()).await;
        }
    });
    let text = sentence(Node::new("n", address).build(&GrpcFactory::default()).ping().await);
    assert!(text.len() < 400, "{text}");

    // One that speaks gRPC, but of something else.
    let (_, health) = tonic_health::server::health_reporter();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = tonic::transport::Server::builder().add_service(health);
    tokio::spawn(router.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
    let text = sentence(Node::new("n", address).build(&GrpcFactory::default()).ping().await);
    assert!(text.contains("vnode.provider.v1.ProviderService"), "{text}");
}
