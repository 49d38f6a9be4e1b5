//! `spec.provider.grpc`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A gRPC service that runs the pods.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcConfig {
    /// Where the service listens: `https://host:port`, `http://host:port` without credentials, or
    /// `unix:///path` of the operator's machine, which must be started with `--allow-host-sockets`. TLS goes by `ca.crt`,
    /// `tls.crt` and `tls.key` of the credentials Secret; `token` of it is sent with every call. Nodes with the same
    /// endpoint and credentials share one connection.
    #[schemars(regex(pattern = "^(https?://.+|unix:///.+)$"), length(max = 1024))]
    pub endpoint: String,
    /// How long the service may take to answer a call. 20 seconds when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 300))]
    pub call_timeout_seconds: Option<u32>,
    /// After how long without a word from the service the connection is tested. 20 seconds when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 5, max = 3600))]
    pub keep_alive_seconds: Option<u32>,
    /// Handed to the service as it is. Not for secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
}
