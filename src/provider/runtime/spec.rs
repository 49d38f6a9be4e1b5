//! From a resolved pod to what an engine is told: everything merged, nothing left to decide.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

use super::engine::{ContainerRef, ContainerSpec, Mount, SandboxSpec, Signal};
use super::machine::Failure;
use super::volumes::{self, HostPaths};
use crate::provider::{PodRef, ResolvedPod, ResolvedVolume};

/// The domain of services, unless a kubelet is told another one.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// Kubernetes' default for `terminationMessagePath`.
const MESSAGE_PATH: &str = "/dev/termination-log";

/// Where the files of a pod are.
#[derive(Clone, Debug)]
pub(crate) struct PodDir(pub PathBuf);

impl PodDir {
    pub fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    /// The folder of one attempt.
    pub fn attempt(&self, container: &str, attempt: u32) -> PathBuf {
        self.0.join("containers").join(container).join(attempt.to_string())
    }

    /// The file that a container writes its last words to.
    pub fn message(&self, container: &str, attempt: u32) -> PathBuf {
        self.attempt(container, attempt).join("termination-log")
    }
}

/// The container of a name, ephemeral ones included.
pub(crate) fn container(pod: &Pod, name: &str) -> Option<Container> {
    let spec = pod.spec.as_ref()?;
    let found = spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name);
    let added = || spec.ephemeral_containers.iter().flatten().find(|c| c.name == name).map(plain);
    found.cloned().or_else(added)
}

/// An ephemeral container as the container that it is.
pub(crate) fn plain(added: &EphemeralContainer) -> Container {
    // All of its fields are a container's but the target, which is looked up where it is of use.
    let value = serde_json::to_value(added).unwrap_or_default();
    serde_json::from_value(value).unwrap_or_else(|_| Container { name: added.name.clone(), ..Container::default() })
}

/// The name of the machine that the pod's containers see. kubelet: `GeneratePodHostNameAndDomain`.
fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|s| s.hostname_override.clone()) {
        return name;
    }
    match domain(pod) {
        Some(domain) if spec.is_some_and(|s| s.set_hostname_as_fqdn == Some(true)) => {
            format!("{}.{domain}", short_hostname(pod))
        }
        _ => short_hostname(pod),
    }
}

/// `spec.hostname`, or the pod's name, as a host's name can be.
fn short_hostname(pod: &Pod) -> String {
    let given = pod.spec.as_ref().and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
    let name = given.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// What follows the pod's hostname in DNS: it has that only with a `subdomain`.
fn domain(pod: &Pod) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.as_deref().filter(|s| !s.is_empty())?;
    Some(format!("{subdomain}.{}.svc.{CLUSTER_DOMAIN}", pod.metadata.namespace.as_deref().unwrap_or_default()))
}

/// What the pod wants in its `/etc/hosts`: its own names when it asks for any, and its `hostAliases`.
pub(crate) fn host_entries(pod: &Pod, ips: &[IpAddr]) -> String {
    let Some(spec) = &pod.spec else { return String::new() };
    let set = |name: &Option<String>| name.as_deref().is_some_and(|n| !n.is_empty());
    let own = if set(&spec.hostname) || set(&spec.subdomain) { own_names(pod, ips) } else { String::new() };
    own + &alias_entries(spec)
}

/// The whole `/etc/hosts` of a pod with a network of its own. kubelet: `managedHostsFileContent`.
fn hosts_file(pod: &Pod, ips: &[IpAddr]) -> String {
    const HEAD: &str = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
                        ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                        fe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
    let aliases = pod.spec.as_ref().map(alias_entries).unwrap_or_default();
    format!("{HEAD}{}{aliases}", own_names(pod, ips))
}

fn own_names(pod: &Pod, ips: &[IpAddr]) -> String {
    let (name, domain) = (short_hostname(pod), domain(pod));
    let line = |ip: &IpAddr| match &domain {
        Some(domain) => format!("{ip}\t{name}.{domain}\t{name}\n"),
        None => format!("{ip}\t{name}\n"),
    };
    ips.iter().map(line).collect()
}

