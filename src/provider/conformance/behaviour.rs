//! Checks: what runs in a pod runs as its author wrote it.

use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;

use super::super::{PodObservation, ResolvedPod, Result};
use super::pods::{ContainerPlan, PodPlan, file_set};
use super::suite::{Failure, Suite, ensure, exit_code, must, same};
use super::{Check, Need, PodFeature};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "a_container_that_ends_is_reported_with_its_exit_code",
        hint: "state.terminated has the exit code of the container's process, and 128 + n when signal n ended it",
        needs: &[Need::Commands],
        run: |s| exit_codes(s).boxed_local(),
    },
    Check {
        name: "a_container_that_ended_is_not_started_again_under_never",
        hint: "restartPolicy Never: one run; OnFailure: one run that succeeds",
        needs: &[Need::Commands],
        run: |s| never(s).boxed_local(),
    },
    Check {
        name: "a_container_that_failed_is_started_again",
        hint: "restartPolicy Always and OnFailure: start it again, with a back-off, count in restartCount and keep the end \
               in lastState",
        needs: &[Need::Commands, Need::Feature(PodFeature::RestartPolicy)],
        run: |s| restarts(s).boxed_local(),
    },
    Check {
        name: "the_environment_arrives_unchanged_and_in_order",
        hint: "take it from ResolvedPod::containers, not from the pod's spec: values may have any character but NUL, later \
               ones may be needed before earlier ones, and those of Secrets are only there",
        needs: &[Need::Commands, Need::Logs],
        run: |s| environment(s).boxed_local(),
    },
    Check {
        name: "arguments_arrive_unchanged",
        hint: "command and args are lists of words: never join them into one line for a shell",
        needs: &[Need::Commands, Need::Logs],
        run: |s| arguments(s).boxed_local(),
    },
    Check {
        name: "init_containers_end_before_the_containers_start",
        hint: "init containers run one after the other, each to its end, before any of the containers",
        needs: &[Need::Commands, Need::Feature(PodFeature::InitContainers)],
        run: |s| init(s).boxed_local(),
    },
    Check {
        name: "an_init_container_that_fails_keeps_the_containers_from_starting",
        hint: "under restartPolicy Never the pod is over when an init container fails: its containers stay waiting",
        needs: &[Need::Commands, Need::Feature(PodFeature::InitContainers)],
        run: |s| failed_init(s).boxed_local(),
    },
    Check {
        name: "containers_share_an_empty_dir",
        hint: "an emptyDir is one folder for all containers of the pod, empty at the start and gone with the pod",
        needs: &[
            Need::Commands,
            Need::Logs,
            Need::Feature(PodFeature::EmptyDir),
            Need::Feature(PodFeature::InitContainers),
        ],
        run: |s| empty_dir(s).boxed_local(),
    },
    Check {
        name: "files_of_volumes_are_where_they_are_mounted",
        hint: "ResolvedPod::volumes has their content; it is to be at each mount's path, or below $VNODE_CONTAINER_ROOT \
               where nothing can be mounted",
        needs: &[Need::Commands, Need::Logs, Need::Files, Need::Feature(PodFeature::ConfigMapVolumes)],
        run: |s| files(s).boxed_local(),
    },
    Check {
        name: "files_of_volumes_are_replaced_under_a_running_container",
        hint: "update_volumes puts the new content into place, all files of a volume at once, without a restart",
        needs: &[Need::Commands, Need::Logs, Need::LiveFiles, Need::Feature(PodFeature::ConfigMapVolumes)],
        run: |s| live_files(s).boxed_local(),
    },
    Check {
        name: "a_container_is_asked_to_end_and_may_do_so_in_its_own_way",
        hint: "stop_pod sends SIGTERM and waits: the exit code is the container's own",
        needs: &[Need::Commands, Need::Feature(PodFeature::GracePeriod)],
        run: |s| asked_to_end(s).boxed_local(),
    },
    Check {
        name: "a_container_that_does_not_listen_is_killed_after_the_grace",
        hint: "after the grace period the container is killed: exit code 137",
        needs: &[Need::Commands, Need::Feature(PodFeature::GracePeriod)],
        run: |s| killed(s).boxed_local(),
    },
    Check {
        name: "a_second_stop_shortens_the_grace",
        hint: "of two stops the shorter grace counts, from the moment of the second call",
        needs: &[Need::Commands, Need::Feature(PodFeature::GracePeriod)],
        run: |s| shortened(s).boxed_local(),
    },
];

async fn exit_codes(s: &Suite<'_>) -> Result<(), Failure> {
    for (script, code) in [("exit 7", 7), ("exit 0", 0)] {
        let (_, seen) = s.run_to_end(PodPlan::script("exits", script).restart("Never")).await?;
        same(exit_code(&seen), Some(code), format!("the exit code of {script:?}"))?;
        let end = seen.containers[0].state.as_ref().and_then(|s| s.terminated.as_ref());
        ensure(end.is_some_and(|t| t.finished_at.is_some()), "a container that ended has the time of its end")?;
    }
    let (_, seen) = s.run_to_end(PodPlan::script("signalled", "kill -9 $$").restart("Never")).await?;
    // As PID 1 of a container it cannot kill itself, and ends with 0.
    ensure(matches!(exit_code(&seen), Some(137 | 0)), format!("ended by signal 9 is 137, not {:?}", exit_code(&seen)))
}

