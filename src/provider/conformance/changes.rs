//! Checks: images, and what is changed while a pod runs.

use std::sync::Arc;

use futures::FutureExt as _;
use serde_json::json;

use super::super::{PodObservation, ResolvedPod, Result};
use super::pods::{ContainerPlan, PodPlan, add_ephemeral};
use super::seen::{began, code, container, is_running, of, runs, started_at, waits_for};
use super::suite::{Failure, Suite, ensure, must, same};
use super::{Check, Need, PodFeature};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "an_image_that_cannot_be_had_is_said_and_tried_again",
        hint: "the container waits with ErrImagePull and ImagePullBackOff; nothing is failed for it, and the others run",
        needs: &[
            Need::Commands,
            // Who takes no credentials for images has none to pull.
            Need::Feature(PodFeature::ImagePullSecrets),
            Need::Feature(PodFeature::MultipleContainers),
        ],
        run: |s| no_such_image(s).boxed_local(),
    },
    Check {
        name: "an_image_that_must_not_be_pulled_is_not",
        hint: "with imagePullPolicy Never a container whose image is not there waits with ErrImageNeverPull",
        needs: &[
            Need::Commands,
            Need::Feature(PodFeature::ImagePullSecrets),
            Need::Feature(PodFeature::ImagePullPolicy),
        ],
        run: |s| never_pulled(s).boxed_local(),
    },
    Check {
        name: "an_image_has_an_id",
        hint: "imageID says which image it is that runs, by its digest",
        needs: &[Need::Commands, Need::Feature(PodFeature::ImagePullSecrets)],
        run: |s| image_id(s).boxed_local(),
    },
    Check {
        name: "containers_start_though_others_wait_for_what_they_name",
        hint: "a container in ResolvedPod::unresolved waits with CreateContainerConfigError and what is said there; it comes \
               with a later update",
        needs: &[Need::Commands, Need::StartsApart, Need::Feature(PodFeature::MultipleContainers)],
        run: |s| starts_apart(s).boxed_local(),
    },
    Check {
        name: "an_ephemeral_container_runs_beside_the_others",
        hint: "update_pod may bring ephemeralContainers: each is started once, and never again",
        needs: &[Need::Commands, Need::Logs, Need::Feature(PodFeature::EphemeralContainers)],
        run: |s| ephemeral(s).boxed_local(),
    },
    Check {
        name: "a_pod_ends_as_a_whole_with_its_ephemeral_containers",
        hint: "when the containers have ended for good, ephemeral ones are ended",
        needs: &[Need::Commands, Need::Exec, Need::Feature(PodFeature::EphemeralContainers)],
        run: |s| ephemeral_ends(s).boxed_local(),
    },
    Check {
        name: "a_container_is_resized_without_being_restarted",
        hint: "update_pod may bring other resources: they are given to the container that runs",
        needs: &[Need::Commands, Need::Logs, Need::Feature(PodFeature::Resize)],
        run: |s| resize(s).boxed_local(),
    },
];

/// Of a registry that nobody has.
const NO_IMAGE: &str = "localhost:1/conformance/none:1";

async fn no_such_image(s: &Suite<'_>) -> Result<(), Failure> {
    let lost = ContainerPlan::new("lost").with(json!({"image": NO_IMAGE}));
    let plan = PodPlan::new("no-image").containers(vec![ContainerPlan::new("main"), lost]);
    let back_off =
        |o: &PodObservation| of(o, "lost", |c| waits_for(c) == Some("ImagePullBackOff")) && of(o, "main", runs);
    let (_, seen) = s.begin(plan, "waiting with ImagePullBackOff, its other container running", back_off).await?;
    let lost = container(&seen, "lost")?;
    same(lost.restart_count, 0, "restarts of a container that has no image")?;
    let said = lost.state.as_ref().and_then(|s| s.waiting.as_ref()?.message.as_deref());
    ensure(said.is_some_and(|m| m.contains(NO_IMAGE)), format!("it is said which image it is: {said:?}"))
}

async fn never_pulled(s: &Suite<'_>) -> Result<(), Failure> {
    let lost = ContainerPlan::new("main").with(json!({"image": NO_IMAGE, "imagePullPolicy": "Never"}));
    let never = |o: &PodObservation| of(o, "main", |c| waits_for(c) == Some("ErrImageNeverPull"));
    let plan = PodPlan::new("never-pulled").containers(vec![lost]);
    let (_, seen) = s.begin(plan, "waiting with ErrImageNeverPull", never).await?;
    ensure(!of(&seen, "main", began), "it does not run")
}

async fn image_id(s: &Suite<'_>) -> Result<(), Failure> {
    let (_, seen) = s.start(PodPlan::new("image-id")).await?;
    ensure(!container(&seen, "main")?.image_id.is_empty(), "a container that runs has the id of its image")
}

