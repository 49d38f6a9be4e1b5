//! A VirtualNodeSet keeps as many nodes as it says.

use serde_json::Value;

use crate::support::{Bed, condition, eventually, has_condition, pod};

fn set(name: &str, replicas: u32, more: &str, spec: &str) -> String {
    format!(
        "apiVersion: vnode.dev/v1alpha1\nkind: VirtualNodeSet\nmetadata: {{name: {name}}}\nspec:\n  \
         replicas: {replicas}\n{more}  template:\n    metadata: {{labels: {{fleet: {name}}}}}\n    spec:\n      \
         provider: {{type: mock, mock: {{}}}}\n{spec}"
    )
}

fn nodes(bed: &Bed, set: &str) -> Vec<String> {
    let names = bed.kubectl(&format!("get vn -l vnode.dev/set={set} -o jsonpath={{.items[*].metadata.name}}"));
    names.split_whitespace().map(str::to_owned).collect()
}

fn complete(bed: &Bed, set: &str, replicas: u64) -> Value {
    eventually(&format!("{set} has {replicas}"), || {
        let found = bed.get(&format!("vns/{set}"))?;
        let status = &found["status"];
        let all = ["replicas", "readyReplicas", "updatedReplicas", "availableReplicas"];
        let same = all.iter().all(|n| status[*n] == replicas)
            && status["observedGeneration"] == found["metadata"]["generation"];
        same.then_some(found)
    })
}

#[test]
fn a_set_is_scaled_edited_and_deleted_with_its_nodes() {
    let bed = Bed::new();
    let name = bed.name("set");
    bed.apply(&set(&name, 3, "", "      capacity: {cpu: 2}\n"));
    let found = complete(&bed, &name, 3);
    assert!(has_condition(&found, "Ready", "True", "Complete"), "{found:#}");
    assert_eq!(nodes(&bed, &name), [0, 1, 2].map(|n| format!("{name}-{n}")));
    let columns = bed.kubectl(&format!("get vns {name}"));
    for column in ["DESIRED", "CURRENT", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"] {
        assert!(columns.contains(column), "{column} is not in:\n{columns}");
    }
    bed.wait(&format!("vns/{name}"), "condition=Ready");

    // The cordoned one goes first, and its number is free again.
    bed.kubectl(&format!("cordon {name}-0"));
    eventually("the cordon is known", || {
        bed.kubectl(&format!("get node {name}-0 -o jsonpath={{.spec.unschedulable}}")).contains("true").then_some(())
    });
    bed.kubectl(&format!("scale vns {name} --replicas=2"));
    complete(&bed, &name, 2);
    eventually("the node is gone", || bed.get(&format!("node/{name}-0")).is_none().then_some(()));
    assert_eq!(nodes(&bed, &name), [1, 2].map(|n| format!("{name}-{n}")));
    bed.kubectl(&format!("scale vns {name} --replicas=3"));
    complete(&bed, &name, 3);
    assert_eq!(nodes(&bed, &name), [0, 1, 2].map(|n| format!("{name}-{n}")));

    // A change of the template reaches live nodes, pods untouched.
    bed.apply(&pod("on-it", &format!("{name}-1"), ""));
    bed.wait_phase("on-it", "Running");
    let uid = bed.kubectl(&format!("get node {name}-1 -o jsonpath={{.metadata.uid}}"));
    bed.apply(&set(&name, 3, "", "      capacity: {cpu: 6}\n"));
    complete(&bed, &name, 3);
    for n in 0..3 {
        eventually("the node follows", || {
            (bed.get(&format!("node/{name}-{n}"))?["status"]["capacity"]["cpu"] == "6").then_some(())
        });
    }
    assert_eq!(bed.kubectl(&format!("get node {name}-1 -o jsonpath={{.metadata.uid}}")), uid, "changed in place");
    assert_eq!(bed.get("pod/on-it").expect("it")["status"]["containerStatuses"][0]["restartCount"], 0);

    bed.kubectl(&format!("delete vns {name} --timeout=60s"));
    eventually("its nodes are gone", || nodes(&bed, &name).is_empty().then_some(()));
}