fn alias_entries(spec: &PodSpec) -> String {
    let mut text = String::new();
    let aliases = spec.host_aliases.iter().flatten();
    let lines = aliases
        .map(|a| format!("{}\t{}\n", a.ip, a.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")));
    let lines: String = lines.collect();
    if !lines.is_empty() {
        text += "\n# Entries added by HostAliases.\n";
        text += &lines;
    }
    text
}

/// What to make for the pod.
pub(crate) fn sandbox(pod: &ResolvedPod, dir: &PodDir) -> SandboxSpec {
    SandboxSpec { pod: pod.pod_ref(), resolved: pod.clone(), hostname: hostname(&pod.pod), dir: dir.0.clone() }
}

/// Makes the pod's folder and its volumes. Blocks.
pub(crate) fn prepare_volumes(pod: &ResolvedPod, dir: &PodDir, host_paths: &HostPaths) -> Result<(), Failure> {
    let group = pod.fs_group().and_then(|g| u32::try_from(g).ok());
    let failed = |volume: &str, error: std::io::Error| Failure::Answer {
        reason: "FailedMount".into(),
        message: format!("MountVolume.SetUp failed for volume {volume:?} : {error}"),
    };
    let make = |dir: &Path| volumes::make_dir(dir, 0o755).map(drop);
    for dir in [&dir.0, &dir.volumes(), &dir.0.join("containers")] {
        make(dir).map_err(|e| failed("", e))?;
    }
    for (name, volume) in &pod.volumes {
        volumes::ensure(&dir.volumes(), name, volume, group, host_paths).map_err(|e| failed(name, e))?;
    }
    Ok(())
}

/// Everything an engine needs to make a container. Makes its folder and resolves its mounts, so it blocks.
pub(crate) fn build(
    pod: &ResolvedPod,
    name: &str,
    attempt: u32,
    image_id: &str,
    ips: &[IpAddr],
    dir: &PodDir,
    host_paths: &HostPaths,
) -> Result<ContainerSpec, Failure> {
    let refuse = |message: String| Failure::Answer { reason: "CreateContainerConfigError".into(), message };
    let io = |what: &str, error: std::io::Error| match error.kind() {
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::NotFound => refuse(format!("{what}: {error}")),
        _ => Failure::Answer { reason: "CreateContainerError".into(), message: format!("{what}: {error}") },
    };
    let reference = pod.pod_ref();
    let Some(c) = container(&pod.pod, name) else { return Err(refuse(format!("no container {name:?}"))) };
    if let Some(missing) = pod.unresolved.get(name) {
        return Err(refuse(missing.clone()));
    }
    let empty = PodSpec::default();
    let spec = pod.pod.spec.as_ref().unwrap_or(&empty);
    let Some(resolved) = pod.containers.get(name).map(|c| c.with_pod_ips(ips)) else {
        return Err(refuse("its configuration is not known yet".into()));
    };
    let home = dir.attempt(name, attempt);
    std::fs::create_dir_all(&home).map_err(|e| io("making the container's folder", e))?;
    let message_file = dir.message(name, attempt);
    let made = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&message_file);
    made.map_err(|e| io("making the termination message file", e))?;

    let group = pod.fs_group().and_then(|g| u32::try_from(g).ok());
    let mut mounts = Vec::new();
    for (n, mount) in resolved.mounts.iter().enumerate() {
        let what = format!("failed to prepare subPath for volumeMount {:?} of container {name:?}", mount.volume);
        // A volume that this provider cannot have was spoken of when the pod came.
        let Some(volume) = pod.volumes.get(&mount.volume) else { continue };
        let generated = matches!(volume, ResolvedVolume::Files(_));
        let root = match volume {
            ResolvedVolume::Files(_) => Some(dir.volumes().join(&mount.volume)),
            _ => volumes::ensure(&dir.volumes(), &mount.volume, volume, group, host_paths)
                .map_err(|e| io(&format!("volume {:?}", mount.volume), e))?,
        };
        let Some(root) = root else { continue };
        let copy = home.join("parts").join(n.to_string());
        let sub_path = mount.sub_path.as_deref();
        let source = match volume {
            ResolvedVolume::HostPath { .. } if *host_paths == HostPaths::Elsewhere => {
                volumes::part_elsewhere(&root, sub_path)
            }
            _ => volumes::part(&root, sub_path, generated, &copy),
        };
        let source = source.map_err(|e| io(&what, e))?;
        let propagation = c.volume_mounts.iter().flatten().find(|m| m.mount_path == mount.path);
        mounts.push(Mount {
            volume: mount.volume.clone(),
            source,
            target: mount.path.clone(),
            read_only: mount.read_only || generated,
            generated: generated && mount.sub_path.is_none(),
            propagation: propagation.and_then(|m| m.mount_propagation.clone()),
        });
    }

    let security = c.security_context.clone().unwrap_or_default();
    let pod_security = spec.security_context.clone().unwrap_or_default();
    let run_as_user = security.run_as_user.or(pod_security.run_as_user);
    if security.run_as_non_root.or(pod_security.run_as_non_root) == Some(true) && run_as_user == Some(0) {
        return Err(refuse(format!(
            "container's runAsUser breaks non-root policy (pod: \"{}_{}({})\", container: {name})",
            reference.name, reference.namespace, reference.uid
        )));
    }
    let stop_signal = c.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref()).map(Signal::named);
    Ok(ContainerSpec {
        labels: labels(&reference, name, attempt),
        container: ContainerRef { pod: reference, name: name.into(), attempt, id: String::new() },
        image: c.image.clone().unwrap_or_default(),
        image_id: image_id.to_owned(),
        command: resolved.command,
        args: resolved.args,
        env: resolved.env,
        working_dir: c.working_dir.clone().filter(|d| !d.is_empty()),
        mounts,
        target: spec
            .ephemeral_containers
            .iter()
            .flatten()
            .find(|e| e.name == name)
            .and_then(|e| e.target_container_name.clone()),
        tty: c.tty.unwrap_or(false),
        stdin: c.stdin.unwrap_or(false),
        stdin_once: c.stdin_once.unwrap_or(false),
        run_as_user,
        run_as_group: security.run_as_group.or(pod_security.run_as_group),
        security,
        pod_security,
        resources: c.resources.clone().unwrap_or_default(),
        stop_signal,
        termination_message_path: c
            .termination_message_path
            .clone()
            .filter(|p| !p.is_empty())
            .unwrap_or_else(|| MESSAGE_PATH.into()),
        termination_message_file: message_file,
        hostname: hostname(&pod.pod),
        hosts: hosts_file(&pod.pod, ips),
        dir: home,
    })
}

