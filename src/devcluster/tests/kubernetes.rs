//! Rules of single areas as Kubernetes 1.36 has them, each with the requests that show it.

use std::time::Duration;

use serde_json::{Value, json};
use vnode_devcluster::{DevCluster, Options};

use crate::support::{Answer, Client, DEADLINE, start, start_for_pods};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const JSON: (&str, &str) = ("content-type", "application/json");
const MERGE: &str = "application/merge-patch+json";
const TABLE: (&str, &str) = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");

/// A cluster with its controllers.
async fn run() -> (DevCluster, Client) {
    let cluster = DevCluster::start(Options::default()).await.unwrap();
    let client = Client::new(&cluster.admin_kubeconfig().unwrap());
    until(&client, "/api/v1/namespaces/default/serviceaccounts/default", |answer| answer.code == 200).await;
    (cluster, client)
}

/// The first answer that is as wanted.
async fn until(client: &Client, path: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let asked = async {
        loop {
            let answer = client.get(path).await;
            if wanted(&answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, asked).await.unwrap_or_else(|_| panic!("{path} never became as wanted"))
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "x"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[tokio::test]
async fn version_zero_updates_whatever_is_there() {
    let (cluster, client) = start(Options::default()).await;
    client.post(MAPS, &map("a")).await;
    let mut new = map("a");
    new["metadata"]["resourceVersion"] = "0".into();
    new["data"]["k"] = "2".into();
    let answer = client.send("PUT", &format!("{MAPS}/a"), &[JSON], new.to_string()).await;
    assert_eq!((answer.code, &answer.json()["data"]["k"]), (200, &json!("2")));
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_deletion_that_is_dry_in_no_known_way_is_refused() {
    let (cluster, client) = start(Options::default()).await;
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["Some"]});
    let answer = client.send("DELETE", &format!("{MAPS}/none"), &[JSON], options.to_string()).await;
    assert_eq!((answer.code, &answer.json()["details"]["causes"][0]["field"]), (422, &json!("dryRun")));
    cluster.shutdown().await;
}

#[tokio::test]
async fn the_old_form_of_a_watch_may_name_one_object() {
    let (cluster, client) = start(Options::default()).await;
    client.post(MAPS, &map("a")).await;
    client.post(MAPS, &map("b")).await;
    let old = "/api/v1/watch/namespaces/default/configmaps";
    let seen = client.get(&format!("{old}/a?timeoutSeconds=1")).await.text();
    let events: Vec<Value> = seen.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 1, "{seen}");
    assert_eq!((&events[0]["type"], &events[0]["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
    assert_eq!(client.post(old, &map("c")).await.code, 405);
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_streaming_list_of_what_has_not_been_ends_with_an_error() {
    let (cluster, client) = start(Options::default()).await;
    let asked = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=99999999";
    let event = client.get(&format!("{MAPS}?{asked}")).await.json();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(504)));
    assert_eq!(event["object"]["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    let asked = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let seen = client.get(&format!("{MAPS}?{asked}&timeoutSeconds=1&labelSelector=none")).await.text();
    let bookmark: Value = serde_json::from_str(seen.lines().next().unwrap()).unwrap();
    assert_eq!(bookmark["object"]["metadata"].get("creationTimestamp"), None);
    cluster.shutdown().await;
}

#[tokio::test]
async fn events_tell_their_reporter_in_both_apis() {
    let (cluster, client) = start(Options::default()).await;
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let made = json!({"metadata": {"name": "e"}, "regarding": {"kind": "Pod", "namespace": "default", "name": "p"},
        "reason": "R", "type": "Normal", "action": "A", "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "example.com/c", "reportingInstance": "i"});
    assert_eq!(client.post(events, &made).await.code, 201);
    let table = client.send("GET", events, &[TABLE], "").await.json();
    assert_eq!(table["rows"][0]["cells"][5], "example.com/c, i");
    for path in [
        "/api/v1/namespaces/default/events?fieldSelector=source",
        &format!("{events}?fieldSelector=reportingController"),
    ] {
        let found = client.get(&format!("{path}%3Dexample.com/c")).await.json();
        assert_eq!(found["items"].as_array().map(Vec::len), Some(1), "{path}");
    }
    let core =
        json!({"metadata": {"name": "f"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}});
    client.post("/api/v1/namespaces/default/events", &core).await;
    assert_eq!(client.get(&format!("{events}/f")).await.json().get("reportingController"), None);
    cluster.shutdown().await;
}

#[tokio::test]
async fn reviews_and_tokens_tell_all_that_is_wrong() {
    let (cluster, client) = start_for_pods().await;
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {}});
    let answer = client.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await.json();
    let fields: Vec<_> = answer["details"]["causes"].as_array().unwrap().iter().map(|c| c["field"].clone()).collect();
    assert_eq!(fields, ["spec.resourceAttributes", "spec.user"]);
    let token = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let other = json!({"metadata": {"name": "other"}, "spec": {}});
    let answer = client.post(token, &other).await;
    assert_eq!((answer.code, &answer.json()["details"]["causes"][0]["field"]), (422, &json!("metadata.name")));
    cluster.shutdown().await;
}

#[tokio::test]
async fn nobody_owns_what_a_binding_sets() {
    let (cluster, client) = start_for_pods().await;
    client.post(PODS, &pod("p")).await;
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(client.post(&format!("{PODS}/p/binding"), &binding).await.code, 201);
    let bound = client.get(&format!("{PODS}/p")).await.json();
    assert_eq!(bound["spec"]["nodeName"], "n");
    assert_eq!(bound["metadata"]["managedFields"].as_array().map(Vec::len), Some(1));
    cluster.shutdown().await;
}

#[tokio::test]
async fn conflicts_are_told_level_by_level() {
    let (cluster, client) = start_for_pods().await;
    let apply = |manager: &str, pod: &Value| {
        let (path, body) = (format!("{PODS}/p?fieldManager={manager}"), pod.to_string());
        let client = client.clone();
        async move { client.patch(&path, "application/apply-patch+yaml", body).await }
    };
    let mut applied = pod("p");
    applied["spec"]["terminationGracePeriodSeconds"] = 5.into();
    assert_eq!(apply("a", &applied).await.code, 201);
    applied["spec"]["containers"][0]["image"] = "j".into();
    applied["spec"]["terminationGracePeriodSeconds"] = 6.into();
    let answer = apply("b", &applied).await.json();
    let fields: Vec<_> = answer["details"]["causes"].as_array().unwrap().iter().map(|c| c["field"].clone()).collect();
    assert_eq!(fields, [".spec.terminationGracePeriodSeconds", ".spec.containers[name=\"c\"].image"]);
    cluster.shutdown().await;
}

fn definition(spec: &Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "properties": {"spec": spec}}}}]}})
}

