//! Volumes as folders of this machine.
//!
//! A volume with content is shown through `..data`, a symlink to a folder of one version, which is replaced
//! as a whole: a program sees all files of the old version or all of the new, and `..data` is what it watches.
//!
//! ```text
//!  volumes/config/..2026_11_21_08_00_00.5d41402a/key
//!  volumes/config/..data ─▶ ..2026_11_21_08_00_00.5d41402a
//!  volumes/config/key    ─▶ ..data/key
//! ```
//!
//! Everything here blocks on files, so it runs on a blocking thread.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, symlink,
};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::provider::{FileSet, ResolvedVolume};

const DATA: &str = "..data";
/// The machine's file system in memory. shm_overview(7)
const MEMORY: &str = "/dev/shm";
const MEMORY_PREFIX: &str = "vnode-emptydir-";

/// Which paths of this machine pods may mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum HostPaths {
    /// None.
    #[default]
    Refused,
    /// Those at or below these folders, symlinks resolved.
    Below(Vec<PathBuf>),
    /// Paths of another machine, which its engine checks: nothing of this machine is looked at.
    #[cfg_attr(not(feature = "ssh"), allow(dead_code, reason = "only devices are other machines"))]
    Elsewhere,
}

/// Makes a volume, or brings its files up to date. Returns what is to be mounted.
pub(crate) fn ensure(
    dir: &Path,
    name: &str,
    volume: &ResolvedVolume,
    group: Option<u32>,
    host_paths: &HostPaths,
) -> io::Result<Option<PathBuf>> {
    let dir = dir.join(name);
    match volume {
        ResolvedVolume::Files(files) => {
            make_dir(&dir, 0o755)?;
            write_files(&dir, files, group)?;
        }
        ResolvedVolume::EmptyDir { medium, .. } if medium == "Memory" && Path::new(MEMORY).is_dir() => {
            return in_memory(&dir, group).map(Some);
        }
        ResolvedVolume::EmptyDir { .. } => {
            if make_dir(&dir, 0o777)? {
                give_to(&dir, group, 0o2770)?;
            }
        }
        ResolvedVolume::HostPath { path, type_ } => return host_path(Path::new(path), type_, host_paths).map(Some),
        ResolvedVolume::Other { .. } => return Ok(None),
    }
    Ok(Some(dir))
}

/// An emptyDir in memory: a folder of the machine's own memory file system, with a link to it among the pod's volumes.
fn in_memory(link: &Path, group: Option<u32>) -> io::Result<PathBuf> {
    if let Ok(there) = link.read_link() {
        if there.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            return Ok(there);
        }
        // The machine was restarted, and memory has forgotten.
        remove_file(link)?;
    }
    // Not to be guessed, since everybody may make folders there.
    let made = Path::new(MEMORY).join(format!("{MEMORY_PREFIX}{:032x}", rand::random::<u128>()));
    fs::DirBuilder::new().mode(0o700).create(&made)?;
    symlink(&made, link)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(0o777))?;
    give_to(&made, group, 0o2770)?;
    Ok(made)
}

/// How many bytes the files below a folder take on disk, or in memory. Symlinks are not followed, but for the folder
/// itself.
pub(crate) fn usage(dir: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut sum = 0;
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            // It may be gone by now.
            let Ok(entry) = entry else { continue };
            let Ok(found) = entry.metadata() else { continue };
            // stat(2): blocks of 512 bytes, whatever the file system's are.
            sum += found.blocks() * 512;
            if found.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    Ok(sum)
}

/// The source of a mount: the volume, or a part of it that is proved to lie inside.
///
/// Parts of a volume with content are copied to `copy`, since they are not to change with the volume.
pub(crate) fn part(root: &Path, sub_path: Option<&str>, generated: bool, copy: &Path) -> io::Result<PathBuf> {
    let Some(sub_path) = sub_path.filter(|p| !p.is_empty()) else { return Ok(root.to_owned()) };
    let source = inside(root, sub_path, !generated)?;
    if !generated {
        return Ok(source);
    }
    if let Some(parent) = copy.parent() {
        make_dir(parent, 0o755)?;
    }
    copy_tree(&source, copy)?;
    Ok(copy.to_owned())
}

