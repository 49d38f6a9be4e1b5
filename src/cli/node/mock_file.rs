//! Pure: the file of Virtual Kubelet's mock provider, `{"<nodename>": {"cpu": "2", "memory": "32Gi", "pods": "128"}}`.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use crate::pod::quantity;

/// What a node has where the file does not say.
const DEFAULTS: [(&str, &str); 3] = [("cpu", "20"), ("memory", "100Gi"), ("pods", "20")];

/// What the file says of a node.
#[derive(Debug, Default, PartialEq)]
pub(super) struct MockFile {
    pub capacity: BTreeMap<String, Quantity>,
    pub provider_id: Option<String>,
}

/// What the file says of this node; `None` when it is a file of another form. No file is one that says nothing.
pub(super) fn read(file: Option<&Value>, node: &str) -> Result<Option<MockFile>> {
    let nodes = match file {
        None => return Ok(Some(capacity(BTreeMap::new()))),
        Some(Value::Object(map)) if is_of_nodes(map) => map,
        Some(_) => return Ok(None),
    };
    let Some(entry) = nodes.get(node) else { return Ok(Some(capacity(BTreeMap::new()))) };
    let mut amounts = BTreeMap::new();
    let mut provider_id = None;
    for (field, value) in entry.as_object().into_iter().flatten() {
        match (field.as_str(), value) {
            ("cpu" | "memory" | "pods", value) => drop(amounts.insert(field.clone(), amount(&[node, field], value)?)),
            ("providerID", Value::String(id)) => provider_id = Some(id.clone()),
            ("others", Value::Object(others)) => {
                for (name, value) in others {
                    amounts.insert(name.clone(), amount(&[node, "others", name], value)?);
                }
            }
            _ => bail!("{node}.{field}: there is no such field; there are: cpu, memory, pods, others, providerID"),
        }
    }
    Ok(Some(MockFile { provider_id, ..capacity(amounts) }))
}

/// Every entry is that of a node: a map of amounts. The simulator's own configuration has plain values.
fn is_of_nodes(map: &serde_json::Map<String, Value>) -> bool {
    map.iter().all(|(name, value)| value.is_object() && name != "capacity" && name != "mock")
}

fn capacity(amounts: BTreeMap<String, Quantity>) -> MockFile {
    let mut capacity: BTreeMap<_, _> =
        DEFAULTS.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect();
    capacity.extend(amounts);
    MockFile { capacity, provider_id: None }
}

fn amount(path: &[&str], value: &Value) -> Result<Quantity> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    match quantity::nano(&text) {
        Some(amount) if amount >= 0 => Ok(Quantity(text)),
        _ => bail!("{}: {value} is not a quantity such as 4, 500m or 16Gi", path.join(".")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn amounts(file: &Value, node: &str) -> Vec<(String, String)> {
        let found = read(Some(file), node).unwrap().unwrap();
        found.capacity.into_iter().map(|(k, v)| (k, v.0)).collect()
    }

    #[test]
    fn a_node_has_what_the_file_says_and_the_defaults_for_the_rest() {
        let file = json!({"vk": {"cpu": "2", "others": {"nvidia.com/gpu": "1"}, "providerID": "mock://1"}, "b": {}});
        let pairs = |all: &[(&str, &str)]| all.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<Vec<_>>();
        assert_eq!(
            amounts(&file, "vk"),
            pairs(&[("cpu", "2"), ("memory", "100Gi"), ("nvidia.com/gpu", "1"), ("pods", "20")])
        );
        assert_eq!(read(Some(&file), "vk").unwrap().unwrap().provider_id.as_deref(), Some("mock://1"));
        for node in ["b", "unknown"] {
            assert_eq!(amounts(&file, node), pairs(&[("cpu", "20"), ("memory", "100Gi"), ("pods", "20")]));
        }
    }

    #[test]
    fn the_configuration_of_the_simulator_is_another_form() {
        for file in [json!({"startLatencyMs": 5}), json!({"capacity": {"cpu": 5}}), json!({"type": "mock", "mock": {}})]
        {
            assert_eq!(read(Some(&file), "vk").unwrap(), None, "{file}");
        }
    }

    #[test]
    fn a_quantity_that_is_none_is_told_with_its_field() {
        for (file, says) in [
            (json!({"vk": {"cpu": "lots"}}), "vk.cpu"),
            (json!({"vk": {"memory": "-1"}}), "vk.memory"),
            (json!({"vk": {"others": {"gpu": []}}}), "vk.others.gpu"),
            (json!({"vk": {"cpus": "1"}}), "vk.cpus: there is no such field"),
        ] {
            let error = read(Some(&file), "vk").unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