async fn never(s: &Suite<'_>) -> Result<(), Failure> {
    for (policy, script) in [("Never", "exit 1"), ("OnFailure", "exit 0")] {
        let (pod, _) = s.run_to_end(PodPlan::script("one-run", script).restart(policy)).await?;
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let after = must("get the pod", s.provider().get_pod(&pod.pod_ref()).await)?;
        ensure(after.is_terminated(), format!("{policy}: the pod stays ended"))?;
        same(after.containers[0].restart_count, 0, format!("{policy}: restarts"))?;
    }
    Ok(())
}

async fn restarts(s: &Suite<'_>) -> Result<(), Failure> {
    for policy in ["Always", "OnFailure"] {
        let pod = s.pod(PodPlan::script("again", "exit 3").restart(policy));
        must("create a pod", s.provider().create_pod(&pod).await)?;
        let again = |o: &PodObservation| o.containers.first().is_some_and(|c| c.restart_count >= 1);
        let seen = s.wait(&pod.pod_ref(), "started again", again).await?;
        let container = &seen.containers[0];
        let before = container.last_state.as_ref().or(container.state.as_ref()).and_then(|s| s.terminated.as_ref());
        same(before.map(|t| t.exit_code), Some(3), format!("{policy}: the exit code of the run before"))?;
    }
    Ok(())
}

async fn environment(s: &Suite<'_>) -> Result<(), Failure> {
    let odd = "a \"b\" 'c' $HOME $(X) \\n ü;|&`x` %s";
    let lines = "one\ntwo";
    let script = "printf '[%s]' \"$ODD\" \"$LINES2\" \"$EMPTY\" \"${EMPTY+set}\" \"$HIDDEN\"; echo; sleep 3600";
    let main = ContainerPlan::new("main")
        .script(script)
        .env("ODD", odd, false)
        .env("LINES2", lines, false)
        .env("EMPTY", "", false)
        .env("HIDDEN", "from a secret", true);
    let (pod, _) = s.start(PodPlan::new("environment").containers(vec![main])).await?;
    let wanted = format!("[{odd}][{lines}][][set][from a secret]");
    s.wait_log(&pod.pod_ref(), "with the environment", |text| text.contains(&wanted)).await.map(drop)
}

async fn arguments(s: &Suite<'_>) -> Result<(), Failure> {
    let words = ["two words", "", "\"quoted\"", "it's", "$HOME", "*", "ü", "-n", "a\tb"];
    let main = ContainerPlan::new("main")
        .script("for word in \"$@\"; do printf '[%s]' \"$word\"; done; echo; sleep 3600")
        .args(&[&["sh"], &words[..]].concat());
    let (pod, _) = s.start(PodPlan::new("arguments").containers(vec![main])).await?;
    let wanted: String = words.iter().map(|w| format!("[{w}]")).collect();
    s.wait_log(&pod.pod_ref(), "with the arguments", |text| text.contains(&wanted)).await.map(drop)
}

async fn init(s: &Suite<'_>) -> Result<(), Failure> {
    let plan = PodPlan::new("init")
        .init(ContainerPlan::new("first").script("sleep 1"))
        .init(ContainerPlan::new("second").script("exit 0"));
    let (_, seen) = s.start(plan).await?;
    let init: Vec<_> = seen.init_containers.iter().map(|c| c.name.as_str()).collect();
    same(init, vec!["first", "second"], "the init containers in their order")?;
    let mut before = None;
    for container in &seen.init_containers {
        let Some(end) = container.state.as_ref().and_then(|s| s.terminated.as_ref()) else {
            return Err(Failure::new(format!(
                "init container {} has not ended, but the containers run",
                container.name
            )));
        };
        same(end.exit_code, 0, "the exit code of an init container")?;
        ensure(before <= end.finished_at.as_ref().map(|t| t.0), "init containers end one after the other")?;
        before = end.finished_at.as_ref().map(|t| t.0);
    }
    Ok(())
}

async fn failed_init(s: &Suite<'_>) -> Result<(), Failure> {
    let plan = PodPlan::new("init-fails").restart("Never").init(ContainerPlan::new("first").script("exit 9"));
    let pod = s.pod(plan);
    must("create a pod", s.provider().create_pod(&pod).await)?;
    let ended = |o: &PodObservation| {
        let end = o.init_containers.first().and_then(|c| c.state.as_ref()?.terminated.as_ref());
        end.is_some_and(|t| t.exit_code == 9)
    };
    s.wait(&pod.pod_ref(), "over with its init container", ended).await?;
    tokio::time::sleep(Duration::from_millis(800)).await;
    let after = must("get the pod", s.provider().get_pod(&pod.pod_ref()).await)?;
    let ran = after.containers.iter().any(|c| {
        let state = c.state.as_ref();
        state.is_some_and(|s| s.running.is_some() || s.terminated.as_ref().is_some_and(|t| t.started_at.is_some()))
    });
    ensure(!ran, format!("no container may start: {:?}", after.containers))
}

