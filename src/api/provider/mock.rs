//! `spec.provider.mock`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a simulated node behaves. Each value can be overridden for a pod by an annotation
/// `mock.vnode.dev/<field>`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MockConfig {
    /// Milliseconds from a pod's creation to its containers running.
    #[schemars(range(min = 0, max = 86_400_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_latency_ms: Option<u64>,
    /// Milliseconds a container takes to end when it is asked to.
    #[schemars(range(min = 0, max = 86_400_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_latency_ms: Option<u64>,
    /// Share of each latency and duration that varies at random, in percent.
    #[schemars(range(min = 0, max = 100))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_percent: Option<u32>,
    /// Milliseconds a container runs before it ends by itself; for ever when absent.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_duration_ms: Option<u64>,
    /// Exit code of a container that ends by itself.
    #[schemars(range(min = 0, max = 255))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Share of pod creations that fail with a retryable error, in percent.
    #[schemars(range(min = 0, max = 100))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create_failure_percent: Option<u32>,
    /// Log lines a running container writes each minute.
    #[schemars(range(min = 0, max = 60_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_lines_per_minute: Option<u32>,
    /// Makes random choices repeatable; two nodes of one seed and name behave alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// `""` (healthy), `unreachable` (every call fails, so the node goes NotReady), or `hang` (no call is answered).
    #[schemars(extend("enum" = ["", "unreachable", "hang"]))]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fault: String,
    /// Amounts this node has when `spec.capacity` leaves them out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::api::virtual_node::quantities")]
    pub capacity: BTreeMap<String, Quantity>,
}
