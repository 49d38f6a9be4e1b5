//! The pods that checks are made with: as they are written, and as they are resolved.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar as Env, EphemeralContainer, Pod, PodSpec, Volume,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::{EnvVar, FileSet, ResolvedContainer, ResolvedMount, ResolvedPod, ResolvedVolume, VolumeFile};
use super::Options;

/// Where a script finds what is mounted: nowhere else where nothing can be mounted.
pub(super) const ROOT: &str = "${VNODE_CONTAINER_ROOT:-}";

/// Runs until it is asked to end, and then does so with code 6.
pub(super) const POLITE: &str = "trap 'exit 6' TERM; echo ready; while :; do sleep 1 & wait $!; done";

/// Does not listen when it is asked to end.
pub(super) const DEAF: &str = "trap '' TERM; echo ready; while :; do sleep 1; done";

/// A container to be.
#[derive(Clone, Debug, Default)]
pub(super) struct ContainerPlan {
    name: &'static str,
    /// The one of the options when it is empty.
    command: Vec<String>,
    args: Vec<String>,
    env: Vec<EnvVar>,
    mounts: Vec<ResolvedMount>,
    wants_pod_ips: bool,
    /// Members of its spec beside these.
    more: Value,
}

impl ContainerPlan {
    pub fn new(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    /// Runs a script.
    pub fn script(self, script: &str) -> Self {
        self.command(&["sh", "-c", script])
    }

    pub fn command(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|c| (*c).to_owned()).collect();
        self
    }

    pub fn args(mut self, args: &[&str]) -> Self {
        self.args = args.iter().map(|a| (*a).to_owned()).collect();
        self
    }

    pub fn env(mut self, name: &str, value: &str, secret: bool) -> Self {
        self.env.push(EnvVar { name: name.into(), value: value.into(), secret });
        self
    }

    /// A variable with the pod's own address.
    pub fn env_of_pod_ip(mut self, name: &str) -> Self {
        self.wants_pod_ips = true;
        self.env(name, ResolvedContainer::pod_ip_mark(), false)
    }

    pub fn mount(self, volume: &str, path: &str) -> Self {
        self.mounted(ResolvedMount { volume: volume.into(), path: path.into(), ..ResolvedMount::default() })
    }

    /// A mount of a part of a volume.
    pub fn mount_part(self, volume: &str, path: &str, part: &str) -> Self {
        let sub_path = Some(part.to_owned());
        self.mounted(ResolvedMount { volume: volume.into(), path: path.into(), sub_path, read_only: false })
    }

    pub fn mount_read_only(self, volume: &str, path: &str) -> Self {
        self.mounted(ResolvedMount { volume: volume.into(), path: path.into(), sub_path: None, read_only: true })
    }

    fn mounted(mut self, mount: ResolvedMount) -> Self {
        self.mounts.push(mount);
        self
    }

    /// Members of its spec, as a manifest has them.
    pub fn with(mut self, more: Value) -> Self {
        merge(&mut self.more, more);
        self
    }

    /// Runs beside the containers for as long as the pod does.
    pub fn sidecar(self) -> Self {
        self.with(serde_json::json!({"restartPolicy": "Always"}))
    }

    fn written(&self, options: &Options) -> Container {
        let mount = |m: &ResolvedMount| VolumeMount {
            name: m.volume.clone(),
            mount_path: m.path.clone(),
            sub_path: m.sub_path.clone(),
            read_only: m.read_only.then_some(true),
            ..VolumeMount::default()
        };
        // As a pod's author would have written it; what came from a Secret or is resolved later is not in it.
        let env = self.env.iter().filter(|v| !v.secret && !v.value.contains('\0'));
        let plain = Container {
            name: self.name.into(),
            image: Some(options.image.clone()),
            command: Some(self.resolved(options).command),
            args: (!self.args.is_empty()).then(|| self.args.clone()),
            env: Some(
                env.map(|v| Env { name: v.name.clone(), value: Some(v.value.clone()), value_from: None }).collect(),
            ),
            volume_mounts: Some(self.mounts.iter().map(mount).collect()),
            ..Container::default()
        };
        completed(plain, &self.more)
    }

    fn resolved(&self, options: &Options) -> ResolvedContainer {
        ResolvedContainer {
            env: self.env.clone(),
            command: if self.command.is_empty() { options.command.clone() } else { self.command.clone() },
            args: self.args.clone(),
            mounts: self.mounts.clone(),
            wants_pod_ips: self.wants_pod_ips,
        }
    }
}

/// Adds the members of one JSON object to another.
fn merge(to: &mut Value, more: Value) {
    match (to, more) {
        (Value::Object(to), Value::Object(more)) => to.extend(more),
        (to, more) => *to = more,
    }
}

/// An object with these members beside its own.
fn completed<T: Serialize + DeserializeOwned>(plain: T, more: &Value) -> T {
    if more.is_null() {
        return plain;
    }
    let written = serde_json::to_value(&plain).and_then(|mut value| {
        merge(&mut value, more.clone());
        serde_json::from_value(value)
    });
    // The members are the checks' own, so that a wrong one is found by the first run.
    written.unwrap_or_else(|error| panic!("a check has a member that is none: {error}: {more}"))
}

