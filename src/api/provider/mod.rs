//! `spec.provider`: which provider, and its typed configuration under a member of the same name.

mod docker;
mod external;
mod grpc;
mod mock;
mod process;
mod ssh;
mod web;

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

pub use docker::{DockerConfig, DockerVolumes};
pub use external::{ExternalConfig, OwnType, is_own_name};
pub use grpc::GrpcConfig;
pub use mock::MockConfig;
pub use process::ProcessConfig;
pub use ssh::{HostKeyPolicy, SshConfig, SshJump};
pub use web::{WebConfig, WebInterface, WebPoll};

/// What stands behind the node.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'mock' || has(self.mock)").message("provider.mock must be set (it may be empty: {}) when provider.type is mock"),
    validation = Rule::new("self.type != 'process' || has(self.process)").message("provider.process must be set (it may be empty: {}) when provider.type is process"),
    validation = Rule::new("self.type != 'docker' || has(self.docker)").message("provider.docker must be set (it may be empty: {}) when provider.type is docker"),
    validation = Rule::new("self.type != 'grpc' || has(self.grpc)").message("provider.grpc must be set, with an endpoint, when provider.type is grpc"),
    validation = Rule::new("self.type != 'web' || has(self.web)").message("provider.web must be set, with the url of the service, when provider.type is web"),
    validation = Rule::new("!has(self.mock) || self.type == 'mock'").message("provider.mock is for provider.type mock: set only the member that provider.type names"),
    validation = Rule::new("!has(self.process) || self.type == 'process'").message("provider.process is for provider.type process: set only the member that provider.type names"),
    validation = Rule::new("!has(self.docker) || self.type == 'docker'").message("provider.docker is for provider.type docker: set only the member that provider.type names"),
    validation = Rule::new("!has(self.grpc) || self.type == 'grpc'").message("provider.grpc is for provider.type grpc: set only the member that provider.type names"),
    validation = Rule::new("!has(self.web) || self.type == 'web'").message("provider.web is for provider.type web: set only the member that provider.type names"),
    validation = Rule::new("self.type != 'ssh' || has(self.ssh)").message("provider.ssh must be set, with host and user, when provider.type is ssh"),
    validation = Rule::new("!has(self.ssh) || self.type == 'ssh'").message("provider.ssh is for provider.type ssh: set only the member that provider.type names"),
    validation = Rule::new("self.type != 'external' || has(self.external)").message("provider.external must be set when provider.type is external"),
    validation = Rule::new("!has(self.external) || self.type == 'external'").message("provider.external is for provider.type external: set only the member that provider.type names"),
    validation = Rule::new("!has(self.external) || !has(oldSelf.external) || self.external.name == oldSelf.external.name").message("provider.external.name cannot change; delete the VirtualNode and create it anew"),
    validation = Rule::new("self.type == oldSelf.type").message("provider.type cannot change; delete the VirtualNode and create it anew"),
)]
pub struct ProviderSpec {
    /// The provider's type. It cannot change.
    #[serde(rename = "type")]
    pub kind: ProviderType,
    /// Configuration of the simulator, for `type: mock`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mock: Option<MockConfig>,
    /// Configuration of pods as processes of the operator's machine, for `type: process`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessConfig>,
    /// Configuration of pods as containers of a Docker or Podman engine, for `type: docker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<DockerConfig>,
    /// The gRPC service that runs the pods, for `type: grpc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcConfig>,
    /// Configuration of pods that an HTTP service runs, for `type: web`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web: Option<WebConfig>,
    /// Configuration of pods as processes of a device that is reached over SSH, for `type: ssh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SshConfig>,
    /// A provider that the program brings along, for `type: external`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalConfig>,
    /// Configurations of types that the program brings along and the CustomResourceDefinition knows.
    #[serde(flatten)]
    #[schemars(skip)]
    pub own: BTreeMap<String, Value>,
}

impl ProviderSpec {
    fn of(kind: ProviderType) -> Self {
        Self {
            kind,
            mock: None,
            process: None,
            docker: None,
            grpc: None,
            web: None,
            ssh: None,
            external: None,
            own: BTreeMap::new(),
        }
    }

    /// A simulated node with the given behaviour.
    pub fn mock(config: MockConfig) -> Self {
        Self { mock: Some(config), ..Self::of(ProviderType::Mock) }
    }

    /// A node whose pods are processes of this machine.
    pub fn process(config: ProcessConfig) -> Self {
        Self { process: Some(config), ..Self::of(ProviderType::Process) }
    }

    /// A node whose pods are containers of a Docker or Podman engine.
    pub fn docker(config: DockerConfig) -> Self {
        Self { docker: Some(config), ..Self::of(ProviderType::Docker) }
    }

    /// A node whose pods are run by a gRPC service.
    pub fn grpc(config: GrpcConfig) -> Self {
        Self { grpc: Some(config), ..Self::of(ProviderType::Grpc) }
    }

    /// A node whose pods an HTTP service runs.
    pub fn web(config: WebConfig) -> Self {
        Self { web: Some(config), ..Self::of(ProviderType::Web) }
    }

    /// A node whose pods are processes of a device that is reached over SSH.
    pub fn ssh(config: SshConfig) -> Self {
        Self { ssh: Some(config), ..Self::of(ProviderType::Ssh) }
    }

    /// A node of a provider that the program brings along.
    pub fn external(config: ExternalConfig) -> Self {
        Self { external: Some(config), ..Self::of(ProviderType::External) }
    }

    /// The name of the provider, as the default taint and label carry it: its type, or what an external one is
    /// registered as.
    pub fn name(&self) -> &str {
        match (&self.kind, &self.external) {
            (ProviderType::External, Some(external)) => &external.name,
            (kind, _) => kind.as_str(),
        }
    }
}

/// The types of providers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum ProviderType {
    /// Simulated pods.
    Mock,
    /// Processes of the machine that the operator runs on.
    Process,
    /// Containers of a Docker or Podman engine.
    Docker,
    /// A service that speaks gRPC.
    Grpc,
    /// Whatever an HTTP service makes of them.
    Web,
    /// Processes of a device that is reached over SSH.
    Ssh,
    /// A provider that the program brings along.
    External,
    /// The same, by a name that the CustomResourceDefinition knows.
    #[schemars(skip)]
    Own(OwnType),
}

/// Every type of this crate.
const TYPES: [ProviderType; 7] = [
    ProviderType::Mock,
    ProviderType::Process,
    ProviderType::Docker,
    ProviderType::Grpc,
    ProviderType::Web,
    ProviderType::Ssh,
    ProviderType::External,
];

impl Serialize for ProviderType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ProviderType {
    /// Every word is a type: one that this program does not know becomes a condition of the VirtualNode that has it,
    /// where an error would end the watch of all.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Ok(TYPES.into_iter().find(|t| t.as_str() == word).unwrap_or_else(|| Self::Own(OwnType::new(&word))))
    }
}

impl ProviderType {
    /// The word that users write, and that the default taint and label carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mock => "mock",
            Self::Process => "process",
            Self::Docker => "docker",
            Self::Grpc => "grpc",
            Self::Web => "web",
            Self::Ssh => "ssh",
            Self::External => "external",
            Self::Own(own) => own.as_str(),
        }
    }
}
