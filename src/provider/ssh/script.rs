//! The scripts that a device is given: pure, but for reading the files of volumes.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::found::{Meta, PodFile};
use super::quote::{self, word};
use super::settings::{Settings, is_plain};
use crate::provider::runtime::{ContainerRef, ContainerSpec, Mount};
use crate::provider::{PodRef, ProviderError, ResolvedVolume, Result};

/// Said when the pod's folder is not there.
pub(super) const NO_POD: &str = "VNODE-NO-POD";

/// The folder of one attempt below the node's. Its parts are names that mean themselves to every shell.
pub(super) fn place(container: &ContainerRef) -> Result<String> {
    let (uid, name) = (part(&container.pod.uid)?, part(&container.name)?);
    Ok(format!("pods/{uid}/containers/{name}/{}", container.attempt))
}

fn part(name: &str) -> Result<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !name.is_empty() && !name.starts_with(['.', '-']) && name.chars().all(plain) {
        true => Ok(name),
        false => Err(refuse(format!("{name:?} cannot be the name of a folder"))),
    }
}

pub(super) fn refuse(message: String) -> ProviderError {
    ProviderError::Rejected { reason: "CreateContainerConfigError".into(), message }
}

/// To be said before anything is changed. Sets `VN_NODE`.
pub(super) fn own(settings: &Settings) -> Result<String> {
    Ok(format!("vn_own {} {}\n", part(&settings.node)?, settings.epoch))
}

/// To be said before anything is looked at. Sets `VN_NODE`.
pub(super) fn look(settings: &Settings) -> Result<String> {
    Ok(format!("VN_NODE=$VN_BASE/nodes/{}\n", part(&settings.node)?))
}

/// A file of a volume, or of a part of one.
struct Upload {
    path: PathBuf,
    mode: u32,
    content: Vec<u8>,
}

/// A volume's files as they are now.
pub(super) struct Version {
    /// The folder that `..data` leads to.
    pub name: String,
    tops: Vec<String>,
    files: Vec<Upload>,
    dirs: Vec<PathBuf>,
}

