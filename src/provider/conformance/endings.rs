//! Checks: hooks, signals, last words, what cannot be started, and deadlines.

use std::time::Duration;

use futures::FutureExt as _;
use serde_json::json;
use tokio::time::Instant;

use super::super::{PodObservation, Result};
use super::pods::{ContainerPlan, DEAF, POLITE, PodPlan, ROOT};
use super::seen::{container, end, exit_code};
use super::suite::{Failure, Suite, ensure, must, same};
use super::{Check, Need, PodFeature};

pub(super) const CHECKS: &[Check] = &[
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
    Check {
        name: "a_signal_of_its_own_asks_a_container_to_end",
        hint: "lifecycle.stopSignal takes the place of SIGTERM",
        needs: &[Need::Commands, Need::Feature(PodFeature::GracePeriod), Need::Feature(PodFeature::StopSignal)],
        run: |s| stop_signal(s).boxed_local(),
    },
    Check {
        name: "a_hook_after_the_start_is_done_before_its_container_is_reported_to_run",
        hint: "lifecycle.postStart runs beside the container's process; its container is waiting until the hook has ended",
        needs: &[Need::Commands, Need::Exec, Need::Feature(PodFeature::PostStart)],
        run: |s| post_start(s).boxed_local(),
    },
    Check {
        name: "a_hook_after_the_start_that_fails_ends_its_container",
        hint: "when lifecycle.postStart fails the container is ended, and the restart policy counts",
        needs: &[Need::Commands, Need::Feature(PodFeature::PostStart)],
        run: |s| post_start_fails(s).boxed_local(),
    },
    Check {
        name: "a_hook_before_the_end_runs_before_the_signal",
        hint: "stop_pod runs lifecycle.preStop to its end and then sends the signal",
        needs: &[Need::Commands, Need::Feature(PodFeature::GracePeriod), Need::Feature(PodFeature::PreStop)],
        run: |s| pre_stop(s).boxed_local(),
    },
    Check {
        name: "the_time_of_a_hook_before_the_end_counts_against_the_grace",
        hint: "a preStop hook that is not done when the grace is over is given up, and the container is ended",
        needs: &[Need::Commands, Need::Feature(PodFeature::GracePeriod), Need::Feature(PodFeature::PreStop)],
        run: |s| pre_stop_hangs(s).boxed_local(),
    },
    Check {
        name: "a_pause_before_the_end_is_kept",
        hint: "preStop.sleep waits before the signal is sent",
        needs: &[Need::Commands, Need::Feature(PodFeature::GracePeriod), Need::Feature(PodFeature::PreStop)],
        run: |s| pre_stop_sleeps(s).boxed_local(),
    },
    Check {
        name: "what_a_container_leaves_to_say_is_in_its_end",
        hint: "terminated.message is what the container wrote to terminationMessagePath, or below $VNODE_CONTAINER_ROOT \
               where it has no files of its own",
        needs: &[Need::Commands, Need::Feature(PodFeature::TerminationMessage)],
        run: |s| last_words(s).boxed_local(),
    },
    Check {
        name: "the_log_speaks_for_a_container_that_failed_without_a_word",
        hint: "with FallbackToLogsOnError terminated.message is the end of the log, if the container failed and left no \
               message of its own",
        needs: &[Need::Commands, Need::Feature(PodFeature::TerminationMessage)],
        run: |s| last_lines(s).boxed_local(),
    },
    Check {
        name: "a_command_that_does_not_exist_fails_with_a_reason",
        hint: "refuse the pod, or report an end with exit code 126 to 128 and a message that says what was not found; a \
               kubelet says StartError and 128",
        needs: &[Need::Commands],
        run: |s| no_such_command(s).boxed_local(),
    },
    Check {
        name: "a_pod_that_is_active_for_too_long_is_ended",
        hint: "activeDeadlineSeconds counts from the pod's start, init containers and restarts included; the reason is \
               DeadlineExceeded",
        needs: &[Need::Feature(PodFeature::ActiveDeadline)],
        run: |s| deadline(s).boxed_local(),
    },
];

