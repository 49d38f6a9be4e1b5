//! `spec.provider.docker`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How pods are run as containers of a Docker or Podman engine.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DockerConfig {
    /// Where the engine listens: `unix:///path` for one of the operator's machine, which must be started with
    /// `--allow-host-engine`, or `tcp://host:port`. With `ca.crt`, and `tls.crt` and `tls.key` where the engine
    /// asks for them, in the credentials Secret, TCP is spoken with TLS. `unix:///var/run/docker.sock` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^(unix:///.+|tcp://.+)$"))]
    pub host: Option<String>,
    /// The image of the container that holds a pod's network. `registry.k8s.io/pause:3.10` when absent. It is
    /// pulled only when the engine does not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_image: Option<String>,
    /// What that container runs, for images that are not made for it: `[sleep, infinity]`. The image's own
    /// command when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub sandbox_command: Vec<String>,
    /// The engine's network that pods are on. The engine's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// How volumes reach the engine. `Mount`: as folders that it finds at the same path as the operator, on one
    /// machine. `Copy`: as the engine's own volumes, into which files are copied. `Mount` for unix sockets and
    /// `Copy` for TCP when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<DockerVolumes>,
    /// Folders at or below which pods may mount hostPath volumes. None when empty; only with volumes `Mount`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub host_paths: Vec<String>,
}

/// How volumes reach a container engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum DockerVolumes {
    /// The engine mounts the operator's folders.
    Mount,
    /// Files are copied into volumes of the engine.
    Copy,
}