/// Reads a volume with content. Blocks. `None` when it has not been written yet.
pub(super) fn version(volume: &Path) -> io::Result<Option<Version>> {
    let name = match std::fs::read_link(volume.join("..data")) {
        Ok(target) => target.to_string_lossy().into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let root = volume.join(&name);
    let mut version = Version { name, tops: Vec::new(), files: Vec::new(), dirs: Vec::new() };
    for entry in std::fs::read_dir(&root)? {
        version.tops.push(entry?.file_name().to_string_lossy().into_owned());
    }
    collect(&root, Path::new(""), &mut version.files, &mut version.dirs)?;
    Ok(Some(version))
}

fn collect(root: &Path, below: &Path, files: &mut Vec<Upload>, dirs: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(root.join(below))? {
        let path = below.join(entry?.file_name());
        let at = root.join(&path);
        let found = std::fs::metadata(&at)?;
        if found.is_dir() {
            dirs.push(path.clone());
            collect(root, &path, files, dirs)?;
        } else {
            files.push(Upload { mode: found.permissions().mode() & 0o777, content: std::fs::read(&at)?, path });
        }
    }
    Ok(())
}

/// Writes a file; `path` is a word already.
fn write(out: &mut String, path: &str, content: &[u8]) {
    let mut formats = quote::formats(content).peekable();
    if formats.peek().is_none() {
        let _ = writeln!(out, ": > {path} || exit 1");
        return;
    }
    let parts: Vec<String> = formats.map(|f| format!("printf {f}")).collect();
    let _ = writeln!(out, "{{ {}; }} > {path} || exit 1", parts.join(" &&\n"));
}

fn upload(out: &mut String, root: &str, files: &[Upload], dirs: &[PathBuf]) {
    let at = |path: &Path| format!("{root}/{}", word(&path.to_string_lossy()));
    for dir in dirs {
        let _ = writeln!(out, "mkdir -p {} || exit 1", at(dir));
    }
    for file in files {
        let path = at(&file.path);
        write(out, &path, &file.content);
        // What is written is for its owner alone, unless it has to be otherwise.
        if file.mode != 0o600 {
            let _ = writeln!(out, "chmod {:o} {path} || exit 1", file.mode);
        }
    }
}

/// Shows a version of a volume's files.
pub(super) fn put_volume(pod: &PodRef, volume: &str, version: &Version) -> Result<String> {
    let v = format!("\"$VN_NODE\"/pods/{}/volumes/{}", part(&pod.uid)?, part(volume)?);
    let new = format!("{v}/{}", word(&version.name));
    let part = format!("{v}/..part");
    let mut out = format!("if ! [ -d {new} ]; then\nrm -rf {part} && mkdir -p {part} || exit 1\n");
    upload(&mut out, &part, &version.files, &version.dirs);
    let _ = writeln!(out, "mv -f {part} {new} || exit 1\nfi");
    let tops: String = version.tops.iter().map(|t| format!(" {}", word(t))).collect();
    let _ = writeln!(out, "vn_show {v} {}{tops}", word(&version.name));
    Ok(out)
}

/// What a pod's containers share.
pub(super) fn sandbox<'a>(
    settings: &Settings,
    pod: &PodRef,
    volumes: impl Iterator<Item = (&'a String, &'a ResolvedVolume)>,
) -> Result<String> {
    let p = format!("\"$VN_NODE\"/pods/{}", part(&pod.uid)?);
    let mut out = own(settings)?;
    let _ = writeln!(out, "mkdir -p {p}/volumes {p}/containers || exit 1");
    for (name, volume) in volumes {
        match volume {
            ResolvedVolume::Files(_) | ResolvedVolume::EmptyDir { .. } => {
                let _ = writeln!(out, "mkdir -p {p}/volumes/{} || exit 1", part(name)?);
            }
            ResolvedVolume::HostPath { path, type_ } => host_path(&mut out, settings, path, type_)?,
            ResolvedVolume::Other { .. } => {}
        }
    }
    let file = PodFile { pod: pod.clone(), created_at: Timestamp::now() };
    let text = serde_json::to_string(&file).map_err(|e| refuse(e.to_string()))?;
    out += "if ! [ -e ";
    let _ = writeln!(out, "{p}/pod ]; then");
    write(&mut out, &format!("{p}/pod.part"), format!("{text}\n").as_bytes());
    let _ = writeln!(out, "mv -f {p}/pod.part {p}/pod || exit 1\nfi");
    Ok(out)
}

/// As kubelet checks it, on the device.
fn host_path(out: &mut String, settings: &Settings, path: &str, kind: &str) -> Result<()> {
    allowed(settings, path)?;
    let at = word(path);
    let (test, what) = match kind {
        "DirectoryOrCreate" => {
            let _ = writeln!(out, "mkdir -p {at} || exit 1");
            return Ok(());
        }
        "FileOrCreate" => {
            let _ = writeln!(out, "[ -e {at} ] || : > {at} || exit 1");
            ("-f", "file")
        }
        "Directory" => ("-d", "directory"),
        "File" => ("-f", "file"),
        "Socket" => ("-S", "socket"),
        "CharDevice" => ("-c", "character device"),
        "BlockDevice" => ("-b", "block device"),
        _ => return Ok(()),
    };
    let said = word(&format!("hostPath type check failed: {path} is not a {what}"));
    let _ = writeln!(out, "[ {test} {at} ] || vn_refuse {said}");
    Ok(())
}

fn allowed(settings: &Settings, path: &str) -> Result<()> {
    let refuse = |message: String| ProviderError::Rejected { reason: String::new(), message };
    if settings.host_paths.is_empty() {
        return Err(refuse("hostPath volumes are not allowed on this node".into()));
    }
    let below = |allowed: &String| Path::new(path).starts_with(allowed);
    if !is_plain(path) || !settings.host_paths.iter().any(below) {
        return Err(refuse(format!("hostPath {path} is not allowed on this node")));
    }
    Ok(())
}

