//! Pure: what a pod asks for that its provider cannot do, and the table of who can do what.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, PodSpec, Probe, Volume};

use super::volumes::kind_of;
use crate::provider::{Capabilities, PodFeature, PodFeatures, VolumeFiles};

/// A field of a pod that the provider cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lacking {
    pub path: String,
    pub feature: PodFeature,
    /// Without it the pod would be another one, so it is refused whatever the node says.
    pub essential: bool,
}

/// Collects what is asked for.
struct Asked {
    have: PodFeatures,
    lacking: Vec<Lacking>,
}

impl Asked {
    fn wants(&mut self, asked: bool, feature: PodFeature, path: impl FnOnce() -> String) {
        self.note(asked, feature, false, path);
    }

    fn needs(&mut self, asked: bool, feature: PodFeature, path: impl FnOnce() -> String) {
        self.note(asked, feature, true, path);
    }

    fn note(&mut self, asked: bool, feature: PodFeature, essential: bool, path: impl FnOnce() -> String) {
        if asked && !self.have.has(feature) {
            self.lacking.push(Lacking { path: path(), feature, essential });
        }
    }
}

/// The fields of the pod that ask for more than these features, in the order of the pod.
pub(crate) fn lacking(pod: &Pod, have: PodFeatures) -> Vec<Lacking> {
    let mut asked = Asked { have, lacking: Vec::new() };
    if have == PodFeatures::ALL {
        return asked.lacking;
    }
    let Some(spec) = &pod.spec else { return asked.lacking };
    of_pod(spec, &mut asked);
    let taken = |volume: &str| {
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        all.flat_map(|c| c.volume_mounts.iter().flatten())
            .any(|m| m.name == volume && !is_automatic(volume, &m.mount_path))
    };
    for (n, volume) in spec.volumes.iter().flatten().enumerate() {
        // Every pod gets this one, whether it wants it or not.
        if volume.name.starts_with("kube-api-access-") && !taken(&volume.name) {
            continue;
        }
        of_volume(volume, &format!("spec.volumes[{n}]"), &mut asked);
    }
    for (n, container) in spec.init_containers.iter().flatten().enumerate() {
        let path = format!("spec.initContainers[{n}]");
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        let feature = if sidecar { PodFeature::Sidecars } else { PodFeature::InitContainers };
        asked.needs(true, feature, || if sidecar { format!("{path}.restartPolicy") } else { path.clone() });
        of_container(container, &path, &mut asked);
    }
    asked.needs(spec.containers.len() > 1, PodFeature::MultipleContainers, || "spec.containers[1]".into());
    for (n, container) in spec.containers.iter().enumerate() {
        let path = format!("spec.containers[{n}]");
        asked.wants(container.restart_policy.is_some(), PodFeature::ContainerRestartRules, || {
            format!("{path}.restartPolicy")
        });
        of_container(container, &path, &mut asked);
    }
    let ephemeral = spec.ephemeral_containers.as_ref().is_some_and(|e| !e.is_empty());
    asked.wants(ephemeral, PodFeature::EphemeralContainers, || "spec.ephemeralContainers".into());
    asked.lacking
}

/// Where the API server mounts the token that every pod gets.
fn is_automatic(volume: &str, path: &str) -> bool {
    volume.starts_with("kube-api-access-") && path == "/var/run/secrets/kubernetes.io/serviceaccount"
}

