//! The step between fork and exec, as a program of its own: session, terminal, mounts, user, then exec.
//!
//! The process has one thread here, which is what makes these calls sound.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_bind_recursive, mount_change, mount_remount};
use serde::{Deserialize, Serialize};

use super::super::cgroup::Group;
use super::super::layout::{ROOT, Run};
use super::super::wire::{Request, SOCKET};

/// What is passed on the command line. The environment is the process's own already.
#[derive(Serialize, Deserialize)]
pub(super) struct Launch {
    /// Tell the supervisor why it failed, rather than who reads standard error.
    pub report: bool,
    pub tty: bool,
    pub command: Vec<String>,
}

/// Becomes the command, or says why not. The current directory is the container's folder.
pub(super) fn launch(launch: &Launch) -> ! {
    let mut report = launch.report.then(connect).and_then(Result::ok);
    let error = match become_command(launch) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let name = launch.command.first().map_or("", String::as_str);
    let message = match error.kind() {
        io::ErrorKind::NotFound => format!("exec: {name:?}: executable file not found: {error}"),
        _ => format!("exec: {name:?}: {error}"),
    };
    // Nobody is left to tell when this fails.
    let _ = match &mut report {
        Some(socket) => socket.write_all(message.as_bytes()),
        None => writeln!(io::stderr(), "{message}"),
    };
    std::process::exit(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

fn connect() -> io::Result<std::os::unix::net::UnixStream> {
    let mut socket = std::os::unix::net::UnixStream::connect(SOCKET)?;
    let mut line = serde_json::to_vec(&Request::Launch)?;
    line.push(b'\n');
    socket.write_all(&line)?;
    Ok(socket)
}

enum Never {}

fn become_command(launch: &Launch) -> io::Result<Never> {
    let run: Run = super::super::layout::read(Path::new(super::super::layout::RUN))?
        .ok_or_else(|| io::Error::other("the container is being removed"))?;
    let home = std::env::current_dir()?;
    rustix::process::setsid()?;
    if launch.tty {
        rustix::process::ioctl_tiocsctty(io::stdin())?;
    }
    let group = run.group.as_ref().map(Group::entrance).transpose().map_err(|e| named(e, "finding its group"))?;
    let root = mount(&run, &home)?;
    if let Some(root) = &root {
        rustix::process::chroot(root)?;
        std::env::set_current_dir("/")?;
    }
    // Late, since what is done here is not the container's, and some may use very little.
    group.unwrap_or_default().enter().map_err(|e| named(e, "joining its group"))?;
    let own = rustix::process::getuid().as_raw();
    if own == 0 {
        let groups: Vec<_> = run.groups.iter().map(|g| rustix::thread::Gid::from_raw(*g)).collect();
        rustix::thread::set_thread_groups(&groups)?;
        let (uid, gid) = (rustix::thread::Uid::from_raw(run.uid), rustix::thread::Gid::from_raw(run.gid));
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    } else if own != run.uid {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "only root can run as another user"));
    }
    // After the change of user, which clears it. The supervisor has one thread, so this is about its life.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let dir = match (&run.working_dir, run.root.is_some()) {
        (Some(dir), _) => dir.clone(),
        (None, true) => PathBuf::from("/"),
        (None, false) => home.join(ROOT),
    };
    std::env::set_current_dir(&dir)
        .map_err(|e| io::Error::new(e.kind(), format!("working directory {}: {e}", dir.display())))?;
    let Some((program, args)) = launch.command.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no command"));
    };
    // Also resets the signal mask and SIGPIPE, as a shell would have them.
    Err(Command::new(program).args(args.iter().map(OsString::from)).exec())
}

/// Shows the mounts at their places, in a mount namespace of this process's own. Returns the new root, if the
/// process must have one.
///
/// Where namespaces may not be made, the mounts are at their places below the container's `root` folder only.
fn mount(run: &Run, home: &Path) -> io::Result<Option<PathBuf>> {
    if run.mounts.is_empty() && run.root.is_none() {
        return Ok(None);
    }
    if !own_namespace(&run.hostname) {
        return match &run.root {
            Some(_) => Err(io::Error::new(io::ErrorKind::PermissionDenied, "a rootfs needs the right to mount")),
            None => Ok(None),
        };
    }
    let mut new_root = run.root.clone();
    let mut mounts: Vec<_> = run.mounts.iter().collect();
    // Outer ones first, or they would hide the inner ones.
    mounts.sort_by_key(|m| Path::new(&m.target).components().count());
    for (n, mount) in mounts.iter().enumerate() {
        let base = new_root.clone().unwrap_or_else(|| PathBuf::from("/"));
        let at = resolve(&base, Path::new(&mount.target))?;
        let is_dir = mount.source.is_dir();
        if !at.exists() {
            if run.root.is_some() {
                make_place(&at, is_dir)?;
            } else if let Some(root) =
                make_room(&base, &at, is_dir, &home.join("mirror").join(format!("{}-{n}", std::process::id())))?
            {
                new_root = Some(root);
            }
        }
        let base = new_root.clone().unwrap_or_else(|| PathBuf::from("/"));
        let at = resolve(&base, Path::new(&mount.target))?;
        bind(&mount.source, &at).map_err(|e| named(e, &format!("mounting {} at {}", mount.volume, mount.target)))?;
        if mount.read_only {
            let flags = MountFlags::BIND | MountFlags::RDONLY;
            mount_remount(&at, flags, c"")
                .map_err(|e| named(e.into(), &format!("mounting {} read-only", mount.volume)))?;
        }
    }
    Ok(new_root)
}