/// Makes a container's folder. Blocks on reading parts of volumes.
pub(super) fn create(settings: &Settings, spec: &ContainerSpec, command: &[String]) -> Result<String> {
    let d = format!("\"$VN_NODE\"/{}", place(&spec.container)?);
    let mut out = own(settings)?;
    let p = format!("\"$VN_NODE\"/pods/{}", part(&spec.container.pod.uid)?);
    let _ = writeln!(out, "[ -e {p}/pod ] || {{ echo {NO_POD}; exit 0; }}");
    let _ = writeln!(out, "[ -e {d}/meta ] && exit 0\nrm -rf {d}\nmkdir -p {d}/root || exit 1");
    write(&mut out, &format!("{d}/env"), environment(spec)?.as_bytes());
    write(&mut out, &format!("{d}/cmd"), command_line(spec, command)?.as_bytes());
    write(&mut out, &format!("{d}/dir"), directory(spec).as_bytes());
    let (limit, step) = (settings.log_bytes, settings.log_bytes / 4);
    let limits = format!("VN_LIMIT={limit} VN_STEP={step} VN_FILES={}\n", settings.log_files);
    write(&mut out, &format!("{d}/limits"), limits.as_bytes());
    for mount in &spec.mounts {
        link(&mut out, settings, spec, &d, mount)?;
    }
    let message = spec.termination_message_path.as_str();
    let _ = writeln!(out, ": > {d}/termination-log || exit 1");
    show(&mut out, &d, &format!("{d}/termination-log"), message)?;
    let now = Timestamp::now().as_millisecond();
    let _ = writeln!(out, "vn_up\nprintf '%s %s\\n' {now} \"$VN_UP\" > {d}/clock || exit 1");
    let meta = Meta { container: spec.container.clone(), image: spec.image.clone() };
    let meta = serde_json::to_string(&meta).map_err(|e| refuse(e.to_string()))?;
    write(&mut out, &format!("{d}/meta.part"), format!("{meta}\n").as_bytes());
    let _ = writeln!(out, "mv -f {d}/meta.part {d}/meta || exit 1");
    Ok(out)
}

fn environment(spec: &ContainerSpec) -> Result<String> {
    // By the last variable, all processes of a container are known.
    let mut out = format!(
        "export HOSTNAME={} HOME=\"$VN_DIR/root\" VNODE_CONTAINER_ROOT=\"$VN_DIR/root\"\n",
        word(&spec.hostname)
    );
    for v in spec.env.iter().filter(|v| quote::is_variable(&v.name)) {
        let _ = writeln!(out, "export {}={}", v.name, word(text(&v.name, &v.value)?));
    }
    Ok(out)
}

fn text<'a>(what: &str, value: &'a str) -> Result<&'a str> {
    if value.contains('\0') { Err(refuse(format!("{what} has a NUL in it"))) } else { Ok(value) }
}

/// Variables whose names are none to a shell are handed over by `env`, which anybody on the device can see for a
/// moment.
fn command_line(spec: &ContainerSpec, command: &[String]) -> Result<String> {
    let mut words = Vec::new();
    for v in spec.env.iter().filter(|v| !quote::is_variable(&v.name)) {
        if v.secret {
            return Err(refuse(format!(
                "the variable {:?} is from a Secret, and a shell cannot have one of that name: use another",
                v.name
            )));
        }
        if words.is_empty() {
            words.push("env".to_owned());
        }
        words.push(word(text(&v.name, &format!("{}={}", v.name, v.value))?));
    }
    for w in command {
        words.push(word(text("the command", w)?));
    }
    Ok(format!("set -- {}\n", words.join(" ")))
}

fn directory(spec: &ContainerSpec) -> String {
    let Some(dir) = &spec.working_dir else { return "cd root\n".into() };
    // Mounts are seen below the container's own folder only.
    let mounted = spec.mounts.iter().any(|m| Path::new(dir).starts_with(&m.target));
    match Path::new(dir).is_absolute() && !mounted {
        true => format!("cd {}\n", word(dir)),
        false => format!("cd ./root/{}\n", word(dir.trim_start_matches('/'))),
    }
}