#[test]
fn a_set_takes_orphans_in_and_says_what_is_wrong_with_it() {
    let bed = Bed::new();
    let name = bed.name("adopt");
    let template = "  selector: {matchLabels: {kept: together}}\n";
    let said = bed.apply(&set(&name, 1, template, ""));
    assert!(said.contains("created"));
    let wrong = eventually("it says so", || {
        let found = bed.get(&format!("vns/{name}"))?;
        has_condition(&found, "Accepted", "False", "SelectorInvalid").then_some(found)
    });
    assert!(
        condition(&wrong, "Accepted").expect("it")["message"]
            .as_str()
            .is_some_and(|m| m.contains("template.metadata.labels"))
    );
    let said = bed.try_apply(&set(&name, 1, "", "")).expect_err("the selector cannot change");
    assert!(said.contains("selector cannot change"), "{said}");
    bed.kubectl(&format!("delete vns {name}"));

    let name = bed.name("orphans");
    bed.apply(&set(&name, 2, "", ""));
    complete(&bed, &name, 2);
    bed.kubectl(&format!("delete vns {name} --cascade=orphan"));
    assert_eq!(nodes(&bed, &name).len(), 2);
    bed.apply(&set(&name, 2, "", ""));
    complete(&bed, &name, 2);
    let owners = bed
        .kubectl(&format!("get vn -l vnode.dev/set={name} -o jsonpath={{.items[*].metadata.ownerReferences[*].uid}}"));
    let uid = bed.kubectl(&format!("get vns {name} -o jsonpath={{.metadata.uid}}"));
    assert_eq!(owners.split_whitespace().collect::<Vec<_>>(), [&*uid, &*uid]);
    let said = bed.try_apply(&set(&bed.name("ported"), 2, "", "      kubelet: {port: 30000}\n")).expect_err("one port");
    assert!(said.contains("kubelet.port"), "{said}");
}

#[test]
fn a_drain_says_which_budget_holds_it_up_and_ends() {
    let bed = Bed::new();
    let name = bed.name("drained");
    bed.ready_node(&name, "");
    bed.apply(&pod("guarded", &name, ""));
    bed.kubectl("label pod guarded app=guarded");
    bed.apply(
        "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: guard}\nspec:\n  minAvailable: 1\n  \
         selector: {matchLabels: {app: guarded}}\n",
    );
    bed.wait_phase("guarded", "Running");
    let patch = |patch: &str| {
        let out = bed.command().args(["patch", "vn", &name, "--type=merge", "-p", patch]).output().expect("kubectl");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    patch(r#"{"spec":{"drain":{"requested":true}}}"#);
    let vn = eventually("it is held up", || {
        let vn = bed.get(&format!("vn/{name}"))?;
        has_condition(&vn, "Drained", "False", "HeldUp").then_some(vn)
    });
    let message = condition(&vn, "Drained").expect("it")["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("guarded") && message.contains("budget guard"), "{message}");
    assert_eq!(bed.get(&format!("node/{name}")).expect("it")["spec"]["unschedulable"], true);

    bed.kubectl("delete pdb guard");
    bed.wait(&format!("vn/{name}"), "condition=Drained");
    assert!(bed.get("pod/guarded").is_none(), "it was evicted");
    bed.wait(&format!("vn/{name}"), "condition=Ready");

    patch(r#"{"spec":{"drain":null}}"#);
    eventually("the node takes pods again", || {
        bed.get(&format!("node/{name}"))?["spec"]["unschedulable"].is_null().then_some(())
    });
    eventually("the condition is gone", || {
        condition(&bed.get(&format!("vn/{name}"))?, "Drained").is_none().then_some(())
    });

    // A paused node is left as it is.
    patch(r#"{"spec":{"paused":true,"labels":{"new":"yes"}}}"#);
    bed.wait(&format!("vn/{name}"), "condition=Paused");
    bed.apply(&pod("waits", &name, ""));
    bed.wait("pod/waits", "condition=PodScheduled");
    let lease = || bed.kubectl(&format!("get lease {name} -n kube-node-lease -o jsonpath={{.spec.renewTime}}"));
    let before = lease();
    eventually("the heartbeat goes on", || (lease() != before).then_some(()));
    assert_eq!(bed.get("pod/waits").expect("it")["status"]["phase"], "Pending");
    assert!(bed.get(&format!("node/{name}")).expect("it")["metadata"]["labels"]["new"].is_null());
    patch(r#"{"spec":{"paused":false}}"#);
    bed.wait_phase("waits", "Running");
    assert_eq!(bed.get(&format!("node/{name}")).expect("it")["metadata"]["labels"]["new"], "yes");
}