async fn starts_apart(s: &Suite<'_>) -> Result<(), Failure> {
    let whole = s.pod(PodPlan::new("apart").containers(vec![ContainerPlan::new("main"), ContainerPlan::new("late")]));
    let mut part = whole.clone();
    part.containers.remove("late");
    part.unresolved.insert("late".into(), "secret \"later\" not found".into());
    must("create a pod", s.provider().create_pod(&part).await)?;
    let pod = whole.pod_ref();
    let waits = |o: &PodObservation| of(o, "late", |c| waits_for(c) == Some("CreateContainerConfigError"));
    let seen =
        s.wait(&pod, "running with one container, the other waiting", |o| waits(o) && of(o, "main", runs)).await?;
    let said = container(&seen, "late")?.state.as_ref().and_then(|s| s.waiting.as_ref()?.message.as_deref());
    ensure(said.is_some_and(|m| m.contains("later")), format!("it is said what is missing: {said:?}"))?;
    must("take what was missing", s.provider().update_volumes(&whole, &[]).await)?;
    let seen = s.wait(&pod, "running", is_running).await?;
    for name in ["main", "late"] {
        same(container(&seen, name)?.restart_count, 0, format!("restarts of {name}"))?;
    }
    Ok(())
}

async fn ephemeral(s: &Suite<'_>) -> Result<(), Failure> {
    let (mut pod, before) = s.start(PodPlan::new("debugged")).await?;
    add_ephemeral(&mut pod, &ContainerPlan::new("look").script("echo looked; sleep 2; exit 3"), &s.options);
    must("add a container to a pod", s.provider().update_pod(&pod).await)?;
    must("take the same update again", s.provider().update_pod(&pod).await)?;
    let pod = pod.pod_ref();
    s.wait(&pod, "with its ephemeral container", |o| of(o, "look", runs)).await?;
    s.wait_log_of(&pod, "look", "of the ephemeral container", |text| text.contains("looked")).await?;
    let over = |o: &PodObservation| of(o, "look", |c| code(c) == Some(3) && c.restart_count == 0);
    let after = s.wait(&pod, "over with its ephemeral container", over).await?;
    let (before, after) = (container(&before, "main")?, container(&after, "main")?);
    same(started_at(after), started_at(before), "when the container beside it was started")?;
    s.stays(&pod, 2, "an ephemeral container is not started again", over).await
}

async fn ephemeral_ends(s: &Suite<'_>) -> Result<(), Failure> {
    let end = s.note();
    let script = format!("until rm {end} 2>/dev/null; do sleep 1; done; exit 0");
    let (mut pod, _) = s.start(PodPlan::script("debugged-to-the-end", &script).restart("Never")).await?;
    add_ephemeral(&mut pod, &ContainerPlan::new("look").script("sleep 3600"), &s.options);
    must("add a container to a pod", s.provider().update_pod(&pod).await)?;
    let pod = pod.pod_ref();
    s.wait(&pod, "with its ephemeral container", |o| of(o, "look", runs)).await?;
    s.run(&pod, "main", &format!("touch {end}")).await?;
    let seen = s.wait(&pod, "ended", PodObservation::is_terminated).await?;
    same(code(container(&seen, "main")?), Some(0), "the exit code of its container")
}

fn limited(mebibytes: u32) -> serde_json::Value {
    let amounts = json!({"cpu": "200m", "memory": format!("{mebibytes}Mi")});
    json!({"resources": {"requests": amounts, "limits": amounts}})
}

/// Writes the limit of memory that the container itself can see, each second.
const SHOW_LIMIT: &str = "while :; do \
    own=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup); all=$(sed -n 's/^0:://p' /proc/self/cgroup); \
    cd /sys/fs/cgroup && limit=$(cat memory$own/memory.limit_in_bytes memory/memory.limit_in_bytes \
    .$all/memory.max memory.max 2>/dev/null | head -n 1); echo \"limit [$limit]\"; sleep 1; done";

async fn resize(s: &Suite<'_>) -> Result<(), Failure> {
    const BEFORE: u32 = 64;
    const AFTER: u32 = 96;
    let limit = |mebibytes: u32| format!("limit [{}]", u64::from(mebibytes) << 20);
    let main = ContainerPlan::new("main").script(SHOW_LIMIT).with(limited(BEFORE));
    let (mut pod, before) = s.start(PodPlan::new("resized").containers(vec![main])).await?;
    let reference = pod.pod_ref();
    let shown = s.wait_log(&reference, "with a limit", |text| text.contains("limit [")).await?;
    if !shown.contains(&limit(BEFORE)) {
        return Err(Failure::NotClaimed("its containers do not see their limits".into()));
    }
    resources(&mut pod, limited(AFTER));
    must("take other resources", s.provider().update_pod(&pod).await)?;
    s.wait_log(&reference, "with the new limit", |text| text.contains(&limit(AFTER))).await?;
    let after = must("get the pod", s.provider().get_pod(&reference).await)?;
    let (before, after) = (container(&before, "main")?, container(&after, "main")?);
    same(after.restart_count, 0, "restarts")?;
    same(started_at(after), started_at(before), "when the container was started")
}

/// Gives the container other resources.
fn resources(pod: &mut ResolvedPod, with: serde_json::Value) {
    let containers = Arc::make_mut(&mut pod.pod).spec.as_mut().map(|spec| &mut spec.containers);
    for container in containers.into_iter().flatten() {
        container.resources = serde_json::from_value(with["resources"].clone()).ok();
    }
}
