//! Tables for what a pod asks for, and the drift test of the documentation.

use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
}

fn found(spec: Value, have: PodFeatures) -> Vec<(String, &'static str, bool)> {
    lacking(&pod(spec), have).into_iter().map(|l| (l.path, l.feature.word(), l.essential)).collect()
}

#[test]
fn each_field_is_named_with_its_path() {
    let c = |more: Value| {
        let mut c = json!({"name": "c"});
        c.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"restartPolicy": "Never", "containers": [c]})
    };
    let cases = [
        (c(json!({})), vec![]),
        (
            c(json!({"livenessProbe": {"exec": {}}})),
            vec![("spec.containers[0].livenessProbe", "livenessProbes", false)],
        ),
        (
            c(json!({"lifecycle": {"preStop": {"sleep": {"seconds": 1}}}})),
            vec![("spec.containers[0].lifecycle.preStop", "preStop", false)],
        ),
        (
            c(json!({"securityContext": {"privileged": true, "runAsUser": 5}})),
            vec![
                ("spec.containers[0].securityContext.runAsUser", "runAsUser", false),
                ("spec.containers[0].securityContext.privileged", "privileged", false),
            ],
        ),
        (
            c(json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "x"}]})),
            vec![("spec.containers[0].volumeMounts[0].subPath", "subPath", true)],
        ),
        (
            json!({"restartPolicy": "Never", "hostNetwork": true, "containers": [{"name": "c"}]}),
            vec![("spec.hostNetwork", "hostNetwork", false)],
        ),
        (
            json!({"restartPolicy": "Never", "containers": [{"name": "c"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]}),
            vec![
                ("spec.initContainers[0]", "initContainers", true),
                ("spec.initContainers[1].restartPolicy", "sidecars", true),
            ],
        ),
        (
            json!({"restartPolicy": "Never", "containers": [{"name": "c"}], "volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "x"}}, {"name": "b"}, {"name": "r", "rbd": {"monitors": [], "image": "i"}}]}),
            vec![
                ("spec.volumes[0].persistentVolumeClaim", "persistentVolumeClaims", true),
                ("spec.volumes[1].emptyDir", "emptyDir", true),
                ("spec.volumes[2].rbd", "otherVolumes", true),
            ],
        ),
    ];
    for (spec, want) in cases {
        let got = found(spec.clone(), PodFeatures::NONE);
        let want: Vec<_> = want.into_iter().map(|(p, w, e): (&str, &'static str, bool)| (p.to_owned(), w, e)).collect();
        assert_eq!(got, want, "{spec}");
        assert!(found(spec, PodFeatures::ALL).is_empty());
    }
}

#[test]
fn a_probe_needs_its_kind_as_well() {
    let spec =
        json!({"restartPolicy": "Never", "containers": [{"name": "c", "readinessProbe": {"grpc": {"port": 1}}}]});
    let have = PodFeatures::of(&[PodFeature::ReadinessProbes, PodFeature::HttpProbes]);
    assert_eq!(found(spec, have), [("spec.containers[0].readinessProbe.grpc".to_owned(), "grpcProbes", false)]);
}

#[test]
fn the_token_that_every_pod_gets_is_nobodys_wish() {
    let token = json!({"sources": [{"serviceAccountToken": {"path": "token"}}]});
    let spec = |name: &str, path: &str| {
        json!({"restartPolicy": "Never", "volumes": [{"name": name, "projected": token}],
            "containers": [{"name": "c", "volumeMounts": [{"name": name, "mountPath": path}]}]})
    };
    let automatic = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert!(found(spec("kube-api-access-x1", automatic), PodFeatures::NONE).is_empty());
    assert_eq!(found(spec("mine", automatic), PodFeatures::NONE).len(), 2);
    assert_eq!(found(spec("kube-api-access-x1", "/elsewhere"), PodFeatures::NONE).len(), 2);
}

#[test]
fn what_is_said_names_provider_and_field() {
    let all = lacking(&pod(json!({"restartPolicy": "Never", "hostPID": true, "containers": []})), PodFeatures::NONE);
    assert_eq!(
        sentence("acme", &all, false),
        "provider acme does not support spec.hostPID (hostPID); they have no effect"
    );
    let many: Vec<_> = (0..20).map(|_| all[0].clone()).collect();
    assert!(sentence("acme", &many, true).ends_with("and 12 more; the pod is refused"));
}

#[test]
fn a_status_has_few_words() {
    let all = Capabilities { logs: true, pod: PodFeatures::ALL, ..Capabilities::default() };
    assert!(words(&all).len() < 10, "{:?}", words(&all));
    let some = Capabilities { pod: PodFeatures::of(&[PodFeature::HostPath]), ..Capabilities::default() };
    assert_eq!(words(&some), ["hostPath"]);
}

#[test]
fn pod_support_documentation_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pod-support.md");
    let wanted = documentation(&crate::provider::registry::Registry::default().capabilities());
    if std::env::var_os("VNODE_UPDATE_DOCS").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == wanted, "docs/pod-support.md is out of date: run VNODE_UPDATE_DOCS=1 cargo test pod_support");
}
