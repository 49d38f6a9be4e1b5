//! Checks: creating, stopping, removing, and what is reported of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::{Instant, timeout};

use super::super::{LogOptions, PodObservation, ProviderError, Result};
use super::pods::{ContainerPlan, PodPlan};
use super::seen::{is_not_found, is_running, names};
use super::suite::{Failure, Suite, ensure, must, no_io, same};
use super::{Check, Need, PodFeature};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "it_answers_and_begins_without_pods_of_the_node",
        hint: "ping, describe_node and list_pods must succeed while the service is there; list_pods shows only what \
               carries the node's uid",
        needs: &[],
        run: |s| answers(s).boxed_local(),
    },
    Check {
        name: "a_pod_that_never_was_is_not_found",
        hint: "get_pod and stop_pod of an unknown uid are NotFound; remove_pod of it succeeds, being done already",
        needs: &[],
        run: |s| unknown(s).boxed_local(),
    },
    Check {
        name: "a_pod_that_runs_is_reported_with_its_containers_and_its_address",
        hint: "an observation has one status for each container of the spec, the pod's reference as it was given, a \
               start time and, once the pod runs, an address",
        needs: &[],
        run: |s| reported(s).boxed_local(),
    },
    Check {
        name: "creating_a_pod_again_changes_nothing",
        hint: "create_pod is idempotent by the pod's uid: look for the uid before anything is made",
        needs: &[],
        run: |s| create_again(s).boxed_local(),
    },
    Check {
        name: "an_update_of_labels_disturbs_nothing",
        hint: "update_pod with other labels or annotations must not restart containers; a provider that has no use for \
               them keeps the default",
        needs: &[],
        run: |s| update(s).boxed_local(),
    },
    Check {
        name: "pods_of_one_name_are_told_apart_by_uid",
        hint: "the uid is the identity: keep pods under it, in a tag or label, and not under namespace and name",
        needs: &[Need::Uids],
        run: |s| twins(s).boxed_local(),
    },
    Check {
        name: "all_containers_of_a_pod_run",
        hint: "a provider that declares multipleContainers starts each of spec.containers and reports them in that order",
        needs: &[Need::Feature(PodFeature::MultipleContainers)],
        run: |s| several(s).boxed_local(),
    },
    Check {
        name: "stopping_ends_every_container_and_keeps_the_record",
        hint: "stop_pod returns at once; the pod's containers come to be reported as terminated, and the pod is listed \
               until remove_pod",
        needs: &[],
        run: |s| stop(s).boxed_local(),
    },
    Check {
        name: "a_stopped_pod_is_not_started_again",
        hint: "after stop_pod the restart policy no longer counts",
        needs: &[],
        run: |s| stays_stopped(s).boxed_local(),
    },
    Check {
        name: "a_pod_that_is_stopped_at_once_ends",
        hint: "stop_pod may come while the pod is being started: it must not be forgotten, nor be overtaken by the start",
        needs: &[],
        run: |s| stop_at_once(s).boxed_local(),
    },
    Check {
        name: "removing_a_pod_that_runs_ends_and_forgets_it",
        hint: "remove_pod kills what still runs and frees all of it; get_pod is NotFound as soon as it has returned, and \
               a second removal succeeds",
        needs: &[],
        run: |s| remove(s).boxed_local(),
    },
    Check {
        name: "the_list_and_the_single_answer_agree",
        hint: "list_pods has what get_pod says of each pod, stopped ones included, and fails rather than answer in part",
        needs: &[],
        run: |s| agree(s).boxed_local(),
    },
    Check {
        name: "changes_are_told_without_being_asked_for",
        hint: "a provider that declares notifies calls its notifier on every change: running, ended, and so on",
        needs: &[Need::Notifies],
        run: |s| told(s).boxed_local(),
    },
    Check {
        name: "abilities_are_what_the_capabilities_say",
        hint: "a call that the capabilities do not list answers Unsupported, one that they list never does",
        needs: &[],
        run: |s| abilities(s).boxed_local(),
    },
    Check {
        name: "pods_of_another_node_are_neither_listed_nor_touched",
        hint: "keep the node's uid (ProviderContext::node_uid) with every pod and look only at those that carry it; with \
               an endpoint that serves one node only, say so (--one-node)",
        needs: &[Need::Nodes],
        run: |s| neighbours(s).boxed_local(),
    },
];

async fn answers(s: &Suite<'_>) -> Result<(), Failure> {
    must("answer a ping", s.provider().ping().await)?;
    must("describe the node", s.provider().describe_node().await)?;
    let pods = must("list pods", s.provider().list_pods().await)?;
    ensure(pods.is_empty(), format!("must begin without pods of this node, not with {}", pods.len()))
}