/// A pod to be.
#[derive(Clone, Debug)]
pub(super) struct PodPlan {
    name: &'static str,
    namesake: bool,
    restart_policy: &'static str,
    containers: Vec<ContainerPlan>,
    init_containers: Vec<ContainerPlan>,
    volumes: BTreeMap<String, ResolvedVolume>,
    /// Members of its spec beside these.
    more: Value,
}

impl PodPlan {
    /// A pod with one container that keeps running.
    pub fn new(name: &'static str) -> Self {
        let env = ContainerPlan::new("main").env("CONFORMANCE", "yes", false);
        Self {
            name,
            namesake: false,
            restart_policy: "Always",
            containers: vec![env],
            init_containers: Vec::new(),
            volumes: BTreeMap::new(),
            more: Value::Null,
        }
    }

    /// A pod with one container that runs a script.
    pub fn script(name: &'static str, script: &str) -> Self {
        Self { containers: vec![ContainerPlan::new("main").script(script)], ..Self::new(name) }
    }

    pub fn containers(mut self, containers: Vec<ContainerPlan>) -> Self {
        self.containers = containers;
        self
    }

    pub fn init(mut self, container: ContainerPlan) -> Self {
        self.init_containers.push(container);
        self
    }

    /// Has the same name as others of this plan.
    pub fn namesake(mut self) -> Self {
        self.namesake = true;
        self
    }

    pub fn restart(mut self, policy: &'static str) -> Self {
        self.restart_policy = policy;
        self
    }

    /// Members of its spec, as a manifest has them.
    pub fn with(mut self, more: Value) -> Self {
        merge(&mut self.more, more);
        self
    }

    /// A volume of files, as from a ConfigMap.
    pub fn files(self, name: &str, files: &[(&str, &str)]) -> Self {
        self.volume(name, file_set(files))
    }

    /// A folder that the containers share.
    pub fn empty_dir(self, name: &str) -> Self {
        self.volume(name, ResolvedVolume::EmptyDir { medium: String::new(), size_limit: None })
    }

    pub fn volume(mut self, name: &str, volume: ResolvedVolume) -> Self {
        self.volumes.insert(name.into(), volume);
        self
    }

    /// The pod as a provider receives it; `number` is its own.
    pub fn resolve(&self, options: &Options, number: u32, uid: &str) -> ResolvedPod {
        let volume = |(name, volume): (&String, &ResolvedVolume)| Volume {
            name: name.clone(),
            config_map: matches!(volume, ResolvedVolume::Files(_))
                .then(|| ConfigMapVolumeSource { name: name.clone(), ..ConfigMapVolumeSource::default() }),
            empty_dir: match volume {
                ResolvedVolume::EmptyDir { medium, size_limit } => Some(EmptyDirVolumeSource {
                    medium: (!medium.is_empty()).then(|| medium.clone()),
                    size_limit: size_limit.map(|n| Quantity(n.to_string())),
                    ..EmptyDirVolumeSource::default()
                }),
                _ => None,
            },
            ..Volume::default()
        };
        let all = |plans: &[ContainerPlan]| plans.iter().map(|c| c.written(options)).collect::<Vec<_>>();
        let init = all(&self.init_containers);
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(if self.namesake { self.name.into() } else { format!("{}-{number}", self.name) }),
                namespace: Some("conformance".into()),
                uid: Some(uid.into()),
                labels: Some([("app".to_owned(), "conformance".to_owned())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(completed(
                PodSpec {
                    node_name: Some("conformance".into()),
                    restart_policy: Some(self.restart_policy.into()),
                    containers: all(&self.containers),
                    init_containers: (!init.is_empty()).then_some(init),
                    volumes: (!self.volumes.is_empty()).then(|| self.volumes.iter().map(volume).collect()),
                    termination_grace_period_seconds: Some(30),
                    ..PodSpec::default()
                },
                &self.more,
            )),
            status: None,
        };
        let containers = self.containers.iter().chain(&self.init_containers);
        ResolvedPod {
            pod: Arc::new(pod),
            containers: containers.map(|c| (c.name.to_owned(), c.resolved(options))).collect(),
            volumes: self.volumes.clone(),
            ..ResolvedPod::default()
        }
    }
}

/// Adds a container to a pod that runs, as `kubectl debug` does.
pub(super) fn add_ephemeral(pod: &mut ResolvedPod, plan: &ContainerPlan, options: &Options) {
    pod.containers.insert(plan.name.to_owned(), plan.resolved(options));
    let written = plan.written(options);
    let added = EphemeralContainer {
        name: written.name,
        image: written.image,
        command: written.command,
        target_container_name: Some("main".into()),
        ..EphemeralContainer::default()
    };
    let spec = Arc::make_mut(&mut pod.pod).spec.get_or_insert_default();
    spec.ephemeral_containers.get_or_insert_default().push(added);
}

/// Files of a volume.
pub(super) fn file_set(files: &[(&str, &str)]) -> ResolvedVolume {
    let files: Vec<_> = files.iter().map(|(path, content)| (*path, *content, 0o644)).collect();
    files_with_modes(&files)
}

/// Files of a volume, each with its permission bits.
pub(super) fn files_with_modes(files: &[(&str, &str, u32)]) -> ResolvedVolume {
    let file = |(path, content, mode): &(&str, &str, u32)| VolumeFile {
        path: (*path).into(),
        content: Bytes::copy_from_slice(content.as_bytes()),
        mode: *mode,
        owner: None,
        secret: false,
    };
    ResolvedVolume::Files(FileSet { files: files.iter().map(file).collect() })
}
