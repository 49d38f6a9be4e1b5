//! Pure: from a VirtualNodeSet and its VirtualNodes to what is to be made, changed and deleted.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::api::virtual_node_set::{NodeNames, UpdateType, VirtualNodeSetSpec, VirtualNodeSetStatus};

/// One VirtualNode of a set, as far as it decides something.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Child {
    pub name: String,
    /// The number in its name.
    pub ordinal: Option<u32>,
    /// It was made from the template as it is.
    pub current: bool,
    /// It cannot become so without being made anew.
    pub to_replace: bool,
    /// Its last change has been taken in, and it is ready.
    pub ready: bool,
    /// It has been for long enough.
    pub available: bool,
    pub cordoned: bool,
    pub pods: u32,
    /// It is being deleted.
    pub leaving: bool,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Make one of this number, or of a generated name.
    Create(Option<u32>),
    /// Bring it to the template.
    Update(String),
    /// Let it go.
    Delete(String),
}

/// What to do now. Everything else waits for what this brings about. `strangers` are the numbers of names that
/// VirtualNodes of others have.
pub(super) fn plan(spec: &VirtualNodeSetSpec, children: &[Child], strangers: &[u32]) -> Vec<Action> {
    let wanted = usize::try_from(spec.replicas).unwrap_or_default();
    let mut staying: Vec<&Child> = children.iter().filter(|c| !c.leaving).collect();
    if staying.len() < wanted {
        return create(spec, children, strangers, wanted - staying.len());
    }
    if staying.len() > wanted {
        staying.sort_by_key(|c| by_loss(c));
        staying.truncate(staying.len() - wanted);
        return staying.into_iter().map(|c| Action::Delete(c.name.clone())).collect();
    }
    update(spec, children)
}

fn create(spec: &VirtualNodeSetSpec, children: &[Child], strangers: &[u32], missing: usize) -> Vec<Action> {
    if spec.names == NodeNames::Generated {
        return vec![Action::Create(None); missing];
    }
    // The number of one that goes away is free once it has gone.
    let taken: BTreeSet<u32> = children.iter().filter_map(|c| c.ordinal).chain(strangers.iter().copied()).collect();
    (0..).filter(|n| !taken.contains(n)).take(missing).map(|n| Action::Create(Some(n))).collect()
}

/// Who goes first: the cordoned, the empty, those not ready, those with few pods, the last ones.
fn by_loss(child: &Child) -> impl Ord + use<> {
    (!child.cordoned, child.pods > 0, child.ready, child.pods, Reverse(child.ordinal), Reverse(child.name.clone()))
}

fn update(spec: &VirtualNodeSetSpec, children: &[Child]) -> Vec<Action> {
    if spec.update_strategy.kind == UpdateType::OnDelete {
        return Vec::new();
    }
    let mut outdated: Vec<&Child> = children.iter().filter(|c| !c.leaving && !c.current).collect();
    let missing = children.iter().filter(|c| c.leaving || !c.available).count();
    let may = max_unavailable(spec.update_strategy.max_unavailable.as_ref(), spec.replicas);
    let mut room = may.saturating_sub(missing);
    // Those that are not available lose nothing.
    outdated.sort_by_key(|c| (c.available, Reverse(c.ordinal), c.name.clone()));
    let mut actions = Vec::new();
    for child in outdated {
        if child.available {
            if room == 0 {
                break;
            }
            room -= 1;
        }
        let name = child.name.clone();
        actions.push(if child.to_replace { Action::Delete(name) } else { Action::Update(name) });
    }
    actions
}

fn max_unavailable(value: Option<&IntOrString>, replicas: i32) -> usize {
    let number = match value {
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(share)) => {
            let percent: i64 = share.trim_end_matches('%').parse().unwrap_or_default();
            i32::try_from(i64::from(replicas) * percent / 100).unwrap_or(i32::MAX)
        }
        None => 1,
    };
    // Without any, nothing could ever be updated.
    usize::try_from(number.max(1)).unwrap_or(1)
}