async fn unknown(s: &Suite<'_>) -> Result<(), Failure> {
    let pod = s.pod(PodPlan::new("unknown")).pod_ref();
    for (call, result) in [
        ("get_pod", s.provider().get_pod(&pod).await.map(|_| ())),
        ("stop_pod", s.provider().stop_pod(&pod, Duration::ZERO).await),
    ] {
        ensure(is_not_found(&result), format!("{call} of an unknown pod must be NotFound, not {result:?}"))?;
    }
    must("succeed in removing a pod that is not there", s.provider().remove_pod(&pod).await)
}

async fn reported(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, seen) = s.start(PodPlan::new("reported")).await?;
    same(&seen.pod, &pod.pod_ref(), "the observation must name the pod")?;
    same(names(&seen), vec!["main"], "one status for each container")?;
    ensure(seen.start_time.is_some(), "a pod that runs has a start time")?;
    let running = seen.containers[0].state.as_ref().and_then(|s| s.running.as_ref());
    ensure(running.is_some_and(|r| r.started_at.is_some()), "a container that runs has the time of its start")?;
    s.wait_asking(&pod.pod_ref(), "with an address", |o| !o.pod_ips.is_empty()).await.map(drop)
}

async fn create_again(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, first) = s.start(PodPlan::new("once")).await?;
    must("create a pod that is there", s.provider().create_pod(&pod).await)?;
    let again = must("get the pod", s.provider().get_pod(&pod.pod_ref()).await)?;
    same(again.start_time, first.start_time, "the start time after a second create")?;
    same(started(&again), started(&first), "when the container was started after a second create")?;
    same(must("list pods", s.provider().list_pods().await)?.len(), 1, "pods after a second create")
}

fn started(o: &PodObservation) -> Option<jiff::Timestamp> {
    o.containers.first()?.state.as_ref()?.running.as_ref()?.started_at.as_ref().map(|t| t.0)
}

async fn update(s: &Suite<'_>) -> Result<(), Failure> {
    let (mut pod, first) = s.start(PodPlan::new("updated")).await?;
    let meta = &mut Arc::make_mut(&mut pod.pod).metadata;
    meta.labels.get_or_insert_default().insert("app".into(), "other".into());
    meta.annotations.get_or_insert_default().insert("note".into(), "new".into());
    must("update a pod", s.provider().update_pod(&pod).await)?;
    must("update a pod again", s.provider().update_pod(&pod).await)?;
    let after = s.wait_asking(&pod.pod_ref(), "running", is_running).await?;
    same(started(&after), started(&first), "when the container was started after an update")
}

async fn twins(s: &Suite<'_>) -> Result<(), Failure> {
    let (a, _) = s.start(PodPlan::new("twin").namesake()).await?;
    let (b, _) = s.start(PodPlan::new("twin").namesake()).await?;
    let (a, b) = (a.pod_ref(), b.pod_ref());
    let listed = must("list pods", s.provider().list_pods().await)?;
    let listed: HashSet<_> = listed.into_iter().map(|o| o.pod.uid).collect();
    same(listed, HashSet::from([a.uid.clone(), b.uid.clone()]), "the uids of two pods of one name")?;
    s.remove(&a).await?;
    let kept = must("get the other pod of the name", s.provider().get_pod(&b).await)?;
    ensure(is_running(&kept), "removing one pod must not touch another of its name")
}

async fn several(s: &Suite<'_>) -> Result<(), Failure> {
    let plan = PodPlan::new("several").containers(vec![ContainerPlan::new("main"), ContainerPlan::new("beside")]);
    let (pod, seen) = s.start(plan).await?;
    same(names(&seen), vec!["main", "beside"], "the containers in their order")?;
    must("stop a pod", s.provider().stop_pod(&pod.pod_ref(), Duration::from_secs(1)).await)?;
    s.wait(&pod.pod_ref(), "ended", PodObservation::is_terminated).await.map(drop)
}

async fn stop(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::new("stopped")).await?;
    let pod = pod.pod_ref();
    let (grace, begin) = (Duration::from_secs(2), Instant::now());
    must("stop a pod", s.provider().stop_pod(&pod, grace).await)?;
    must("stop a pod again", s.provider().stop_pod(&pod, Duration::from_secs(1)).await)?;
    let ended = s.wait(&pod, "terminated", PodObservation::is_terminated).await?;
    let limit = grace + s.options.patience / 2;
    ensure(begin.elapsed() <= limit, format!("a grace of 2 s took {:?}", begin.elapsed()))?;
    same(names(&ended), vec!["main"], "the containers of a stopped pod")?;
    must("stop a pod that has ended", s.provider().stop_pod(&pod, grace).await)?;
    let listed = must("list pods", s.provider().list_pods().await)?;
    ensure(listed.iter().any(|o| o.pod.uid == pod.uid), "a stopped pod is listed until it is removed")?;
    s.remove(&pod).await
}

