//! The life of a small fleet: what its user does, and how everything must be in the end.

use std::path::PathBuf;

use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::seen;
use super::stage::{Stage, until};
use crate::scenarios::supervisors;
use crate::support::{condition, objects};

/// What processes write into the file of their life: so many of each, once.
const STARTS: [&str; 6] = ["job main", "keep ended", "keep first", "keep main", "stop ended", "stop main"];
/// How many pods of each name run.
const RAN: [(&str, usize); 5] = [("job", 1), ("keep", 1), ("still", 1), ("stop", 1), ("web-0", 2)];
const NODE_LEASES: &str = "kube-node-lease";

/// A fleet: a node of processes, a set of two simulated ones, and their pods in a namespace.
pub struct Life<'a> {
    stage: &'a Stage,
    namespace: String,
    /// The node of processes.
    local: String,
    set: String,
    starts: PathBuf,
}

type Done<T = ()> = Result<T, String>;

impl<'a> Life<'a> {
    pub fn new(stage: &'a Stage, name: &str) -> Self {
        Self {
            stage,
            namespace: format!("life-{name}"),
            local: format!("proc-{name}"),
            set: format!("set-{name}"),
            starts: stage.file(&format!("starts-{name}")),
        }
    }

    fn nodes(&self) -> Vec<String> {
        vec![self.local.clone(), format!("{}-0", self.set), format!("{}-1", self.set)]
    }

