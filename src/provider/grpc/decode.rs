//! From the protocol's types to ours. A service may send anything: what cannot be right is refused with a sentence
//! about what would be.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;
use vnode_proto::v1;

use crate::provider::{
    Capabilities, ContainerUsage, EventType, FilesystemUsage, InterfaceUsage, LogLine, LogSource, NetworkUsage,
    NodeDescription, NodeUsage, PodEvent, PodFeature, PodFeatures, PodObservation, PodRef, PodUsage, Usage,
    VolumeFiles,
};

/// The versions of the protocol that this program speaks, the best first.
pub(super) const VERSIONS: [u32; 1] = [1];

/// Why a status cannot be used.
#[derive(Debug, PartialEq)]
pub(super) enum Bad {
    /// It is about another node.
    Foreign(String),
    /// It makes no sense.
    Senseless(String),
}

impl From<String> for Bad {
    fn from(message: String) -> Self {
        Self::Senseless(message)
    }
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Foreign(message) | Self::Senseless(message)) = self;
        f.write_str(message)
    }
}

pub(super) fn pod_ref(pod: Option<&v1::PodRef>) -> Result<PodRef, String> {
    let pod = pod.filter(|p| !p.uid.is_empty()).ok_or("it does not say which pod it is about (pod.uid)")?;
    Ok(PodRef { namespace: Arc::from(&*pod.namespace), name: Arc::from(&*pod.name), uid: Arc::from(&*pod.uid) })
}

/// What a service says of a pod of this node.
pub(super) fn observation(status: &v1::PodStatus, node_uid: &str) -> Result<PodObservation, Bad> {
    let pod = pod_ref(status.pod.as_ref())?;
    if status.node_uid != node_uid {
        return Err(Bad::Foreign(format!(
            "pod {pod} is said to be of the node with uid {:?}; of this one are those with node_uid {node_uid:?}, the \
             vnode-node-uid of the call that created them",
            status.node_uid
        )));
    }
    let said = pod_status(&status.json).map_err(|why| format!("the status of pod {pod}: {why}"))?;
    let ips: Vec<String> = match said.pod_ips {
        Some(ips) if !ips.is_empty() => ips.into_iter().map(|ip| ip.ip).collect(),
        _ => said.pod_ip.into_iter().collect(),
    };
    let address = |text: &String| {
        text.parse::<IpAddr>().map_err(|_| format!("the status of pod {pod}: {text:?} is not an IP address"))
    };
    let pod_ips = ips.iter().filter(|ip| !ip.is_empty()).map(address).collect::<Result<_, _>>()?;
    let host_ip = said.host_ip.as_ref().filter(|ip| !ip.is_empty()).map(address).transpose()?;
    Ok(PodObservation {
        start_time: said.start_time.map(|t| t.0),
        pod_ips,
        host_ip,
        init_containers: said.init_container_statuses.unwrap_or_default(),
        containers: said.container_statuses.unwrap_or_default(),
        ephemeral_containers: said.ephemeral_container_statuses.unwrap_or_default(),
        reason: said.reason.filter(|r| !r.is_empty()),
        message: said.message.filter(|m| !m.is_empty()),
        pod,
    })
}

fn pod_status(json: &[u8]) -> Result<core::PodStatus, String> {
    let wrong =
        |why: String| format!("json must be a Kubernetes PodStatus, as in {{\"containerStatuses\": [...]}}; {why}");
    let status: core::PodStatus = serde_json::from_slice(json).map_err(|e| wrong(e.to_string()))?;
    // Every object can be read as a status of which nothing is known.
    if status == core::PodStatus::default() {
        let what: Value = serde_json::from_slice(json).map_err(|e| wrong(e.to_string()))?;
        if let Some(fields) = what.as_object().filter(|o| !o.is_empty()) {
            let fields: Vec<_> = fields.keys().take(4).map(String::as_str).collect();
            return Err(wrong(format!("none of its fields is one of a status: {}", fields.join(", "))));
        }
    }
    Ok(status)
}

