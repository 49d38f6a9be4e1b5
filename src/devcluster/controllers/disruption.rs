//! PodDisruptionBudgets: how many pods may go, so that evictions can honour them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::informer::{Key, key_of};
use super::labels;
use super::queue::{Outcome, Queue};
use super::workload::{is_active, share};
use super::world::{World, controller_of, gone_is_fine, has_condition, is_terminal, now};

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<Key>> = Queue::new();
    let q = queue.clone();
    world.budgets.on_change(move |change| {
        if let Some(budget) = change.new {
            q.add(key_of(budget.as_ref()));
        }
    });
    let (q, budgets) = (queue.clone(), Arc::downgrade(&world.budgets));
    world.pods.on_change(move |change| {
        let Some(budgets) = budgets.upgrade() else { return };
        for pod in change.old.into_iter().chain(change.new) {
            for budget in budgets.select(|b| covers(b, pod)) {
                q.add(key_of(budget.as_ref()));
            }
        }
    });
    let world = world.clone();
    async move {
        world.budgets.synced().await;
        world.pods.synced().await;
        queue.work("disruption", 4, |key| reconcile(&world, key)).await;
    }
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    budget.metadata.namespace == pod.metadata.namespace && selector.is_some_and(|s| labels::matches(s, pod.labels()))
}

/// How many healthy pods a budget demands of `expected`.
fn demanded(spec: &PodDisruptionBudgetSpec, expected: i32) -> i32 {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(max), _) => (expected - share(Some(max), IntOrString::Int(0), expected, true)).max(0),
        (None, min) => share(min.as_ref(), IntOrString::Int(1), expected, true),
    }
}

/// How many pods a budget is about: those there are for one that demands a number, otherwise those that their owners
/// want, so that pods without an owner do not count. kube-controller-manager: `getExpectedPodCount`.
fn expected(world: &World, spec: &PodDisruptionBudgetSpec, pods: &[Arc<Pod>]) -> i32 {
    if spec.max_unavailable.is_none() && !matches!(spec.min_available, Some(IntOrString::String(_))) {
        return i32::try_from(pods.len()).unwrap_or(i32::MAX);
    }
    let (mut owners, mut total) = (std::collections::BTreeSet::new(), 0);
    for pod in pods {
        let Some(owner) = controller_of(pod.as_ref()) else { continue };
        if !owners.insert(owner.uid.clone()) {
            continue;
        }
        let at = (pod.namespace().unwrap_or_default(), owner.name.clone());
        let scale = match owner.kind.as_str() {
            "ReplicaSet" => world.replica_sets.get(&at).and_then(|s| s.spec.replicas),
            "StatefulSet" => world.stateful_sets.get(&at).and_then(|s| s.spec.replicas),
            _ => None,
        };
        let alone = pods.iter().filter(|p| controller_of(p.as_ref()).is_some_and(|o| o.uid == owner.uid)).count();
        total += scale.unwrap_or(i32::try_from(alone).unwrap_or(i32::MAX));
    }
    total
}

async fn reconcile(world: &World, key: Key) -> Outcome {
    let Some(budget) = world.budgets.get(&key) else { return Ok(None) };
    let Some(spec) = &budget.spec else { return Ok(None) };
    let pods = world.pods.select(|p| !is_terminal(p) && covers(&budget, p));
    let expected = expected(world, spec, &pods);
    let desired = demanded(spec, expected);
    let healthy = pods.iter().filter(|p| is_active(p) && has_condition(p, "Ready")).count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let have = serde_json::to_value(&budget.status).unwrap_or_default();
    let (status, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let before = have.pointer("/conditions/0").cloned().unwrap_or_default();
    let moved = match before["status"] == status {
        true => before["lastTransitionTime"].clone(),
        false => Value::from(now()),
    };
    let want = json!({
        "currentHealthy": healthy, "desiredHealthy": desired, "expectedPods": expected,
        "disruptionsAllowed": allowed, "observedGeneration": budget.metadata.generation,
        // An eviction is over once its pod is on its way out, which the counts above see.
        "disruptedPods": null,
        "conditions": [{"type": "DisruptionAllowed", "status": status, "reason": reason, "message": "",
            "lastTransitionTime": moved, "observedGeneration": budget.metadata.generation}],
    });
    if !want.as_object().into_iter().flatten().all(|(k, v)| have.get(k).unwrap_or(&Value::Null) == v) {
        let body = json!({"metadata": {"resourceVersion": budget.resource_version()}, "status": want});
        let api = world.api::<PodDisruptionBudget>(&key.0);
        let patch = api.patch_status(&key.1, &PatchParams::default(), &Patch::Merge(body)).await;
        gone_is_fine(patch.map(drop))?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_demand_a_count_or_a_share() {
        for (spec, total, want) in [
            (json!({"minAvailable": 2}), 5, 2),
            (json!({"minAvailable": "50%"}), 5, 3),
            (json!({"maxUnavailable": 1}), 5, 4),
            (json!({"maxUnavailable": "30%"}), 10, 7),
            (json!({"maxUnavailable": 9}), 5, 0),
        ] {
            let said = spec.to_string();
            assert_eq!(demanded(&serde_json::from_value(spec).unwrap(), total), want, "{said}");
        }
    }
}