/// As [`part`], of a folder of another machine, where nothing can be looked at from here.
pub(crate) fn part_elsewhere(root: &Path, sub_path: Option<&str>) -> io::Result<PathBuf> {
    let sub_path = Path::new(sub_path.unwrap_or_default());
    if sub_path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Ok(root.join(sub_path).components().collect());
    }
    Err(refused(format!("subPath {:?} must be relative and without \"..\"", sub_path.display().to_string())))
}

/// Resolves a relative path without leaving `root`, by `..` or by symlink. Missing folders are made.
fn inside(root: &Path, sub_path: &str, create: bool) -> io::Result<PathBuf> {
    let root = root.canonicalize()?;
    let mut at = root.clone();
    for part in Path::new(sub_path).components() {
        match part {
            Component::Normal(part) => at.push(part),
            Component::CurDir => continue,
            _ => return Err(refused(format!("subPath {sub_path:?} must be relative and without \"..\""))),
        }
        match at.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
                make_dir(&at, 0o777)?;
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        // Whatever a symlink on the way leads to must be inside, too.
        at = at.canonicalize()?;
        if !at.starts_with(&root) {
            return Err(refused(format!("subPath {sub_path:?} leads out of the volume")));
        }
    }
    Ok(at)
}

fn host_path(path: &Path, kind: &str, allowed: &HostPaths) -> io::Result<PathBuf> {
    if *allowed == HostPaths::Elsewhere {
        return Ok(path.to_owned());
    }
    let HostPaths::Below(allowed) = allowed else {
        return Err(refused("hostPath volumes are not allowed on this node".into()));
    };
    if path.components().any(|c| !matches!(c, Component::RootDir | Component::Normal(_) | Component::CurDir)) {
        return Err(refused(format!("hostPath {} must not contain \"..\"", path.display())));
    }
    let check = |path: &Path| {
        let ok = allowed.iter().any(|a| a.canonicalize().is_ok_and(|a| path.starts_with(a)));
        if ok { Ok(()) } else { Err(refused(format!("hostPath {} is not allowed on this node", path.display()))) }
    };
    // What there is of it decides where new parts would be made.
    let existing = path.ancestors().find_map(|p| p.canonicalize().ok()).unwrap_or_else(|| PathBuf::from("/"));
    check(&existing)?;
    match kind {
        "DirectoryOrCreate" => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        }
        "FileOrCreate" if !path.exists() => {
            fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
        }
        _ => {}
    }
    let real = path.canonicalize()?;
    check(&real)?;
    let found = fs::metadata(&real)?.file_type();
    let fits = match kind {
        "Directory" | "DirectoryOrCreate" => found.is_dir(),
        "File" | "FileOrCreate" => found.is_file(),
        "Socket" => found.is_socket(),
        "CharDevice" => found.is_char_device(),
        "BlockDevice" => found.is_block_device(),
        _ => true,
    };
    if fits {
        Ok(real)
    } else {
        Err(refused(format!("hostPath type check failed: {} is not a {kind}", path.display())))
    }
}

/// Only one version of a volume is put into place at a time: of two, each would clear away the other's folder.
fn turn(dir: &Path) -> MutexGuard<'static, ()> {
    static TURNS: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];
    let mut hasher = DefaultHasher::new();
    dir.hash(&mut hasher);
    let turn = &TURNS[hasher.finish() as usize % TURNS.len()];
    // It guards nothing of its own, so a panic under it has broken nothing.
    turn.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a version of the files into place, unless it is there already.
