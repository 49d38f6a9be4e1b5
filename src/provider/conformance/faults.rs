//! Checks: lost answers, calls at the same time, restarts.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::timeout;

use super::super::{PodObservation, Result};
use super::pods::PodPlan;
use super::seen::{exit_code, is_not_found, is_running};
use super::suite::{Failure, Suite, ensure, must, same};
use super::{Check, Need};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "the_same_create_at_the_same_time_makes_one_pod",
        hint: "two calls for one uid must not both find that it is missing: take a lock, or let the service refuse the \
               second by a token made of the uid",
        needs: &[],
        run: |s| together(s).boxed_local(),
    },
    Check {
        name: "a_create_whose_answer_was_lost_can_be_asked_for_again",
        hint: "a call may be given up at any await: what it has begun is either undone or found by the next call",
        needs: &[],
        run: |s| lost_create(s).boxed_local(),
    },
    Check {
        name: "a_stop_and_a_removal_whose_answers_were_lost_can_be_asked_for_again",
        hint: "a call may be given up at any await: a second stop or removal picks up where the first one was",
        needs: &[],
        run: |s| lost_removal(s).boxed_local(),
    },
    Check {
        name: "many_calls_at_the_same_time_do_not_disturb_each_other",
        hint: "the agent has up to 16 calls under way for a node; each pod is to be kept apart from the others",
        needs: &[],
        run: |s| many(s).boxed_local(),
    },
    Check {
        name: "pods_outlive_a_restart_and_are_found_again",
        hint: "after a restart list_pods finds every pod that carries the node's uid, with the times it had; none is \
               started anew, and stop_pod works on it",
        needs: &[Need::Lasting],
        run: |s| restart(s).boxed_local(),
    },
    Check {
        name: "what_ends_while_nobody_looks_is_reported_afterwards",
        hint: "the exit code must be kept by something that outlives the process",
        needs: &[Need::Lasting, Need::Commands],
        run: |s| ended_meanwhile(s).boxed_local(),
    },
    Check {
        name: "a_stop_can_be_asked_for_again_after_a_restart",
        hint: "the agent asks again after a restart: stop_pod must work on a pod that is ending or has ended by then",
        needs: &[Need::Lasting, Need::Ends],
        run: |s| stopped_before(s).boxed_local(),
    },
    Check {
        name: "a_restored_pod_keeps_its_start_and_its_restarts",
        hint: "restore_pod takes the times and counts from the pod's status instead of beginning anew",
        needs: &[Need::Volatile],
        run: |s| restore(s).boxed_local(),
    },
    Check {
        name: "every_pod_was_forgotten_in_the_end",
        hint: "remove_pod must free all that a pod held; list_pods is empty when every pod was removed",
        needs: &[],
        run: |s| nothing_left(s).boxed_local(),
    },
];

fn started(o: &PodObservation) -> Option<Timestamp> {
    o.containers.first()?.state.as_ref()?.running.as_ref()?.started_at.as_ref().map(|t| t.0)
}

async fn together(s: &Suite<'_>) -> Result<(), Failure> {
    let pod = s.pod(PodPlan::new("together"));
    let provider = s.provider();
    let answers = join_all((0..4).map(|_| provider.create_pod(&pod))).await;
    // Of calls at the same time one may be told to come again, but one must succeed.
    ensure(answers.iter().any(Result::is_ok), format!("one of the creates must succeed: {answers:?}"))?;
    must("create a pod again", provider.create_pod(&pod).await)?;
    s.wait(&pod.pod_ref(), "running", is_running).await?;
    let listed = must("list pods", provider.list_pods().await)?;
    same(listed.iter().filter(|o| o.pod.uid == pod.pod_ref().uid).count(), 1, "pods of one uid")
}

/// After how long answers are lost: at the first await, and while the work is under way.
const LOST: [u64; 4] = [0, 1, 5, 30];

async fn lost_create(s: &Suite<'_>) -> Result<(), Failure> {
    for after in LOST {
        let pod = s.pod(PodPlan::new("lost-create"));
        let _ = timeout(Duration::from_millis(after), s.provider().create_pod(&pod)).await;
        must("create a pod after an answer was lost", s.provider().create_pod(&pod).await)?;
        let seen = s.wait(&pod.pod_ref(), "running", is_running).await?;
        same(seen.containers[0].restart_count, 0, "restarts")?;
        let listed = must("list pods", s.provider().list_pods().await)?;
        same(listed.iter().filter(|o| o.pod.uid == pod.pod_ref().uid).count(), 1, "pods of one uid")?;
        s.remove(&pod.pod_ref()).await?;
    }
    Ok(())
}

async fn lost_removal(s: &Suite<'_>) -> Result<(), Failure> {
    for after in LOST {
        let (pod, _) = s.start(PodPlan::new("lost-removal")).await?;
        let pod = pod.pod_ref();
        let after = Duration::from_millis(after);
        let _ = timeout(after, s.provider().stop_pod(&pod, Duration::ZERO)).await;
        must("stop a pod after an answer was lost", s.provider().stop_pod(&pod, Duration::ZERO).await)?;
        s.wait(&pod, "terminated", PodObservation::is_terminated).await?;
        let _ = timeout(after, s.provider().remove_pod(&pod)).await;
        s.remove(&pod).await?;
    }
    Ok(())
}

