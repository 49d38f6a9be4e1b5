//! Deleting: finalizers, grace periods, preconditions, collections. apiserver: `registry/rest/delete.go`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::create::expect;
use super::options::DeleteOptions;
use super::{Api, Write, convert, crds, log_failed, modified, now};
use crate::kinds::Kind;
use crate::status::{ApiError, Result};
use crate::store::{Draft, Expect, Key, Object, Refused};

const ATTEMPTS: usize = 64;
/// Namespaces that nobody may delete. plugin/admission/namespace/lifecycle.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// What is left after a deletion was asked for.
pub(crate) enum Deleted {
    /// It is gone; its last state.
    Gone(Arc<Object>),
    /// It stays until its finalizers or its grace period are done.
    Pending(Arc<Object>),
}

/// The next step of a deletion, decided from the object's present state.
#[derive(Debug, PartialEq)]
enum Step {
    /// Remove it now.
    Remove,
    /// Nothing to write: a deletion is under way.
    Wait,
    /// Write this state; when `true`, remove it right after.
    Write(Value, bool),
}

impl Api {
    pub(crate) fn delete(&self, write: &Write<'_>, key: &Key, options: &DeleteOptions) -> Result<Deleted> {
        for _ in 0..ATTEMPTS {
            if write.kind.is("", "namespaces") && IMMORTAL.contains(&&*key.name) {
                let said = "this namespace may not be deleted";
                return Err(ApiError::forbidden("namespaces", "", &key.name, said));
            }
            let current = expect(write, key)?;
            check(write.kind, &current, options)?;
            let done = match plan(write.kind, current.value(), options, jiff::Timestamp::now()) {
                Step::Wait => return Ok(Deleted::Pending(current)),
                Step::Remove if write.dry_run => return Ok(Deleted::Gone(current)),
                Step::Remove => self.store.remove(write.resource, key, current.revision).map(Deleted::Gone),
                Step::Write(value, removed) => {
                    let draft = Draft::new(&value, &write.resource.fields());
                    if write.dry_run {
                        let object = Arc::new(draft.stamp(current.revision));
                        return Ok(if removed { Deleted::Gone(object) } else { Deleted::Pending(object) });
                    }
                    match self.store.put(write.resource, draft, Expect::Revision(current.revision)) {
                        Ok(object) if removed => {
                            self.store.remove(write.resource, key, object.revision).map(Deleted::Gone)
                        }
                        other => other.map(Deleted::Pending),
                    }
                }
            };
            match done {
                Ok(deleted) => return Ok(deleted),
                Err(Refused::Raced) => {}
                Err(Refused::Log(error)) => return Err(log_failed(&error)),
            }
        }
        Err(modified(write.kind, &key.name))
    }

    /// The answer to a deletion: the object while it lingers, a Status otherwise.
    pub(crate) fn deletion_answer(kind: &Kind, deleted: &Deleted) -> Value {
        let (object, gone) = match deleted {
            Deleted::Gone(object) => (object, true),
            Deleted::Pending(object) => (object, false),
        };
        // Kinds whose storage returns the deleted object itself.
        let returns_object = [
            "pods",
            "podtemplates",
            "persistentvolumeclaims",
            "persistentvolumes",
            "resourcequotas",
            "serviceaccounts",
            "services",
        ];
        if !gone || kind.group.is_empty() && returns_object.contains(&&*kind.plural) {
            return convert::to_served(kind, object.value());
        }
        let mut details = json!({"name": &*object.key.name, "kind": &*kind.plural, "uid": &*object.uid});
        if !kind.group.is_empty() {
            details["group"] = (*kind.group).into();
        }
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
    }
}

fn check(kind: &Kind, current: &Object, options: &DeleteOptions) -> Result<()> {
    if let Some(uid) = &options.uid
        && **uid != *current.uid
    {
        let message = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been \
             deleted and then recreated",
            current.uid
        );
        return Err(refused(kind, current, &message));
    }
    match &options.revision {
        Some(revision) if *revision != current.revision.to_string() => {
            let message = format!(
                "the ResourceVersion in the precondition ({revision}) does not match the ResourceVersion in record ({}). \
                 The object might have been modified",
                current.revision
            );
            Err(refused(kind, current, &message))
        }
        _ => Ok(()),
    }
}