#[tokio::test]
async fn rules_that_do_not_fit_their_schema_are_refused() {
    let (cluster, client) = start(Options::default()).await;
    let spec = |rule: &Value| {
        json!({"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string", "maxLength": 9}},
            "x-kubernetes-validations": [rule]})
    };
    for (rule, field, wanted) in [
        (json!({"rule": "self.a"}), "rule", "cel expression must evaluate to a bool"),
        (
            json!({"rule": "self.a > 'x'"}),
            "rule",
            "compilation failed: ERROR: <input>:1:8: found no matching overload for '_>_' applied to '(int, string)'\n \
             | self.a > 'x'\n | .......^",
        ),
        (json!({"rule": "b == 1"}), "rule", "undeclared reference to 'b' (in container '')\n | b == 1\n | ^"),
        (json!({"rule": "true", "message": "a\nb"}), "message", "must not contain line breaks"),
        (json!({"rule": "true", "fieldPath": ".no"}), "fieldPath", "must be a valid path"),
        (json!({"rule": "true", "optionalOldSelf": true}), "optionalOldSelf", "oldSelf is not used in rule"),
        (json!({"rule": "true", "messageExpression": "1"}), "messageExpression", "must evaluate to a string"),
        (json!({"rule": "true", "reason": "No"}), "reason", "supported values: \"FieldValueDuplicate\""),
    ] {
        let answer = client.post(DEFINITIONS, &definition(&spec(&rule))).await;
        let cause = &answer.json()["details"]["causes"][0];
        assert_eq!(answer.code, 422, "{rule}");
        assert!(cause["field"].as_str().unwrap().ends_with(&format!("[0].{field}")), "{rule} {cause}");
        assert!(cause["message"].as_str().unwrap().contains(wanted), "{rule} {cause}");
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn custom_objects_have_the_metadata_of_any() {
    let (cluster, client) = start(Options::default()).await;
    let spec = json!({"type": "object", "properties": {"n": {"type": "integer", "maximum": 3, "multipleOf": 2},
        "i": {"type": "integer", "format": "int32"}}});
    assert_eq!(client.post(DEFINITIONS, &definition(&spec)).await.code, 201);
    let widgets = "/apis/example.com/v1/namespaces/default/widgets";
    until(&client, widgets, |answer| answer.code == 200).await;
    let widget = |labels: Value, n: u8| {
        json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "labels": labels},
            "spec": {"n": n}})
    };
    let refused = client.post(widgets, &widget(json!({"a": 1}), 2)).await;
    let wanted = "json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string";
    assert_eq!(refused.code, 400);
    assert!(refused.message().ends_with(wanted), "{}", refused.message());
    let causes = client.post(widgets, &widget(json!({}), 5)).await.json()["details"]["causes"].clone();
    assert_eq!(causes[0]["message"], "Invalid value: 5: spec.n in body should be a multiple of 2");
    assert_eq!(client.post(widgets, &widget(json!({}), 2)).await.code, 201);
    for none in ["status", "scale", "other"] {
        let missing = client.get(&format!("{widgets}/w/{none}")).await;
        assert_eq!((missing.code, missing.message().as_str()), (404, "widgets.example.com \"w\" not found"));
    }
    let large = client.patch(&format!("{widgets}/w"), MERGE, r#"{"spec":{"i":3000000000}}"#).await;
    let wanted = "Invalid value: \"\": Checked value must be of type integer with format int32 in spec.i";
    assert_eq!((large.code, &large.json()["details"]["causes"][0]["message"]), (422, &json!(wanted)));
    let versionless = json!({"kind": "Widget", "metadata": {"name": "v"}});
    let wanted = "the API version in the data () does not match the expected API version (example.com/v1)";
    assert_eq!(client.post(widgets, &versionless).await.message(), wanted);
    let review = client.get("/apis/authentication.k8s.io/v1/tokenreviews/x").await;
    assert_eq!(review.code, 404);
    cluster.shutdown().await;
}

