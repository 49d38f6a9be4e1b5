//! Tables for [`admit`](super::admit).

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    let mut whole = json!({"nodeName": "n1", "containers": [{"name": "c"}]});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": whole})).unwrap()
}

fn facts() -> NodeFacts {
    let amounts = [("cpu", "2"), ("memory", "1Gi"), ("pods", "3"), ("example.com/gpu", "1")];
    NodeFacts {
        provider: "mock".into(),
        allocatable: amounts.map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into(),
        labels: [("kubernetes.io/os", "linux"), ("zone", "a"), ("size", "7")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        taints: vec![
            Taint { key: "soft".into(), effect: "NoSchedule".into(), ..Taint::default() },
            Taint { key: "hard".into(), value: Some("v".into()), effect: "NoExecute".into(), time_added: None },
        ],
        operating_system: "linux".into(),
        ..NodeFacts::default()
    }
}

fn wants(resources: Value) -> Value {
    json!({"tolerations": [{"operator": "Exists"}], "containers": [{"name": "c", "resources": resources}]})
}

fn tolerant(mut spec: Value) -> Value {
    spec["tolerations"] = json!([{"key": "hard", "operator": "Equal", "value": "v"}]);
    spec
}

#[test]
fn each_reason_has_kubelets_name_and_words() {
    let affinity = |expression: Value| {
        tolerant(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}}}))
    };
    let cases = [
        (tolerant(json!({})), None),
        (wants(json!({"requests": {"cpu": "1500m", "memory": "512Mi"}})), None),
        (
            wants(json!({"requests": {"cpu": "1501m"}})),
            Some(("OutOfcpu", "Node didn't have enough resource: cpu, requested: 1501, used: 500, capacity: 2000")),
        ),
        (
            wants(json!({"limits": {"memory": "2Gi"}})),
            Some((
                "OutOfmemory",
                "Node didn't have enough resource: memory, requested: 2147483648, used: 0, capacity: 1073741824",
            )),
        ),
        (
            wants(json!({"requests": {"example.com/gpu": "2"}})),
            Some((
                "OutOfexample.com/gpu",
                "Node didn't have enough resource: example.com/gpu, requested: 2, used: 0, capacity: 1",
            )),
        ),
        (wants(json!({"requests": {"example.com/unknown": "2"}})), None),
        (
            tolerant(json!({"os": {"name": "windows"}})),
            Some(("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS")),
        ),
        (
            tolerant(json!({"nodeSelector": {"kubernetes.io/os": "windows"}})),
            Some((
                "PodOSSelectorNodeLabelDoesNotMatch",
                "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
            )),
        ),
        (
            tolerant(json!({"nodeSelector": {"zone": "b"}})),
            Some(("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector")),
        ),
        (affinity(json!({"key": "zone", "operator": "In", "values": ["a", "b"]})), None),
        (affinity(json!({"key": "zone", "operator": "NotIn", "values": ["a"]})), Some(("NodeAffinity", ""))),
        (affinity(json!({"key": "zone", "operator": "DoesNotExist"})), Some(("NodeAffinity", ""))),
        (affinity(json!({"key": "size", "operator": "Gt", "values": ["6"]})), None),
        (affinity(json!({"key": "size", "operator": "Lt", "values": ["7"]})), Some(("NodeAffinity", ""))),
        (
            json!({}),
            Some((
                "TaintToleration",
                "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
            )),
        ),
        (
            json!({"tolerations": [{"key": "hard", "operator": "Exists", "effect": "NoSchedule"}]}),
            Some(("TaintToleration", "")),
        ),
        (
            tolerant(json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}]}]})),
            Some((
                "NodePorts",
                "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
            )),
        ),
        (
            tolerant(
                json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80, "protocol": "UDP"}]}]}),
            ),
            None,
        ),
    ];
    let used =
        Requests { amounts: [("cpu".to_owned(), 500)].into(), ports: vec![("192.0.2.1".into(), "TCP".into(), 80)] };
    for (spec, want) in cases {
        let pod = pod(spec.clone());
        let got = admit(&pod, &requests(&pod), &facts(), &used, 2);
        match (got, want) {
            (Ok(()), None) => {}
            (Err(got), Some((reason, message))) => {
                assert_eq!(got.reason, reason, "{spec}");
                assert!(message.is_empty() || got.message == message, "{}", got.message);
            }
            (got, want) => panic!("{spec}: {got:?}, not {want:?}"),
        }
    }
}

#[test]
fn a_full_node_takes_no_pod_and_an_unknown_one_any() {
    let pod = pod(tolerant(json!({})));
    let got = admit(&pod, &requests(&pod), &facts(), &Requests::default(), 3).unwrap_err();
    assert_eq!(got.reason, "OutOfpods");
    assert_eq!(got.message, "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3");
    assert_eq!(admit(&pod, &requests(&pod), &NodeFacts::default(), &Requests::default(), 1 << 20), Ok(()));
}

#[test]
fn init_containers_run_alone_and_sidecars_beside_everything() {
    let cpu = |n: &str| json!({"requests": {"cpu": n}});
    let of = |init: Value| {
        let spec = json!({
            "initContainers": init,
            "containers": [{"name": "a", "resources": cpu("1")}, {"name": "b", "resources": cpu("500m")}],
            "overhead": {"cpu": "10m"},
        });
        requests(&pod(spec)).amounts["cpu"]
    };
    let side = |n: &str| json!({"name": "s", "restartPolicy": "Always", "resources": cpu(n)});
    assert_eq!(of(json!([])), 1510);
    assert_eq!(of(json!([{"name": "i", "resources": cpu("1")}])), 1510);
    assert_eq!(of(json!([{"name": "i", "resources": cpu("3")}])), 3010);
    assert_eq!(of(json!([side("1"), {"name": "i", "resources": cpu("1")}])), 2510);
    assert_eq!(of(json!([side("1"), {"name": "i", "resources": cpu("2")}])), 3010);
    assert_eq!(of(json!([{"name": "i", "resources": cpu("2")}, side("1")])), 2510);
}

#[test]
fn mirror_and_daemon_pods_are_recognised() {
    let mut pod = pod(json!({}));
    assert!(!is_static(&pod) && !is_of_daemon_set(&pod));
    pod.metadata.annotations = Some([("kubernetes.io/config.mirror".to_owned(), "x".to_owned())].into());
    assert!(is_static(&pod));
    pod.metadata.owner_references = Some(
        serde_json::from_value(json!([
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": true}
        ]))
        .unwrap(),
    );
    assert!(is_of_daemon_set(&pod));
}
