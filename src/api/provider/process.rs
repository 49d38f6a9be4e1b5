//! `spec.provider.process`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How pods are run as processes of the operator's machine. The operator must be started with
/// `--allow-host-processes`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessConfig {
    /// Uids that pods may run as; the first is that of pods that name none. Only the operator's own when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 0, max = 4_294_967_294_i64)))]
    pub users: Vec<i64>,
    /// Pods may run as root. They can then do everything on the machine.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_root: bool,
    /// Folders that are the root file system of containers with an image of that name. Other images are not
    /// looked at: their containers see the machine's own files.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rootfs: BTreeMap<String, String>,
    /// Folders of the machine at or below which pods may mount hostPath volumes. None when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub host_paths: Vec<String>,
    /// The size in bytes at which a container's log is rotated. 10 MiB when absent.
    #[schemars(range(min = 4096))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_max_bytes: Option<u64>,
    /// How many files of a container's log are kept. 5 when absent.
    #[schemars(range(min = 1, max = 50))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_max_files: Option<u32>,
    /// The address of pods. That of the interface that leads out of the machine when absent.
    #[serde(rename = "podIP", skip_serializing_if = "Option::is_none")]
    pub pod_ip: Option<String>,
}