fn named(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[allow(deprecated, reason = "the process has one thread, so nobody else is affected")]
fn own_namespace(hostname: &str) -> bool {
    use rustix::thread::{UnshareFlags, unshare};
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    if uid == 0 {
        if unshare(UnshareFlags::NEWNS | UnshareFlags::NEWUTS).is_err() {
            return false;
        }
    } else {
        if unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWUTS).is_err() {
            return false;
        }
        let mapped = std::fs::write("/proc/self/setgroups", "deny")
            .and_then(|()| std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")))
            .and_then(|()| std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")));
        if mapped.is_err() {
            return false;
        }
    }
    // The kernel takes 64 bytes; a longer name is only in the environment.
    let _ = rustix::system::sethostname(hostname.as_bytes());
    // Nothing that is mounted here may be seen outside.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).is_ok()
}

/// Where a path leads below `base`, symlinks on the way resolved as if `base` were the root.
fn resolve(base: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut at = base.to_owned();
    let mut parts: Vec<PathBuf> = vec![path.to_owned()];
    let mut links = 0;
    while let Some(next) = parts.pop() {
        let mut components = next.components();
        let Some(first) = components.next() else { continue };
        let rest = components.as_path().to_owned();
        if rest.components().next().is_some() {
            parts.push(rest);
        }
        match first {
            Component::RootDir => at = base.to_owned(),
            Component::CurDir => {}
            Component::ParentDir => {
                if at != base {
                    at.pop();
                }
            }
            Component::Normal(name) => {
                let candidate = at.join(name);
                match candidate.read_link() {
                    Ok(target) => {
                        links += 1;
                        if links > 40 {
                            return Err(io::Error::other(format!("too many symlinks in {}", path.display())));
                        }
                        parts.push(target);
                    }
                    Err(_) => at = candidate,
                }
            }
            Component::Prefix(_) => return Err(io::Error::other("not a path of this system")),
        }
    }
    Ok(at)
}

fn make_place(at: &Path, is_dir: bool) -> io::Result<()> {
    if is_dir {
        return std::fs::create_dir_all(at);
    }
    if let Some(parent) = at.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(at).map(drop)
}

/// Makes a place to mount at where the machine has none, without making anything on the machine: the nearest
/// folder that exists is covered by one with the same entries and the new one. Returns the new root when that
/// folder is the root itself.
fn make_room(base: &Path, at: &Path, is_dir: bool, mirror: &Path) -> io::Result<Option<PathBuf>> {
    let existing = at.ancestors().skip(1).find(|p| p.exists()).unwrap_or(base);
    std::fs::create_dir_all(mirror)?;
    for entry in std::fs::read_dir(existing)? {
        let entry = entry?;
        let (from, to) = (entry.path(), mirror.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            std::os::unix::fs::symlink(from.read_link()?, &to)?;
            continue;
        }
        make_place(&to, kind.is_dir())?;
        // What may not be shown again is left out rather than the whole.
        let _ = bind(&from, &to);
    }
    let rest = at.strip_prefix(existing).map_err(io::Error::other)?;
    make_place(&mirror.join(rest), is_dir)?;
    if existing == base {
        return Ok(Some(mirror.to_owned()));
    }
    mount_bind_recursive(mirror, existing)?;
    Ok(None)
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        mount_bind_recursive(from, to)?
    } else {
        mount_bind(from, to)?
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_resolved_as_if_the_folder_were_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        std::fs::create_dir_all(base.join("run")).unwrap();
        std::fs::create_dir_all(base.join("var")).unwrap();
        std::os::unix::fs::symlink("/run", base.join("var/run")).unwrap();
        std::os::unix::fs::symlink("../../../../etc", base.join("up")).unwrap();
        std::os::unix::fs::symlink("loop", base.join("loop")).unwrap();
        for (path, want) in [
            ("/var/run/secrets/x", "run/secrets/x"),
            ("/../../etc", "etc"),
            ("/up/passwd", "etc/passwd"),
            ("a/./b", "a/b"),
        ] {
            assert_eq!(resolve(base, Path::new(path)).unwrap(), base.join(want), "{path}");
        }
        assert!(resolve(base, Path::new("/loop/x")).is_err());
    }
}