/// What a service can do, if it speaks a version that we do.
pub(super) fn capabilities(answer: v1::GetCapabilitiesResponse) -> Result<Capabilities, String> {
    if !VERSIONS.contains(&answer.version) {
        return Err(format!(
            "the service ({}) speaks version {} of the protocol and this program {}; upgrade the older one",
            if answer.server.is_empty() { "nameless" } else { &answer.server },
            answer.version,
            VERSIONS.map(|v| v.to_string()).join(", "),
        ));
    }
    let can = answer.capabilities.unwrap_or_default();
    let feature = |word: &String| PodFeature::ALL.iter().copied().find(|f| f.word() == word);
    let features: Vec<PodFeature> = can.pod_features.iter().filter_map(feature).collect();
    Ok(Capabilities {
        logs: can.logs,
        exec: can.exec,
        attach: can.attach,
        port_forward: can.port_forward,
        stats: can.stats,
        notifies: can.watch,
        events: can.events && can.watch,
        volatile: can.volatile,
        // A value that a newer service sends and that is not known here is taken for the safe one.
        volume_files: match can.volume_files() {
            v1::VolumeFiles::Live => VolumeFiles::Live,
            v1::VolumeFiles::AtStart => VolumeFiles::AtStart,
            v1::VolumeFiles::Ignored | v1::VolumeFiles::Unspecified => VolumeFiles::Ignored,
        },
        starts_apart: can.starts_apart,
        pod: PodFeatures::of(&features),
        ..Capabilities::default()
    })
}

pub(super) fn time(time: &prost_types::Timestamp) -> Result<Timestamp, String> {
    Timestamp::new(time.seconds, time.nanos).map_err(|_| format!("{} s is not a time", time.seconds))
}

fn some_time(at: Option<&prost_types::Timestamp>) -> Result<Option<Timestamp>, String> {
    at.map(time).transpose()
}

pub(super) fn description(answer: v1::DescribeNodeResponse) -> Result<NodeDescription, String> {
    let text = |text: String| (!text.is_empty()).then_some(text);
    let mut description = NodeDescription {
        operating_system: text(answer.operating_system),
        architecture: text(answer.architecture),
        version: text(answer.version),
        provider_id: text(answer.provider_id),
        ..NodeDescription::default()
    };
    for (name, amount) in answer.capacity {
        if kube_quantity::ParsedQuantity::try_from(amount.as_str()).is_err() {
            return Err(format!("capacity {name}: {amount:?} is not a quantity such as \"4\" or \"8Gi\""));
        }
        description.capacity.insert(name, Quantity(amount));
    }
    for condition in answer.conditions {
        if condition.r#type.is_empty() || !matches!(condition.status.as_str(), "True" | "False" | "Unknown") {
            let v1::NodeCondition { r#type, status, .. } = condition;
            return Err(format!("condition {type:?} has status {status:?}; it must be True, False or Unknown"));
        }
        description.conditions.push(core::NodeCondition {
            last_transition_time: some_time(condition.last_transition_time.as_ref())?.map(Time),
            type_: condition.r#type,
            status: condition.status,
            reason: text(condition.reason),
            message: text(condition.message),
            ..core::NodeCondition::default()
        });
    }
    let address = |a: v1::NodeAddress| core::NodeAddress { type_: a.r#type, address: a.address };
    description.addresses = answer.addresses.into_iter().filter(|a| !a.address.is_empty()).map(address).collect();
    Ok(description)
}

/// Words that kubelet has for what happens to a pod, so that tools know them.
const REASONS: [&str; 24] = [
    "Created",
    "Started",
    "Killing",
    "Pulling",
    "Pulled",
    "Failed",
    "BackOff",
    "Unhealthy",
    "ProbeWarning",
    "Preempting",
    "ExceededGracePeriod",
    "FailedKillPod",
    "FailedCreatePodContainer",
    "FailedMount",
    "FailedSync",
    "FailedValidation",
    "FailedPostStartHook",
    "FailedPreStopHook",
    "InspectFailed",
    "ErrImageNeverPull",
    "NetworkNotReady",
    "FailedCreatePodSandBox",
    "SandboxChanged",
    "Evicted",
];

pub(super) fn event(event: v1::PodEvent) -> Result<PodEvent, String> {
    let kind = match event.r#type() {
        v1::EventType::Warning => EventType::Warning,
        v1::EventType::Normal | v1::EventType::Unspecified => EventType::Normal,
    };
    // A word of the service's own goes into the message: reasons are of a closed set.
    let (reason, message) = match REASONS.iter().find(|r| **r == event.reason) {
        Some(reason) => (*reason, event.message),
        None if event.reason.is_empty() => ("ProviderEvent", event.message),
        None => ("ProviderEvent", format!("{}: {}", event.reason, event.message)),
    };
    let message = message.chars().take(1024).collect();
    let field = (!event.field.is_empty()).then_some(event.field);
    Ok(PodEvent { pod: pod_ref(event.pod.as_ref())?, field, kind, reason, message })
}

