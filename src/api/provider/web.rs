//! `spec.provider.web`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How pods are run by an HTTP service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebConfig {
    /// Where the service is: `https://host[:port][/path]`. Paths of the interface are appended to it. `http://` is for
    /// services of the operator's own pod (`localhost`), unless `allowInsecure` says otherwise.
    ///
    /// The Secret that `spec.credentialsSecretRef` names may hold `ca.crt` (the authority that the service is known
    /// by; the machine's when absent), `tls.crt` and `tls.key` (the operator's own certificate) and `token` (sent as a
    /// bearer token).
    #[schemars(regex(pattern = "^https?://[^/?#@]+(/[^?#]*)?$"), length(max = 2048))]
    pub url: String,
    /// Which interface the service has. It is found out when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<WebInterface>,
    /// Speak `http://` with a service of another machine, and send it the token. Pods travel with the content of their
    /// Secrets, and anybody on the way can read them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_insecure: bool,
    /// Seconds that the service may take for an answer. 20 when absent.
    #[schemars(range(min = 1, max = 300))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// How often a service that does not tell of changes is asked for its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll: Option<WebPoll>,
    /// What of a pod a service with interface V1 does, which cannot say so itself: words of the table in
    /// `docs/pod-support.md`. All that is in the pod's own JSON when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128), inner(length(max = 64)))]
    pub features: Option<Vec<String>>,
}

/// The interface of an HTTP service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum WebInterface {
    /// `V2` when the service answers for it, else `V1`.
    Auto,
    /// That of Virtual Kubelet's web provider.
    V1,
    /// That of `docs/provider-http.yaml`.
    V2,
}

/// The bounds of the time between two questions. It is the shortest while something changes and grows while nothing
/// does.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WebPoll {
    /// The shortest, in milliseconds. 1000 when absent.
    #[schemars(range(min = 100, max = 3_600_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_ms: Option<u32>,
    /// The longest, in milliseconds. 30000 when absent.
    #[schemars(range(min = 100, max = 3_600_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ms: Option<u32>,
}
