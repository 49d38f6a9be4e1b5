//! Requests and limits as the kernel takes them, the same for every engine. kubelet: `calculateLinuxResources`.

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube_quantity::ParsedQuantity;
use serde::{Deserialize, Serialize};

/// The period in which a processor quota is counted, in microseconds.
pub(crate) const PERIOD: i64 = 100_000;
/// The shortest quota that the kernel takes.
const MIN_QUOTA: i64 = 1000;

/// What a container may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Bytes; swap is not added to them.
    pub memory: Option<i64>,
    /// Microseconds of processor time in each [`PERIOD`].
    pub quota: Option<i64>,
    /// The share of the processor among those that want it.
    pub shares: i64,
}

impl Default for Limits {
    /// Those of a container that asks for nothing.
    fn default() -> Self {
        Self { memory: None, quota: None, shares: 2 }
    }
}

impl Limits {
    /// From a container's spec. The error is for users.
    pub fn of(resources: &ResourceRequirements) -> Result<Self, String> {
        let amount = |of: &Option<std::collections::BTreeMap<String, Quantity>>, name: &str| {
            let Some(quantity) = of.as_ref().and_then(|r| r.get(name)) else { return Ok(None) };
            milli(quantity).map(Some).ok_or_else(|| format!("{name}: {:?} is not a quantity", quantity.0))
        };
        let (cpu, memory) = (amount(&resources.limits, "cpu")?, amount(&resources.limits, "memory")?);
        // What is limited and asks for nothing asks for its limit.
        let wanted = amount(&resources.requests, "cpu")?.or(cpu);
        Ok(Self {
            memory: memory.filter(|n| *n > 0).map(|n| n / 1000),
            quota: cpu.filter(|n| *n > 0).map(|n| (n * PERIOD / 1000).max(MIN_QUOTA)),
            shares: wanted.map_or(2, |n| (n * 1024 / 1000).clamp(2, 262_144)),
        })
    }
}

/// A quantity in thousandths, rounded up.
fn milli(quantity: &Quantity) -> Option<i64> {
    let value = ParsedQuantity::try_from(quantity).ok()?.to_bytes_f64()?;
    // Not one more for what floating point adds.
    Some((value * 1000.0 - 1e-6).ceil() as i64)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn resources_are_what_kubelet_makes_of_them() {
        let of = |spec: Value| Limits::of(&serde_json::from_value(spec).unwrap());
        let limits = |memory, quota, shares| Ok(Limits { memory, quota, shares });
        for (spec, want) in [
            (json!({}), limits(None, None, 2)),
            (json!({"requests": {"cpu": "250m", "memory": "64Mi"}}), limits(None, None, 256)),
            (json!({"limits": {"cpu": "1", "memory": "64Mi"}}), limits(Some(64 << 20), Some(100_000), 1024)),
            (json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "2"}}), limits(None, Some(200_000), 102)),
            (json!({"limits": {"cpu": "1m"}}), limits(None, Some(1000), 2)),
            (json!({"limits": {"cpu": "0", "memory": "0"}}), limits(None, None, 2)),
        ] {
            assert_eq!(of(spec.clone()), want, "{spec}");
        }
        assert!(of(json!({"limits": {"memory": "much"}})).is_err());
    }
}
