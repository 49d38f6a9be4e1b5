//! Answers as Kubernetes gives them, over the wire: each rule with a request that shows it.

use crate::support::{Answer, start_for_pods};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const JSON: (&str, &str) = ("content-type", "application/json");
const MERGE: &str = "application/merge-patch+json";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"a": "b"}}, "spec": {
        "schedulerName": "nobody", "containers": [{"name": "c", "image": "i:1", "env": [{"name": "E", "value": "1"}],
            "resources": {"requests": {"cpu": "0.1", "memory": "1.5Gi"}}}]}})
}

fn fields(answer: &Answer, entry: usize) -> Value {
    answer.json()["metadata"]["managedFields"][entry]["fieldsV1"].clone()
}

#[tokio::test]
async fn what_is_new_is_owned_with_all_that_is_in_it() {
    let (cluster, client) = start_for_pods().await;
    let made = client.post(PODS, &pod("p")).await;
    let owned = fields(&made, 0);
    assert_eq!(owned["f:metadata"], json!({"f:labels": {".": {}, "f:a": {}}}));
    let container = &owned["f:spec"]["f:containers"]["k:{\"name\":\"c\"}"];
    assert_eq!(container["f:env"], json!({".": {}, "k:{\"name\":\"E\"}": {".": {}, "f:name": {}, "f:value": {}}}));
    // Nobody owns what admission and the server set, nor the parents that the API's types always have.
    for absent in ["f:priority", "f:tolerations", "f:serviceAccountName", "f:volumes", "."] {
        assert_eq!(owned["f:spec"].get(absent), None, "{absent}");
    }
    assert_eq!(owned.get("f:status"), None);
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let reported = client.patch(&format!("{PODS}/p/status"), MERGE, status.to_string()).await;
    let owned = fields(&reported, 1);
    assert_eq!(owned["f:status"]["f:conditions"]["."], json!({}));
    cluster.shutdown().await;
}