    /// From the first node to the last.
    pub async fn live(&self) -> Done {
        let [_, first, second] = self.nodes().try_into().expect("three");
        self.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})).await?;
        self.create(json!({
            "apiVersion": "vnode.dev/v1alpha1", "kind": "VirtualNode", "metadata": {"name": self.local},
            "spec": {"provider": {"type": "process", "process": {"allowRoot": true, "podIP": "127.0.0.1"}},
                "labels": {"stage": "young"}},
        }))
        .await?;
        self.create(json!({
            "apiVersion": "vnode.dev/v1alpha1", "kind": "VirtualNodeSet", "metadata": {"name": self.set},
            "spec": {"replicas": 2, "template": {"spec": {"provider": {"type": "mock", "mock": {}},
                "labels": {"fleet": self.set}}}},
        }))
        .await?;
        for node in self.nodes() {
            self.wait("Node", &node, "is Ready", |node| is(node, "Ready")).await?;
            self.wait("VirtualNode", &node, "is Ready", |node| is(node, "Ready")).await?;
        }

        for pod in self.pods(&first) {
            self.create(pod).await?;
        }
        for name in ["keep", "stop", "still", "web-0"] {
            self.wait("Pod", name, "is Ready", |pod| is(pod, "Ready")).await?;
        }
        self.wait("Pod", "job", "succeeds", |pod| pod["status"]["phase"] == "Succeeded").await?;

        let spec = json!({"labels": {"stage": "old"}, "capacity": {"pods": "50"},
            "taints": [{"key": "edited", "value": "yes", "effect": "PreferNoSchedule"}]});
        self.patch("VirtualNode", &self.local, json!({"spec": spec})).await?;
        let edited = |node: &Value| {
            let mut taints = node["spec"]["taints"].as_array().into_iter().flatten();
            node["metadata"]["labels"]["stage"] == "old"
                && node["status"]["capacity"]["pods"] == "50"
                && taints.any(|taint| taint["key"] == "edited")
        };
        self.wait("Node", &self.local, "follows its VirtualNode", edited).await?;

        self.delete("Pod", "stop").await?;
        self.gone("Pod", "stop").await?;

        self.stage.restart().await?;

        let moved = self.get("Pod", "web-0").await?.map(|pod| pod["metadata"]["uid"].clone());
        self.patch("VirtualNode", &second, json!({"spec": {"drain": {"requested": true}}})).await?;
        self.wait("VirtualNode", &second, "is drained", |node| is(node, "Drained")).await?;
        let again = |pod: &Value| Some(&pod["metadata"]["uid"]) != moved.as_ref() && is(pod, "Ready");
        self.wait("Pod", "web-0", "runs elsewhere", again).await?;

        self.patch("VirtualNodeSet", &self.set, json!({"spec": {"replicas": 1}})).await?;
        self.gone("VirtualNode", &second).await?;
        self.wait("VirtualNodeSet", &self.set, "is smaller", |set| set["status"]["readyReplicas"] == 1).await?;
        self.delete("VirtualNodeSet", &self.set).await?;
        self.delete("VirtualNode", &self.local).await?;
        self.gone("VirtualNodeSet", &self.set).await?;
        for node in self.nodes() {
            self.gone("VirtualNode", &node).await?;
        }
        Ok(())
    }

    fn pods(&self, first: &str) -> Vec<Value> {
        let says = |text: &str| format!("echo '{text}' >> {}", self.starts.display());
        let pod = |name: &str, node: &str, more: Value| {
            let mut spec = json!({
                "nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 20,
                "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
            });
            spec.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
        };
        let process =
            |name: &str, script: &str| json!({"name": name, "image": "host", "command": ["sh", "-c", script]});
        // Until it is told to end, and has its time for that.
        let lasts = |name: &str| {
            let [main, ended] = ["main", "ended"].map(|what| says(&format!("{name} {what}")));
            let script = format!(
                "trap \"{ended}; exit 0\" TERM; {main}; i=0; while [ $i -lt 3000 ]; do sleep 0.2; i=$((i+1)); done"
            );
            json!([process("main", &script)])
        };
        let keep = json!({"initContainers": [process("first", &says("keep first"))], "containers": lasts("keep")});
        let job = json!({"restartPolicy": "Never", "containers": [process("main", &says("job main"))]});
        let simulated = json!([{"name": "main", "image": "example/app:1"}]);
        // The second node while there is one.
        let rather = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100,
            "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn",
                "values": [first]}]}}]}});
        let template = json!({
            "metadata": {"labels": {"app": "web"}},
            "spec": {"nodeSelector": {"fleet": self.set}, "affinity": rather, "containers": simulated,
                "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}]},
        });
        vec![
            pod("keep", &self.local, keep),
            pod("job", &self.local, job),
            pod("stop", &self.local, json!({"containers": lasts("stop")})),
            pod("still", first, json!({"containers": simulated})),
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"},
                "spec": {"serviceName": "web", "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
                    "template": template}}),
        ]
    }

    /// How everything must be in the end. Where a blind scheduler put the pod of the StatefulSet is not ours to say.
    pub async fn check(&self, blind: bool) -> Done {
        self.delete("Namespace", &self.namespace).await?;
        self.gone("Namespace", &self.namespace).await?;
        for node in self.nodes() {
            self.gone("Node", &node).await?;
            self.gone("Lease", &node).await?;
        }
        let state = self.stage.state.join(&self.local);
        until("nothing is left at the provider", async || {
            let (processes, folders) = (supervisors(&state.display().to_string()), left(&state.join("pods")));
            let nothing = processes.is_empty() && folders.is_empty();
            if nothing { Ok(()) } else { Err(format!("{processes:?} {folders:?}")) }
        })
        .await?;
        let starts = std::fs::read_to_string(&self.starts).unwrap_or_default();
        let mut starts: Vec<_> = starts.lines().collect();
        starts.sort_unstable();
        if starts != STARTS {
            return Err(format!("processes were started and stopped as {starts:?}"));
        }
        let ran: Vec<_> = RAN.into_iter().filter(|(name, _)| !blind || *name != "web-0").collect();
        // The watches may be a little behind.
        until("what was seen is as it should be", async || {
            let mut complaints = seen::complaints_of_pods(&self.stage.pods.borrow(), &self.namespace, &ran);
            complaints.extend(seen::complaints_of_nodes(&self.stage.nodes.borrow(), &self.nodes()));
            if complaints.is_empty() { Ok(()) } else { Err(complaints.join("; ")) }
        })
        .await
    }

    /// Takes away what it can of a life that failed.
    pub async fn clear(&self) {
        let _ = self.delete("VirtualNodeSet", &self.set).await;
        let _ = self.delete("VirtualNode", &self.local).await;
        let _ = self.delete("Namespace", &self.namespace).await;
    }

    fn api(&self, kind: &str) -> kube::Api<kube::api::DynamicObject> {
        let namespace = match kind {
            "Pod" | "StatefulSet" => self.namespace.as_str(),
            "Lease" => NODE_LEASES,
            _ => "",
        };
        self.stage.api(kind, namespace)
    }

    async fn create(&self, object: Value) -> Done {
        let what = format!("{} {}", object["kind"], object["metadata"]["name"]);
        let api = self.api(object["kind"].as_str().unwrap_or_default());
        let object = serde_json::from_value(object).map_err(|error| error.to_string())?;
        let created = until(&what, async || objects::create(&api, &object).await).await?;
        created.map_err(|error| format!("{what}: {error}"))
    }

    async fn get(&self, kind: &str, name: &str) -> Done<Option<Value>> {
        let found = self.api(kind).get_opt(name).await.map_err(|error| format!("{kind} {name}: {error}"))?;
        Ok(found.map(|object| serde_json::to_value(object).expect("an object is JSON")))
    }

    async fn patch(&self, kind: &str, name: &str, with: Value) -> Done {
        let patched = self.api(kind).patch(name, &PatchParams::default(), &Patch::Merge(with)).await;
        patched.map(drop).map_err(|error| format!("{kind} {name}: {error}"))
    }

    async fn delete(&self, kind: &str, name: &str) -> Done {
        let deleted = self.api(kind).delete(name, &DeleteParams::background()).await;
        deleted.map(drop).map_err(|error| format!("{kind} {name}: {error}"))
    }

    async fn wait(&self, kind: &str, name: &str, what: &str, so: impl Fn(&Value) -> bool) -> Done {
        until(&format!("{kind} {name} {what}"), async || match self.get(kind, name).await? {
            Some(object) if so(&object) => Ok(()),
            Some(object) => Err(object["status"].to_string()),
            None => Err("there is none".into()),
        })
        .await
    }

    async fn gone(&self, kind: &str, name: &str) -> Done {
        until(&format!("{kind} {name} is gone"), async || match self.get(kind, name).await? {
            None => Ok(()),
            Some(object) => Err(object.to_string()),
        })
        .await
    }
}

fn is(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|condition| condition["status"] == "True")
}

/// What is in a folder.
fn left(folder: &std::path::Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
