//! From a scenario to manifests for one provider: names, images, scripts, and the node where pods go.

use serde_json::{Map, Value, json};

use super::Stage;
use super::table::Scenario;

/// What is put in place of `%words%`.
pub struct Words(Vec<(&'static str, String)>);

impl Words {
    /// For scenario number `n` in namespace `ns`.
    pub fn new(stage: &Stage, node: &str, ns: &str, n: usize) -> Self {
        // Processes share the machine's ports.
        let port = 18_100 + u16::try_from(n).unwrap_or(0);
        Self(vec![
            ("%root%", "$VNODE_CONTAINER_ROOT".into()),
            ("%image%", stage.image.into()),
            ("%missing%", stage.missing_image.unwrap_or("none").into()),
            ("%port%", port.to_string()),
            ("%serve%", (stage.serve)(port)),
            ("%fetch%", (stage.fetch)(port)),
            ("%imageid%", stage.image_id.into()),
            ("%node%", node.into()),
            ("%ns%", ns.into()),
        ])
    }

    /// The text with everything put in place.
    pub fn fill(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (word, with)| text.replace(word, with))
    }

    /// The same in all strings of a value. A string that is a port alone becomes a number.
    pub fn fill_all(&self, value: &mut Value) {
        match value {
            Value::String(text) if text == "%port%" => *value = json!(self.fill(text).parse::<u16>().unwrap_or(0)),
            Value::String(text) => *text = self.fill(text),
            Value::Array(all) => all.iter_mut().for_each(|v| self.fill_all(v)),
            Value::Object(map) => map.values_mut().for_each(|v| self.fill_all(v)),
            _ => {}
        }
    }
}

/// The scenario's pod as a manifest, if it has one.
pub fn pod(scenario: &Scenario) -> Option<Value> {
    let mut metadata: Map<String, Value> = scenario.metadata.clone().into_iter().collect();
    metadata.insert("name".into(), json!("pod"));
    Some(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": scenario.pod.clone()?}))
}

/// Completes a manifest: its pods go to the node, and have images and commands.
pub fn adapt(mut object: Value, scenario: &Scenario, stage: &Stage, words: &Words, node: &str) -> Value {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let template = match kind.as_str() {
        "Pod" => Some(&mut object),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" => Some(&mut object["spec"]["template"]),
        _ => None,
    };
    if let Some(template) = template {
        for (name, value) in &scenario.mock {
            template["metadata"]["annotations"][format!("mock.vnode.dev/{name}")] = json!(value);
        }
        let spec = &mut template["spec"];
        if spec["nodeName"].is_null() {
            spec["nodeSelector"]["kubernetes.io/hostname"] = json!(node);
        }
        if spec["tolerations"].is_null() {
            spec["tolerations"] = json!([{"operator": "Exists"}]);
        }
        if spec["terminationGracePeriodSeconds"].is_null() {
            spec["terminationGracePeriodSeconds"] = json!(1);
        }
        for list in ["initContainers", "containers", "ephemeralContainers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                complete(container, stage);
            }
            if spec[list].is_null() {
                spec.as_object_mut().map(|s| s.remove(list));
            }
        }
    }
    words.fill_all(&mut object);
    object
}

fn complete(container: &mut Value, stage: &Stage) {
    let Some(c) = container.as_object_mut() else { return };
    c.entry("image").or_insert_with(|| json!(stage.image));
    if let Some(script) = c.remove("sh") {
        c.insert("command".into(), json!(["sh", "-c", script]));
    } else if !c.contains_key("command") && !c.contains_key("args") {
        c.insert("command".into(), json!(["sleep", "1000"]));
    }
}