async fn empty_dir(s: &Suite<'_>) -> Result<(), Failure> {
    let root = "${VNODE_CONTAINER_ROOT:-}";
    let first =
        ContainerPlan::new("first").script(&format!("echo shared > {root}/scratch/note")).mount("scratch", "/scratch");
    let main =
        ContainerPlan::new("main").script(&format!("cat {root}/scratch/note; sleep 3600")).mount("scratch", "/scratch");
    let plan = PodPlan::new("scratch").empty_dir("scratch").init(first).containers(vec![main]);
    let (pod, _) = s.start(plan).await?;
    s.wait_log(&pod.pod_ref(), "with what the init container wrote", |text| text.contains("shared")).await.map(drop)
}

const SHOW: &str = "while :; do cat \"${VNODE_CONTAINER_ROOT:-}/etc/conformance/key\" \
                    \"${VNODE_CONTAINER_ROOT:-}/etc/conformance/sub/other\"; echo; sleep 1; done";

fn with_files() -> PodPlan {
    let main = ContainerPlan::new("main").script(SHOW).mount("files", "/etc/conformance");
    PodPlan::new("files").files("files", &[("key", "first\n"), ("sub/other", "deep\n")]).containers(vec![main])
}

async fn files(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(with_files()).await?;
    s.wait_log(&pod.pod_ref(), "with the files", |text| text.contains("first\ndeep")).await.map(drop)
}

async fn live_files(s: &Suite<'_>) -> Result<(), Failure> {
    let (pod, _) = s.start(with_files()).await?;
    s.wait_log(&pod.pod_ref(), "with the files", |text| text.contains("first\ndeep")).await?;
    let mut new: ResolvedPod = pod.clone();
    new.volumes.insert("files".into(), file_set(&[("key", "second\n"), ("sub/other", "deeper\n")]));
    let changed = ["files".to_owned()];
    must("replace files", s.provider().update_volumes(&new, &changed).await)?;
    must("replace files by the same", s.provider().update_volumes(&new, &changed).await)?;
    s.wait_log(&pod.pod_ref(), "with the new files", |text| text.contains("second\ndeeper")).await?;
    let after = must("get the pod", s.provider().get_pod(&pod.pod_ref()).await)?;
    same(after.containers[0].restart_count, 0, "restarts")
}

async fn asked_to_end(s: &Suite<'_>) -> Result<(), Failure> {
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 1 & wait $!; done";
    let (pod, _) = s.start(PodPlan::script("polite", script)).await?;
    // The trap must be there first.
    if s.provider().capabilities().logs {
        s.wait_log(&pod.pod_ref(), "that says ready", |text| text.contains("ready")).await?;
    } else {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (grace, begin) = (s.options.patience, Instant::now());
    must("stop a pod", s.provider().stop_pod(&pod.pod_ref(), grace).await)?;
    let seen = s.wait(&pod.pod_ref(), "ended", PodObservation::is_terminated).await?;
    same(exit_code(&seen), Some(5), "the exit code of a container that ends in its own way")?;
    ensure(begin.elapsed() < grace, "the grace is not waited for when the container has ended")
}

const DEAF: &str = "trap '' TERM; echo ready; while :; do sleep 1; done";

async fn deaf(s: &Suite<'_>) -> Result<ResolvedPod, Failure> {
    let (pod, _) = s.start(PodPlan::script("deaf", DEAF)).await?;
    if s.provider().capabilities().logs {
        s.wait_log(&pod.pod_ref(), "that says ready", |text| text.contains("ready")).await?;
    } else {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(pod)
}

async fn killed(s: &Suite<'_>) -> Result<(), Failure> {
    let pod = deaf(s).await?;
    let (grace, begin) = (Duration::from_secs(2), Instant::now());
    must("stop a pod", s.provider().stop_pod(&pod.pod_ref(), grace).await)?;
    let seen = s.wait(&pod.pod_ref(), "ended", PodObservation::is_terminated).await?;
    same(exit_code(&seen), Some(137), "the exit code of a container that was killed")?;
    let took = begin.elapsed();
    ensure(
        took + Duration::from_millis(500) >= grace,
        format!("it was killed after {took:?}, before its grace was over"),
    )
}

async fn shortened(s: &Suite<'_>) -> Result<(), Failure> {
    let pod = deaf(s).await?;
    let begin = Instant::now();
    must("stop a pod", s.provider().stop_pod(&pod.pod_ref(), s.options.patience * 4).await)?;
    must("stop a pod at once", s.provider().stop_pod(&pod.pod_ref(), Duration::ZERO).await)?;
    s.wait(&pod.pod_ref(), "ended", PodObservation::is_terminated).await?;
    let took = begin.elapsed();
    ensure(took < s.options.patience, format!("a stop without grace took {took:?}"))
}
