//! Which watches there are, and that nothing is missed when that changes.

use std::time::Duration;

use super::fake_api::FakeApi;
use super::test_world::{World, pod};
use super::{PodConfig, PodWatch};
use crate::api::MockConfig;

fn world(watch: PodWatch) -> World {
    World::configured(FakeApi::default(), PodConfig { watch, ..PodConfig::default() })
}

#[tokio::test(start_paused = true)]
async fn a_few_nodes_are_watched_by_themselves_and_no_other_nodes_pods_are_asked_for() {
    let w = world(PodWatch::Auto);
    w.api.put(pod("a", "u1", "n1"));
    w.api.put(pod("other", "u2", "elsewhere"));
    w.add_mock("n1", MockConfig::default());
    w.add_mock("n2", MockConfig::default());
    w.until_phase("a", "Running").await;
    w.run("b", "u3", "n2").await;
    assert_eq!(w.api.watched_nodes(), ["n1", "n2"]);
    w.pods.remove_node("n1", Duration::from_secs(1)).await;
    w.settle().await;
    assert_eq!(w.api.watched_nodes(), ["n2"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_finds_what_happened_meanwhile() {
    let w = world(PodWatch::PerNode);
    let provider = w.add_mock("n1", MockConfig::default());
    w.run("a", "u1", "n1").await;
    w.run("b", "u2", "n1").await;
    w.pods.release_node("n1");
    w.settle().await;
    w.api.remove("a");
    w.api.put(pod("c", "u3", "n1"));
    w.add("n1", provider.clone());
    w.until_phase("c", "Running").await;
    w.settle().await;
    let mut names: Vec<_> = provider.list_pods().await.unwrap().into_iter().map(|o| o.pod.name).collect();
    names.sort();
    assert_eq!(names, ["b".into(), "c".into()] as [std::sync::Arc<str>; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_growing_fleet_comes_to_share_one_watch_and_misses_nothing() {
    let w = world(PodWatch::Auto);
    let first = w.add_mock("n0", MockConfig::default());
    w.run("stays", "u0", "n0").await;
    w.run("leaves", "u1", "n0").await;
    // It goes while nobody looks.
    w.api.remove_unseen("leaves");
    for n in 1..40 {
        w.api.put(pod(&format!("p{n}"), &format!("v{n}"), &format!("n{n}")));
        w.add_mock(&format!("n{n}"), MockConfig::default());
    }
    let all = |api: &FakeApi| (1..40).all(|n| api.phase(&format!("p{n}")).as_deref() == Some("Running"));
    w.until("all run", all).await;
    assert_eq!(w.api.watched_nodes(), ["*"]);
    w.settle().await;
    let names: Vec<_> = first.list_pods().await.unwrap().into_iter().map(|o| o.pod.name).collect();
    assert_eq!(names, ["stays".into()] as [std::sync::Arc<str>; 1]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_at_first_and_streams_no_lists_is_asked_for_pages() {
    let w = world(PodWatch::Shared);
    w.api.refuse_streams();
    w.api.set_down(true);
    w.add_mock("n1", MockConfig::default());
    w.api.put(pod("a", "u1", "n1"));
    w.settle().await;
    w.api.set_down(false);
    w.until_phase("a", "Running").await;
    w.run("b", "u2", "n1").await;
}