/// A precondition that fails; apiserver's `BeforeDelete` names the kind where others name the resource.
fn refused(kind: &Kind, current: &Object, message: &str) -> ApiError {
    ApiError::conflict(&kind.kind, &kind.group, &current.key.name, message)
}

fn plan(kind: &Kind, object: Value, options: &DeleteOptions, at: jiff::Timestamp) -> Step {
    if kind.is("apiextensions.k8s.io", "customresourcedefinitions")
        && !object["metadata"]["deletionTimestamp"].is_string()
    {
        let mut held = object.clone();
        crds::hold(&mut held);
        return match plan_of(kind, held, options, at) {
            // Marked without a grace period or a new generation. apiextensions: `customresourcedefinition.REST.Delete`.
            Step::Write(mut next, gone) => {
                super::create::remove(&mut next["metadata"], "deletionGracePeriodSeconds");
                next["metadata"]["generation"] = object["metadata"]["generation"].clone();
                Step::Write(next, gone)
            }
            other => other,
        };
    }
    plan_of(kind, object, options, at)
}

fn plan_of(kind: &Kind, mut next: Value, options: &DeleteOptions, at: jiff::Timestamp) -> Step {
    let meta = &next["metadata"];
    let deleting = meta["deletionTimestamp"].is_string();
    let old_finalizers = texts(&meta["finalizers"]);
    // Jobs have always left their pods behind unless told otherwise. registry/batch/job: `DefaultGarbageCollectionPolicy`.
    let default = (kind.is("batch", "jobs") && !deleting).then_some("Orphan");
    let finalizers = propagate(old_finalizers.clone(), options.propagation.as_deref().or(default));
    if kind.is("", "namespaces") {
        return plan_namespace(next, finalizers);
    }
    let mut graceful = false;
    if kind.is("", "pods") {
        match (deleting, meta["deletionGracePeriodSeconds"].as_i64()) {
            (true, None) => {}
            (true, Some(left)) => match pod_grace_asked(options) {
                // A deletion under way can only be made shorter.
                Some(asked) if asked < left => {
                    shift_deletion(&mut next, asked - left);
                    next["metadata"]["deletionGracePeriodSeconds"] = asked.into();
                    graceful = true;
                }
                _ if left > 0 || !old_finalizers.is_empty() => return Step::Wait,
                _ => {}
            },
            (false, _) => {
                let grace = pod_grace(&next, options);
                next["metadata"]["deletionTimestamp"] = stamp(at, grace).into();
                next["metadata"]["deletionGracePeriodSeconds"] = grace.into();
                bump_generation(&mut next);
                graceful = true;
            }
        }
    } else if deleting && (!finalizers.is_empty() || !old_finalizers.is_empty()) {
        return Step::Wait;
    }
    if !graceful && finalizers.is_empty() {
        return Step::Remove;
    }
    if finalizers != old_finalizers {
        next["metadata"]["finalizers"] = json!(finalizers);
    }
    if !next["metadata"]["deletionTimestamp"].is_string() {
        next["metadata"]["deletionTimestamp"] = stamp(at, 0).into();
        next["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        bump_generation(&mut next);
    }
    let remove = finalizers.is_empty() && next["metadata"]["deletionGracePeriodSeconds"] == 0;
    Step::Write(next, remove)
}

/// A namespace stays until its content is gone: the namespace controller finalizes it.
fn plan_namespace(mut next: Value, finalizers: Vec<String>) -> Step {
    let deleting = next["metadata"]["deletionTimestamp"].is_string();
    let held = !texts(&next["spec"]["finalizers"]).is_empty() || !finalizers.is_empty();
    if !held {
        return Step::Remove;
    }
    if deleting {
        return Step::Wait;
    }
    next["metadata"]["deletionTimestamp"] = now().into();
    if !finalizers.is_empty() {
        next["metadata"]["finalizers"] = json!(finalizers);
    }
    next["status"]["phase"] = "Terminating".into();
    Step::Write(next, false)
}

fn pod_grace_asked(options: &DeleteOptions) -> Option<i64> {
    options.grace.map(|grace| if grace < 0 { 1 } else { grace })
}

/// How long a pod may take to stop.
fn pod_grace(pod: &Value, options: &DeleteOptions) -> i64 {
    let asked = pod_grace_asked(options).or(pod["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30);
    let unassigned = pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let terminal = matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded"));
    match asked {
        _ if unassigned || terminal => 0,
        negative if negative < 0 => 1,
        asked => asked,
    }
}

/// Finalizers of the garbage collector that a propagation policy asks for.
fn propagate(mut finalizers: Vec<String>, policy: Option<&str>) -> Vec<String> {
    let (wanted, unwanted): (Option<&str>, &[&str]) = match policy {
        None => return finalizers,
        Some("Orphan") => (Some("orphan"), &["foregroundDeletion"]),
        Some("Foreground") => (Some("foregroundDeletion"), &["orphan"]),
        Some(_) => (None, &["foregroundDeletion", "orphan"]),
    };
    finalizers.retain(|f| !unwanted.contains(&f.as_str()));
    if let Some(wanted) = wanted
        && !finalizers.iter().any(|f| f == wanted)
    {
        finalizers.push(wanted.into());
    }
    finalizers
}

fn bump_generation(object: &mut Value) {
    if let Some(generation) = object["metadata"]["generation"].as_i64().filter(|g| *g > 0) {
        object["metadata"]["generation"] = (generation + 1).into();
    }
}

fn stamp(at: jiff::Timestamp, seconds: i64) -> String {
    let moved = at.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(at);
    moved.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn shift_deletion(object: &mut Value, seconds: i64) {
    let old = object["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
    if let Some(old) = old {
        object["metadata"]["deletionTimestamp"] = stamp(old, seconds).into();
    }
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(Into::into)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Registry;

    fn plan_pod(pod: Value, grace: Option<i64>) -> Step {
        let kinds = Registry::new().kinds();
        let options = DeleteOptions { grace, ..DeleteOptions::default() };
        plan(kinds.find("", "v1", "pods").unwrap(), pod, &options, "2026-01-01T00:01:00Z".parse().unwrap())
    }

    fn pod(node: &str, phase: &str) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 7},
            "status": {"phase": phase}})
    }

    #[test]
    fn a_running_pod_gets_its_grace_period() {
        let Step::Write(next, false) = plan_pod(pod("n", "Running"), None) else { panic!() };
        assert_eq!(next["metadata"]["deletionGracePeriodSeconds"], 7);
        assert_eq!(next["metadata"]["deletionTimestamp"], "2026-01-01T00:01:07Z");
    }

    #[test]
    fn unassigned_terminal_and_forced_pods_go_at_once() {
        assert!(matches!(plan_pod(pod("", "Pending"), None), Step::Write(_, true)));
        assert!(matches!(plan_pod(pod("n", "Succeeded"), None), Step::Write(_, true)));
        assert!(matches!(plan_pod(pod("n", "Running"), Some(0)), Step::Write(_, true)));
    }

    #[test]
    fn a_grace_period_only_becomes_shorter() {
        let mut deleting = pod("n", "Running");
        deleting["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:07Z".into();
        deleting["metadata"]["deletionGracePeriodSeconds"] = 7.into();
        let Step::Write(next, false) = plan_pod(deleting.clone(), Some(3)) else { panic!() };
        assert_eq!(next["metadata"]["deletionTimestamp"], "2026-01-01T00:01:03Z");
        assert_eq!(plan_pod(deleting.clone(), Some(30)), Step::Wait);
        assert_eq!(plan_pod(deleting.clone(), None), Step::Wait);
        assert!(matches!(plan_pod(deleting, Some(0)), Step::Write(_, true)));
    }

    #[test]
    fn finalizers_hold_an_object_that_is_marked() {
        let kinds = Registry::new().kinds();
        let kind = kinds.find("", "v1", "configmaps").unwrap();
        let at = "2026-01-01T00:01:00Z".parse().unwrap();
        let held = json!({"metadata": {"name": "c", "finalizers": ["example.com/a"]}});
        let Step::Write(next, false) = plan(kind, held, &DeleteOptions::default(), at) else { panic!() };
        assert_eq!(next["metadata"]["deletionGracePeriodSeconds"], 0);
        assert_eq!(plan(kind, next, &DeleteOptions::default(), at), Step::Wait);
        let free = json!({"metadata": {"name": "c"}});
        assert_eq!(plan(kind, free.clone(), &DeleteOptions::default(), at), Step::Remove);
        let orphan = DeleteOptions { propagation: Some("Orphan".into()), ..DeleteOptions::default() };
        let Step::Write(next, false) = plan(kind, free, &orphan, at) else { panic!() };
        assert_eq!(next["metadata"]["finalizers"], json!(["orphan"]));
    }
}