async fn asked_to_end(s: &Suite<'_>) -> Result<(), Failure> {
    let pod = s.start_and_hear(PodPlan::script("polite", POLITE), "ready").await?;
    let (grace, begin) = (s.options.patience, Instant::now());
    must("stop a pod", s.provider().stop_pod(&pod.pod_ref(), grace).await)?;
    let seen = s.wait(&pod.pod_ref(), "ended", PodObservation::is_terminated).await?;
    same(exit_code(&seen), Some(6), "the exit code of a container that ends in its own way")?;
    ensure(begin.elapsed() < grace, "the grace is not waited for when the container has ended")
}

async fn killed(s: &Suite<'_>) -> Result<(), Failure> {
    let pod = s.start_and_hear(PodPlan::script("deaf", DEAF), "ready").await?;
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
    let pod = s.start_and_hear(PodPlan::script("deaf", DEAF), "ready").await?;
    let begin = Instant::now();
    must("stop a pod", s.provider().stop_pod(&pod.pod_ref(), s.options.patience * 4).await)?;
    must("stop a pod at once", s.provider().stop_pod(&pod.pod_ref(), Duration::ZERO).await)?;
    s.wait(&pod.pod_ref(), "ended", PodObservation::is_terminated).await?;
    let took = begin.elapsed();
    ensure(took < s.options.patience, format!("a stop without grace took {took:?}"))
}

async fn stop_signal(s: &Suite<'_>) -> Result<(), Failure> {
    let script = "trap 'exit 7' USR1; trap '' TERM; echo ready; while :; do sleep 1 & wait $!; done";
    let main = ContainerPlan::new("main").script(script).with(json!({"lifecycle": {"stopSignal": "SIGUSR1"}}));
    let plan = PodPlan::new("own-signal").containers(vec![main]).with(json!({"os": {"name": "linux"}}));
    let pod = s.start_and_hear(plan, "ready").await?;
    same(stopped(s, &pod.pod_ref()).await?, Some(7), "the exit code that answers SIGUSR1")
}

/// Stops a pod with as much grace as it likes; its exit code.
async fn stopped(s: &Suite<'_>, pod: &super::super::PodRef) -> Result<Option<i32>, Failure> {
    must("stop a pod", s.provider().stop_pod(pod, s.options.patience * 2).await)?;
    Ok(exit_code(&s.wait(pod, "ended", PodObservation::is_terminated).await?))
}

fn hooked(name: &'static str, script: &str, hooks: serde_json::Value) -> PodPlan {
    let main = ContainerPlan::new("main").script(script).with(json!({"lifecycle": hooks}));
    PodPlan::new(name).containers(vec![main])
}

fn sh(script: &str) -> serde_json::Value {
    json!({"exec": {"command": ["sh", "-c", script]}})
}

async fn post_start(s: &Suite<'_>) -> Result<(), Failure> {
    let note = s.note();
    let hook = sh(&format!("sleep 1; echo hooked > {note}"));
    let (pod, _) = s.start(hooked("post-start", POLITE, json!({"postStart": hook}))).await?;
    let said = s.run(&pod.pod_ref(), "main", &format!("cat {note}")).await?;
    same(said.trim(), "hooked", "what the hook has written")
}

async fn post_start_fails(s: &Suite<'_>) -> Result<(), Failure> {
    let plan = hooked("post-start-fails", POLITE, json!({"postStart": sh("exit 1")}));
    s.run_to_end(plan.restart("Never")).await.map(drop)
}

async fn pre_stop(s: &Suite<'_>) -> Result<(), Failure> {
    let note = s.note();
    let script =
        format!("trap 'test -e {note} && exit 5; exit 6' TERM; echo ready; while :; do sleep 1 & wait $!; done");
    let hook = sh(&format!("sleep 1; touch {note}"));
    let pod = s.start_and_hear(hooked("pre-stop", &script, json!({"preStop": hook})), "ready").await?;
    same(stopped(s, &pod.pod_ref()).await?, Some(5), "the exit code of a container whose hook is done")
}

