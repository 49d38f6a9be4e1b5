//! Checks: init containers and sidecars.

use std::time::Duration;

use futures::FutureExt as _;
use serde_json::json;

use super::super::{PodObservation, Result};
use super::pods::{ContainerPlan, POLITE, PodPlan};
use super::seen::{began, code, container, end, end_before, finished_at, in_order, is_running, of, runs, started_at};
use super::suite::{Failure, Suite, ensure, must, same};
use super::{Check, Need, PodFeature};

pub(super) const CHECKS: &[Check] = &[
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
        name: "an_init_container_that_fails_is_run_again",
        hint: "unless restartPolicy is Never, an init container that fails is run again until it succeeds",
        needs: &[Need::Commands, Need::Feature(PodFeature::InitContainers), Need::Feature(PodFeature::RestartPolicy)],
        run: |s| init_again(s).boxed_local(),
    },
    Check {
        name: "a_sidecar_runs_before_the_containers_do",
        hint: "an init container with restartPolicy Always is started in its turn and goes on; once it runs, the next one is \
               started",
        needs: &[Need::Feature(PodFeature::Sidecars)],
        run: |s| sidecar_first(s).boxed_local(),
    },
    Check {
        name: "the_startup_probe_of_a_sidecar_holds_up_what_comes_after_it",
        hint: "a sidecar has started when its startup probe has succeeded; until then the containers wait",
        needs: &[
            Need::Commands,
            Need::Exec,
            Need::Feature(PodFeature::Sidecars),
            Need::Feature(PodFeature::StartupProbes),
            Need::Feature(PodFeature::ExecProbes),
        ],
        run: |s| sidecar_probed(s).boxed_local(),
    },
    Check {
        name: "a_sidecar_that_fails_is_started_again_whatever_the_policy",
        hint: "a sidecar is restarted even in a pod whose restartPolicy is Never",
        needs: &[Need::Commands, Need::Feature(PodFeature::Sidecars)],
        run: |s| sidecar_again(s).boxed_local(),
    },
    Check {
        name: "a_sidecar_does_not_keep_its_pod_from_ending",
        hint: "when the containers have ended for good, sidecars are asked to end; the exit codes of containers decide the phase",
        needs: &[Need::Commands, Need::Feature(PodFeature::Sidecars)],
        run: |s| sidecar_ends(s).boxed_local(),
    },
    Check {
        name: "sidecars_outlive_the_containers_and_end_in_reverse_order",
        hint: "stop_pod asks the containers to end, and when they have ended the sidecars, the last one first",
        needs: &[
            Need::Commands,
            Need::LogLines,
            Need::Feature(PodFeature::Sidecars),
            Need::Feature(PodFeature::GracePeriod),
        ],
        run: |s| sidecars_last(s).boxed_local(),
    },
];

async fn init(s: &Suite<'_>) -> Result<(), Failure> {
    let plan = PodPlan::new("init")
        .init(ContainerPlan::new("first").script("sleep 1"))
        .init(ContainerPlan::new("second").script("exit 0"));
    let (_, seen) = s.start(plan).await?;
    let init: Vec<_> = seen.init_containers.iter().map(|c| c.name.as_str()).collect();
    same(init, vec!["first", "second"], "the init containers in their order")?;
    let mut before = None;
    for container in &seen.init_containers {
        let Some(over) = end(container) else {
            return Err(Failure::new(format!(
                "init container {} has not ended, but the containers run",
                container.name
            )));
        };
        same(over.exit_code, 0, "the exit code of an init container")?;
        ensure(in_order(before, finished_at(container)), "init containers end one after the other")?;
        before = finished_at(container);
    }
    Ok(())
}

async fn failed_init(s: &Suite<'_>) -> Result<(), Failure> {
    let plan = PodPlan::new("init-fails").restart("Never").init(ContainerPlan::new("first").script("exit 9"));
    let failed = |o: &PodObservation| of(o, "first", |c| code(c) == Some(9));
    let (pod, _) = s.begin(plan, "over with its init container", failed).await?;
    let idle = |o: &PodObservation| !of(o, "main", began);
    s.stays(&pod.pod_ref(), 1, "no container may start", idle).await
}