#[tokio::test]
async fn objects_are_written_as_the_types_of_the_api_write_them() {
    let (cluster, client) = start_for_pods().await;
    let made = client.post(PODS, &pod("p")).await.json();
    assert_eq!(made["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "100m", "memory": "1536Mi"}));
    assert_eq!(made["spec"].get("initContainers"), None);
    let labelled = client.patch(&format!("{PODS}/p"), MERGE, r#"{"metadata":{"labels":{"c":"d"}}}"#).await.json();
    assert_eq!(labelled["metadata"]["generation"], 1, "labels are no change of the pod");
    let node = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.0.0.0/24", "unschedulable": false}});
    let node = client.post("/api/v1/nodes", &node).await.json();
    assert_eq!(node["spec"].get("unschedulable"), None);
    assert_eq!(node["spec"]["podCIDRs"], json!(["10.0.0.0/24"]));
    assert_eq!(node["status"]["daemonEndpoints"], json!({"kubeletEndpoint": {"Port": 0}}));
    let dry = client.post(&format!("{MAPS}?dryRun=All"), &map("dry")).await.json();
    assert_eq!(dry["metadata"].get("resourceVersion"), None);
    cluster.shutdown().await;
}

#[tokio::test]
async fn answers_come_in_the_format_that_is_asked_for() {
    let (cluster, client) = start_for_pods().await;
    client.post(MAPS, &map("a")).await;
    let one = format!("{MAPS}/a");
    let yaml = client.send("GET", &one, &[("accept", "application/yaml")], "").await;
    assert_eq!(yaml.headers["content-type"], "application/yaml");
    assert!(yaml.text().starts_with("apiVersion: v1\ndata:\n  k: v\nkind: ConfigMap\nmetadata:\n"), "{}", yaml.text());
    let missing = client.send("GET", &format!("{MAPS}/zz"), &[("accept", "application/yaml")], "").await;
    assert!(missing.code == 404 && missing.text().contains("reason: NotFound\n"), "{}", missing.text());
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    for (path, accept, code, says) in [
        (one.as_str(), "text/plain", 406, "406: Not Acceptable"),
        (one.as_str(), "application/json;as=Foo;v=v1;g=meta.k8s.io", 406, "only the following media types"),
        (one.as_str(), partial, 406, "is not a list (*core.ConfigMap)"),
        (MAPS, partial, 200, "meta.k8s.io/v1"),
        (one.as_str(), "application/json;as=Table;v=v1beta1;g=meta.k8s.io", 200, "meta.k8s.io/v1beta1"),
    ] {
        let answer = client.send("GET", path, &[("accept", accept)], "").await;
        assert!(answer.code == code && answer.text().contains(says), "{accept}: {} {}", answer.code, answer.text());
    }
    let old = client.get("/api/v1/namespaces/default/endpoints").await;
    assert!(old.headers["warning"].to_str().unwrap().contains("v1 Endpoints is deprecated"));
    cluster.shutdown().await;
}

#[tokio::test]
async fn bodies_in_yaml_lists_and_early_updates_are_taken_as_kubernetes_takes_them() {
    let (cluster, client) = start_for_pods().await;
    let yaml = [("content-type", "application/yaml")];
    let twice = "metadata:\n  name: twice\ndata:\n  a: \"1\"\n  a: \"2\"\n";
    let strict = client.send("POST", &format!("{MAPS}?fieldValidation=Strict"), &yaml, twice).await;
    assert!(
        strict.code == 400 && strict.message().contains("\n  line 5: key \"a\" already set in map"),
        "{}",
        strict.text()
    );
    let made = client.send("POST", MAPS, &yaml, twice).await;
    assert_eq!(made.headers["warning"], "299 - \"line 5: key \\\"a\\\" already set in map\"");
    // A list says once what its items are.
    let list = client.get(&format!("{MAPS}?fieldSelector=metadata.name%3Dtwice")).await.json();
    assert_eq!((&list["kind"], &list["items"][0]["kind"]), (&json!("ConfigMapList"), &Value::Null));
    let lease = "/apis/coordination.k8s.io/v1/namespaces/default/leases/early";
    let put = client.send("PUT", lease, &[JSON], r#"{"metadata":{"name":"early"},"spec":{}}"#).await;
    assert_eq!(put.code, 201, "{}", put.text());
    cluster.shutdown().await;
}

#[tokio::test]
async fn requests_that_break_a_rule_are_told_which() {
    let (cluster, client) = start_for_pods().await;
    client.post(MAPS, &map("a")).await;
    client.post(PODS, &pod("p")).await;
    let twice = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"data":{"k":"1","k":"2"}}"#;
    let versioned = r#"{"metadata":{"name":"b","resourceVersion":"5"}}"#;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    client.post(leases, &json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}})).await;
    let lease = r#"{"metadata":{"name":"l"},"spec":{"holderIdentity":"b"}}"#;
    let both = r#"{"orphanDependents":true,"propagationPolicy":"Orphan"}"#;
    for (method, path, body, code, says) in [
        ("POST", format!("{MAPS}?fieldValidation=Strict"), twice, 400, "duplicate field \"data.k\""),
        ("POST", MAPS.into(), versioned, 500, "resourceVersion should not be set"),
        ("POST", MAPS.into(), r#"{"kind":"Secret"}"#, 400, "(v1.Secret) to (core.ConfigMap): unknown conversion"),
        ("POST", MAPS.into(), "hello", 400, "invalid character 'h' looking for beginning of value"),
        (
            "POST",
            MAPS.into(),
            r#"{"metadata":{"name":5}}"#,
            400,
            "Go struct field ObjectMeta.metadata.name of type string",
        ),
        ("POST", MAPS.into(), r#"{"metadata":{"generateName":"Bad_"}}"#, 422, "metadata.generateName: Invalid value"),
        ("POST", format!("{MAPS}?fieldManager=a%0ab"), "{}", 422, "invalid character U+000A (at position 1)"),
        ("PUT", format!("{leases}/l"), lease, 422, "metadata.resourceVersion: Invalid value: 0: must be specified"),
        ("PUT", format!("{MAPS}/a"), r#"{"metadata":{"name":"a","uid":"x"}}"#, 409, "StorageError: invalid"),
        ("PUT", format!("{MAPS}/a"), r#"{"data":{}}"#, 400, "was undeterminable: name must be provided"),
        ("POST", format!("{MAPS}?dryRun="), "{}", 422, "dryRun: Unsupported value: [\"\"]"),
        ("POST", format!("{MAPS}?timeout=bad"), "{}", 400, "time: invalid duration \"bad\""),
        ("DELETE", format!("{MAPS}/a"), r#"{"kind":"Pod","apiVersion":"v1"}"#, 400, "no kind \"Pod\" is registered"),
        ("GET", "/api/v1/namespaces/default/nodes".into(), "", 404, "could not find the requested resource"),
        ("GET", "/apis/apps/v9".into(), "", 404, "could not find the requested resource"),
        ("DELETE", format!("{MAPS}/a"), both, 422, "cannot be both set"),
        ("GET", format!("{MAPS}?timeoutSeconds=abc"), "", 400, "strconv.ParseInt"),
        ("GET", format!("{MAPS}?watch=1&continue=abc"), "", 422, "resourceVersionMatch is forbidden when continue"),
        ("HEAD", MAPS.into(), "", 405, ""),
    ] {
        let answer = client.send(method, &path, &[JSON], body).await;
        let said = if answer.body.is_empty() { String::new() } else { answer.message() };
        assert!(answer.code == code && said.contains(says), "{method} {path}: {} {said}", answer.code);
    }
    for (path, body, code) in [
        ("", json!({"spec": {"nodeName": "n"}}), 422),
        ("/status", json!({"status": {"podIP": "nope"}}), 422),
        ("/ephemeralcontainers", json!({"spec": {"ephemeralContainers": [{"name": "c", "image": "x"}]}}), 422),
        ("/ephemeralcontainers", json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "x"}]}}), 200),
        ("/ephemeralcontainers", json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "y"}]}}), 422),
        ("", json!({"spec": {"terminationGracePeriodSeconds": 5}}), 422),
    ] {
        let answer = client.patch(&format!("{PODS}/p{path}"), MERGE, body.to_string()).await;
        assert_eq!(answer.code, code, "{path} {body}: {}", answer.text());
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn pods_that_break_a_rule_are_refused_with_the_field() {
    let (cluster, client) = start_for_pods().await;
    for (key, value, code, says) in [
        ("priority", json!(5), 403, "the integer value of priority (5) must not be provided"),
        ("preemptionPolicy", json!("Never"), 403, "the string value of PreemptionPolicy (Never)"),
        ("runtimeClassName", json!("zz"), 403, "RuntimeClass \\\"zz\\\" not found"),
        ("ephemeralContainers", json!([{"name": "e", "image": "x"}]), 422, "cannot be set on create"),
        ("nodeName", json!("Bad_"), 422, "spec.nodeName: Invalid value"),
        (
            "topologySpreadConstraints",
            json!([{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "x"}]),
            422,
            "maxSkew",
        ),
        ("hostAliases", json!([{"ip": "x"}]), 422, "spec.hostAliases[0].ip"),
        ("dnsPolicy", json!("None"), 422, "spec.dnsConfig: Required value"),
        ("os", json!({"name": "bsd"}), 422, "spec.os: Unsupported value"),
        ("readinessGates", json!([{"conditionType": "a b"}]), 422, "spec.readinessGates[0].conditionType"),
    ] {
        let mut pod = pod("p");
        pod["spec"][key] = value;
        let answer = client.post(&format!("{PODS}?dryRun=All"), &pod).await;
        assert!(answer.code == code && answer.text().contains(says), "{key}: {} {}", answer.code, answer.text());
    }
    for (resources, says) in [
        (json!({"requests": {"cpu": "-1"}}), "resources.requests[cpu]"),
        (json!({"requests": {"example.com/x": "1"}}), "Limit must be set for non overcommitable resources"),
        (json!({"limits": {"example.com/x": "1.5"}}), "must be an integer"),
        (json!({"requests": {"foo": "1"}}), "must be a standard resource type or fully qualified"),
    ] {
        let mut pod = pod("p");
        pod["spec"]["containers"][0]["resources"] = resources.clone();
        let answer = client.post(&format!("{PODS}?dryRun=All"), &pod).await;
        assert!(answer.code == 422 && answer.text().contains(says), "{resources}: {}", answer.text());
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn applying_tells_owners_and_types_as_kubernetes_does() {
    let (cluster, client) = start_for_pods().await;
    let apply = |manager: &str, body: Value| {
        let path = format!("{MAPS}/s?fieldManager={manager}");
        let client = client.clone();
        async move { client.patch(&path, "application/apply-patch+yaml", body.to_string()).await }
    };
    let with = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "s"}, "data": data});
    apply("one", with(json!({"a": "1", "b": "1"}))).await;
    apply("two", with(json!({"a": "1"}))).await;
    let refused = apply("three", with(json!({"a": "3", "b": "4"}))).await;
    let want = "Apply failed with 3 conflicts: conflicts with \"one\":\n- .data.a\n- .data.b\nconflicts with \"two\":\n- .data.a";
    assert_eq!(refused.message(), want);
    let mut unknown = with(json!({}));
    unknown["dta"] = json!({});
    let refused = apply("one", unknown).await;
    assert_eq!(refused.code, 500);
    let want = "failed to create typed patch object (/s; /v1, Kind=ConfigMap): .dta: field not declared in schema";
    assert_eq!(refused.message(), want);
    // What nobody is known to own is guarded all the same.
    client.patch(&format!("{MAPS}/s"), MERGE, r#"{"metadata":{"managedFields":[{}]}}"#).await;
    let refused = apply("one", with(json!({"a": "5"}))).await;
    assert_eq!(
        refused.message(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.a"
    );
    cluster.shutdown().await;
}
