//! From what the loop asks for to what an engine is told. Pure.

use std::collections::{BTreeSet, HashMap};

use bollard::models::{
    ContainerCreateBody, ContainerUpdateBody, HostConfig, Mount as EngineMount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType, MountVolumeOptions, PortBinding,
};
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};

use super::names;
use super::settings::Settings;
use crate::provider::runtime::limits::{Limits, PERIOD};
use crate::provider::runtime::{ContainerSpec, SandboxSpec};
use crate::provider::{PodRef, ProviderError, ResolvedVolume, Result};

/// What a container is to see at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A path that the engine finds on its machine.
    Path(String),
    /// A volume of the engine, or a folder in it.
    Volume { name: String, sub_path: Option<String> },
}

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub source: Source,
    pub target: String,
    pub read_only: bool,
    pub propagation: Option<String>,
}

impl Place {
    fn mount(&self) -> EngineMount {
        let base = EngineMount {
            target: Some(self.target.clone()),
            read_only: Some(self.read_only),
            ..EngineMount::default()
        };
        match &self.source {
            Source::Path(path) => {
                let propagation = match self.propagation.as_deref() {
                    Some("HostToContainer") => MountBindOptionsPropagationEnum::RSLAVE,
                    Some("Bidirectional") => MountBindOptionsPropagationEnum::RSHARED,
                    _ => MountBindOptionsPropagationEnum::RPRIVATE,
                };
                let options = MountBindOptions { propagation: Some(propagation), ..MountBindOptions::default() };
                EngineMount {
                    typ: Some(MountType::BIND),
                    source: Some(path.clone()),
                    bind_options: Some(options),
                    ..base
                }
            }
            Source::Volume { name, sub_path } => {
                let options = MountVolumeOptions {
                    // What the image has at the path is not the volume's.
                    no_copy: Some(true),
                    subpath: sub_path.clone(),
                    ..MountVolumeOptions::default()
                };
                EngineMount {
                    typ: Some(MountType::VOLUME),
                    source: Some(name.clone()),
                    volume_options: Some(options),
                    ..base
                }
            }
        }
    }
}

/// The volumes of a pod that are to be the engine's: all when files are copied, else those in memory.
pub(super) fn engine_volumes(spec: &SandboxSpec, copy: bool) -> Vec<(&str, &ResolvedVolume)> {
    let wanted = |volume: &ResolvedVolume| match volume {
        ResolvedVolume::Files(_) => copy,
        ResolvedVolume::EmptyDir { medium, .. } => copy || medium == "Memory",
        ResolvedVolume::HostPath { .. } | ResolvedVolume::Other { .. } => false,
    };
    spec.resolved.volumes.iter().filter(|(_, v)| wanted(v)).map(|(name, v)| (name.as_str(), v)).collect()
}

/// The unit of `nr_blocks`: a page of most machines.
const PAGE: u64 = 4096;

/// The options of a volume's driver.
pub(super) fn volume_options(volume: &ResolvedVolume, podman: bool) -> HashMap<String, String> {
    let ResolvedVolume::EmptyDir { medium, size_limit } = volume else { return HashMap::new() };
    if medium != "Memory" {
        return HashMap::new();
    }
    let size = match (size_limit, podman) {
        (None, _) => String::new(),
        (Some(bytes), false) => format!(",size={bytes}"),
        // Podman takes `size` for a quota of the disk.
        (Some(bytes), true) => format!(",nr_blocks={}", bytes.div_ceil(PAGE).max(1)),
    };
    [("type", "tmpfs".to_owned()), ("device", "tmpfs".to_owned()), ("o", format!("mode=1777{size}"))]
        .map(|(k, v)| (k.to_owned(), v))
        .into()
}