async fn stays_stopped(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::new("at-rest")).await?;
    let pod = pod.pod_ref();
    must("stop a pod", s.provider().stop_pod(&pod, Duration::ZERO).await)?;
    s.wait(&pod, "terminated", PodObservation::is_terminated).await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let after = must("get a stopped pod", s.provider().get_pod(&pod).await)?;
    ensure(after.is_terminated(), format!("a stopped pod must stay so, not become {after:?}"))
}

async fn stop_at_once(s: &Suite<'_>) -> Result<(), Failure> {
    let pod = s.pod(PodPlan::new("short"));
    must("create a pod", s.provider().create_pod(&pod).await)?;
    must("stop a pod that has just been created", s.provider().stop_pod(&pod.pod_ref(), Duration::from_secs(1)).await)?;
    s.wait(&pod.pod_ref(), "terminated", PodObservation::is_terminated).await.map(drop)
}

async fn remove(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::new("removed")).await?;
    let pod = pod.pod_ref();
    s.remove(&pod).await?;
    must("remove a pod twice", s.provider().remove_pod(&pod).await)?;
    let listed = must("list pods", s.provider().list_pods().await)?;
    ensure(listed.iter().all(|o| o.pod.uid != pod.uid), "a removed pod must not be listed")
}

async fn agree(s: &Suite<'_>) -> Result<(), Failure> {
    let (running, _) = s.start(PodPlan::new("agree-running")).await?;
    let (stopped, _) = s.start(PodPlan::new("agree-stopped")).await?;
    must("stop a pod", s.provider().stop_pod(&stopped.pod_ref(), Duration::ZERO).await)?;
    s.wait_asking(&stopped.pod_ref(), "terminated", PodObservation::is_terminated).await?;
    let listed = must("list pods", s.provider().list_pods().await)?;
    same(listed.len(), 2, "pods in the list")?;
    for pod in [running.pod_ref(), stopped.pod_ref()] {
        let single = must("get the pod", s.provider().get_pod(&pod).await)?;
        let Some(of_list) = listed.iter().find(|o| o.pod.uid == pod.uid) else {
            return Err(Failure::new(format!("pod {pod} is not listed")));
        };
        same(&of_list.pod, &single.pod, "the pod's reference")?;
        same(of_list.is_terminated(), single.is_terminated(), "whether it has ended")?;
        same(of_list.start_time, single.start_time, "its start time")?;
    }
    Ok(())
}

async fn told(s: &Suite<'_>) -> Result<(), Failure> {
    // Each of these waits for what is told, without a question.
    let (pod, _) = s.start(PodPlan::new("told")).await?;
    must("stop a pod", s.provider().stop_pod(&pod.pod_ref(), Duration::ZERO).await)?;
    s.wait(&pod.pod_ref(), "terminated", PodObservation::is_terminated).await.map(drop)
}

async fn abilities(s: &Suite<'_>) -> Result<(), Failure> {
    let can = s.provider().capabilities();
    let (pod, _) = s.start(PodPlan::new("able")).await?;
    let pod = pod.pod_ref();
    let command = ["true".to_owned()];
    // A port that nothing listens on may be refused; only "not supported" is of interest.
    let port = timeout(s.options.patience, s.provider().port_forward(&pod, 80)).await.ok().and_then(Result::err);
    let checks = [
        ("logs", can.logs, s.provider().logs(&pod, "main", &LogOptions::default()).await.err()),
        ("exec", can.exec, s.provider().exec(&pod, "main", &command, no_io()).await.err()),
        ("stats", can.stats, s.provider().stats().await.err()),
        ("port_forward", can.port_forward, port),
    ];
    for (ability, can, error) in checks {
        let unsupported = matches!(error, Some(ProviderError::Unsupported(_)));
        ensure(unsupported != can, format!("capabilities say {ability}: {can}, the call says {error:?}"))?;
    }
    if !can.attach {
        let result = s.provider().attach(&pod, "main", no_io()).await;
        let unsupported = matches!(result, Err(ProviderError::Unsupported(_)));
        ensure(unsupported, format!("attach without the capability must be Unsupported, not {result:?}"))?;
    }
    Ok(())
}

async fn neighbours(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(PodPlan::new("ours")).await?;
    let pod = pod.pod_ref();
    let other = s.neighbour().await?;
    let listed = must("list pods of another node", other.list_pods().await)?;
    ensure(listed.iter().all(|o| o.pod.uid != pod.uid), "a pod must not be listed for another node")?;
    let found = other.get_pod(&pod).await;
    ensure(is_not_found(&found), format!("another node must not find the pod, but: {found:?}"))?;
    // Allowed to succeed, since such a pod is not there; but it must not be touched.
    let _ = other.remove_pod(&pod).await;
    let kept = must("get the pod", s.provider().get_pod(&pod).await)?;
    ensure(is_running(&kept), "another node must not remove the pod")
}