async fn init_again(s: &Suite<'_>) -> Result<(), Failure> {
    let plan = PodPlan::new("init-again").init(ContainerPlan::new("first").script("exit 9"));
    let again = |o: &PodObservation| of(o, "first", |c| c.restart_count >= 1);
    let (_, seen) = s.begin(plan, "where its init container was run again", again).await?;
    ensure(!of(&seen, "main", began), "the containers wait until the init container has succeeded")?;
    let first = container(&seen, "first")?;
    let before = end_before(first).or(end(first)).map(|t| t.exit_code);
    same(before, Some(9), "the exit code of its run before")
}

async fn sidecar_first(s: &Suite<'_>) -> Result<(), Failure> {
    let (_, seen) = s.start(PodPlan::new("sidecar").init(ContainerPlan::new("side").sidecar())).await?;
    let (side, main) = (container(&seen, "side")?, container(&seen, "main")?);
    ensure(runs(side), format!("a sidecar runs when the containers do: {side:?}"))?;
    ensure(in_order(started_at(side), started_at(main)), "a sidecar is started before the containers")
}

async fn sidecar_probed(s: &Suite<'_>) -> Result<(), Failure> {
    let up = s.note();
    let probe = super::probes::exec(&format!("test -e {up}"), 1000);
    let side = ContainerPlan::new("side").sidecar().with(json!({"startupProbe": probe}));
    let begun = |o: &PodObservation| of(o, "side", runs);
    let (pod, _) = s.begin(PodPlan::new("sidecar-probed").init(side), "with its sidecar", begun).await?;
    let pod = pod.pod_ref();
    s.stays(&pod, 2, "the containers wait", |o| !of(o, "main", began)).await?;
    s.run(&pod, "side", &format!("touch {up}")).await?;
    let started = |o: &PodObservation| is_running(o) && of(o, "side", |c| c.started == Some(true));
    s.wait(&pod, "running, its sidecar having started", started).await.map(drop)
}

async fn sidecar_again(s: &Suite<'_>) -> Result<(), Failure> {
    let side = ContainerPlan::new("side").script("sleep 1; exit 4").sidecar();
    let plan = PodPlan::new("sidecar-again").restart("Never").init(side);
    let again = |o: &PodObservation| of(o, "side", |c| c.restart_count >= 1) && is_running(o);
    let (_, seen) = s.begin(plan, "running, its sidecar having been started again", again).await?;
    let side = container(&seen, "side")?;
    let before = end_before(side).or(end(side)).map(|t| t.exit_code);
    same(before, Some(4), "the exit code of the sidecar's run before")?;
    same(container(&seen, "main")?.restart_count, 0, "restarts of the container beside it")
}

async fn sidecar_ends(s: &Suite<'_>) -> Result<(), Failure> {
    let side = ContainerPlan::new("side").script(POLITE).sidecar();
    let (_, seen) = s.run_to_end(PodPlan::script("sidecar-ends", "sleep 1").restart("Never").init(side)).await?;
    same(container(&seen, "main").map(code)?, Some(0), "the exit code of the container")?;
    ensure(end(container(&seen, "side")?).is_some(), "its sidecar ends with it")
}

async fn sidecars_last(s: &Suite<'_>) -> Result<(), Failure> {
    // Asked together, each sidecar would be over long before the container is.
    let slow = "trap 'sleep 4; exit 0' TERM; echo ready; while :; do sleep 1 & wait $!; done";
    let side = |name| ContainerPlan::new(name).script(POLITE).sidecar();
    let (pod, _) = s.start(PodPlan::script("sidecars-last", slow).init(side("first")).init(side("second"))).await?;
    let pod = pod.pod_ref();
    for name in ["first", "second", "main"] {
        s.wait_log_of(&pod, name, "that says ready", |text| text.contains("ready")).await?;
    }
    must("stop a pod", s.provider().stop_pod(&pod, s.options.patience.max(Duration::from_secs(10))).await)?;
    let seen = s.wait(&pod, "ended", PodObservation::is_terminated).await?;
    let mut ends = Vec::new();
    for (name, wanted) in [("main", 0), ("second", 6), ("first", 6)] {
        let c = container(&seen, name)?;
        same(code(c), Some(wanted), format!("the exit code of {name}, which may end in its own way"))?;
        ends.push(finished_at(c));
    }
    ensure(ends.is_sorted_by(|a, b| in_order(*a, *b)), format!("main, second and first end in this order: {ends:?}"))
}