/// The container that holds what a pod's containers share.
pub(super) fn sandbox(spec: &SandboxSpec, settings: &Settings) -> ContainerCreateBody {
    let empty = PodSpec::default();
    let pod = spec.resolved.pod.spec.as_ref().unwrap_or(&empty);
    let on = |flag: Option<bool>| flag == Some(true);
    let host_network = on(pod.host_network);
    let volumes = engine_volumes(spec, settings.copy);
    let mut labels = names::labels(&settings.node, &spec.pod);
    let shared: Vec<_> = volumes.iter().map(|(name, _)| *name).collect();
    labels.insert(names::SANDBOX.into(), shared.join(","));
    labels.insert(names::SHARING.into(), Sharing::of(spec).words());
    let places = volumes.iter().map(|(name, _)| Place {
        source: Source::Volume { name: names::volume(&spec.pod, name), sub_path: None },
        target: names::volume_path(name),
        read_only: false,
        propagation: None,
    });
    let mounts: Vec<_> = places.map(|p| p.mount()).collect();
    let (exposed, bindings) = if host_network { Default::default() } else { host_ports(pod) };
    let dns = pod.dns_config.clone().unwrap_or_default();
    let aliases = pod.host_aliases.iter().flatten();
    let aliases = aliases.flat_map(|a| a.hostnames.iter().flatten().map(|h| format!("{h}:{}", a.ip)));
    let sysctls = pod.security_context.iter().flat_map(|c| c.sysctls.iter().flatten());
    let options = dns.options.iter().flatten().filter_map(|o| {
        let name = o.name.clone()?;
        Some(o.value.as_ref().map_or(name.clone(), |v| format!("{name}:{v}")))
    });
    let host = HostConfig {
        network_mode: if host_network { Some("host".into()) } else { settings.network.clone() },
        ipc_mode: Some(if on(pod.host_ipc) { "host" } else { "shareable" }.into()),
        pid_mode: on(pod.host_pid).then(|| "host".into()),
        extra_hosts: Some(aliases.collect()),
        dns: dns.nameservers,
        dns_search: dns.searches,
        dns_options: Some(options.collect()),
        sysctls: Some(sysctls.map(|s| (s.name.clone(), s.value.clone())).collect()),
        port_bindings: Some(bindings),
        mounts: Some(mounts),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(settings.sandbox_image.clone()),
        entrypoint: (!settings.sandbox_command.is_empty()).then(|| settings.sandbox_command.clone()),
        hostname: (!host_network).then(|| spec.hostname.clone()),
        labels: Some(labels),
        exposed_ports: Some(exposed),
        stop_timeout: Some(0),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// The ports of the engine's machine that lead to the pod.
fn host_ports(pod: &PodSpec) -> (Vec<String>, HashMap<String, Option<Vec<PortBinding>>>) {
    let all = pod.containers.iter().chain(pod.init_containers.iter().flatten());
    let ports = all.flat_map(|c: &Container| c.ports.iter().flatten());
    let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for port in ports.filter(|p| p.host_port.is_some_and(|n| n > 0)) {
        let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
        let binding =
            PortBinding { host_ip: port.host_ip.clone(), host_port: port.host_port.as_ref().map(ToString::to_string) };
        let key = format!("{}/{protocol}", port.container_port);
        bindings.entry(key).or_default().get_or_insert_default().push(binding);
    }
    (bindings.keys().cloned().collect(), bindings)
}

/// What decides about a container beside its own spec.
pub(super) struct Around<'a> {
    pub settings: &'a Settings,
    pub podman: bool,
    /// The pod's own spec, as far as containers must know it.
    pub sharing: Sharing,
    /// The engine's id of the container whose processes it is to see.
    pub target: Option<&'a str>,
    pub places: &'a [Place],
    /// The user to name: with a group, and checked for root.
    pub user: Option<String>,
}

/// What containers share beyond the network, kept in the labels of the network's holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sharing {
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub pid: bool,
}

impl Sharing {
    const WORDS: [&'static str; 4] = ["hostNetwork", "hostPID", "hostIPC", "pid"];

    pub fn of(spec: &SandboxSpec) -> Self {
        let pod = spec.resolved.pod.spec.as_ref();
        let on = |flag: fn(&PodSpec) -> Option<bool>| pod.and_then(flag) == Some(true);
        Self {
            host_network: on(|p| p.host_network),
            host_pid: on(|p| p.host_pid),
            host_ipc: on(|p| p.host_ipc),
            pid: on(|p| p.share_process_namespace),
        }
    }

    pub fn words(self) -> String {
        let flags = [self.host_network, self.host_pid, self.host_ipc, self.pid];
        let set = Self::WORDS.iter().zip(flags).filter(|(_, on)| *on).map(|(word, _)| *word);
        set.collect::<Vec<_>>().join(",")
    }

    pub fn read(words: &str) -> Self {
        let set: BTreeSet<_> = words.split(',').collect();
        let [host_network, host_pid, host_ipc, pid] = Self::WORDS.map(|word| set.contains(word));
        Self { host_network, host_pid, host_ipc, pid }
    }
}

/// Whose network a container with these labels holds; `None` when that is the machine's, of which engines say zero.
pub(super) fn holds_network_of(labels: &names::Labels) -> Option<PodRef> {
    labels.get(names::SANDBOX)?;
    let sharing = labels.get(names::SHARING).map(|w| Sharing::read(w)).unwrap_or_default();
    names::pod(labels).filter(|_| !sharing.host_network)
}

/// One attempt to run a container.
pub(super) fn container(spec: &ContainerSpec, around: &Around<'_>) -> Result<ContainerCreateBody> {
    let sandbox = format!("container:{}", names::sandbox(&spec.container.pod));
    let sharing = around.sharing;
    let join = |host: bool| Some(if host { "host".to_owned() } else { sandbox.clone() });
    let mut labels = names::labels(&around.settings.node, &spec.container.pod);
    labels.extend(spec.labels.clone());
    labels.extend([
        (names::CONTAINER.to_owned(), spec.container.name.to_string()),
        (names::ATTEMPT.to_owned(), spec.container.attempt.to_string()),
        (names::IMAGE.to_owned(), spec.image.clone()),
        (names::IMAGE_ID.to_owned(), spec.image_id.clone()),
        (names::MESSAGE_PATH.to_owned(), spec.termination_message_path.clone()),
    ]);
    labels.extend(around.target.map(|target| (names::TARGET.to_owned(), target.to_owned())));
    let groups = spec.pod_security.supplemental_groups.iter().flatten().chain(&spec.pod_security.fs_group);
    let capabilities = spec.security.capabilities.clone().unwrap_or_default();
    let privileged = spec.security.privileged == Some(true);
    let mut host = HostConfig {
        network_mode: join(sharing.host_network),
        ipc_mode: join(sharing.host_ipc),
        pid_mode: match (sharing.host_pid, sharing.pid) {
            (true, _) => Some("host".into()),
            (false, true) => Some(sandbox.clone()),
            (false, false) => around.target.map(|target| format!("container:{target}")),
        },
        // Docker gives those who share a network the host's name that goes with it.
        uts_mode: (around.podman && !sharing.host_network).then_some(sandbox),
        privileged: Some(privileged),
        cap_add: capabilities.add,
        cap_drop: capabilities.drop,
        readonly_rootfs: spec.security.read_only_root_filesystem,
        group_add: Some(groups.map(ToString::to_string).collect()),
        security_opt: Some(security_options(spec)?),
        mounts: Some(around.places.iter().map(Place::mount).collect()),
        ..HostConfig::default()
    };
    limit(&mut host, &spec.resources)?;
    let some = |words: &[String]| (!words.is_empty()).then(|| words.to_vec());
    Ok(ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint: some(&spec.command),
        cmd: some(&spec.args),
        env: Some(spec.env.iter().map(|v| format!("{}={}", v.name, v.value)).collect()),
        working_dir: spec.working_dir.clone(),
        user: around.user.clone(),
        tty: Some(spec.tty),
        open_stdin: Some(spec.stdin),
        stdin_once: Some(spec.stdin && spec.stdin_once),
        labels: Some(labels),
        // The loop has waited long enough when it kills.
        stop_timeout: Some(0),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    })
}