async fn pre_stop_hangs(s: &Suite<'_>) -> Result<(), Failure> {
    let pod = s.start_and_hear(hooked("pre-stop-hangs", DEAF, json!({"preStop": sh("sleep 3600")})), "ready").await?;
    must("stop a pod", s.provider().stop_pod(&pod.pod_ref(), Duration::from_secs(2)).await)?;
    let seen = s.wait(&pod.pod_ref(), "ended", PodObservation::is_terminated).await?;
    same(exit_code(&seen), Some(137), "the exit code of a container that was killed")
}

async fn pre_stop_sleeps(s: &Suite<'_>) -> Result<(), Failure> {
    let hook = json!({"preStop": {"sleep": {"seconds": 2}}});
    let pod = s.start_and_hear(hooked("pre-stop-sleeps", POLITE, hook), "ready").await?;
    let begin = Instant::now();
    same(stopped(s, &pod.pod_ref()).await?, Some(6), "the exit code of a container that ends in its own way")?;
    let took = begin.elapsed();
    ensure(took + Duration::from_millis(500) >= Duration::from_secs(2), format!("a pause of 2 s took {took:?}"))
}

/// Runs a container to its end; what is in its message.
async fn words(s: &Suite<'_>, script: &str, more: serde_json::Value) -> Result<Option<String>, Failure> {
    let main = ContainerPlan::new("main").script(script).with(more);
    let (_, seen) = s.run_to_end(PodPlan::new("last-words").restart("Never").containers(vec![main])).await?;
    Ok(end(container(&seen, "main")?).and_then(|t| t.message.clone()))
}

async fn last_words(s: &Suite<'_>) -> Result<(), Failure> {
    let script = |path: &str| format!("printf 'last words' > {ROOT}{path}; exit 2");
    let said = words(s, &script("/dev/termination-log"), json!({})).await?;
    same(said.as_deref(), Some("last words"), "what was written to /dev/termination-log")?;
    let said = words(s, &script("/tmp/why"), json!({"terminationMessagePath": "/tmp/why"})).await?;
    same(said.as_deref(), Some("last words"), "what was written to a path of its own")
}

async fn last_lines(s: &Suite<'_>) -> Result<(), Failure> {
    let fallback = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let said = words(s, "echo from the log; exit 1", fallback.clone()).await?;
    ensure(
        said.as_ref().is_some_and(|m| m.contains("from the log")),
        format!("the message is the log's end: {said:?}"),
    )?;
    let said = words(s, "echo from the log; exit 0", fallback.clone()).await?;
    ensure(said.as_deref().is_none_or(str::is_empty), format!("a success has no message from the log: {said:?}"))?;
    let own = format!("echo from the log; printf 'own words' > {ROOT}/dev/termination-log; exit 1");
    same(words(s, &own, fallback).await?.as_deref(), Some("own words"), "a message of its own goes before the log")
}

async fn no_such_command(s: &Suite<'_>) -> Result<(), Failure> {
    let main = ContainerPlan::new("main").command(&["/no/such/program", "argument"]);
    let pod = s.pod(PodPlan::new("no-command").restart("Never").containers(vec![main]));
    let said = match s.provider().create_pod(&pod).await {
        Ok(()) => {
            let seen = s.wait(&pod.pod_ref(), "ended", PodObservation::is_terminated).await?;
            let code = exit_code(&seen);
            let not_found = code.is_some_and(|code| (126..=128).contains(&code));
            ensure(not_found, format!("the exit code of a command that is not there is 126 to 128, not {code:?}"))?;
            let end = end(container(&seen, "main")?);
            end.and_then(|t| t.message.clone()).unwrap_or_default()
        }
        Err(error) if error.is_final() => error.to_string(),
        Err(error) => return Err(Failure::new(format!("must refuse the pod for good, or run it, but: {error}"))),
    };
    let readable = said.contains("/no/such/program") || said.to_lowercase().contains("no such file");
    ensure(readable, format!("it is said what was not found, not {said:?}"))
}

async fn deadline(s: &Suite<'_>) -> Result<(), Failure> {
    let plan = PodPlan::new("deadline").with(json!({"activeDeadlineSeconds": 2}));
    let (_, seen) = s.run_to_end(plan).await?;
    same(seen.reason.as_deref(), Some("DeadlineExceeded"), "the reason of its end")
}
