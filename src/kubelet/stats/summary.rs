//! `/stats/summary`. Kubernetes: `stats/v1alpha1.Summary`.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Measured, of_node as sum_of_node, of_pod, sum};
use crate::provider::{FilesystemUsage, InterfaceUsage, NetworkUsage, NodeUsage, Usage};

/// One node and its pods.
pub(super) fn of_node(node: &str, usage: &NodeUsage) -> Value {
    json!({ "node": about_node(node, usage), "pods": pods(usage) })
}

/// Several nodes, which the format does not know: `node` is all of them together, and `nodes` is each.
pub(super) fn of_all(measured: &[Measured<'_>]) -> Value {
    let known = || measured.iter().filter_map(|m| Some((m.node, m.usage.as_ref()?)));
    let each: Vec<Value> = known().map(|(node, usage)| about_node(node, usage)).collect();
    let uses: Vec<Usage> = known().filter_map(|(_, usage)| sum_of_node(usage)).collect();
    let mut together = figures(sum(&uses).as_ref());
    together.insert("nodeName".to_owned(), "".into());
    let pods: Vec<Value> = known().flat_map(|(_, usage)| pods(usage)).collect();
    json!({ "node": together, "nodes": each, "pods": pods })
}

fn about_node(node: &str, usage: &NodeUsage) -> Value {
    let mut about = figures(sum_of_node(usage).as_ref());
    about.insert("nodeName".to_owned(), node.into());
    if let Some(network) = &usage.network {
        insert_network(&mut about, network);
    }
    if let Some(filesystem) = &usage.filesystem {
        about.insert("fs".to_owned(), filesystem_of(filesystem));
    }
    about.into()
}

fn pods(usage: &NodeUsage) -> Vec<Value> {
    usage
        .pods
        .iter()
        .map(|pod| {
            let containers = pod.containers.iter().map(|c| {
                let mut about = figures(Some(&c.usage));
                about.insert("name".to_owned(), c.name.as_str().into());
                insert_start(&mut about, c.start_time);
                if let Some(logs) = &c.logs {
                    about.insert("logs".to_owned(), filesystem_of(logs));
                }
                Value::Object(about)
            });
            let mut about = figures(of_pod(pod).as_ref());
            let of = &pod.pod;
            about.insert("podRef".to_owned(), json!({"name": &*of.name, "namespace": &*of.namespace, "uid": &*of.uid}));
            about.insert("containers".to_owned(), containers.collect());
            insert_start(&mut about, pod.start_time);
            if let Some(network) = &pod.network {
                insert_network(&mut about, network);
            }
            Value::Object(about)
        })
        .collect()
}

fn insert_start(about: &mut Map<String, Value>, start: Option<Timestamp>) {
    if let Some(start) = start {
        about.insert("startTime".to_owned(), seconds(start).into());
    }
}

/// `metav1.Time` has whole seconds.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The first interface stands for the whole, as kubelet's default one does.
fn insert_network(about: &mut Map<String, Value>, network: &NetworkUsage) {
    let figures = |i: &InterfaceUsage| {
        let known =
            [("rxBytes", i.rx_bytes), ("rxErrors", i.rx_errors), ("txBytes", i.tx_bytes), ("txErrors", i.tx_errors)];
        with(json!({ "name": i.name }), known)
    };
    let Some(first) = network.interfaces.first() else { return };
    let mut whole = figures(first);
    whole.insert("time".to_owned(), seconds(network.time).into());
    whole.insert("interfaces".to_owned(), network.interfaces.iter().map(figures).map(Value::Object).collect());
    about.insert("network".to_owned(), whole.into());
}

fn filesystem_of(found: &FilesystemUsage) -> Value {
    let known = [
        ("availableBytes", found.available_bytes),
        ("capacityBytes", found.capacity_bytes),
        ("usedBytes", found.used_bytes),
        ("inodes", found.inodes),
        ("inodesFree", found.inodes_free),
        ("inodesUsed", found.inodes_used),
    ];
    with(json!({ "time": seconds(found.time) }), known).into()
}

fn with<const N: usize>(of: Value, known: [(&str, Option<u64>); N]) -> Map<String, Value> {
    let known = known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
    let of = if let Value::Object(of) = of { of } else { Map::new() };
    of.into_iter().chain(known).collect()
}

fn figures(usage: Option<&Usage>) -> Map<String, Value> {
    let mut about = Map::new();
    let Some(usage) = usage else { return about };
    let mut cpu = Map::new();
    if let Some(cores) = usage.cpu_nano_cores {
        cpu.insert("usageNanoCores".to_owned(), cores.into());
    }
    if let Some(nanos) = usage.cpu_nanos {
        cpu.insert("usageCoreNanoSeconds".to_owned(), nanos.into());
    }
    if !cpu.is_empty() {
        cpu.insert("time".to_owned(), seconds(usage.time).into());
        about.insert("cpu".to_owned(), cpu.into());
    }
    if let Some(bytes) = usage.memory_working_set {
        about.insert("memory".to_owned(), json!({ "time": seconds(usage.time), "workingSetBytes": bytes }));
    }
    about
}

#[cfg(test)]
mod tests {
    use super::super::tests::{filesystem, measured, network, node};
    use super::*;

    #[test]
    fn the_summary_leaves_out_what_is_not_known() {
        let summary = of_node("n", &node());
        assert_eq!(summary["node"]["nodeName"], "n");
        assert_eq!(summary["node"]["memory"]["workingSetBytes"], 15);
        let pod = &summary["pods"][0];
        assert_eq!(pod["podRef"], json!({"name": "p", "namespace": "ns", "uid": "u"}));
        assert_eq!(pod["cpu"]["usageCoreNanoSeconds"], 1_500_000_000_u64);
        assert_eq!(pod["containers"][0]["cpu"]["time"], "2023-11-14T22:13:20Z");
        assert_eq!(pod["containers"][0]["startTime"], "2020-09-13T12:26:40Z");
        assert!(pod["containers"][1].get("cpu").is_none());
        assert_eq!(of_node("n", &NodeUsage::default()), json!({"node": {"nodeName": "n"}, "pods": []}));
    }

    #[test]
    fn networks_and_filesystems_are_told_of_where_they_are_known() {
        let mut usage = node();
        let summary = of_node("n", &usage);
        let eth0 = json!({"name": "eth0", "rxBytes": 100, "txBytes": 200, "txErrors": 1});
        let of_pod = &summary["pods"][0]["network"];
        assert_eq!((&of_pod["time"], &of_pod["rxBytes"]), (&json!("2023-11-14T22:13:20Z"), &json!(100)));
        assert_eq!((&of_pod["interfaces"][0], &of_pod["interfaces"][1]["name"]), (&eth0, &json!("net1")));
        let logs = &summary["pods"][0]["containers"][0]["logs"];
        assert_eq!(*logs, json!({"time": "1970-01-01T00:00:00Z", "usedBytes": 4096}));
        assert!(summary["node"].get("network").is_none() && summary["node"].get("fs").is_none());

        (usage.network, usage.filesystem) = (Some(network("wlan0")), Some(filesystem()));
        let summary = of_node("n", &usage);
        assert_eq!(summary["node"]["network"]["name"], "wlan0");
        let fs =
            json!({"time": "2023-11-14T22:13:20Z", "availableBytes": 600, "capacityBytes": 1000, "usedBytes": 300});
        assert_eq!(summary["node"]["fs"], fs);
    }

    #[test]
    fn nodes_that_share_a_port_are_summed_and_listed() {
        let all = of_all(&[measured("a", Some(node())), measured("b", Some(node())), measured("c", None)]);
        assert_eq!(all["node"]["memory"]["workingSetBytes"], 30);
        assert_eq!(all["nodes"].as_array().unwrap().len(), 2);
        assert_eq!(all["nodes"][1]["nodeName"], "b");
        assert_eq!(all["pods"].as_array().unwrap().len(), 2);
    }
}
