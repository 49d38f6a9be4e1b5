//! A pod's volumes as content, and the credentials for its images.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// A volume of a pod, as far as the API server has to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolvedVolume {
    /// configMap, secret, downwardAPI and projected: files whose content is at hand.
    Files(FileSet),
    /// A directory that is empty at the start and lives as long as the pod.
    EmptyDir {
        /// `""` (the node's default), `Memory` or `HugePages...`.
        medium: String,
        /// `sizeLimit` in bytes.
        size_limit: Option<u64>,
    },
    /// A path of the machine behind the node.
    HostPath {
        /// The path.
        path: String,
        /// `""`, `DirectoryOrCreate`, `Directory`, `FileOrCreate`, `File`, `Socket`, `CharDevice`, `BlockDevice`.
        type_: String,
    },
    /// A kind that the provider declared to handle by itself. All there is to know is in `spec.volumes`.
    Other {
        /// The name of the member of `spec.volumes[]` that is set: `persistentVolumeClaim`, `csi`.
        kind: &'static str,
    },
}

/// The files of a volume. Kubernetes shows them to programs through a symlink that is replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSet {
    /// In the order of their paths, each path once.
    pub files: Vec<VolumeFile>,
}

impl FileSet {
    /// A digest of all paths, contents, modes and owners: equal sets have equal digests.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for file in &self.files {
            for part in [file.path.as_bytes(), &file.content] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
            hash.update(file.mode.to_be_bytes());
            hash.update(file.owner.unwrap_or(-1).to_be_bytes());
        }
        hash.finalize().into()
    }
}

/// One file of a volume. Its Debug output shows the content's size only.
#[derive(Clone, PartialEq, Eq)]
pub struct VolumeFile {
    /// Relative, with `/` between its parts, never with a `..` among them.
    pub path: String,
    /// What is in it.
    pub content: Bytes,
    /// Permission bits, before `fsGroup` is applied.
    pub mode: u32,
    /// The user whose file it should be, when it matters.
    pub owner: Option<i64>,
    /// True when the content came from a Secret or is a token.
    pub secret: bool,
}

impl fmt::Debug for VolumeFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:04o}, {} bytes)", self.path, self.mode, self.content.len())
    }
}

/// A mount of a container, with its sub-path expanded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedMount {
    /// The volume's name.
    pub volume: String,
    /// Where in the container.
    pub path: String,
    /// The part of the volume that is mounted; `None` for all of it. From `subPath` or `subPathExpr`,
    /// relative, never with a `..`. Such a mount is not refreshed when the volume is.
    pub sub_path: Option<String>,
    /// `readOnly`
    pub read_only: bool,
}

/// Credentials for one registry, from a pod's image pull secrets. Its Debug output shows the registry only.
#[derive(Clone, PartialEq, Eq)]
pub struct PullCredentials {
    /// As the Secret names it: `host[:port][/path]`, where the host's parts may have globs.
    pub registry: String,
    /// Empty when there is a token instead.
    pub username: String,
    /// Empty when there is a token instead.
    pub password: String,
    /// An OAuth2 refresh token.
    pub identity_token: Option<String>,
    /// A bearer token.
    pub registry_token: Option<String>,
}

impl fmt::Debug for PullCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "credentials for {}", self.registry)
    }
}

impl PullCredentials {
    /// True when these are for the image's registry: same number of host parts, each matching its glob, the
    /// same port if one is named, and a path that the image's begins with. Kubernetes: `credentialprovider`.
    pub fn matches(&self, image: &str) -> bool {
        let (host, path) = registry_of(image);
        let pattern = self.registry.trim_start_matches("https://").trim_start_matches("http://");
        let (want_host, want_path) = pattern.split_once('/').unwrap_or((pattern, ""));
        // Docker's own registry has gone by these names, with a version for a path.
        let docker = |h: &str| matches!(h, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        if docker(want_host) && docker(host) {
            return true;
        }
        let want_path = want_path.trim_end_matches('/');
        let want_path = if matches!(want_path, "v1" | "v2") { "" } else { want_path };
        let port = |h: &str| h.rsplit_once(':').map(|(_, port)| port.to_owned());
        let bare = |h: &str| h.rsplit_once(':').map_or(h.to_owned(), |(h, _)| h.to_owned());
        if port(want_host).is_some() && port(want_host) != port(host) {
            return false;
        }
        let (want_host, host) = (bare(want_host), bare(host));
        let (want, have): (Vec<_>, Vec<_>) = (want_host.split('.').collect(), host.split('.').collect());
        want.len() == have.len() && want.iter().zip(&have).all(|(w, h)| glob(w, h)) && path.starts_with(want_path)
    }
}

/// The registry's host and the path in it. The first part of an image's name is a host if it looks like one.
fn registry_of(image: &str) -> (&str, &str) {
    match image.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => ("index.docker.io", image),
    }
}

/// `*` for any number of characters, `?` for one.
fn glob(pattern: &str, text: &str) -> bool {
    let (mut p, mut rest) = (pattern.chars(), text);
    loop {
        match p.next() {
            None => return rest.is_empty(),
            Some('*') => {
                let tail = p.as_str();
                return (0..=rest.len()).filter(|n| rest.is_char_boundary(*n)).any(|n| glob(tail, &rest[n..]));
            }
            Some(c) => {
                let mut r = rest.chars();
                match r.next() {
                    Some(d) if c == '?' || c == d => rest = r.as_str(),
                    _ => return false,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_for_the_registry_they_name() {
        for (registry, image, want) in [
            ("https://index.docker.io/v1/", "busybox", true),
            ("https://index.docker.io/v1/", "library/busybox:1", true),
            ("docker.io", "docker.io/library/busybox", true),
            ("docker.io", "quay.io/busybox", false),
            ("quay.io", "quay.io/a/b", true),
            ("quay.io/a", "quay.io/a/b", true),
            ("quay.io/c", "quay.io/a/b", false),
            ("*.example.com", "eu.example.com/x", true),
            ("*.example.com", "a.eu.example.com/x", false),
            ("r.example.com:5000", "r.example.com:5000/x", true),
            ("r.example.com:5000", "r.example.com/x", false),
            ("https://r.example.com/v2/", "r.example.com/x", true),
            ("localhost:5000", "localhost:5000/x", true),
        ] {
            let credentials = PullCredentials {
                registry: registry.into(),
                username: "u".into(),
                password: "hidden".into(),
                identity_token: None,
                registry_token: None,
            };
            assert_eq!(credentials.matches(image), want, "{registry} {image}");
            assert!(!format!("{credentials:?}").contains("hidden"));
        }
    }

    #[test]
    fn no_content_is_shown() {
        let file = VolumeFile { path: "a".into(), content: "hidden".into(), mode: 0o644, owner: None, secret: true };
        let set = FileSet { files: vec![file] };
        assert_eq!(format!("{set:?}"), "FileSet { files: [a (0644, 6 bytes)] }");
        let mut other = set.clone();
        other.files[0].content = "hiddem".into();
        assert_ne!(set.digest(), other.digest());
    }
}