/// As container runtimes of Kubernetes nodes write them.
fn labels(pod: &PodRef, name: &str, attempt: u32) -> BTreeMap<String, String> {
    [
        ("io.kubernetes.pod.namespace", pod.namespace.to_string()),
        ("io.kubernetes.pod.name", pod.name.to_string()),
        ("io.kubernetes.pod.uid", pod.uid.to_string()),
        ("io.kubernetes.container.name", name.to_owned()),
        ("vnode.dev/attempt", attempt.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pods_own_hosts_file_names_it_and_what_it_asks_for() {
        let hosts = |spec: serde_json::Value, ips: &[&str]| {
            let pod = json!({"metadata": {"name": "p", "namespace": "d"}, "spec": spec});
            let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            hosts_file(&serde_json::from_value(pod).unwrap(), &ips)
        };
        let plain = hosts(json!({"containers": []}), &["10.0.0.1", "fd00::1"]);
        assert!(plain.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{plain}");
        assert!(plain.ends_with("10.0.0.1\tp\nfd00::1\tp\n"), "{plain}");
        let spec = json!({"containers": [], "hostname": "front", "subdomain": "web",
            "hostAliases": [{"ip": "10.1.2.3", "hostnames": ["alpha", "beta"]}]});
        let full = hosts(spec, &["10.0.0.1"]);
        assert!(full.contains("10.0.0.1\tfront.web.d.svc.cluster.local\tfront\n"), "{full}");
        assert!(full.ends_with("\n# Entries added by HostAliases.\n10.1.2.3\talpha\tbeta\n"), "{full}");
    }
}