pub(super) fn log_line(line: v1::LogLine) -> Result<LogLine, String> {
    let source = match line.source() {
        v1::LogSource::Stderr => LogSource::Stderr,
        v1::LogSource::Stdout | v1::LogSource::Unspecified => LogSource::Stdout,
    };
    let time = some_time(line.time.as_ref())?.ok_or("a line of the log has no time")?;
    Ok(LogLine { time, source, text: line.text })
}

fn usage(usage: &v1::Usage) -> Result<Usage, String> {
    Ok(Usage {
        time: some_time(usage.time.as_ref())?.ok_or("statistics have no time")?,
        cpu_nanos: usage.cpu_nanos,
        cpu_nano_cores: usage.cpu_nano_cores,
        memory_working_set: usage.memory_working_set,
    })
}

fn network(of: v1::NetworkUsage) -> Result<NetworkUsage, String> {
    let interface = |i: v1::InterfaceUsage| {
        let v1::InterfaceUsage { name, rx_bytes, rx_errors, tx_bytes, tx_errors } = i;
        InterfaceUsage { name, rx_bytes, rx_errors, tx_bytes, tx_errors }
    };
    let time = some_time(of.time.as_ref())?.ok_or("statistics of a network have no time")?;
    Ok(NetworkUsage { time, interfaces: of.interfaces.into_iter().map(interface).collect() })
}

fn filesystem(of: v1::FilesystemUsage) -> Result<FilesystemUsage, String> {
    Ok(FilesystemUsage {
        time: some_time(of.time.as_ref())?.ok_or("statistics of a filesystem have no time")?,
        capacity_bytes: of.capacity_bytes,
        available_bytes: of.available_bytes,
        used_bytes: of.used_bytes,
        inodes: of.inodes,
        inodes_free: of.inodes_free,
        inodes_used: of.inodes_used,
    })
}