fn write_files(dir: &Path, files: &FileSet, group: Option<u32>) -> io::Result<()> {
    let _turn = turn(dir);
    let digest: String = files.digest()[..8].iter().map(|b| format!("{b:02x}")).collect();
    let old = fs::read_link(dir.join(DATA)).ok();
    let is_current = old.as_ref().and_then(|o| o.to_str()).is_some_and(|o| o.ends_with(&digest));
    if is_current && old.as_ref().is_some_and(|o| dir.join(o).is_dir()) {
        return Ok(());
    }
    let now = Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S%.9f").to_string();
    let version = format!("{now}.{digest}");
    let version_dir = dir.join(&version);
    make_dir(&version_dir, 0o755)?;
    let mut tops = BTreeSet::new();
    for file in &files.files {
        let path = Path::new(&file.path);
        let mut parts = path.components();
        let all_normal = path.components().all(|c| matches!(c, Component::Normal(_)));
        let (Some(Component::Normal(top)), true) = (parts.next(), all_normal) else {
            return Err(refused(format!("{:?} is not a path inside a volume", file.path)));
        };
        if top.to_string_lossy().starts_with("..") {
            return Err(refused(format!("{:?} is a name that volumes use themselves", file.path)));
        }
        tops.insert(top.to_owned());
        let target = version_dir.join(path);
        if let Some(parent) = target.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        let mut open = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
        io::Write::write_all(&mut open, &file.content)?;
        drop(open);
        if let Some(owner) = file.owner.and_then(|o| u32::try_from(o).ok()) {
            privileged(chown(&target, Some(owner), None))?;
        }
        // A group that owns the volume can read it. kubelet: `SetVolumeOwnership`, read-only mask.
        let shared = if group.is_some() { 0o440 } else { 0 };
        if group.is_some() {
            privileged(chown(&target, None, group))?;
        }
        fs::set_permissions(&target, fs::Permissions::from_mode((file.mode & 0o7777) | shared))?;
    }
    let part = dir.join("..data_tmp");
    remove_file(&part)?;
    symlink(&version, &part)?;
    fs::rename(&part, dir.join(DATA))?;
    for top in &tops {
        let link = dir.join(top);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(top), &link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy().into_owned();
        if text.starts_with("..") {
            if text != DATA && text != version {
                fs::remove_dir_all(dir.join(&name))?;
            }
        } else if !tops.contains(&name) {
            remove_file(&dir.join(&name))?;
        }
    }
    Ok(())
}

/// True when it was made.
pub(crate) fn make_dir(dir: &Path, mode: u32) -> io::Result<bool> {
    match fs::DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => {
            // The process's umask is not the volume's business.
            fs::set_permissions(dir, fs::Permissions::from_mode(mode))?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(false),
        Err(error) => Err(error),
    }
}

fn give_to(dir: &Path, group: Option<u32>, mode: u32) -> io::Result<()> {
    if group.is_none() {
        return Ok(());
    }
    privileged(chown(dir, None, group))?;
    let mode = fs::metadata(dir)?.permissions().mode() | mode;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}

/// Without the right to change owners, files stay ours.
fn privileged(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

fn remove_file(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        make_dir(to, 0o755)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    remove_file(to)?;
    fs::copy(from, to)?;
    let meta = fs::metadata(from)?;
    privileged(chown(
        to,
        Some(std::os::unix::fs::MetadataExt::uid(&meta)),
        Some(std::os::unix::fs::MetadataExt::gid(&meta)),
    ))
}

/// Removes a pod's folder, and what its volumes have elsewhere.
pub(crate) fn remove_pod(dir: &Path, volumes: &Path) -> io::Result<()> {
    for entry in fs::read_dir(volumes).into_iter().flatten().flatten() {
        let Ok(there) = entry.path().read_link() else { continue };
        let ours = there.parent() == Some(Path::new(MEMORY))
            && there.file_name().is_some_and(|n| n.to_string_lossy().starts_with(MEMORY_PREFIX));
        if ours {
            remove_tree(&there)?;
        }
    }
    remove_tree(dir)
}

/// Removes a folder and all in it. Succeeds when there is none.
pub(crate) fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn refused(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