/// The numbers of the status.
pub(super) fn count(children: &[Child]) -> VirtualNodeSetStatus {
    let count = |wanted: &dyn Fn(&Child) -> bool| {
        i32::try_from(children.iter().filter(|c| !c.leaving && wanted(c)).count()).unwrap_or(i32::MAX)
    };
    VirtualNodeSetStatus {
        replicas: count(&|_| true),
        ready_replicas: count(&|c| c.ready),
        available_replicas: count(&|c| c.available),
        updated_replicas: count(&|c| c.current),
        ..VirtualNodeSetStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(replicas: i32, more: serde_json::Value) -> VirtualNodeSetSpec {
        let mut spec = json!({
            "replicas": replicas, "template": {"spec": {"provider": {"type": "mock", "mock": {}}}},
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn child(ordinal: u32) -> Child {
        let name = format!("n-{ordinal}");
        Child { name, ordinal: Some(ordinal), current: true, ready: true, available: true, ..Child::default() }
    }

    fn deleted(actions: &[Action]) -> Vec<&str> {
        actions.iter().map(|a| if let Action::Delete(name) = a { &**name } else { panic!("{actions:?}") }).collect()
    }

    #[test]
    fn missing_nodes_get_the_lowest_free_numbers() {
        let leaving = Child { leaving: true, ..child(2) };
        let children = [child(0), leaving, child(3)];
        let actions = plan(&spec(4, json!({})), &children, &[]);
        assert_eq!(actions, [Action::Create(Some(1)), Action::Create(Some(4))]);
        let actions = plan(&spec(4, json!({})), &children, &[1]);
        assert_eq!(
            actions,
            [Action::Create(Some(4)), Action::Create(Some(5))],
            "a name of somebody else is passed over"
        );
        let actions = plan(&spec(2, json!({"names": "Generated"})), &[], &[]);
        assert_eq!(actions, [Action::Create(None), Action::Create(None)]);
    }

    #[test]
    fn the_cordoned_and_the_empty_go_first_then_the_last_ones() {
        let full = |n| Child { pods: 5, ..child(n) };
        let children = [
            full(0),
            child(1),
            Child { cordoned: true, ..full(2) },
            full(3),
            Child { ready: false, available: false, ..child(4) },
            child(5),
        ];
        let order = ["n-2", "n-4", "n-5", "n-1", "n-3", "n-0"];
        for gone in 1..=6 {
            let actions = plan(&spec(6 - gone, json!({})), &children, &[]);
            assert_eq!(deleted(&actions), order[..gone as usize], "{gone}");
        }
        assert_eq!(plan(&spec(6, json!({})), &children, &[]), []);
    }

    #[test]
    fn updates_keep_to_the_number_that_may_be_unavailable() {
        let old = |n| Child { current: false, ..child(n) };
        let broken = |n| Child { available: false, ..old(n) };
        let update = |n: u32| Action::Update(format!("n-{n}"));
        for (more, children, want) in [
            (json!({}), vec![old(0), old(1), child(2)], vec![update(1)]),
            (json!({}), vec![old(0), old(1), Child { available: false, ..child(2) }], vec![]),
            (json!({}), vec![old(0), broken(1), broken(2)], vec![update(2), update(1)]),
            (
                json!({"updateStrategy": {"maxUnavailable": 2}}),
                vec![old(0), old(1), old(2)],
                vec![update(2), update(1)],
            ),
            (
                json!({"updateStrategy": {"maxUnavailable": "70%"}}),
                vec![old(0), old(1), old(2)],
                vec![update(2), update(1)],
            ),
            (json!({"updateStrategy": {"maxUnavailable": "1%"}}), vec![old(0), old(1), old(2)], vec![update(2)]),
            (json!({"updateStrategy": {"type": "OnDelete"}}), vec![old(0), old(1), old(2)], vec![]),
            (
                json!({}),
                vec![child(0), child(1), Child { to_replace: true, ..old(2) }],
                vec![Action::Delete("n-2".into())],
            ),
        ] {
            assert_eq!(plan(&spec(3, more.clone()), &children, &[]), want, "{more} {children:?}");
        }
    }
}
