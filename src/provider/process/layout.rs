//! The files of a container's folder, which its supervisor and every `vnode` that comes after agree on.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::cgroup::Group;
use crate::provider::runtime::limits::Limits;
use crate::provider::runtime::{ContainerRef, Exit, Mount};

/// Written when a container is made; read by its supervisor. It holds the environment, so only its owner may
/// read it.
pub(super) const RUN: &str = "run.json";
/// Written by the supervisor when the main process has begun.
pub(super) const RUNNING: &str = "running.json";
/// Written by the supervisor when it has ended.
pub(super) const EXIT: &str = "exit.json";
/// Where mounts are shown when they cannot be mounted, and the working directory of who names none.
pub(super) const ROOT: &str = "root";
/// The newest log file; older ones have a number after it.
pub(super) const LOG: &str = "log";
/// The pod's `/etc/hosts`, if it has one of its own.
pub(super) const HOSTS: &str = "hosts";
/// Written when a pod's sandbox is made.
pub(super) const SANDBOX: &str = "sandbox.json";

/// What a supervisor is to run.
#[derive(Serialize, Deserialize)]
pub(super) struct Run {
    pub container: ContainerRef,
    pub image: String,
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub working_dir: Option<PathBuf>,
    pub hostname: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// The folder that is `/` to it.
    pub root: Option<PathBuf>,
    pub mounts: Vec<Mount>,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub log_bytes: u64,
    pub log_files: u32,
    /// The group that it runs in, where groups can be made.
    #[serde(default)]
    pub group: Option<Group>,
    #[serde(default)]
    pub limits: Limits,
}

/// A main process that runs, or ran.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Running {
    /// The supervisor's, and when that was started in the kernel's ticks: together they name it for good.
    pub supervisor: (i32, u64),
    /// The main process's.
    pub pid: i32,
    pub started_at: Timestamp,
}

/// A pod's sandbox.
#[derive(Serialize, Deserialize)]
pub(super) struct SandboxFile {
    #[serde(with = "crate::provider::runtime::record::pod_ref")]
    pub pod: crate::provider::PodRef,
    pub created_at: Timestamp,
}

/// Writes a file as a whole, for its owner alone.
pub(super) fn write(file: &Path, what: &impl Serialize) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let part = file.with_extension("part");
    let mut open = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    open.write_all(&serde_json::to_vec(what)?)?;
    drop(open);
    std::fs::rename(&part, file)
}

/// Reads a file; `None` when there is no such file.
pub(super) fn read<T: for<'de> Deserialize<'de>>(file: &Path) -> io::Result<Option<T>> {
    match std::fs::read(file) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How a container ended whose supervisor left no word.
pub(super) fn lost(running: Option<Running>) -> Exit {
    Exit {
        code: 137,
        signal: Some(9),
        started_at: running.map(|r| r.started_at),
        finished_at: Timestamp::now(),
        oom_killed: false,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some("the process was gone when it was looked for; the machine may have been restarted".into()),
    }
}