async fn many(s: &Suite<'_>) -> Result<(), Failure> {
    let pods: Vec<_> = (0..8).map(|_| s.pod(PodPlan::new("many"))).collect();
    let provider = s.provider();
    for answer in join_all(pods.iter().map(|pod| provider.create_pod(pod))).await {
        must("create pods at the same time", answer)?;
    }
    for pod in &pods {
        s.wait(&pod.pod_ref(), "running", is_running).await?;
    }
    same(must("list pods", provider.list_pods().await)?.len(), pods.len(), "pods in the list")?;
    let refs: Vec<_> = pods.iter().map(|p| p.pod_ref()).collect();
    let (stopped, kept) = refs.split_at(4);
    for answer in join_all(stopped.iter().map(|pod| provider.stop_pod(pod, Duration::ZERO))).await {
        must("stop pods at the same time", answer)?;
    }
    for pod in stopped {
        s.wait(pod, "terminated", PodObservation::is_terminated).await?;
    }
    for pod in kept {
        let seen = must("get the pod", provider.get_pod(pod).await)?;
        ensure(is_running(&seen), "a pod that nobody stopped must run")?;
    }
    for answer in join_all(refs.iter().map(|pod| provider.remove_pod(pod))).await {
        must("remove pods at the same time", answer)?;
    }
    Ok(())
}

async fn restart(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, before) = s.start(PodPlan::new("lasting")).await?;
    let pod = pod.pod_ref();
    s.restart(Duration::from_millis(300)).await?;
    let after = s.wait_asking(&pod, "running after a restart", is_running).await?;
    same(after.start_time, before.start_time, "the start time after a restart")?;
    same(started(&after), started(&before), "when the container was started, after a restart")?;
    same(after.containers[0].restart_count, before.containers[0].restart_count, "restarts")?;
    let listed = must("list pods", s.provider().list_pods().await)?;
    same(listed.into_iter().map(|o| o.pod).collect::<Vec<_>>(), vec![pod.clone()], "pods after a restart")?;
    must("stop a pod after a restart", s.provider().stop_pod(&pod, Duration::ZERO).await)?;
    s.wait(&pod, "terminated", PodObservation::is_terminated).await.map(drop)
}

async fn ended_meanwhile(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::script("meanwhile", "sleep 2; exit 4").restart("Never")).await?;
    s.restart(Duration::from_secs(3)).await?;
    let seen = s.wait_asking(&pod.pod_ref(), "ended", PodObservation::is_terminated).await?;
    same(exit_code(&seen), Some(4), "the exit code of a container that ended while nobody looked")
}

async fn stopped_before(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::new("stopped-before")).await?;
    let pod = pod.pod_ref();
    must("stop a pod", s.provider().stop_pod(&pod, Duration::from_secs(1)).await)?;
    s.restart(Duration::from_millis(300)).await?;
    must("stop a pod again after a restart", s.provider().stop_pod(&pod, Duration::from_secs(1)).await)?;
    s.wait_asking(&pod, "terminated", PodObservation::is_terminated).await?;
    tokio::time::sleep(Duration::from_millis(800)).await;
    let after = must("get the pod", s.provider().get_pod(&pod).await)?;
    ensure(after.is_terminated(), "a pod that was stopped must not be started again")
}

async fn restore(s: &Suite<'_>) -> Result<(), Failure> {
    let (mut pod, mut before) = s.start(PodPlan::new("restored")).await?;
    let reference = pod.pod_ref();
    before.containers[0].restart_count = 3;
    s.restart(Duration::from_millis(10)).await?;
    let gone = s.provider().get_pod(&reference).await;
    ensure(is_not_found(&gone), "a volatile provider that was made anew must not know the pod")?;
    Arc::make_mut(&mut pod.pod).status = Some(PodStatus {
        phase: Some("Running".into()),
        start_time: before.start_time.map(Time),
        pod_ip: before.pod_ips.first().map(ToString::to_string),
        container_statuses: Some(before.containers.clone()),
        ..PodStatus::default()
    });
    must("restore a pod", s.provider().restore_pod(&pod).await)?;
    let after = s.wait(&reference, "running", is_running).await?;
    same(after.start_time, before.start_time, "the start time")?;
    same(after.containers[0].restart_count, 3, "restarts")?;
    same(started(&after), started(&before), "when the container was started")
}

async fn nothing_left(s: &Suite<'_>) -> Result<(), Failure> {
    let left = must("list pods", s.provider().list_pods().await)?;
    let left: Vec<_> = left.iter().map(|o| o.pod.to_string()).collect();
    ensure(left.is_empty(), format!("every pod was removed, yet these are listed: {}", left.join(", ")))
}
