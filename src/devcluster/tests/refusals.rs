//! What is refused, and what is taken with a word about it, over the wire: each rule with a request that shows it.

use serde_json::{Value, json};

use crate::support::start_for_pods;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const TABLE: (&str, &str) = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "schedulerName": "nobody", "containers": [{"name": "c", "image": "i:1"}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    pod
}

#[tokio::test]
async fn patches_are_read_as_strictly_as_bodies() {
    let (cluster, client) = start_for_pods().await;
    client.post(MAPS, &json!({"metadata": {"name": "m"}, "data": {"a": "b"}})).await;
    let path = format!("{MAPS}/m?dryRun=All");
    for (kind, body, end) in [
        (MERGE, r#"{"data":{"a":"1","a":"2"}}"#, r#"strict decoding error: duplicate field "data.a""#),
        (
            "application/json-patch+json",
            r#"[{"op":"add","path":"/data/b","value":"x","foo":1}]"#,
            r#"strict decoding error: json patch unknown field "[0].foo""#,
        ),
        (STRATEGIC, r#"{"foo":1}"#, r#""map[foo:1]": strict decoding error: unknown field "foo""#),
        (STRATEGIC, r#"{"data":{"a":5}}"#, r#""map[data:map[a:5]]": cannot convert int64 to string"#),
        (MERGE, r#"{"apiVersion":"v9"}"#, "scheme.go:30\""),
        (MERGE, r#"{"metadata":{"uid":"b"}}"#, "metadata.uid: Invalid value: \"b\": field is immutable"),
    ] {
        let refused = client.patch(&format!("{path}&fieldValidation=Strict"), kind, body).await;
        assert_eq!(refused.code, 422, "{body}");
        let message = refused.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(message.ends_with(end), "{body}: {message}");
    }
    let warned = client.patch(&path, MERGE, r#"{"data":{"a":"1","a":"2"}}"#).await;
    assert_eq!(
        (warned.code, &warned.headers["warning"]),
        (200, &r#"299 - "duplicate field \"data.a\"""#.parse().unwrap())
    );
    let kept = client.patch(&path, STRATEGIC, r#"{"kind":"Secret"}"#).await.json();
    assert_eq!(kept["kind"], "ConfigMap", "such a patch does not say what the object is");
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_pod_is_bound_resized_and_evicted_by_its_own_name() {
    let (cluster, client) = start_for_pods().await;
    let resources = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}});
    client.post(PODS, &pod("p", json!({"containers": [{"name": "c", "image": "i", "resources": resources}]}))).await;
    let target = json!({"kind": "Node", "name": "n"});
    let other = client.post(&format!("{PODS}/p/binding"), &json!({"metadata": {"name": "q"}, "target": target})).await;
    assert_eq!(other.code, 400);
    let resize =
        |resources: Value| json!({"spec": {"containers": [{"name": "c", "resources": resources}]}}).to_string();
    let path = format!("{PODS}/p/resize");
    for (resources, code) in [
        (json!({"requests": {"cpu": "3"}}), 422),
        (json!({"limits": {"cpu": null}}), 422),
        (json!({"requests": {"cpu": "1500m"}}), 200),
    ] {
        assert_eq!(client.patch(&path, STRATEGIC, resize(resources.clone())).await.code, code, "{resources}");
    }
    let named = json!({"metadata": {"name": "p", "labels": {"l": "1"}}, "target": target});
    assert_eq!(client.post("/api/v1/namespaces/default/bindings", &named).await.code, 201);
    let bound = client.get(&format!("{PODS}/p")).await.json();
    assert_eq!((&bound["spec"]["nodeName"], &bound["metadata"]["labels"]["l"]), (&json!("n"), &json!("1")));
    let lost = client.patch(&path, STRATEGIC, resize(json!({"requests": {"cpu": "1"}}))).await;
    assert_eq!(lost.code, 403, "only a node that is there can resize: {}", lost.text());
    assert_eq!(client.post(&format!("{PODS}/p/eviction"), &json!({"metadata": {}})).await.code, 400);
    cluster.shutdown().await;
}

#[tokio::test]
async fn faults_are_told_in_the_order_of_the_body_with_warnings_beside_them() {
    let (cluster, client) = start_for_pods().await;
    let body = r#"{"metadata":{"name":"x"},"zz":1,"data":{},"aa":2}"#;
    let strict = client.send("POST", &format!("{MAPS}?fieldValidation=Strict"), &[], body).await.json();
    let message = strict["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.ends_with(r#"unknown field "zz", unknown field "aa""#), "{message}");
    let mut wrong = pod("p", json!({"restartPolicy": "Sometimes"}));
    wrong["foo"] = 1.into();
    let refused = client.post(PODS, &wrong).await;
    assert_eq!(
        (refused.code, &refused.headers["warning"]),
        (422, &r#"299 - "unknown field \"foo\"""#.parse().unwrap())
    );
    let taken = client.post(PODS, &pod("a.b", json!({}))).await;
    assert_eq!(taken.code, 201);
    assert!(taken.headers["warning"].to_str().unwrap().contains("a DNS label is recommended"));
    let lease = |time: &str| json!({"metadata": {"name": "l"}, "spec": {"renewTime": time}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    assert_eq!(client.post(leases, &lease("2026-01-01T00:00:00Z")).await.code, 400, "microseconds are six digits");
    assert_eq!(client.post(leases, &lease("2026-01-01T00:00:00.000000Z")).await.code, 201);
    cluster.shutdown().await;
}

#[tokio::test]
async fn scale_is_applied_with_the_owners_of_the_replicas() {
    let (cluster, client) = start_for_pods().await;
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "r"}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let apply = |path: String, body: Value| {
        let client = &client;
        async move { client.patch(&path, APPLY, body.to_string()).await }
    };
    assert_eq!(apply(format!("{sets}/r?fieldManager=one"), set).await.code, 201);
    let scale =
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "r"}, "spec": {"replicas": 0}});
    let refused = apply(format!("{sets}/r/scale?fieldManager=two"), scale.clone()).await;
    assert_eq!(refused.json()["message"], "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas");
    let scaled = apply(format!("{sets}/r/scale?fieldManager=two&force=true"), scale).await.json();
    assert_eq!((&scaled["kind"], &scaled["spec"]), (&json!("Scale"), &json!({})), "zero is not written");
    cluster.shutdown().await;
}

#[tokio::test]
async fn tables_speak_in_the_words_of_the_fields_and_events_begin_with_their_time() {
    let (cluster, client) = start_for_pods().await;
    client.post(MAPS, &json!({"metadata": {"name": "m"}})).await;
    let columns = client.send("GET", MAPS, &[TABLE], "").await.json()["columnDefinitions"].clone();
    let words = |i: usize| columns[i]["description"].as_str().unwrap_or_default().to_owned();
    assert!(words(1).starts_with("Data contains the configuration data. Each key"), "{columns}");
    assert!(words(2).ends_with("api-conventions.md#metadata"), "{columns}");
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "type": "Normal", "reason": "R"});
    let events = "/api/v1/namespaces/default/events";
    assert_eq!(client.post(events, &event).await.code, 201);
    let table = client.send("GET", events, &[TABLE], "").await.json();
    assert_eq!(table["columnDefinitions"][0]["name"], "Last Seen");
    assert_eq!(table["rows"][0]["cells"][1], "Normal");
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_definition_is_held_by_its_instances_only_once_it_is_deleted() {
    let (cluster, client) = start_for_pods().await;
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let crd = json!({"metadata": {"name": "ws.x.io"}, "spec": {"group": "x.io", "scope": "Cluster",
        "names": {"plural": "ws", "kind": "W"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    assert_eq!(client.post(crds, &crd).await.code, 201);
    let path = format!("{crds}/ws.x.io");
    assert_eq!(client.get(&path).await.json()["metadata"].get("finalizers"), None);
    let going = client.send("DELETE", &path, &[], "").await.json();
    assert_eq!(going["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    let conditions = going["status"]["conditions"].as_array().cloned().unwrap_or_default();
    assert!(conditions.iter().any(|c| c["type"] == "Terminating" && c["reason"] == "InstanceDeletionPending"));
    cluster.shutdown().await;
}