fn of_pod(spec: &PodSpec, asked: &mut Asked) {
    use PodFeature as F;
    let path = |name: &'static str| move || format!("spec.{name}");
    let on = |flag: Option<bool>| flag == Some(true);
    let set = |text: &Option<String>| text.as_deref().is_some_and(|t| !t.is_empty());
    asked.wants(spec.restart_policy.as_deref().is_some_and(|p| p != "Never"), F::RestartPolicy, path("restartPolicy"));
    asked.wants(spec.active_deadline_seconds.is_some(), F::ActiveDeadline, path("activeDeadlineSeconds"));
    let grace = spec.termination_grace_period_seconds.is_some_and(|s| s != 30);
    asked.wants(grace, F::GracePeriod, path("terminationGracePeriodSeconds"));
    asked.wants(on(spec.host_network), F::HostNetwork, path("hostNetwork"));
    asked.wants(on(spec.host_pid), F::HostPid, path("hostPID"));
    asked.wants(on(spec.host_ipc), F::HostIpc, path("hostIPC"));
    asked.wants(spec.host_users == Some(false), F::UserNamespaces, path("hostUsers"));
    asked.wants(on(spec.share_process_namespace), F::ShareProcessNamespace, path("shareProcessNamespace"));
    asked.wants(set(&spec.hostname), F::Hostname, path("hostname"));
    asked.wants(set(&spec.subdomain), F::Hostname, path("subdomain"));
    asked.wants(set(&spec.hostname_override), F::Hostname, path("hostnameOverride"));
    asked.wants(on(spec.set_hostname_as_fqdn), F::Hostname, path("setHostnameAsFQDN"));
    asked.wants(spec.host_aliases.as_ref().is_some_and(|a| !a.is_empty()), F::HostAliases, path("hostAliases"));
    asked.wants(spec.dns_config.is_some(), F::DnsConfig, path("dnsConfig"));
    asked.wants(spec.dns_policy.as_deref().is_some_and(|p| p != "ClusterFirst"), F::DnsConfig, path("dnsPolicy"));
    // The class by which a pod opts in to virtual nodes asks the provider for nothing.
    let class = spec.runtime_class_name.as_deref().filter(|c| *c != "vnode");
    asked.wants(class.is_some_and(|c| !c.is_empty()), F::RuntimeClass, path("runtimeClassName"));
    asked.needs(
        spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()),
        F::ResourceClaims,
        path("resourceClaims"),
    );
    let secrets = spec.image_pull_secrets.as_ref().is_some_and(|s| !s.is_empty());
    asked.wants(secrets, F::ImagePullSecrets, path("imagePullSecrets"));
    let Some(context) = &spec.security_context else { return };
    let path = |name: &'static str| move || format!("spec.securityContext.{name}");
    asked.wants(context.run_as_user.is_some(), F::RunAsUser, path("runAsUser"));
    asked.wants(context.run_as_group.is_some(), F::RunAsUser, path("runAsGroup"));
    asked.wants(on(context.run_as_non_root), F::RunAsUser, path("runAsNonRoot"));
    asked.wants(context.fs_group.is_some(), F::FsGroup, path("fsGroup"));
    asked.wants(
        context.supplemental_groups.as_ref().is_some_and(|g| !g.is_empty()),
        F::FsGroup,
        path("supplementalGroups"),
    );
    asked.wants(context.seccomp_profile.is_some(), F::Seccomp, path("seccompProfile"));
    asked.wants(context.app_armor_profile.is_some(), F::AppArmor, path("appArmorProfile"));
    asked.wants(context.se_linux_options.is_some(), F::SeLinux, path("seLinuxOptions"));
    asked.wants(context.sysctls.as_ref().is_some_and(|s| !s.is_empty()), F::Sysctls, path("sysctls"));
    asked.wants(context.windows_options.is_some(), F::WindowsOptions, path("windowsOptions"));
}

fn of_volume(volume: &Volume, path: &str, asked: &mut Asked) {
    use PodFeature as F;
    let kind = kind_of(volume);
    let feature = match kind {
        "configMap" => F::ConfigMapVolumes,
        "secret" => F::SecretVolumes,
        "downwardAPI" => F::DownwardApiVolumes,
        "projected" => F::ProjectedVolumes,
        "emptyDir" => F::EmptyDir,
        "hostPath" => F::HostPath,
        "persistentVolumeClaim" => F::PersistentVolumeClaims,
        "ephemeral" => F::EphemeralVolumes,
        "csi" => F::CsiVolumes,
        "image" => F::ImageVolumes,
        "nfs" => F::NfsVolumes,
        _ => F::OtherVolumes,
    };
    asked.needs(true, feature, || format!("{path}.{kind}"));
    if let Some(dir) = &volume.empty_dir {
        let medium = dir.medium.as_deref().is_some_and(|m| !m.is_empty());
        asked.wants(medium, F::MemoryEmptyDir, || format!("{path}.emptyDir.medium"));
        asked.wants(dir.size_limit.is_some(), F::EmptyDirSizeLimit, || format!("{path}.emptyDir.sizeLimit"));
    }
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    for (n, source) in sources.enumerate() {
        let path = format!("{path}.projected.sources[{n}]");
        let token = source.service_account_token.is_some();
        asked.needs(token, F::ServiceAccountTokens, || format!("{path}.serviceAccountToken"));
        asked.needs(source.cluster_trust_bundle.is_some(), F::ClusterTrustBundles, || {
            format!("{path}.clusterTrustBundle")
        });
    }
}

