//! `spec.provider.ssh`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How pods are run as processes of a device that is reached over SSH.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshConfig {
    /// The device's name or address.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:%-]+$"), length(min = 1, max = 253))]
    pub host: String,
    /// The port of its SSH server. 22 when absent.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// As whom to log in. Pods run as this user.
    #[schemars(length(min = 1, max = 64))]
    pub user: String,
    /// The host key that the device must have: `ssh-ed25519 AAAA…` as `ssh-keyscan` prints it, or
    /// `SHA256:…`, its fingerprint. When absent, it is looked for in `known_hosts` of the credentials Secret.
    #[schemars(regex(pattern = r"^(SHA256:[A-Za-z0-9+/]{43}=?|[a-z0-9@.-]+ [A-Za-z0-9+/]+=*( .*)?)$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// What to do with a device of which no host key is known. `Pinned` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key_policy: Option<HostKeyPolicy>,
    /// The way to the device: hosts that are logged in to one after the other, each over the one before.
    #[schemars(length(max = 8))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jumps: Vec<SshJump>,
    /// The folder on the device for all that is kept of pods, absolute or below the user's home. `.vnode` when
    /// absent.
    #[schemars(regex(pattern = r"^(~/|/)?[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)*$"), length(max = 255))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// The POSIX shell that starts containers: `sh` when absent, `/bin/busybox sh` where there is no other.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_./+-]+( [A-Za-z0-9_./+-]+)*$"), length(max = 255))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Folders of the device at or below which pods may name hostPath volumes. None when empty.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_paths: Vec<String>,
    /// The size in bytes at which a container's log is rotated. 1 MiB when absent.
    #[schemars(range(min = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_max_bytes: Option<u64>,
    /// How many files of a container's log are kept. 4 when absent.
    #[schemars(range(min = 2, max = 50))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_max_files: Option<u32>,
}

/// What to do with a device of which no host key is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum HostKeyPolicy {
    /// It is not connected to.
    #[default]
    Pinned,
    /// The key that it shows first is kept in the operator's state folder, and no other is taken from then on.
    TrustOnFirstUse,
}

/// A host on the way to a device.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshJump {
    /// Its name or address, as seen from the host before.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:%-]+$"), length(min = 1, max = 253))]
    pub host: String,
    /// The port of its SSH server. 22 when absent.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// As whom to log in. The device's user when absent.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// As the device's.
    #[schemars(regex(pattern = r"^(SHA256:[A-Za-z0-9+/]{43}=?|[a-z0-9@.-]+ [A-Za-z0-9+/]+=*( .*)?)$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
}
