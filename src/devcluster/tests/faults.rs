//! Faults on demand: what was asked for happens, to those it was asked for, and ends.

use std::time::{Duration, Instant};

use crate::support::{Client, DEADLINE, start};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::time::timeout;
use vnode_devcluster::Options;

const FAULTS: &str = "/debug/faults";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn add(client: &Client, rule: Value) -> u64 {
    let answer = client.post(FAULTS, &rule).await;
    assert_eq!(answer.code, 201, "{}", answer.text());
    answer.json()["id"].as_u64().unwrap()
}

#[tokio::test]
async fn without_being_asked_for_there_is_no_such_endpoint() {
    let (cluster, client) = start(Options::default()).await;
    for method in ["GET", "POST", "DELETE"] {
        assert!((404..=405).contains(&client.send(method, FAULTS, &[], "{}").await.code));
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn only_administrators_ask_for_faults() {
    let (cluster, _) = start(Options { faults: Some(1), ..Options::default() }).await;
    let jane = Client::new(&cluster.kubeconfig("jane", &["developers"]).unwrap());
    let answer = jane.post(FAULTS, &json!({"action": {"type": "hang"}})).await;
    assert_eq!((answer.code, answer.json()["reason"].as_str()), (403, Some("Forbidden")));
    cluster.shutdown().await;
}

#[tokio::test]
async fn errors_strike_the_share_the_paths_and_the_users_that_were_named() {
    let (cluster, client) = start(Options { faults: Some(7), ..Options::default() }).await;
    let jane = Client::new(&cluster.kubeconfig("jane", &["system:masters"]).unwrap());
    let action = json!({"type": "status", "code": 429, "retryAfterSeconds": 3});
    add(&client, json!({"match": {"path": "/api/v1/", "user": "jane"}, "share": 0.5, "action": action})).await;
    let (mut struck, mut spared) = (0, 0);
    for _ in 0..60 {
        let answer = jane.get(MAPS).await;
        match answer.code {
            429 => {
                assert_eq!(answer.headers["retry-after"], "3");
                assert_eq!(answer.json()["reason"], "TooManyRequests");
                struck += 1;
            }
            200 => spared += 1,
            other => panic!("{other}"),
        }
    }
    assert!(struck > 10 && spared > 10, "{struck} of 60");
    assert_eq!(client.get(MAPS).await.code, 200);
    assert_eq!(jane.get("/apis/apps/v1/deployments").await.code, 200);
    let listed = client.get(FAULTS).await.json();
    assert_eq!((&listed["rules"][0]["matched"], &listed["rules"][0]["applied"]), (&json!(60), &json!(struck)));
    cluster.shutdown().await;

    // The same seed, the same requests, the same luck.
    let (cluster, client) = start(Options { faults: Some(7), ..Options::default() }).await;
    let jane = Client::new(&cluster.kubeconfig("jane", &["system:masters"]).unwrap());
    add(&client, json!({"match": {"path": "/api/v1/", "user": "jane"}, "share": 0.5, "action": action})).await;
    let mut again = 0;
    for _ in 0..60 {
        again += usize::from(jane.get(MAPS).await.code == 429);
    }
    assert_eq!(again, struck);
    cluster.shutdown().await;
}

#[tokio::test]
async fn rules_are_spent_removed_and_refused() {
    let (cluster, client) = start(Options { faults: Some(1), ..Options::default() }).await;
    let rule = |code: u16| {
        json!({"match": {"methods": ["GET"], "path": MAPS}, "count": 2,
        "action": {"type": "status", "code": code}})
    };
    let id = add(&client, rule(503)).await;
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(client.get(MAPS).await.code);
    }
    assert_eq!(codes, [503, 503, 200]);
    add(&client, rule(500)).await;
    assert_eq!(client.get(MAPS).await.code, 500);
    assert_eq!(client.send("DELETE", &format!("{FAULTS}/{id}"), &[], "").await.code, 200);
    assert_eq!(client.send("DELETE", &format!("{FAULTS}/{id}"), &[], "").await.code, 404);
    assert_eq!(client.send("DELETE", FAULTS, &[], "").await.code, 200);
    assert_eq!(client.get(MAPS).await.code, 200);
    for nonsense in [json!({}), json!({"action": {"type": "explode"}}), json!({"share": 2, "action": {"type": "hang"}})]
    {
        assert_eq!(client.post(FAULTS, &nonsense).await.code, 400, "{nonsense}");
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn requests_are_held_up_until_the_rule_goes_slowed_down_and_reset() {
    let (cluster, client) = start(Options { faults: Some(1), ..Options::default() }).await;
    let id = add(&client, json!({"match": {"path": MAPS}, "action": {"type": "hang"}})).await;
    let held = tokio::spawn({
        let client = client.clone();
        async move { client.get(MAPS).await.code }
    });
    while client.get(FAULTS).await.json()["rules"][0]["applied"] == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!held.is_finished());
    client.send("DELETE", &format!("{FAULTS}/{id}"), &[], "").await;
    assert_eq!(timeout(DEADLINE, held).await.unwrap().unwrap(), 200);

    let delay = json!({"match": {"path": MAPS}, "count": 1, "action": {"type": "delay", "milliseconds": 300}});
    add(&client, delay).await;
    let begun = Instant::now();
    assert_eq!(client.get(MAPS).await.code, 200);
    assert!(begun.elapsed() >= Duration::from_millis(300));

    add(&client, json!({"match": {"path": MAPS}, "count": 1, "action": {"type": "reset"}})).await;
    assert!(client.try_send("GET", MAPS, &[], "").await.is_err());
    assert_eq!(client.get(MAPS).await.code, 200);
    cluster.shutdown().await;
}

async fn held(client: &Client, wanted: u64) {
    let same = async {
        while client.get(FAULTS).await.json()["rules"][0]["held"] != wanted {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, same).await.unwrap_or_else(|_| panic!("{wanted} are held"));
}

#[tokio::test]
async fn the_first_ones_pass_and_the_next_takes_effect_though_its_answer_is_lost() {
    let (cluster, client) = start(Options { faults: Some(1), ..Options::default() }).await;
    let map = |name: &str| json!({"metadata": {"name": name}});
    let rule = |action: Value| json!({"match": {"methods": ["POST"], "path": MAPS}, "skip": 1, "count": 1, "after": true, "action": action});
    for (name, action) in [
        ("reset", json!({"type": "reset"})),
        ("timeout", json!({"type": "status", "code": 504})),
        ("delay", json!({"type": "delay", "milliseconds": 1})),
    ] {
        add(&client, rule(action)).await;
        assert_eq!(client.post(MAPS, &map(&format!("{name}-first"))).await.code, 201, "{name}");
        let media = [("content-type", "application/json")];
        let struck = client.try_send("POST", MAPS, &media, map(name).to_string()).await;
        let code = struck.map_or(0, |answer| answer.code);
        assert_eq!(code, [("reset", 0), ("timeout", 504), ("delay", 201)].iter().find(|c| c.0 == name).unwrap().1);
        assert_eq!(client.get(&format!("{MAPS}/{name}")).await.code, 200, "{name}");
        let listed = client.get(FAULTS).await.json();
        assert_eq!(listed["rules"][0]["struck"], json!([format!("POST {MAPS}")]));
        client.send("DELETE", FAULTS, &[], "").await;
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn of_a_client_that_leaves_only_the_answer_was_waited_for_or_nothing_happens() {
    let (cluster, client) = start(Options { faults: Some(1), ..Options::default() }).await;
    for after in [true, false] {
        add(&client, json!({"match": {"path": MAPS}, "count": 1, "after": after, "action": {"type": "hang"}})).await;
        let leaving = tokio::spawn({
            let client = client.clone();
            async move { client.post(MAPS, &json!({"metadata": {"name": "left"}})).await.code }
        });
        held(&client, 1).await;
        assert_eq!(client.get(&format!("{MAPS}/left")).await.code, if after { 200 } else { 404 });
        leaving.abort();
        held(&client, 0).await;
        client.send("DELETE", FAULTS, &[], "").await;
        let there = client.send("DELETE", &format!("{MAPS}/left"), &[], "").await.code;
        assert_eq!(there, if after { 200 } else { 404 });
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn watches_are_cut_and_the_past_is_forgotten() {
    let (cluster, client) = start(Options { faults: Some(1), ..Options::default() }).await;
    let version = client.get(MAPS).await.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let uri = format!("{MAPS}?watch=1&resourceVersion={version}");
    let mut connection = client.open().await.unwrap();
    let request = http::Request::builder().uri(&uri).header("host", "c").body(Full::default()).unwrap();
    let watch = connection.send_request(request).await.unwrap();
    let cut = client.post(&format!("{FAULTS}/cut-watches"), &json!({"resource": "configmaps"})).await;
    assert_eq!(cut.code, 200, "{}", cut.text());
    let left = timeout(DEADLINE, watch.into_body().collect()).await.expect("it ends").unwrap().to_bytes();
    assert!(left.is_empty());
    client.post(MAPS, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})).await;
    client.post(&format!("{FAULTS}/compact"), &json!({})).await;
    let error = client.get(&uri).await.json();
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(client.post(&format!("{FAULTS}/compact"), &json!({"resource": "frobs"})).await.code, 404);
    cluster.shutdown().await;
}

#[tokio::test]
async fn the_network_fails_in_three_ways_and_comes_back() {
    let (cluster, client) = start(Options { faults: Some(1), ..Options::default() }).await;
    for mode in ["reset", "refuse", "silent"] {
        let mut old = client.open().await.unwrap();
        let answer = client.post(&format!("{FAULTS}/outage"), &json!({"mode": mode, "seconds": 4})).await;
        assert_eq!(answer.code, 202, "{}", answer.text());
        // Until it has begun, requests may still get through.
        let begun = timeout(DEADLINE, async {
            loop {
                let answer = timeout(Duration::from_secs(2), client.try_send("GET", "/healthz", &[], "")).await;
                match (mode, answer) {
                    ("silent", Err(_)) | ("reset" | "refuse", Ok(Err(_))) => return,
                    _ => tokio::task::yield_now().await,
                }
            }
        });
        begun.await.unwrap_or_else(|_| panic!("{mode} begins"));
        let back = async {
            loop {
                if let Ok(Ok(_)) = timeout(Duration::from_secs(2), client.try_send("GET", "/healthz", &[], "")).await {
                    return;
                }
            }
        };
        timeout(DEADLINE, back).await.unwrap_or_else(|_| panic!("{mode} ends"));
        let request = http::Request::builder().uri("/healthz").header("host", "c").body(Full::default()).unwrap();
        let through = timeout(DEADLINE, old.send_request(request)).await.unwrap();
        assert_eq!(through.is_ok(), mode == "silent", "{mode}: connections from before");
    }
    cluster.shutdown().await;
}