fn refuse(message: String) -> ProviderError {
    ProviderError::Rejected { reason: "CreateContainerConfigError".into(), message }
}

/// `securityContext` as the words of `--security-opt`.
fn security_options(spec: &ContainerSpec) -> Result<Vec<String>> {
    let (own, pod) = (&spec.security, &spec.pod_security);
    let mut options = Vec::new();
    if own.allow_privilege_escalation == Some(false) {
        options.push("no-new-privileges".to_owned());
    }
    if let Some(profile) = own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()) {
        match profile.type_.as_str() {
            "Unconfined" => options.push("seccomp=unconfined".into()),
            "RuntimeDefault" => {}
            other => {
                return Err(refuse(format!("seccompProfile of type {other} is not possible at a container engine")));
            }
        }
    }
    if let Some(profile) = own.app_armor_profile.as_ref().or(pod.app_armor_profile.as_ref()) {
        match (profile.type_.as_str(), &profile.localhost_profile) {
            ("Unconfined", _) => options.push("apparmor=unconfined".into()),
            ("Localhost", Some(name)) => options.push(format!("apparmor={name}")),
            _ => {}
        }
    }
    if let Some(linux) = own.se_linux_options.as_ref().or(pod.se_linux_options.as_ref()) {
        let parts = [("user", &linux.user), ("role", &linux.role), ("type", &linux.type_), ("level", &linux.level)];
        options.extend(parts.into_iter().filter_map(|(k, v)| Some(format!("label={k}:{}", v.as_ref()?))));
    }
    Ok(options)
}

/// Requests and limits of a container that is made.
fn limit(host: &mut HostConfig, resources: &ResourceRequirements) -> Result<()> {
    let limits = Limits::of(resources).map_err(refuse)?;
    if let Some(quota) = limits.quota {
        (host.cpu_period, host.cpu_quota) = (Some(PERIOD), Some(quota));
    }
    host.cpu_shares = Some(limits.shares);
    if let Some(memory) = limits.memory {
        // The same for both is no swap.
        (host.memory, host.memory_swap) = (Some(memory), Some(memory));
    }
    Ok(())
}

/// The same for one that runs. What is not limited any more has to be said.
pub(super) fn changed_limits(resources: &ResourceRequirements) -> Result<ContainerUpdateBody> {
    let limits = Limits::of(resources).map_err(refuse)?;
    let memory = limits.memory.unwrap_or(-1);
    Ok(ContainerUpdateBody {
        cpu_shares: Some(limits.shares),
        cpu_period: Some(PERIOD),
        cpu_quota: Some(limits.quota.unwrap_or(-1)),
        memory: Some(memory),
        memory_swap: Some(memory),
        ..ContainerUpdateBody::default()
    })
}

/// The same in Podman's own API, which has it where its Docker API has not.
pub(super) fn changed_limits_of_podman(resources: &ResourceRequirements) -> Result<serde_json::Value> {
    let limits = Limits::of(resources).map_err(refuse)?;
    let memory = limits.memory.unwrap_or(-1);
    Ok(serde_json::json!({
        "cpu": {"shares": limits.shares, "period": PERIOD, "quota": limits.quota.unwrap_or(-1)},
        "memory": {"limit": memory, "swap": memory},
    }))
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
