//! Checks: volumes, their parts, modes and limits.

use futures::FutureExt as _;

use super::super::{PodObservation, ResolvedPod, ResolvedVolume, Result};
use super::pods::{ContainerPlan, PodPlan, ROOT, file_set, files_with_modes};
use super::seen::{began, code, container, of, waits_for};
use super::suite::{Failure, Suite, ensure, must, same};
use super::{Check, Need, PodFeature};

pub(super) const CHECKS: &[Check] = &[
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
        name: "an_empty_dir_outlives_the_restart_of_a_container",
        hint: "an emptyDir is the pod's, not the container's: it stays when a container is started again",
        needs: &[
            Need::Commands,
            Need::Logs,
            Need::Feature(PodFeature::EmptyDir),
            Need::Feature(PodFeature::RestartPolicy),
        ],
        run: |s| outlives(s).boxed_local(),
    },
    Check {
        name: "an_empty_dir_in_memory_is_a_memory_file_system",
        hint: "emptyDir.medium Memory is a tmpfs",
        needs: &[
            Need::Commands,
            Need::Logs,
            Need::Feature(PodFeature::EmptyDir),
            Need::Feature(PodFeature::MemoryEmptyDir),
        ],
        run: |s| in_memory(s).boxed_local(),
    },
    Check {
        name: "an_empty_dir_that_outgrows_its_limit_ends_its_pod",
        hint: "emptyDir.sizeLimit is watched; the pod is ended with the reason Evicted",
        needs: &[Need::Commands, Need::Feature(PodFeature::EmptyDir), Need::Feature(PodFeature::EmptyDirSizeLimit)],
        run: |s| outgrown(s).boxed_local(),
    },
    Check {
        name: "files_of_volumes_have_their_modes",
        hint: "VolumeFile::mode, before fsGroup is applied",
        needs: &[Need::Commands, Need::Logs, Need::Files, Need::Feature(PodFeature::ConfigMapVolumes)],
        run: |s| modes(s).boxed_local(),
    },
    Check {
        name: "files_of_volumes_belong_to_the_group_of_the_pod",
        hint: "securityContext.fsGroup owns the files of volumes and the folder of an emptyDir",
        needs: &[
            Need::Commands,
            Need::Logs,
            Need::Files,
            Need::Feature(PodFeature::ConfigMapVolumes),
            Need::Feature(PodFeature::EmptyDir),
            Need::Feature(PodFeature::FsGroup),
        ],
        run: |s| fs_group(s).boxed_local(),
    },
    Check {
        name: "a_mount_may_be_a_part_of_a_volume",
        hint: "ResolvedMount::sub_path is the file or folder of the volume that is mounted; one that is not there yet is made \
               as a folder",
        needs: &[
            Need::Commands,
            Need::Logs,
            Need::Files,
            Need::Feature(PodFeature::ConfigMapVolumes),
            Need::Feature(PodFeature::EmptyDir),
            Need::Feature(PodFeature::SubPath),
        ],
        run: |s| parts(s).boxed_local(),
    },
    Check {
        name: "a_part_of_a_volume_stays_as_it_was_mounted",
        hint: "a mount with a sub_path does not follow update_volumes",
        needs: &[
            Need::Commands,
            Need::Exec,
            Need::LiveFiles,
            Need::Feature(PodFeature::ConfigMapVolumes),
            Need::Feature(PodFeature::SubPath),
        ],
        run: |s| part_stays(s).boxed_local(),
    },
    Check {
        name: "a_part_that_leads_out_of_its_volume_is_refused",
        hint: "resolve sub_path inside of the volume, symbolic links included; the container waits with \
               CreateContainerConfigError",
        needs: &[
            Need::Commands,
            Need::Feature(PodFeature::EmptyDir),
            Need::Feature(PodFeature::SubPath),
            Need::Feature(PodFeature::InitContainers),
        ],
        run: |s| part_outside(s).boxed_local(),
    },
    Check {
        name: "a_read_only_mount_cannot_be_written_to",
        hint: "ResolvedMount::read_only",
        needs: &[Need::Commands, Need::Exec, Need::Feature(PodFeature::EmptyDir)],
        run: |s| read_only(s).boxed_local(),
    },
];

