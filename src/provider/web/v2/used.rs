//! The JSON of statistics in interface V2.

use jiff::Timestamp;
use serde::Deserialize;

use crate::provider::{
    ContainerUsage, FilesystemUsage, InterfaceUsage, NetworkUsage, NodeUsage, PodRef, PodUsage, Usage,
};

/// Use of a node and its pods.
#[derive(Debug, Deserialize)]
pub(super) struct Used {
    node: Option<UsedParts>,
    network: Option<UsedNetwork>,
    filesystem: Option<UsedFilesystem>,
    #[serde(default)]
    pods: Vec<UsedPod>,
}

#[derive(Debug, Deserialize)]
struct UsedNetwork {
    time: Timestamp,
    #[serde(default)]
    interfaces: Vec<UsedInterface>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UsedInterface {
    name: String,
    rx_bytes: Option<u64>,
    rx_errors: Option<u64>,
    tx_bytes: Option<u64>,
    tx_errors: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UsedFilesystem {
    time: Timestamp,
    capacity_bytes: Option<u64>,
    available_bytes: Option<u64>,
    used_bytes: Option<u64>,
    inodes: Option<u64>,
    inodes_free: Option<u64>,
    inodes_used: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UsedParts {
    time: Timestamp,
    cpu_nanos: Option<u64>,
    cpu_nano_cores: Option<u64>,
    memory_working_set: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UsedPod {
    uid: String,
    namespace: String,
    name: String,
    start_time: Option<Timestamp>,
    network: Option<UsedNetwork>,
    #[serde(default)]
    containers: Vec<UsedContainer>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UsedContainer {
    name: String,
    start_time: Option<Timestamp>,
    logs: Option<UsedFilesystem>,
    #[serde(flatten)]
    usage: UsedParts,
}

impl From<UsedParts> for Usage {
    fn from(u: UsedParts) -> Self {
        let UsedParts { time, cpu_nanos, cpu_nano_cores, memory_working_set } = u;
        Self { time, cpu_nanos, cpu_nano_cores, memory_working_set }
    }
}

impl From<UsedNetwork> for NetworkUsage {
    fn from(n: UsedNetwork) -> Self {
        let interface = |i: UsedInterface| {
            let UsedInterface { name, rx_bytes, rx_errors, tx_bytes, tx_errors } = i;
            InterfaceUsage { name, rx_bytes, rx_errors, tx_bytes, tx_errors }
        };
        Self { time: n.time, interfaces: n.interfaces.into_iter().map(interface).collect() }
    }
}

impl From<UsedFilesystem> for FilesystemUsage {
    fn from(f: UsedFilesystem) -> Self {
        let UsedFilesystem { time, capacity_bytes, available_bytes, used_bytes, inodes, inodes_free, inodes_used } = f;
        Self { time, capacity_bytes, available_bytes, used_bytes, inodes, inodes_free, inodes_used }
    }
}

impl From<Used> for NodeUsage {
    fn from(used: Used) -> Self {
        let container = |c: UsedContainer| ContainerUsage {
            name: c.name,
            start_time: c.start_time,
            usage: c.usage.into(),
            logs: c.logs.map(Into::into),
        };
        let pod = |p: UsedPod| PodUsage {
            pod: PodRef { namespace: p.namespace.into(), name: p.name.into(), uid: p.uid.into() },
            start_time: p.start_time,
            containers: p.containers.into_iter().map(container).collect(),
            network: p.network.map(Into::into),
        };
        Self {
            node: used.node.map(Into::into),
            network: used.network.map(Into::into),
            filesystem: used.filesystem.map(Into::into),
            pods: used.pods.into_iter().map(pod).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn networks_and_filesystems_are_read_and_left_out_where_they_are_not_told() {
        let time = "2026-01-02T03:04:05Z";
        let read = |text: serde_json::Value| NodeUsage::from(serde_json::from_value::<Used>(text).unwrap());
        let used = read(json!({
            "filesystem": {"time": time, "usedBytes": 7},
            "pods": [{"uid": "u", "namespace": "ns", "name": "a",
                "network": {"time": time, "interfaces": [{"name": "eth0", "rxBytes": 5}]},
                "containers": [{"name": "c", "time": time, "cpuNanos": 9, "logs": {"time": time, "usedBytes": 3}}]}],
        }));
        assert_eq!((used.node, used.network), (None, None));
        assert_eq!(used.filesystem.map(|f| (f.used_bytes, f.capacity_bytes)), Some((Some(7), None)));
        let pod = &used.pods[0];
        let interface = &pod.network.as_ref().unwrap().interfaces[0];
        assert_eq!((interface.rx_bytes, interface.tx_bytes), (Some(5), None));
        let container = &pod.containers[0];
        assert_eq!((container.usage.cpu_nanos, container.logs.unwrap().used_bytes), (Some(9), Some(3)));
        assert_eq!(read(json!({})), NodeUsage::default());
    }
}
