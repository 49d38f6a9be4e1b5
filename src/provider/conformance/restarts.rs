//! Checks: what is started again, and what is reported of it.

use std::time::Duration;

use futures::FutureExt as _;
use serde_json::json;

use super::super::{LogOptions, PodObservation, Result};
use super::pods::{ContainerPlan, PodPlan};
use super::seen::{code, container, end, end_before, is_running, of, started_at, waits_for};
use super::suite::{Failure, Suite, ensure, must, same, text};
use super::{Check, Need, PodFeature};

pub(super) const CHECKS: &[Check] = &[
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
        name: "a_container_that_succeeded_is_started_again_under_always",
        hint: "restartPolicy Always makes no difference between exit codes",
        needs: &[Need::Commands, Need::Feature(PodFeature::RestartPolicy)],
        run: |s| always(s).boxed_local(),
    },
    Check {
        name: "a_container_that_keeps_failing_is_reported_as_such",
        hint: "between two runs state.waiting has the reason CrashLoopBackOff and lastState how the run before ended",
        needs: &[Need::Commands, Need::Feature(PodFeature::RestartPolicy)],
        run: |s| crash_loop(s).boxed_local(),
    },
    Check {
        name: "one_container_is_started_again_without_the_others",
        hint: "the restart of a container must not touch those beside it",
        needs: &[
            Need::Commands,
            Need::Feature(PodFeature::RestartPolicy),
            Need::Feature(PodFeature::MultipleContainers),
        ],
        run: |s| apart(s).boxed_local(),
    },
    Check {
        name: "the_log_of_the_run_before_is_kept",
        hint: "logs with `previous` are those of the run before the one that is reported, without it those of the latter",
        needs: &[Need::Commands, Need::LogLines, Need::Exec, Need::Feature(PodFeature::RestartPolicy)],
        run: |s| previous_log(s).boxed_local(),
    },
    Check {
        name: "the_policy_of_a_container_goes_before_that_of_its_pod",
        hint: "containers[].restartPolicy, where it is set, takes the place of the pod's",
        needs: &[
            Need::Commands,
            Need::Feature(PodFeature::ContainerRestartRules),
            Need::Feature(PodFeature::MultipleContainers),
        ],
        run: |s| own_policy(s).boxed_local(),
    },
    Check {
        name: "a_restart_rule_goes_by_the_exit_code",
        hint: "of containers[].restartPolicyRules the first one that has the exit code counts, whatever the policy says",
        needs: &[Need::Commands, Need::Feature(PodFeature::ContainerRestartRules)],
        run: |s| rules(s).boxed_local(),
    },
];

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
        let again = |o: &PodObservation| of(o, "main", |c| c.restart_count >= 1);
        let plan = PodPlan::script("again", "exit 3").restart(policy);
        let (_, seen) = s.begin(plan, "started again", again).await?;
        let main = container(&seen, "main")?;
        let before = end_before(main).or(end(main));
        same(before.map(|t| t.exit_code), Some(3), format!("{policy}: the exit code of the run before"))?;
    }
    Ok(())
}

async fn always(s: &Suite<'_>) -> Result<(), Failure> {
    let again = |o: &PodObservation| of(o, "main", |c| c.restart_count >= 1);
    let (_, seen) = s.begin(PodPlan::script("always", "exit 0"), "started again", again).await?;
    let main = container(&seen, "main")?;
    let before = end_before(main).or(end(main));
    same(before.map(|t| t.exit_code), Some(0), "the exit code of the run before")
}

async fn crash_loop(s: &Suite<'_>) -> Result<(), Failure> {
    let back_off = |o: &PodObservation| of(o, "main", |c| waits_for(c) == Some("CrashLoopBackOff"));
    let (_, seen) = s.begin(PodPlan::script("loop", "exit 3"), "waiting with CrashLoopBackOff", back_off).await?;
    let main = container(&seen, "main")?;
    same(end_before(main).map(|t| t.exit_code), Some(3), "the exit code in lastState")?;
    ensure(!main.ready, "a container that does not run is not ready")
}

async fn apart(s: &Suite<'_>) -> Result<(), Failure> {
    let failing = ContainerPlan::new("failing").script("sleep 2; exit 3");
    let plan = PodPlan::new("apart").containers(vec![ContainerPlan::new("main"), failing]);
    let (pod, before) = s.start(plan).await?;
    let again = |o: &PodObservation| of(o, "failing", |c| c.restart_count >= 1);
    let after = s.wait(&pod.pod_ref(), "where one container was started again", again).await?;
    let (before, after) = (container(&before, "main")?, container(&after, "main")?);
    same(after.restart_count, 0, "restarts of the container beside it")?;
    same(started_at(after), started_at(before), "when the container beside it was started")
}

async fn previous_log(s: &Suite<'_>) -> Result<(), Failure> {
    let end = s.note();
    let script = format!("echo \"run of $(date +%s)\"; until rm {end} 2>/dev/null; do sleep 1; done; exit 3");
    let (pod, _) = s.start(PodPlan::script("previous", &script)).await?;
    let pod = pod.pod_ref();
    let first = s.wait_log(&pod, "with its run", |text| text.contains("run of")).await?;
    // So that the second run has another time to tell.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    s.run(&pod, "main", &format!("touch {end}")).await?;
    let again = |o: &PodObservation| of(o, "main", |c| c.restart_count == 1) && is_running(o);
    s.wait(&pod, "running again", again).await?;
    let second = s.wait_log(&pod, "with its second run", |text| text.contains("run of")).await?;
    ensure(second != first, format!("the log is that of the run that is reported, not {second:?}"))?;
    let previous = LogOptions { previous: true, ..LogOptions::default() };
    same(text(&s.lines(&pod, previous).await?), first, "the log of the run before")
}

async fn own_policy(s: &Suite<'_>) -> Result<(), Failure> {
    let once = ContainerPlan::new("once").script("exit 5").with(json!({"restartPolicy": "Never"}));
    let plan = PodPlan::new("own-policy").containers(vec![ContainerPlan::new("main"), once]);
    let over = |o: &PodObservation| of(o, "once", |c| code(c) == Some(5));
    let (pod, _) = s.begin(plan, "over with one container", over).await?;
    let stays = |o: &PodObservation| over(o) && of(o, "once", |c| c.restart_count == 0);
    s.stays(&pod.pod_ref(), 2, "a container with restartPolicy Never is run once", stays).await
}

async fn rules(s: &Suite<'_>) -> Result<(), Failure> {
    let rules = json!({
        "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}],
    });
    let plan = |script: &str| {
        let main = ContainerPlan::new("main").script(script).with(rules.clone());
        PodPlan::new("rules").restart("Never").containers(vec![main])
    };
    let again = |o: &PodObservation| of(o, "main", |c| c.restart_count >= 1);
    s.begin(plan("exit 42"), "started again by its rule", again).await?;
    let (pod, _) = s.run_to_end(plan("exit 3")).await?;
    let over = |o: &PodObservation| o.is_terminated() && of(o, "main", |c| c.restart_count == 0);
    s.stays(&pod.pod_ref(), 2, "no rule has this exit code", over).await
}
