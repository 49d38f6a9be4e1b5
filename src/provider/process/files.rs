//! Making and finding the folders of pods and containers, and a few facts about the machine.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::engine::Settings;
use super::layout::{self, HOSTS, ROOT, RUN, Run, SANDBOX, SandboxFile};
use crate::provider::runtime::limits::Limits;
use crate::provider::runtime::{ContainerSpec, Mount, host_entries};
use crate::provider::{NodeDescription, ProviderError, ResolvedPod, goarch};

const ETC_HOSTS: &str = "/etc/hosts";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn guard<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half-way under these locks.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn unavailable(doing: &str, error: io::Error) -> ProviderError {
    ProviderError::Unavailable {
        message: format!("{doing}: {error}"),
        retry_after: None,
        source: Some(Box::new(error)),
    }
}

/// What a supervisor is to run. The error is for users.
pub(super) fn run(settings: &Settings, spec: &ContainerSpec, command: Vec<String>, uid: u32) -> Result<Run, String> {
    let number = |n: i64, what: &str| u32::try_from(n).map_err(|_| format!("{what} {n} is not a gid"));
    let gid = match spec.run_as_group {
        Some(gid) => number(gid, "runAsGroup")?,
        None => primary_group(uid),
    };
    let pod = &spec.pod_security;
    let groups = pod.supplemental_groups.iter().flatten().chain(&pod.fs_group);
    let groups = groups.map(|g| number(*g, "group")).collect::<Result<Vec<_>, _>>()?;
    let home = spec.dir.join(ROOT);
    let mut env: BTreeMap<String, String> = [
        ("PATH", DEFAULT_PATH.to_owned()),
        ("HOSTNAME", spec.hostname.clone()),
        ("HOME", home.display().to_string()),
        ("VNODE_CONTAINER_ROOT", home.display().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    env.extend(spec.env.iter().map(|v| (v.name.clone(), v.value.clone())));
    let mut mounts = spec.mounts.clone();
    let hosts = settings.dir.join(&*spec.container.pod.uid).join(HOSTS);
    if hosts.exists() && !mounts.iter().any(|m| m.target == ETC_HOSTS) {
        mounts.push(Mount {
            volume: "etc-hosts".into(),
            source: hosts,
            target: ETC_HOSTS.into(),
            read_only: false,
            generated: false,
            propagation: None,
        });
    }
    mounts.push(Mount {
        volume: "termination-log".into(),
        source: spec.termination_message_file.clone(),
        target: spec.termination_message_path.clone(),
        read_only: false,
        generated: false,
        propagation: None,
    });
    let up = |m: &&Mount| Path::new(&m.target).components().any(|c| c == Component::ParentDir);
    if let Some(mount) = mounts.iter().find(up) {
        return Err(format!("mountPath {:?} must not contain \"..\"", mount.target));
    }
    Ok(Run {
        container: spec.container.clone(),
        image: spec.image.clone(),
        command,
        env,
        working_dir: spec.working_dir.as_ref().map(PathBuf::from),
        hostname: spec.hostname.clone(),
        uid,
        gid,
        groups,
        root: settings.rootfs.get(&spec.image).cloned(),
        mounts,
        tty: spec.tty,
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        log_bytes: settings.log_bytes,
        log_files: settings.log_files,
        group: None,
        limits: Limits::of(&spec.resources)?,
    })
}

/// Makes what a container's process finds in its folder, and writes down what is to run.
pub(super) fn make_home(home: &Path, run: &Run, own: u32) -> io::Result<()> {
    let root = home.join(ROOT);
    fs::create_dir_all(&root)?;
    for mount in &run.mounts {
        show(&root, mount)?;
    }
    if own == 0 {
        chown(&root, Some(run.uid), Some(run.gid))?;
        let message = run.mounts.last().map(|m| &m.source);
        if let Some(message) = message {
            chown(message, Some(run.uid), Some(run.gid))?;
        }
        // The launching process, still root then, reads it; its user need not.
    }
    layout::write(&home.join(RUN), run)
}

/// A symlink to the mount's source at its place below the container's `root` folder: how mounts are found on
/// machines where they may not be mounted.
fn show(root: &Path, mount: &Mount) -> io::Result<()> {
    let mut at = root.to_owned();
    let parts: Vec<_> = Path::new(&mount.target).components().filter(|c| matches!(c, Component::Normal(_))).collect();
    let Some((last, parents)) = parts.split_last() else { return Ok(()) };
    for part in parents {
        at.push(part);
        match at.symlink_metadata() {
            // Inside another mount: a link there would be made in the volume itself.
            Ok(found) if !found.is_dir() => return Ok(()),
            Ok(_) => {}
            Err(_) => fs::create_dir(&at)?,
        }
    }
    at.push(last);
    match std::os::unix::fs::symlink(&mount.source, &at) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Lets nobody but the pod's own users into its folder: volumes hold secrets. The folder stays ours, so that a
/// pod cannot replace what we keep in it.
pub(super) fn close_to_others(dir: &Path, own: u32, pod: &ResolvedPod) -> io::Result<()> {
    if own != 0 {
        return fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    }
    let spec = pod.pod.spec.as_ref();
    let of_pod = spec.and_then(|s| s.security_context.as_ref());
    let containers = spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let group = |c: &k8s_openapi::api::core::v1::Container| {
        let own = c.security_context.as_ref();
        let group = own.and_then(|s| s.run_as_group).or_else(|| of_pod.and_then(|s| s.run_as_group));
        let user = own.and_then(|s| s.run_as_user).or_else(|| of_pod.and_then(|s| s.run_as_user));
        group.or_else(|| user.and_then(|u| u32::try_from(u).ok()).map(|u| primary_group(u).into()))
    };
    let groups: std::collections::BTreeSet<_> = containers.map(group).collect();
    let only = if groups.len() == 1 { groups.first().copied().flatten() } else { None };
    match only.and_then(|g| u32::try_from(g).ok()) {
        Some(group) => {
            chown(dir, None, Some(group))?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o710))
        }
        // Names below it cannot be listed, and uids of pods cannot be guessed.
        None => fs::set_permissions(dir, fs::Permissions::from_mode(0o711)),
    }
}

/// Writes the pod's own `/etc/hosts`, if it wants more in it than the machine has.
pub(super) fn write_hosts(dir: &Path, pod: &Pod, ip: IpAddr) -> io::Result<()> {
    let entries = host_entries(pod, &[ip]);
    if entries.is_empty() {
        return Ok(());
    }
    let machine = fs::read_to_string(ETC_HOSTS).unwrap_or_default();
    let file = dir.join(HOSTS);
    fs::write(&file, format!("{}\n{entries}", machine.trim_end()))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))
}

