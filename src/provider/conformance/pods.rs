//! The pods that checks are made with: as they are written, and as they are resolved.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar as Env, Pod, PodSpec, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::{EnvVar, FileSet, ResolvedContainer, ResolvedMount, ResolvedPod, ResolvedVolume, VolumeFile};
use super::Options;

/// A container to be.
#[derive(Clone, Debug, Default)]
pub(super) struct ContainerPlan {
    name: &'static str,
    /// The one of the options when it is empty.
    command: Vec<String>,
    args: Vec<String>,
    env: Vec<EnvVar>,
    mounts: Vec<(&'static str, &'static str)>,
}

impl ContainerPlan {
    pub fn new(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    /// Runs a script.
    pub fn script(mut self, script: &str) -> Self {
        self.command = ["sh", "-c", script].map(str::to_owned).to_vec();
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

    pub fn mount(mut self, volume: &'static str, path: &'static str) -> Self {
        self.mounts.push((volume, path));
        self
    }

    fn written(&self, options: &Options) -> Container {
        let mount = |(name, path): &(&str, &str)| VolumeMount {
            name: (*name).into(),
            mount_path: (*path).into(),
            ..VolumeMount::default()
        };
        // As a pod's author would have written it; what came from a Secret is not in it.
        let env = self.env.iter().filter(|v| !v.secret);
        Container {
            name: self.name.into(),
            image: Some(options.image.clone()),
            command: Some(self.resolved(options).command),
            args: (!self.args.is_empty()).then(|| self.args.clone()),
            env: Some(
                env.map(|v| Env { name: v.name.clone(), value: Some(v.value.clone()), value_from: None }).collect(),
            ),
            volume_mounts: Some(self.mounts.iter().map(mount).collect()),
            ..Container::default()
        }
    }

    fn resolved(&self, options: &Options) -> ResolvedContainer {
        let mount = |(volume, path): &(&str, &str)| ResolvedMount {
            volume: (*volume).into(),
            path: (*path).into(),
            ..ResolvedMount::default()
        };
        ResolvedContainer {
            env: self.env.clone(),
            command: if self.command.is_empty() { options.command.clone() } else { self.command.clone() },
            args: self.args.clone(),
            mounts: self.mounts.iter().map(mount).collect(),
            wants_pod_ips: false,
        }
    }
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

    /// A volume of files, as from a ConfigMap.
    pub fn files(mut self, name: &str, files: &[(&str, &str)]) -> Self {
        self.volumes.insert(name.into(), file_set(files));
        self
    }

    /// A folder that the containers share.
    pub fn empty_dir(mut self, name: &str) -> Self {
        self.volumes.insert(name.into(), ResolvedVolume::EmptyDir { medium: String::new(), size_limit: None });
        self
    }

    /// The pod as a provider receives it; `number` is its own.
    pub fn resolve(&self, options: &Options, number: u32, uid: &str) -> ResolvedPod {
        let volume = |(name, volume): (&String, &ResolvedVolume)| Volume {
            name: name.clone(),
            config_map: matches!(volume, ResolvedVolume::Files(_))
                .then(|| ConfigMapVolumeSource { name: name.clone(), ..ConfigMapVolumeSource::default() }),
            empty_dir: matches!(volume, ResolvedVolume::EmptyDir { .. }).then(EmptyDirVolumeSource::default),
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
            spec: Some(PodSpec {
                node_name: Some("conformance".into()),
                restart_policy: Some(self.restart_policy.into()),
                containers: all(&self.containers),
                init_containers: (!init.is_empty()).then_some(init),
                volumes: (!self.volumes.is_empty()).then(|| self.volumes.iter().map(volume).collect()),
                termination_grace_period_seconds: Some(30),
                ..PodSpec::default()
            }),
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

/// Files of a volume.
pub(super) fn file_set(files: &[(&str, &str)]) -> ResolvedVolume {
    let file = |(path, content): &(&str, &str)| VolumeFile {
        path: (*path).into(),
        content: Bytes::copy_from_slice(content.as_bytes()),
        mode: 0o644,
        owner: None,
        secret: false,
    };
    ResolvedVolume::Files(FileSet { files: files.iter().map(file).collect() })
}
