//! Pods as processes of the machine that `vnode` runs on: for development, edge boxes and tests.
//!
//! Nothing isolates them but their user: they share the machine's files, network and processes. So the
//! provider is off unless the operator was started with `--allow-host-processes`, and runs nothing as root
//! unless a VirtualNode says so.
//!
//! | module | what it is |
//! |---|---|
//! | `engine` | the engine of the [runtime loop](super::runtime): a folder and a supervisor for each container |
//! | [`supervisor`] | a program that outlives us: runs one container, keeps its log and exit code |
//! | `client`, `wire` | what is said between the two |
//! | `layout`, `files` | the folders |
//! | `cgroup` | what the kernel limits |
//! | `logs` | reading logs |
//! | `proc` | what `/proc` says of processes |
//! | `users` | as whom a container may run |

mod cgroup;
mod client;
mod engine;
mod files;
mod layout;
mod logs;
mod proc;
pub mod supervisor;
mod users;
mod wire;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::registry::Factory;
use super::runtime::{self, Runtimes};
use super::{Capabilities, Provider, ProviderContext, ProviderError, Result};
use crate::api::{ProcessConfig, ProviderSpec};
use engine::{ProcessEngine, Settings};
use users::Users;

/// How long killed processes may take to be gone, and how often they are looked for.
const ENDING: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);

/// Makes nodes whose pods are processes of this machine.
pub struct ProcessFactory {
    allowed: Option<Allowed>,
    runtimes: Runtimes,
}

struct Allowed {
    state: PathBuf,
    program: PathBuf,
}

impl ProcessFactory {
    /// Refuses every node, and says how to change that.
    pub fn forbidden() -> Self {
        Self { allowed: None, runtimes: Runtimes::default() }
    }

    /// Keeps pods below the folder `state`; `program` is the `vnode` that supervises them, this one when `None`.
    pub fn allowed(state: PathBuf, program: Option<PathBuf>) -> Self {
        // What runs now, even if the file was replaced since.
        let program = program.unwrap_or_else(|| "/proc/self/exe".into());
        Self { allowed: Some(Allowed { state, program }), runtimes: Runtimes::default() }
    }
}

impl Factory for ProcessFactory {
    fn is_pinned(&self, _: &ProviderSpec) -> bool {
        true
    }

    fn build(&self, spec: &ProviderSpec, context: ProviderContext) -> Result<Arc<dyn Provider>> {
        let Some(allowed) = &self.allowed else {
            return Err(ProviderError::Invalid {
                field: "spec.provider.type".into(),
                message: "this operator runs no pods as processes of its machine; it must be started with \
                          --allow-host-processes"
                    .into(),
            });
        };
        let config = spec.process.clone().unwrap_or_default();
        let settings = settings(&config, allowed, &context.node_uid)?;
        make_state_dir(&allowed.state)?;
        let host_paths: Vec<PathBuf> = config.host_paths.iter().map(PathBuf::from).collect();
        let engine = Arc::new(ProcessEngine::new(settings));
        Ok(self.runtimes.get_or_start(&context, engine, &allowed.state, &host_paths))
    }

    fn capabilities(&self) -> Option<Capabilities> {
        Some(runtime::capabilities(engine::capabilities(true, true)))
    }
}

/// Checks a node's configuration.
fn settings(config: &ProcessConfig, allowed: &Allowed, node: &str) -> Result<Settings> {
    let invalid = |field: String, message: String| ProviderError::Invalid {
        field: format!("spec.provider.process.{field}"),
        message,
    };
    let absolute = |field: String, path: &str| {
        let path = PathBuf::from(path);
        let up = path.components().any(|c| c == std::path::Component::ParentDir);
        if path.is_absolute() && !up { Ok(path) } else { Err(invalid(field, "must be an absolute path".into())) }
    };
    let uid = |(n, uid): (usize, &i64)| {
        u32::try_from(*uid).map_err(|_| invalid(format!("users[{n}]"), format!("{uid} is not a uid")))
    };
    for (n, path) in config.host_paths.iter().enumerate() {
        absolute(format!("hostPaths[{n}]"), path)?;
    }
    let rootfs =
        config.rootfs.iter().map(|(image, path)| Ok((image.clone(), absolute(format!("rootfs[{image}]"), path)?)));
    let pod_ip = config.pod_ip.as_ref().map(|ip| ip.parse::<IpAddr>());
    Ok(Settings {
        dir: allowed.state.join(node).join("pods"),
        program: allowed.program.clone(),
        users: Users {
            own: rustix::process::geteuid().as_raw(),
            allowed: config.users.iter().enumerate().map(uid).collect::<Result<_>>()?,
            root: config.allow_root,
        },
        rootfs: rootfs.collect::<Result<_>>()?,
        host_paths: !config.host_paths.is_empty(),
        pod_ip: pod_ip.transpose().map_err(|e| invalid("podIP".into(), e.to_string()))?,
        log_bytes: config.log_max_bytes.unwrap_or(10 << 20),
        log_files: config.log_max_files.unwrap_or(5),
    })
}

/// Pods' users must be able to pass through it, and nobody to look into it.
fn make_state_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let make = || {
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))
    };
    make().map_err(|e: std::io::Error| files::unavailable(&format!("making {}", dir.display()), e))
}

/// Kills everything that runs below a state folder, whichever node it is of, and removes the folder: for a
/// cluster that ends with its process. Nothing may follow these pods any more: it would start them again.
pub async fn remove_all(state: &Path) {
    // Moved first, so that nothing which still follows these pods can start one of them again.
    let moved = state.with_extension("ending");
    if std::fs::rename(state, &moved).is_err() {
        return;
    }
    end_supervisors(state).await;
    for node in std::fs::read_dir(&moved).into_iter().flatten().flatten() {
        let pods = node.path().join("pods");
        // Their supervisors had no time to.
        let (_, runs) = files::scan(&pods).unwrap_or_default();
        let groups: Vec<_> = runs.into_iter().filter_map(|(_, run)| run.group).collect();
        let removed = tokio::task::spawn_blocking(move || groups.iter().for_each(cgroup::Group::remove)).await;
        if let Err(error) = removed {
            tracing::warn!(%error, "groups of processes could not be removed");
        }
        for pod in std::fs::read_dir(&pods).into_iter().flatten().flatten() {
            let dir = pod.path();
            if let Err(error) = runtime::volumes::remove_pod(&dir, &dir.join("volumes")) {
                tracing::warn!(path = %dir.display(), %error, "a pod's folder could not be removed");
            }
        }
    }
    for path in [moved.as_path(), state] {
        if let Err(error) = std::fs::remove_dir_all(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "could not be removed");
        }
    }
}

/// Kills the supervisors below a state folder, the ones included that are just being started, and all that they run;
/// waits until they are gone.
async fn end_supervisors(state: &Path) {
    let end = Instant::now() + ENDING;
    loop {
        let left = proc::supervisors(state);
        if left.is_empty() {
            return;
        }
        if Instant::now() > end {
            tracing::warn!(?left, "supervisors could not be ended");
            return;
        }
        let table = proc::table();
        // The supervisor first, which then starts nothing more.
        proc::kill(left.into_iter().flat_map(|pid| [vec![pid], proc::family(&table, pid)].concat()));
        tokio::time::sleep(LOOK).await;
    }
}
