//! What a Job does next, decided from its numbers and its pods' ends.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

/// A job in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) active: i32,
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    /// Restarts within pods, which count as failures too.
    pub(super) restarts: i32,
    pub(super) seconds: i64,
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    Complete,
    Fail(&'static str, String),
    Suspend,
    /// Create (or, if negative, delete) this many pods.
    Scale(i32),
}

pub(super) fn next(spec: &JobSpec, counts: Counts) -> Next {
    let parallelism = spec.parallelism.unwrap_or(1);
    if counts.failed + counts.restarts > spec.backoff_limit.unwrap_or(6) {
        return Next::Fail("BackoffLimitExceeded", "Job has reached the specified backoff limit".into());
    }
    let done = match spec.completions {
        Some(wanted) => counts.succeeded >= wanted,
        None => counts.succeeded > 0 && counts.active == 0,
    };
    if done {
        return Next::Complete;
    }
    if spec.active_deadline_seconds.is_some_and(|limit| counts.seconds >= limit) {
        return Next::Fail("DeadlineExceeded", "Job was active longer than specified deadline".into());
    }
    if spec.suspend == Some(true) {
        return Next::Suspend;
    }
    let wanted = match spec.completions {
        Some(wanted) => parallelism.min(wanted - counts.succeeded),
        // With a work queue, the first success ends the creation of pods.
        None if counts.succeeded > 0 => parallelism.min(counts.active),
        None => parallelism,
    };
    Next::Scale(wanted - counts.active)
}

/// `0-2,5`, as `status.completedIndexes` writes a set.
pub(super) fn ranges(indexes: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for i in indexes {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == *i => *end = *i,
            _ => runs.push((*i, *i)),
        }
    }
    let runs = runs.iter().map(|(a, b)| match b - a {
        0 => a.to_string(),
        1 => format!("{a},{b}"),
        _ => format!("{a}-{b}"),
    });
    runs.collect::<Vec<_>>().join(",")
}

/// What `ranges` wrote.
pub(super) fn indexes(text: &str) -> BTreeSet<i32> {
    let run = |part: &str| match part.split_once('-') {
        Some((a, b)) => Some(a.parse::<i32>().ok()?..=b.parse::<i32>().ok()?),
        None => part.parse::<i32>().ok().map(|i| i..=i),
    };
    text.split(',').filter_map(run).flatten().collect()
}

/// What a Job's failure policy says of a pod that failed.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    Count,
    Ignore,
    /// The whole Job fails, for this reason.
    FailJob(String),
}

/// By the first rule that matches. KEP-3329.
pub(super) fn verdict(spec: &JobSpec, pod: &Pod) -> Verdict {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (index, rule) in rules.enumerate() {
        let Some(why) = matched(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailJob" => Verdict::FailJob(format!("{why} matching FailJob rule at index {index}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn matched(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    let status = pod.status.clone().unwrap_or_default();
    if let Some(codes) = &rule.on_exit_codes {
        let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
        let code = |c: &ContainerStatus| c.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code);
        let hit = all
            .filter(|c| codes.container_name.as_ref().is_none_or(|name| *name == c.name))
            .filter_map(|c| code(c).filter(|code| *code != 0).map(|code| (c.name.clone(), code)))
            .find(|(_, code)| codes.values.contains(code) == (codes.operator == "In"));
        return hit.map(|(c, code)| format!("Container {c} for pod {name} failed with exit code {code}"));
    }
    let patterns = rule.on_pod_conditions.iter().flatten();
    let conditions = || status.conditions.iter().flatten();
    patterns
        .filter(|p| {
            conditions().any(|c| c.type_ == p.type_ && Some(&c.status) == p.status.as_ref().or(Some(&"True".into())))
        })
        .map(|p| format!("Pod {name} has condition {}", p.type_))
        .next()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_job_goes_on_until_enough_succeeded_or_too_many_failed() {
        let spec = |v: Value| {
            let mut v = v;
            v["template"] = json!({});
            serde_json::from_value::<JobSpec>(v).unwrap()
        };
        let counts = |active, succeeded, failed| Counts { active, succeeded, failed, ..Counts::default() };
        let limit = Next::Fail("BackoffLimitExceeded", "Job has reached the specified backoff limit".into());
        for (s, c, want) in [
            (json!({"completions": 3, "parallelism": 2}), counts(0, 0, 0), Next::Scale(2)),
            (json!({"completions": 3, "parallelism": 2}), counts(0, 2, 0), Next::Scale(1)),
            (json!({"completions": 3, "parallelism": 2}), counts(0, 3, 0), Next::Complete),
            (json!({"completions": 1, "backoffLimit": 1}), counts(0, 0, 1), Next::Scale(1)),
            (json!({"completions": 1, "backoffLimit": 1}), counts(0, 0, 2), limit),
            (json!({"parallelism": 3}), counts(2, 1, 0), Next::Scale(0)),
            (json!({"parallelism": 3}), counts(0, 1, 0), Next::Complete),
            (json!({"completions": 1, "suspend": true}), counts(1, 0, 0), Next::Suspend),
            (json!({"completions": 4, "parallelism": 1}), counts(3, 0, 0), Next::Scale(-2)),
        ] {
            assert_eq!(next(&spec(s.clone()), c), want, "{s} {c:?}");
        }
        assert_eq!(ranges(&BTreeSet::from([0, 1, 2, 5, 7, 8])), "0-2,5,7,8");
    }

    #[test]
    fn completed_indexes_are_read_as_they_are_written() {
        for set in [BTreeSet::new(), BTreeSet::from([0]), BTreeSet::from([0, 1, 2, 5, 7, 8])] {
            assert_eq!(indexes(&ranges(&set)), set);
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides_on_a_failure() {
        let spec: JobSpec = serde_json::from_value(json!({"template": {}, "podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42], "containerName": "c"}},
            {"action": "Ignore", "onExitCodes": {"operator": "NotIn", "values": [1]}},
        ]}}))
        .unwrap();
        let pod = |code: i32, condition: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "status": {
                "conditions": [{"type": condition, "status": "True"}],
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code}}}]}}))
            .unwrap()
        };
        let said = "Container c for pod n/p failed with exit code 42 matching FailJob rule at index 1";
        for (pod, want) in [
            (pod(42, "DisruptionTarget"), Verdict::Ignore),
            (pod(42, "Ready"), Verdict::FailJob(said.into())),
            (pod(2, "Ready"), Verdict::Ignore),
            (pod(1, "Ready"), Verdict::Count),
        ] {
            assert_eq!(verdict(&spec, &pod), want);
        }
    }
}