fn of_container(c: &Container, path: &str, asked: &mut Asked) {
    use PodFeature as F;
    let on = |flag: Option<bool>| flag == Some(true);
    let probes = [
        ("startupProbe", F::StartupProbes, &c.startup_probe),
        ("readinessProbe", F::ReadinessProbes, &c.readiness_probe),
        ("livenessProbe", F::LivenessProbes, &c.liveness_probe),
    ];
    for (name, feature, probe) in probes {
        if let Some(probe) = probe {
            of_probe(probe, feature, &format!("{path}.{name}"), asked);
        }
    }
    if let Some(lifecycle) = &c.lifecycle {
        let hook = |h: &Option<LifecycleHandler>| h.is_some();
        asked.wants(hook(&lifecycle.post_start), F::PostStart, || format!("{path}.lifecycle.postStart"));
        asked.wants(hook(&lifecycle.pre_stop), F::PreStop, || format!("{path}.lifecycle.preStop"));
        asked.wants(lifecycle.stop_signal.is_some(), F::StopSignal, || format!("{path}.lifecycle.stopSignal"));
    }
    for (n, mount) in c.volume_mounts.iter().flatten().enumerate() {
        let set = |text: &Option<String>| text.as_deref().is_some_and(|t| !t.is_empty());
        let path = format!("{path}.volumeMounts[{n}]");
        asked.needs(set(&mount.sub_path), F::SubPath, || format!("{path}.subPath"));
        asked.needs(set(&mount.sub_path_expr), F::SubPath, || format!("{path}.subPathExpr"));
        let propagation = mount.mount_propagation.as_deref().is_some_and(|p| p != "None");
        asked.wants(propagation, F::MountPropagation, || format!("{path}.mountPropagation"));
    }
    asked.needs(c.volume_devices.as_ref().is_some_and(|d| !d.is_empty()), F::VolumeDevices, || {
        format!("{path}.volumeDevices")
    });
    for (n, port) in c.ports.iter().flatten().enumerate() {
        asked.wants(port.host_port.is_some_and(|p| p > 0), F::HostPorts, || format!("{path}.ports[{n}].hostPort"));
    }
    let limits = c.resources.as_ref().and_then(|r| r.limits.as_ref());
    let limited = limits.is_some_and(|l| l.contains_key("cpu") || l.contains_key("memory"));
    asked.wants(limited, F::ResourceLimits, || format!("{path}.resources.limits"));
    asked.wants(on(c.stdin) || on(c.tty), F::Stdin, || format!("{path}.stdin"));
    let message = c.termination_message_path.as_deref().is_some_and(|p| !matches!(p, "" | "/dev/termination-log"));
    asked.wants(message, F::TerminationMessage, || format!("{path}.terminationMessagePath"));
    // Own addresses in the environment of a provider that only learns them later come out empty.
    let paths = c.env.iter().flatten().enumerate().filter_map(|(n, var)| {
        let field = var.value_from.as_ref()?.field_ref.as_ref()?;
        matches!(field.field_path.as_str(), "status.podIP" | "status.podIPs").then_some(n)
    });
    for n in paths {
        asked.wants(true, F::PodIpInEnvironment, || format!("{path}.env[{n}].valueFrom.fieldRef"));
    }
    let Some(context) = &c.security_context else { return };
    let at = |name: &'static str| {
        let path = path.to_owned();
        move || format!("{path}.securityContext.{name}")
    };
    asked.wants(context.run_as_user.is_some(), F::RunAsUser, at("runAsUser"));
    asked.wants(context.run_as_group.is_some(), F::RunAsUser, at("runAsGroup"));
    asked.wants(on(context.run_as_non_root), F::RunAsUser, at("runAsNonRoot"));
    asked.wants(on(context.privileged), F::Privileged, at("privileged"));
    asked.wants(context.capabilities.is_some(), F::LinuxCapabilities, at("capabilities"));
    asked.wants(on(context.read_only_root_filesystem), F::ReadOnlyRootFilesystem, at("readOnlyRootFilesystem"));
    asked.wants(
        context.allow_privilege_escalation == Some(false),
        F::NoPrivilegeEscalation,
        at("allowPrivilegeEscalation"),
    );
    asked.wants(context.seccomp_profile.is_some(), F::Seccomp, at("seccompProfile"));
    asked.wants(context.app_armor_profile.is_some(), F::AppArmor, at("appArmorProfile"));
    asked.wants(context.se_linux_options.is_some(), F::SeLinux, at("seLinuxOptions"));
    asked.wants(context.proc_mount.as_deref().is_some_and(|p| p != "Default"), F::ProcMount, at("procMount"));
    asked.wants(context.windows_options.is_some(), F::WindowsOptions, at("windowsOptions"));
}

