//! Nodes share a connection, and are kept apart on it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use vnode::provider::ProviderError;
use vnode::provider::grpc::GrpcFactory;

use crate::world::{Node, Twisted, Way, pod, runs, until};

const ENDLESS: &str = "sleep 3600";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_nodes_share_one_connection_and_one_watch() {
    let service = Twisted::default();
    let way = Way::to(service.serve().await).await;
    let factory = GrpcFactory::default();
    let nodes: Vec<_> = (0..1000).map(|n| Node::new(&format!("node-{n}"), way.address)).collect();
    let providers: Vec<_> = nodes.iter().map(|node| node.build(&factory)).collect();
    let asked = stream::iter(&providers).map(|p| async move {
        p.ping().await?;
        p.list_pods().await
    });
    let answers: Vec<_> = asked.buffer_unordered(256).collect().await;
    for answer in answers {
        assert!(answer.unwrap().is_empty());
    }
    let a = pod("a", ENDLESS, "Always");
    providers[700].create_pod(&a).await.unwrap();
    until("it runs", async || nodes[700].ear.last(&a.pod_ref()).is_some_and(|o| runs(&o))).await;
    assert_eq!(way.made.load(Ordering::Relaxed), 1, "connections");
    let calls = service.0.calls.lock().unwrap().clone();
    assert_eq!((calls["Watch"], calls["GetCapabilities"]), (1, 1000));
    let others = nodes.iter().filter(|n| n.name != "node-700");
    assert!(others.map(|n| n.ear.changes.lock().unwrap().len()).all(|n| n == 0), "no other node was told of it");
    let wrong = providers[701].get_pod(&a.pod_ref()).await;
    assert!(matches!(wrong, Err(ProviderError::NotFound(_))), "another node does not have it: {wrong:?}");
    providers[700].remove_pod(&a.pod_ref()).await.unwrap();
}

#[tokio::test]
async fn an_owner_that_was_replaced_can_do_nothing_more() {
    let service = Twisted::default();
    let address = service.serve().await;
    let (older, newer) = (Node { epoch: 4, ..Node::new("n", address) }, Node { epoch: 5, ..Node::new("n", address) });
    // Two replicas: each has connections of its own.
    let (first, second) = (older.build(&GrpcFactory::default()), newer.build(&GrpcFactory::default()));
    let a = pod("a", ENDLESS, "Always");
    first.create_pod(&a).await.unwrap();
    assert_eq!(second.list_pods().await.unwrap().len(), 1, "the pod passes to the newer owner");
    for refused in [first.remove_pod(&a.pod_ref()).await, first.stop_pod(&a.pod_ref(), Duration::ZERO).await] {
        let error = refused.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, ProviderError::Unavailable { .. }), "{error:?}");
        assert!(text.contains("epoch 4 is older than 5") && text.contains("another replica"), "{text}");
    }
    assert!(second.get_pod(&a.pod_ref()).await.is_ok(), "it is still there");
    second.remove_pod(&a.pod_ref()).await.unwrap();
}

#[tokio::test]
async fn a_provider_that_is_replaced_leaves_the_changes_to_its_successor() {
    let service = Twisted::default();
    let way = Way::to(service.serve().await).await;
    let factory = GrpcFactory::default();
    let (before, after) = (Node::new("n", way.address), Node::new("n", way.address));
    let first = before.build(&factory);
    first.ping().await.unwrap();
    let a = pod("a", "trap 'exit 0' TERM; while true; do sleep 0.1; done", "Always");
    first.create_pod(&a).await.unwrap();
    until("it runs", async || before.ear.last(&a.pod_ref()).is_some_and(|o| runs(&o))).await;
    let second = after.build(&factory);
    second.ping().await.unwrap();
    drop(first);
    until("the pods are told anew", async || after.ear.last(&a.pod_ref()).is_some()).await;
    second.stop_pod(&a.pod_ref(), Duration::from_secs(5)).await.unwrap();
    until("it ends", async || after.ear.last(&a.pod_ref()).is_some_and(|o| o.is_terminated())).await;
    assert_eq!(way.made.load(Ordering::Relaxed), 1, "on the same connection");
    second.remove_pod(&a.pod_ref()).await.unwrap();
}
