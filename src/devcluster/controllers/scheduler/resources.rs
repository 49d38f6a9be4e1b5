//! What a pod asks for and a node has, as whole numbers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts of resources; `cpu` in thousandths, everything else in units.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Amounts {
    pub(crate) cpu: i64,
    pub(crate) memory: i64,
    pub(crate) pods: i64,
    pub(crate) other: BTreeMap<String, i64>,
}

/// A quantity in thousandths; what can't be read counts as nothing, as validation has refused it before.
pub(crate) fn thousandths(quantity: &Quantity) -> i64 {
    let text = quantity.0.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let factor: f64 = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        "Pi" => 1_125_899_906_842_624.0,
        "Ei" => 1_152_921_504_606_846_976.0,
        exponent => match exponent[1..].parse::<i32>() {
            Ok(power) => 10f64.powi(power),
            Err(_) => return 0,
        },
    };
    number.parse::<f64>().map_or(0, |n| (n * factor * 1e3).ceil() as i64)
}

impl Amounts {
    pub(crate) fn of(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let mut amounts = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            let milli = thousandths(quantity);
            let whole = milli.saturating_add(999) / 1000;
            match name.as_str() {
                "cpu" => amounts.cpu = milli,
                "memory" => amounts.memory = whole,
                "pods" => amounts.pods = whole,
                _ => {
                    amounts.other.insert(name.clone(), whole);
                }
            }
        }
        amounts
    }

    pub(crate) fn add(&mut self, more: &Self, times: i64) {
        self.cpu += times * more.cpu;
        self.memory += times * more.memory;
        self.pods += times * more.pods;
        for (name, amount) in &more.other {
            *self.other.entry(name.clone()).or_default() += times * amount;
        }
    }

    fn raise(&mut self, to: &Self) {
        self.cpu = self.cpu.max(to.cpu);
        self.memory = self.memory.max(to.memory);
        for (name, amount) in &to.other {
            let have = self.other.entry(name.clone()).or_default();
            *have = (*have).max(*amount);
        }
    }
}

/// What a pod occupies on a node: the larger of what runs at the end and of each start-up step, plus overhead; a
/// request of the whole pod (KEP-2837) takes the place of its containers'.
pub(crate) fn requests(pod: &Pod) -> Amounts {
    let of = |r: Option<&ResourceRequirements>| Amounts::of(r.and_then(|r| r.requests.as_ref()));
    let Some(spec) = &pod.spec else { return Amounts::default() };
    let mut total = Amounts::default();
    for container in &spec.containers {
        total.add(&of(container.resources.as_ref()), 1);
    }
    let (mut sidecars, mut peak) = (Amounts::default(), Amounts::default());
    for init in spec.init_containers.iter().flatten() {
        let asked = of(init.resources.as_ref());
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&asked, 1);
            peak.raise(&sidecars);
        } else {
            let mut step = asked;
            step.add(&sidecars, 1);
            peak.raise(&step);
        }
    }
    total.add(&sidecars, 1);
    total.raise(&peak);
    if let Some(asked) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let whole = Amounts::of(Some(asked));
        if asked.contains_key("cpu") {
            total.cpu = whole.cpu;
        }
        if asked.contains_key("memory") {
            total.memory = whole.memory;
        }
    }
    total.add(&Amounts::of(spec.overhead.as_ref()), 1);
    total.pods = 1;
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_are_read_in_every_spelling() {
        for (text, want) in
            [("1", 1000), ("100m", 100), ("1.5", 1500), ("2Ki", 2_048_000), ("1e3", 1_000_000), ("1k", 1_000_000)]
        {
            assert_eq!(thousandths(&Quantity(text.into())), want, "{text}");
        }
    }

    #[test]
    fn start_up_steps_and_sidecars_count_as_the_kubelet_runs_them() {
        let r = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "a", "resources": r("1")}, {"name": "b", "resources": r("500m")}],
            "initContainers": [
                {"name": "first", "resources": r("1")},
                {"name": "side", "restartPolicy": "Always", "resources": r("200m")},
                {"name": "big", "resources": r("3")},
            ],
            "overhead": {"cpu": "50m"},
        }}))
        .unwrap();
        assert_eq!(requests(&pod).cpu, 3250);
        assert_eq!(requests(&pod).pods, 1);
    }
}