async fn empty_dir(s: &Suite<'_>) -> Result<(), Failure> {
    let first =
        ContainerPlan::new("first").script(&format!("echo shared > {ROOT}/scratch/note")).mount("scratch", "/scratch");
    let main =
        ContainerPlan::new("main").script(&format!("cat {ROOT}/scratch/note; sleep 3600")).mount("scratch", "/scratch");
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

async fn outlives(s: &Suite<'_>) -> Result<(), Failure> {
    let log = format!("{ROOT}/scratch/log");
    let script = format!("echo run >> {log}; test $(wc -l < {log}) -ge 2 || exit 1; cat {log}; sleep 3600");
    let main = ContainerPlan::new("main").script(&script).mount("scratch", "/scratch");
    let again = |o: &PodObservation| of(o, "main", |c| c.restart_count == 1 && super::seen::runs(c));
    let plan = PodPlan::new("outlives").empty_dir("scratch").containers(vec![main]);
    let (pod, _) = s.begin(plan, "running again", again).await?;
    s.wait_log(&pod.pod_ref(), "with both runs", |text| text.contains("run\nrun\n")).await.map(drop)
}

async fn in_memory(s: &Suite<'_>) -> Result<(), Failure> {
    let script = format!("echo \"is [$(stat -f -c %T {ROOT}/scratch)]\"; sleep 3600");
    let main = ContainerPlan::new("main").script(&script).mount("scratch", "/scratch");
    let memory = ResolvedVolume::EmptyDir { medium: "Memory".into(), size_limit: Some(1 << 20) };
    let (pod, _) = s.start(PodPlan::new("in-memory").volume("scratch", memory).containers(vec![main])).await?;
    s.wait_log(&pod.pod_ref(), "with the file system", |text| text.contains("is [tmpfs]")).await.map(drop)
}

async fn outgrown(s: &Suite<'_>) -> Result<(), Failure> {
    let script = format!("head -c 3000000 /dev/zero > {ROOT}/scratch/big; sleep 3600");
    let main = ContainerPlan::new("main").script(&script).mount("scratch", "/scratch");
    let small = ResolvedVolume::EmptyDir { medium: String::new(), size_limit: Some(1 << 20) };
    let plan = PodPlan::new("outgrown").volume("scratch", small).containers(vec![main]);
    let (_, seen) = s.run_to_end(plan).await?;
    same(seen.reason.as_deref(), Some("Evicted"), "the reason of its end")
}

async fn modes(s: &Suite<'_>) -> Result<(), Failure> {
    let script = format!("cd {ROOT}/etc/conformance && echo modes $(stat -L -c %a open own sub/run); sleep 3600");
    let main = ContainerPlan::new("main").script(&script).mount("files", "/etc/conformance");
    let files = files_with_modes(&[("open", "a", 0o644), ("own", "b", 0o400), ("sub/run", "c", 0o755)]);
    let (pod, _) = s.start(PodPlan::new("modes").volume("files", files).containers(vec![main])).await?;
    s.wait_log(&pod.pod_ref(), "with the modes", |text| text.contains("modes 644 400 755")).await.map(drop)
}

async fn fs_group(s: &Suite<'_>) -> Result<(), Failure> {
    let script = format!("cd {ROOT}/ && echo groups $(stat -L -c %g etc/conformance/key scratch); sleep 3600");
    let main =
        ContainerPlan::new("main").script(&script).mount("files", "/etc/conformance").mount("scratch", "/scratch");
    let plan = PodPlan::new("fs-group").files("files", &[("key", "a")]).empty_dir("scratch").containers(vec![main]);
    let group = serde_json::json!({"securityContext": {"fsGroup": 4321}});
    let (pod, _) = s.start(plan.with(group)).await?;
    s.wait_log(&pod.pod_ref(), "with the group", |text| text.contains("groups 4321 4321")).await.map(drop)
}

async fn parts(s: &Suite<'_>) -> Result<(), Failure> {
    let script = format!(
        "cat {ROOT}/etc/one.conf; cat {ROOT}/etc/folder/other; echo here > {ROOT}/mine/note; cat {ROOT}/all/of/mine/note; \
         sleep 3600"
    );
    let main = ContainerPlan::new("main")
        .script(&script)
        .mount_part("files", "/etc/one.conf", "key")
        .mount_part("files", "/etc/folder", "sub")
        .mount("scratch", "/all")
        .mount_part("scratch", "/mine", "of/mine");
    let files = [("key", "one\n"), ("sub/other", "deep\n")];
    let plan = PodPlan::new("parts").files("files", &files).empty_dir("scratch").containers(vec![main]);
    let (pod, _) = s.start(plan).await?;
    s.wait_log(&pod.pod_ref(), "with the parts", |text| text.contains("one\ndeep\nhere\n")).await.map(drop)
}

async fn part_stays(s: &Suite<'_>) -> Result<(), Failure> {
    let main = ContainerPlan::new("main").mount("files", "/etc/conformance").mount_part("files", "/etc/part", "key");
    let (pod, _) =
        s.start(PodPlan::new("part-stays").files("files", &[("key", "old\n")]).containers(vec![main])).await?;
    let mut new: ResolvedPod = pod.clone();
    new.volumes.insert("files".into(), file_set(&[("key", "new\n")]));
    must("replace files", s.provider().update_volumes(&new, &["files".to_owned()]).await)?;
    let follows = format!("until grep -q new {ROOT}/etc/conformance/key; do sleep 1; done; cat {ROOT}/etc/part");
    same(s.run(&pod.pod_ref(), "main", &follows).await?.trim(), "old", "the part of a volume that has changed")
}

async fn part_outside(s: &Suite<'_>) -> Result<(), Failure> {
    let evil = ContainerPlan::new("evil").script(&format!("ln -s /etc {ROOT}/all/out")).mount("scratch", "/all");
    let main = ContainerPlan::new("main").mount_part("scratch", "/mine", "out");
    let plan = PodPlan::new("outside").empty_dir("scratch").init(evil).containers(vec![main]);
    let refused = |o: &PodObservation| of(o, "main", |c| waits_for(c) == Some("CreateContainerConfigError"));
    let (pod, seen) = s.begin(plan, "waiting with CreateContainerConfigError", refused).await?;
    same(code(container(&seen, "evil")?), Some(0), "the exit code of the init container")?;
    s.stays(&pod.pod_ref(), 1, "the container must not start", |o| !of(o, "main", began)).await
}

async fn read_only(s: &Suite<'_>) -> Result<(), Failure> {
    let main = ContainerPlan::new("main").mount_read_only("scratch", "/conformance-ro");
    let (pod, _) = s.start(PodPlan::new("read-only").empty_dir("scratch").containers(vec![main])).await?;
    let script = "test -d /conformance-ro || exit 66; touch /conformance-ro/x 2>/dev/null && exit 1; exit 0";
    let (code, ..) = s.sh(&pod.pod_ref(), "main", script, None).await?;
    if code == 66 {
        return Err(Failure::NotClaimed("its volumes are not at their mounts' paths".into()));
    }
    ensure(code == 0, "a file could be made below a read-only mount")
}