#[tokio::test]
async fn rules_about_changes_may_ask_for_what_was_not_there() {
    let (cluster, client) = start(Options::default()).await;
    let spec = json!({"type": "object", "properties": {
        "once": {"type": "string", "maxLength": 9, "x-kubernetes-validations": [
            {"rule": "!oldSelf.hasValue() || self == oldSelf.value()", "optionalOldSelf": true}]},
        "m": {"type": "object", "maxProperties": 3, "additionalProperties": {"type": "string", "maxLength": 9,
            "x-kubernetes-validations": [{"rule": "self != 'no'", "reason": "FieldValueDuplicate", "message": "m"}]}}}});
    assert_eq!(client.post(DEFINITIONS, &definition(&spec)).await.code, 201);
    let widgets = "/apis/example.com/v1/namespaces/default/widgets";
    until(&client, widgets, |answer| answer.code == 200).await;
    let widget = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec});
    assert_eq!(client.post(widgets, &widget(json!({"once": "a"}))).await.code, 201);
    let changed = client.patch(&format!("{widgets}/w"), MERGE, r#"{"spec":{"once":"b"}}"#).await;
    let cause = changed.json()["details"]["causes"][0].clone();
    let wanted = "Invalid value: \"b\": failed rule: !oldSelf.hasValue() || self == oldSelf.value()";
    assert_eq!((changed.code, &cause["message"]), (422, &json!(wanted)));
    let refused = client.patch(&format!("{widgets}/w"), MERGE, r#"{"spec":{"m":{"k":"no"}}}"#).await.json();
    let cause = &refused["details"]["causes"][0];
    assert_eq!((&cause["field"], &cause["message"]), (&json!("spec.m[k]"), &json!("Duplicate value: \"no\"")));
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_namespace_lets_its_pods_go_first_and_then_tells_what_remains() {
    let (cluster, client) = run().await;
    let ns = "/api/v1/namespaces/t";
    client.post("/api/v1/namespaces", &json!({"metadata": {"name": "t"}})).await;
    until(&client, &format!("{ns}/serviceaccounts/default"), |answer| answer.code == 200).await;
    let mut held = map("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    client.post(&format!("{ns}/configmaps"), &held).await;
    let mut bound = pod("p");
    (bound["spec"]["nodeName"], bound["metadata"]["finalizers"]) = ("none".into(), json!(["example.com/hold"]));
    assert_eq!(client.post(&format!("{ns}/pods"), &bound).await.code, 201);
    client.send("DELETE", ns, &[], "").await;
    let condition = |answer: &Answer, kind: &str| {
        let all = answer.json()["status"]["conditions"].clone();
        all.as_array().into_iter().flatten().find(|c| c["type"] == kind).cloned().unwrap_or_default()
    };
    let told = until(&client, ns, |answer| !condition(answer, "NamespaceContentRemaining").is_null()).await;
    assert_eq!(condition(&told, "NamespaceContentRemaining")["reason"], "ContentRemoved");
    let kept = client.get(&format!("{ns}/configmaps/held")).await.json();
    assert_eq!(kept["metadata"].get("deletionTimestamp"), None, "what a pod uses stays as long as the pod");
    client.patch(&format!("{ns}/pods/p"), MERGE, r#"{"metadata":{"finalizers":null}}"#).await;
    client.send("DELETE", &format!("{ns}/pods/p?gracePeriodSeconds=0"), &[], "").await;
    let told = until(&client, ns, |answer| condition(answer, "NamespaceContentRemaining")["status"] == "True").await;
    let message = &condition(&told, "NamespaceFinalizersRemaining")["message"];
    assert!(message.as_str().unwrap().ends_with("example.com/hold in 1 resource instances"), "{message}");
    client.patch(&format!("{ns}/configmaps/held"), MERGE, r#"{"metadata":{"finalizers":null}}"#).await;
    until(&client, ns, |answer| answer.code == 404).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn pods_wait_for_claims_that_are_not_there() {
    let (cluster, client) = run().await;
    let node = json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "9"},
        "conditions": [{"type": "Ready", "status": "True"}]}});
    client.post("/api/v1/nodes", &node).await;
    until(&client, "/api/v1/nodes/n", |answer| answer.json()["spec"].get("taints").is_none()).await;
    let mut claiming = pod("p");
    claiming["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
    assert_eq!(client.post(PODS, &claiming).await.code, 201);
    let scheduled = |answer: &Answer| answer.json()["status"]["conditions"][0].clone();
    let waits = until(&client, &format!("{PODS}/p"), |answer| scheduled(answer)["status"] == "False").await;
    let wanted = "0/1 nodes are available: persistentvolumeclaim \"c\" not found. not found";
    assert_eq!(scheduled(&waits)["message"], wanted);
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    client.post("/api/v1/namespaces/default/persistentvolumeclaims", &claim).await;
    until(&client, &format!("{PODS}/p"), |answer| answer.json()["spec"]["nodeName"] == "n").await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn volumes_are_available_and_protected() {
    let (cluster, client) = run().await;
    let volumes = "/api/v1/persistentvolumes";
    let volume = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}});
    let made = client.post(volumes, &volume).await.json();
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
    until(&client, &format!("{volumes}/v"), |answer| answer.json()["status"]["phase"] == "Available").await;
    client.send("DELETE", &format!("{volumes}/v"), &[], "").await;
    until(&client, &format!("{volumes}/v"), |answer| answer.code == 404).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_budget_of_unavailable_pods_counts_none_without_an_owner() {
    let (cluster, client) = run().await;
    let mut bound = pod("p");
    bound["spec"]["nodeName"] = "none".into();
    client.post(PODS, &bound).await;
    let ready = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
    client.patch(&format!("{PODS}/p/status"), MERGE, ready).await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "x"}}}});
    client.post(budgets, &budget).await;
    let counted =
        until(&client, &format!("{budgets}/b"), |answer| answer.json()["status"]["currentHealthy"] == 1).await;
    assert_eq!(counted.json()["status"]["expectedPods"], 0);
    assert_eq!(counted.json()["status"]["disruptionsAllowed"], 0);
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_deployment_keeps_conditions_of_others() {
    let (cluster, client) = run().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"app": "d"}}, "template": {"metadata": {"labels": {"app": "d"}},
            "spec": {"schedulerName": "nobody", "containers": [{"name": "c", "image": "i"}]}}}});
    client.post(deployments, &deployment).await;
    let path = format!("{deployments}/d");
    until(&client, &path, |answer| answer.json()["status"]["replicas"] == 1).await;
    let mine = r#"{"status":{"conditions":[{"type":"Mine","status":"True"}]}}"#;
    client.patch(&format!("{path}/status"), "application/strategic-merge-patch+json", mine).await;
    client.patch(&path, MERGE, r#"{"spec":{"replicas":2}}"#).await;
    let told = until(&client, &path, |answer| answer.json()["status"]["replicas"] == 2).await.json();
    let mut kinds: Vec<_> =
        told["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].to_string()).collect();
    kinds.sort();
    assert_eq!(kinds, ["\"Available\"", "\"Mine\"", "\"Progressing\""]);
    cluster.shutdown().await;
}