fn of_probe(probe: &Probe, feature: PodFeature, path: &str, asked: &mut Asked) {
    use PodFeature as F;
    if !asked.have.has(feature) {
        return asked.wants(true, feature, || path.to_owned());
    }
    asked.wants(probe.exec.is_some(), F::ExecProbes, || format!("{path}.exec"));
    asked.wants(probe.http_get.is_some(), F::HttpProbes, || format!("{path}.httpGet"));
    asked.wants(probe.tcp_socket.is_some(), F::TcpProbes, || format!("{path}.tcpSocket"));
    asked.wants(probe.grpc.is_some(), F::GrpcProbes, || format!("{path}.grpc"));
}

/// What is told of these fields. `refused`: the pod does not run for it.
pub(crate) fn sentence(provider: &str, lacking: &[Lacking], refused: bool) -> String {
    /// Enough to act on, and within the limit of an event.
    const NAMED: usize = 8;
    let named: Vec<_> = lacking.iter().take(NAMED).map(|l| format!("{} ({})", l.path, l.feature)).collect();
    let more = lacking.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let effect = if refused { "the pod is refused" } else { "they have no effect" };
    format!("provider {provider} does not support {}{more}; {effect}", named.join(", "))
}

/// What a provider can do, in few words, for the status of a VirtualNode.
pub fn words(capabilities: &Capabilities) -> Vec<String> {
    let c = capabilities;
    let operations = [
        ("logs", c.logs),
        ("exec", c.exec),
        ("attach", c.attach),
        ("portForward", c.port_forward),
        ("stats", c.stats),
        ("volumeFiles", c.volume_files != VolumeFiles::Ignored),
    ];
    let mut words: Vec<String> =
        operations.into_iter().filter(|(_, can)| *can).map(|(word, _)| word.to_owned()).collect();
    for (group, features) in groups() {
        let can: Vec<_> = features.iter().filter(|f| c.pod.has(**f)).collect();
        let missing: Vec<_> = features.iter().filter(|f| !c.pod.has(**f)).map(|f| f.word()).collect();
        let all = format!("all of {}", group.to_lowercase());
        if missing.is_empty() {
            words.push(all);
        } else if missing.len() * 4 <= features.len() {
            words.push(format!("{all} but {}", missing.join(", ")));
        } else {
            words.extend(can.into_iter().map(|f| f.word().to_owned()));
        }
    }
    words
}

fn groups() -> Vec<(&'static str, Vec<PodFeature>)> {
    let mut groups: Vec<(&'static str, Vec<PodFeature>)> = Vec::new();
    for feature in PodFeature::ALL {
        match groups.iter_mut().find(|(name, _)| *name == feature.group()) {
            Some((_, features)) => features.push(*feature),
            None => groups.push((feature.group(), vec![*feature])),
        }
    }
    groups
}

/// `docs/pod-support.md`: which provider can do what.
pub fn documentation(providers: &BTreeMap<String, Capabilities>) -> String {
    let mut out = String::from(include_str!("support_preface.md"));
    let names: Vec<&str> = providers.keys().map(String::as_str).collect();
    let head = |out: &mut String, first: &str| {
        // Writing into a String cannot fail.
        let _ = writeln!(out, "| {first} | {} |", names.join(" | "));
        let _ = writeln!(out, "|---|{}", ":-:|".repeat(names.len()));
    };
    let mark = |can: bool| if can { "yes" } else { "–" };
    let row = |out: &mut String, what: &str, can: &dyn Fn(&Capabilities) -> bool| {
        let marks: Vec<_> = providers.values().map(|c| mark(can(c))).collect();
        let _ = writeln!(out, "| {what} | {} |", marks.join(" | "));
    };
    out.push_str("\n## Operations\n\n");
    head(&mut out, "operation");
    row(&mut out, "`kubectl logs`", &|c| c.logs);
    row(&mut out, "`kubectl exec`", &|c| c.exec);
    row(&mut out, "`kubectl attach`", &|c| c.attach);
    row(&mut out, "`kubectl port-forward`", &|c| c.port_forward);
    row(&mut out, "`kubectl top`", &|c| c.stats);
    row(&mut out, "files of volumes are put into place", &|c| c.volume_files != VolumeFiles::Ignored);
    for (group, features) in groups() {
        let _ = write!(out, "\n## {group}\n\n");
        head(&mut out, "field of a pod");
        for feature in features {
            let what = format!("{} (`{}`)", feature.description().trim(), feature.word());
            row(&mut out, &what, &|c| c.pod.has(feature));
        }
    }
    out
}

#[cfg(test)]
#[path = "support_tests.rs"]
mod tests;