fn primary_group(uid: u32) -> u32 {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let same = fields.get(2)?.parse() == Ok(uid);
        fields.get(3).filter(|_| same)?.parse().ok()
    });
    found.unwrap_or(uid)
}

/// The folders of all attempts of a pod.
pub(super) fn attempts(pod: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for container in children(&pod.join("containers"))? {
        found.extend(children(&container)?);
    }
    Ok(found)
}

fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(entries) => entries.map(|e| e.map(|e| e.path())).collect(),
    }
}

/// All sandboxes, and all containers with their folders.
pub(super) type Found = (Vec<SandboxFile>, Vec<(PathBuf, Run)>);

/// Looks for everything of a node.
pub(super) fn scan(dir: &Path) -> io::Result<Found> {
    let (mut sandboxes, mut runs) = (Vec::new(), Vec::new());
    for pod in children(dir)? {
        sandboxes.extend(layout::read::<SandboxFile>(&pod.join(SANDBOX))?);
        for home in attempts(&pod)? {
            if let Some(run) = layout::read::<Run>(&home.join(RUN))? {
                runs.push((home, run));
            }
        }
    }
    Ok((sandboxes, runs))
}

/// The address of the interface that leads out of this machine; loopback when none does.
pub(super) fn own_address() -> IpAddr {
    let probe = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // Sends nothing: connecting a UDP socket only asks the kernel for the route. RFC 5737 address.
        socket.connect(("192.0.2.1", 9))?;
        socket.local_addr()
    };
    probe().map_or(Ipv4Addr::LOCALHOST.into(), |a: SocketAddr| a.ip())
}

/// What this machine has.
pub(super) fn describe_machine() -> NodeDescription {
    let mut capacity = BTreeMap::new();
    if let Ok(cpus) = std::thread::available_parallelism() {
        capacity.insert("cpu".to_owned(), Quantity(cpus.to_string()));
    }
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    capacity.extend(total.map(|kib| ("memory".to_owned(), Quantity(format!("{kib}Ki")))));
    NodeDescription {
        capacity,
        operating_system: Some("linux".into()),
        architecture: Some(goarch(std::env::consts::ARCH).into()),
        version: Some(concat!("process-", env!("CARGO_PKG_VERSION")).into()),
        ..NodeDescription::default()
    }
}
