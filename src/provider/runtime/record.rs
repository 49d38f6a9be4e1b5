//! What is kept of a pod on disk, so that a restart of this process changes nothing.
//!
//! The file is readable for its owner alone: resolved environments hold secrets. The content of volumes is
//! not in it, since that is in the volumes' folders already; pull secrets are not either, and come again with
//! the next update.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use super::files;
use super::machine::state::PodState;
use crate::provider::{EnvVar, FileSet, ResolvedContainer, ResolvedMount, ResolvedPod, ResolvedVolume};

const FILE: &str = "record.json";
/// Raised when an older program could not read it; a newer one reads all.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    pod: Arc<Pod>,
    containers: BTreeMap<String, SavedContainer>,
    volumes: BTreeMap<String, SavedVolume>,
    #[serde(default)]
    unresolved: BTreeMap<String, String>,
    state: PodState,
}

#[derive(Serialize, Deserialize)]
struct SavedContainer {
    env: Vec<(String, String, bool)>,
    command: Vec<String>,
    args: Vec<String>,
    mounts: Vec<SavedMount>,
    wants_pod_ips: bool,
}

#[derive(Serialize, Deserialize)]
struct SavedMount {
    volume: String,
    path: String,
    sub_path: Option<String>,
    read_only: bool,
}

#[derive(Serialize, Deserialize)]
enum SavedVolume {
    Files,
    EmptyDir { medium: String, size_limit: Option<u64> },
    HostPath { path: String, type_: String },
}

impl SavedContainer {
    fn of(c: &ResolvedContainer) -> Self {
        let mount = |m: &ResolvedMount| SavedMount {
            volume: m.volume.clone(),
            path: m.path.clone(),
            sub_path: m.sub_path.clone(),
            read_only: m.read_only,
        };
        Self {
            env: c.env.iter().map(|v| (v.name.clone(), v.value.clone(), v.secret)).collect(),
            command: c.command.clone(),
            args: c.args.clone(),
            mounts: c.mounts.iter().map(mount).collect(),
            wants_pod_ips: c.wants_pod_ips,
        }
    }

    fn resolved(self) -> ResolvedContainer {
        let mount = |m: SavedMount| ResolvedMount {
            volume: m.volume,
            path: m.path,
            sub_path: m.sub_path,
            read_only: m.read_only,
        };
        ResolvedContainer {
            env: self.env.into_iter().map(|(name, value, secret)| EnvVar { name, value, secret }).collect(),
            command: self.command,
            args: self.args,
            mounts: self.mounts.into_iter().map(mount).collect(),
            wants_pod_ips: self.wants_pod_ips,
        }
    }
}

/// Writes down a pod and where it is in its life.
pub(crate) async fn save(dir: &Path, pod: &ResolvedPod, state: &PodState) -> io::Result<()> {
    let volume = |v: &ResolvedVolume| match v {
        ResolvedVolume::Files(_) => Some(SavedVolume::Files),
        ResolvedVolume::EmptyDir { medium, size_limit } => {
            Some(SavedVolume::EmptyDir { medium: medium.clone(), size_limit: *size_limit })
        }
        ResolvedVolume::HostPath { path, type_ } => {
            Some(SavedVolume::HostPath { path: path.clone(), type_: type_.clone() })
        }
        ResolvedVolume::Other { .. } => None,
    };
    let record = Record {
        version: VERSION,
        pod: pod.pod.clone(),
        containers: pod.containers.iter().map(|(name, c)| (name.clone(), SavedContainer::of(c))).collect(),
        volumes: pod.volumes.iter().filter_map(|(name, v)| Some((name.clone(), volume(v)?))).collect(),
        unresolved: pod.unresolved.clone(),
        state: state.clone(),
    };
    files::replace(&dir.join(FILE), &serde_json::to_vec(&record)?).await
}

/// Reads what [`save`] wrote.
pub(crate) async fn load(dir: &Path) -> io::Result<(ResolvedPod, PodState)> {
    let record: Record = serde_json::from_slice(&tokio::fs::read(dir.join(FILE)).await?)?;
    let volume = |v| match v {
        SavedVolume::Files => ResolvedVolume::Files(FileSet::default()),
        SavedVolume::EmptyDir { medium, size_limit } => ResolvedVolume::EmptyDir { medium, size_limit },
        SavedVolume::HostPath { path, type_ } => ResolvedVolume::HostPath { path, type_ },
    };
    let pod = ResolvedPod {
        pod: record.pod,
        containers: record.containers.into_iter().map(|(name, c)| (name, c.resolved())).collect(),
        volumes: record.volumes.into_iter().map(|(name, v)| (name, volume(v))).collect(),
        unresolved: record.unresolved,
        ..ResolvedPod::default()
    };
    Ok((pod, record.state))
}

/// [`PodRef`](crate::provider::PodRef) as namespace, name and uid.
pub(crate) mod pod_ref {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::provider::PodRef;

    /// Writes it.
    pub(crate) fn serialize<S: Serializer>(pod: &PodRef, serializer: S) -> Result<S::Ok, S::Error> {
        (&*pod.namespace, &*pod.name, &*pod.uid).serialize(serializer)
    }

    /// Reads it.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PodRef, D::Error> {
        let (namespace, name, uid) = <(String, String, String)>::deserialize(deserializer)?;
        Ok(PodRef { namespace: namespace.into(), name: name.into(), uid: uid.into() })
    }
}