pub(super) fn stats(answer: v1::GetStatsResponse) -> Result<NodeUsage, String> {
    let mut all = NodeUsage {
        node: answer.node.as_ref().map(usage).transpose()?,
        network: answer.network.map(network).transpose()?,
        filesystem: answer.filesystem.map(filesystem).transpose()?,
        pods: Vec::new(),
    };
    for pod in answer.pods {
        let mut containers = Vec::new();
        for container in pod.containers {
            let of = container.usage.as_ref().ok_or_else(|| format!("container {} has no usage", container.name))?;
            containers.push(ContainerUsage {
                start_time: some_time(container.start_time.as_ref())?,
                usage: usage(of)?,
                name: container.name,
                logs: container.logs.map(filesystem).transpose()?,
            });
        }
        let start_time = some_time(pod.start_time.as_ref())?;
        let network = pod.network.map(network).transpose()?;
        all.pods.push(PodUsage { pod: pod_ref(pod.pod.as_ref())?, start_time, containers, network });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_filesystems_are_taken_with_their_time_and_not_without() {
        let time = Some(prost_types::Timestamp { seconds: 60, nanos: 0 });
        let eth0 = v1::InterfaceUsage { name: "eth0".into(), rx_bytes: Some(5), ..Default::default() };
        let pod = v1::PodUsage {
            pod: Some(v1::PodRef { namespace: "ns".into(), name: "a".into(), uid: "u".into() }),
            network: Some(v1::NetworkUsage { time, interfaces: vec![eth0] }),
            ..Default::default()
        };
        let disk = |time| v1::FilesystemUsage { time, used_bytes: Some(7), ..Default::default() };
        let answer =
            |time| v1::GetStatsResponse { filesystem: Some(disk(time)), pods: vec![pod.clone()], ..Default::default() };
        let all = stats(answer(time)).unwrap();
        assert_eq!((all.filesystem.unwrap().used_bytes, all.filesystem.unwrap().capacity_bytes), (Some(7), None));
        let interface = &all.pods[0].network.as_ref().unwrap().interfaces[0];
        assert_eq!((interface.name.as_str(), interface.rx_bytes, interface.tx_bytes), ("eth0", Some(5), None));
        assert!(stats(answer(None)).unwrap_err().contains("no time"));
    }

    fn status(json: &str) -> v1::PodStatus {
        let pod = v1::PodRef { namespace: "ns".into(), name: "a".into(), uid: "u".into() };
        v1::PodStatus { pod: Some(pod), node_uid: "node".into(), json: json.to_owned().into() }
    }

    #[test]
    fn a_status_is_read_from_kubernetes_json() {
        let json = r#"{"phase": "Failed", "startTime": "2026-01-01T00:00:00Z", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "hostIP": "10.0.0.9", "newField": 1, "reason": "Evicted",
            "containerStatuses": [{"name": "main", "state": {"running": {}}}]}"#;
        let o = observation(&status(json), "node").unwrap();
        assert_eq!((&*o.pod.uid, o.pod_ips.len(), o.host_ip.is_some()), ("u", 2, true));
        assert_eq!((o.containers[0].name.as_str(), o.reason.as_deref()), ("main", Some("Evicted")));
        assert!(o.start_time.is_some());
        let bare = observation(&status(r#"{"podIP": "10.0.0.1"}"#), "node").unwrap();
        assert_eq!(bare.pod_ips.len(), 1);
        assert!(observation(&status("{}"), "node").is_ok(), "nothing is known yet");
    }

    #[test]
    fn what_is_no_status_is_refused_with_what_would_be_one() {
        for (json, want) in [
            ("", "EOF"),
            ("<html>", "expected value"),
            (r#"{"containerStatuses": ["#, "EOF"),
            ("[]", "PodStatus"),
            (r#"{"metadata": {}, "spec": {}, "status": {}}"#, "none of its fields is one of a status: metadata, spec"),
            (r#"{"podIP": "nowhere"}"#, "\"nowhere\" is not an IP address"),
            (r#"{"containerStatuses": [{"name": 7}]}"#, "invalid type"),
        ] {
            let error = observation(&status(json), "node").unwrap_err();
            let text = error.to_string();
            assert!(
                matches!(error, Bad::Senseless(_)) && text.contains(want) && text.contains("ns/a"),
                "{json}: {text}"
            );
        }
    }

    #[test]
    fn a_pod_without_the_nodes_mark_is_not_its_own() {
        let error = observation(&status("{}"), "other").unwrap_err();
        assert!(matches!(&error, Bad::Foreign(m) if m.contains("ns/a") && m.contains("\"node\"")), "{error}");
        let nameless = v1::PodStatus { pod: None, ..status("{}") };
        assert!(observation(&nameless, "node").unwrap_err().to_string().contains("pod.uid"));
    }

    #[test]
    fn unknown_values_of_a_newer_service_are_taken_for_the_safe_ones() {
        let can = v1::Capabilities {
            volume_files: 77,
            events: true,
            pod_features: vec!["emptyDir".into(), "teleportation".into()],
            ..v1::Capabilities::default()
        };
        let answer = v1::GetCapabilitiesResponse { version: 1, server: "s".into(), capabilities: Some(can) };
        let got = capabilities(answer).unwrap();
        assert_eq!(got.volume_files, VolumeFiles::Ignored);
        assert!(!got.events, "events come by the watch alone");
        assert_eq!(got.pod.iter().collect::<Vec<_>>(), [PodFeature::EmptyDir]);
        let line = v1::LogLine { time: Some(prost_types::Timestamp::default()), source: 9, text: "x".into() };
        assert_eq!(log_line(line).unwrap().source, LogSource::Stdout);
        let pod = status("{}").pod;
        let told = v1::PodEvent { pod, r#type: 9, reason: "Beamed".into(), message: "up".into(), ..Default::default() };
        let got = event(told).unwrap();
        assert_eq!((got.kind, got.reason, got.message.as_str()), (EventType::Normal, "ProviderEvent", "Beamed: up"));
    }

    #[test]
    fn a_service_of_another_version_is_told_apart() {
        for version in [0, 2] {
            let answer = v1::GetCapabilitiesResponse { version, server: "theirs/3".into(), capabilities: None };
            let error = capabilities(answer).unwrap_err();
            assert!(error.contains("theirs/3") && error.contains("upgrade"), "{error}");
        }
    }

    #[test]
    fn a_description_that_makes_no_sense_names_what() {
        let with = |capacity: &str, status: &str| v1::DescribeNodeResponse {
            capacity: [("cpu".to_owned(), capacity.to_owned())].into(),
            conditions: vec![v1::NodeCondition { r#type: "X".into(), status: status.into(), ..Default::default() }],
            ..Default::default()
        };
        assert!(description(with("4", "True")).is_ok());
        assert!(description(with("many", "True")).unwrap_err().contains("cpu"));
        assert!(description(with("4", "yes")).unwrap_err().contains("True, False or Unknown"));
        let at = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
        assert!(time(&at).is_err());
    }
}