/// Shows one mount below the container's `root`.
fn link(out: &mut String, settings: &Settings, spec: &ContainerSpec, d: &str, mount: &Mount) -> Result<()> {
    let source = if let Ok(rest) = mount.source.strip_prefix(spec.dir.join("parts")) {
        let at = format!("{d}/parts/{}", word(&rest.to_string_lossy()));
        put_part(out, &mount.source, &at).map_err(|e| ProviderError::unavailable(format!("reading a volume: {e}")))?;
        at
    } else if let Some(rest) = in_volume(spec, mount) {
        let volume = format!("\"$VN_NODE\"/pods/{}/volumes/{}", part(&spec.container.pod.uid)?, part(&mount.volume)?);
        match rest.as_os_str().is_empty() {
            true => volume,
            false => {
                let rest = word(&rest.to_string_lossy());
                let _ = writeln!(out, "vn_inside {volume} {rest}");
                format!("{volume}/{rest}")
            }
        }
    } else {
        let path = mount.source.to_string_lossy();
        allowed(settings, &path)?;
        word(&path)
    };
    show(out, d, &source, &mount.target)
}

/// Where in a volume of the pod a mount's source is.
fn in_volume(spec: &ContainerSpec, mount: &Mount) -> Option<PathBuf> {
    // <pod>/containers/<name>/<attempt>
    let root = spec.dir.ancestors().nth(3)?.join("volumes").join(&mount.volume);
    let real = root.canonicalize().unwrap_or_else(|_| root.clone());
    let rest = mount.source.strip_prefix(&root).or_else(|_| mount.source.strip_prefix(&real)).ok()?;
    Some(rest.to_owned())
}

fn put_part(out: &mut String, source: &Path, at: &str) -> io::Result<()> {
    let (mut files, mut dirs) = (Vec::new(), Vec::new());
    let found = std::fs::metadata(source)?;
    if found.is_dir() {
        collect(source, Path::new(""), &mut files, &mut dirs)?;
        let _ = writeln!(out, "mkdir -p {at} || exit 1");
        upload(out, at, &files, &dirs);
        return Ok(());
    }
    let _ = writeln!(out, "mkdir -p {at} && rmdir {at} || exit 1");
    write(out, at, &std::fs::read(source)?);
    let _ = writeln!(out, "chmod {:o} {at} || exit 1", found.permissions().mode() & 0o777);
    Ok(())
}

/// A link to `source` at a container's path. One inside another mount is not made: it would be made in the volume.
fn show(out: &mut String, d: &str, source: &str, target: &str) -> Result<()> {
    let target = target.trim_matches('/');
    let parts: Vec<&str> = target.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.contains(&"..") {
        return Err(refuse(format!("mountPath {target:?} must not contain \"..\"")));
    }
    let Some((last, parents)) = parts.split_last() else { return Ok(()) };
    let mut at = format!("{d}/root");
    let mut outside = String::new();
    for parent in parents {
        at = format!("{at}/{}", word(parent));
        let _ = write!(outside, "! [ -L {at} ] && ");
    }
    let _ = writeln!(out, "if {outside}mkdir -p {at}; then vn_link {source} {at}/{} || exit 1; fi", word(last));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, uid: &str) -> ContainerRef {
        let pod = PodRef { namespace: "ns".into(), name: "pod".into(), uid: uid.into() };
        ContainerRef { pod, name: name.into(), attempt: 3, id: String::new() }
    }

    #[test]
    fn folders_have_plain_names_alone() {
        assert_eq!(place(&container("main", "0c0f-1")).unwrap(), "pods/0c0f-1/containers/main/3");
        for (name, uid) in [("a b", "u"), ("main", "../u"), ("", "u"), ("..", "u"), ("a;id", "u"), ("-n", "u")] {
            assert!(place(&container(name, uid)).is_err(), "{name} {uid}");
        }
    }

    #[test]
    fn links_are_made_below_the_root_and_never_outside() {
        let mut out = String::new();
        show(&mut out, "D", "S", "/etc/con fig/x").unwrap();
        assert!(out.contains("mkdir -p D/root/'etc'/'con fig'; then vn_link S D/root/'etc'/'con fig'/'x'"), "{out}");
        assert!(show(&mut out, "D", "S", "/a/../../b").is_err());
    }
}
