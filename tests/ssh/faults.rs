//! What becomes of pods when the connection, the device or the operator goes away.

use std::time::{Duration, Instant};

use vnode::provider::{ProviderContext, ProviderError};

use crate::sshd::{Flavour, Sshd};
use crate::world::{World, eventually, log, main, pod, script};

fn world() -> Option<World> {
    Some(World::new(Sshd::start(Flavour::Machine)?, None))
}

#[tokio::test]
async fn pods_outlive_the_operator_and_are_taken_up_again() {
    let Some(mut world) = world() else { return };
    let provider = world.provider();
    let reference = script(1, "echo begun; while ! [ -e end ]; do sleep 0.1; done; exit 7").create(&provider).await;
    let before = world.runs(&reference).await;
    drop(provider);
    let provider = world.provider();
    let after = provider.get_pod(&reference).await.unwrap();
    assert_eq!(main(&after).container_id, main(&before).container_id, "it was not started anew");
    assert_eq!(main(&after).state, main(&before).state, "nor did its start move");
    drop(provider);

    // Even when nothing is remembered of it here.
    world.lose_records();
    let provider = world.provider();
    let found = provider.list_pods().await.unwrap();
    assert_eq!(found.iter().map(|o| &o.pod).collect::<Vec<_>>(), [&reference]);
    provider.create_pod(&script(1, "echo begun; while ! [ -e end ]; do sleep 0.1; done; exit 7").pod).await.unwrap();
    let root = "echo > $VNODE_CONTAINER_ROOT/end";
    assert_eq!(crate::world::exec(&provider, &reference, &["sh", "-c", root], b"").await.0, 0);
    assert_eq!(world.ends(&reference).await, 7);
    assert_eq!(log(&provider, &reference).await, "begun\n");
    provider.remove_pod(&reference).await.unwrap();
    world.nothing_runs().await;
}

#[tokio::test]
async fn what_happens_while_the_device_is_away_is_seen_when_it_is_back() {
    let Some(mut world) = world() else { return };
    let provider = world.provider();
    let stays = script(1, "sleep 1000").create(&provider).await;
    let ends = script(2, "sleep 3; exit 4").create(&provider).await;
    let before = world.runs(&stays).await;
    world.runs(&ends).await;
    world.sshd.stop();
    let begin = Instant::now();
    eventually("it is told", || Ok(())).await;
    let away = provider.ping().await;
    assert!(matches!(away, Err(ProviderError::Unavailable { .. })), "{away:?}");
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert_eq!(provider.get_pod(&stays).await.unwrap().containers, before.containers, "no pod changes because of it");
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.sshd.serve().unwrap();
    assert_eq!(world.ends(&ends).await, 4);
    assert_eq!(main(&provider.get_pod(&stays).await.unwrap()).container_id, main(&before).container_id);
    eventually_reached(&provider).await;
    for pod in [&stays, &ends] {
        provider.remove_pod(pod).await.unwrap();
    }
    world.nothing_runs().await;
}

async fn eventually_reached(provider: &std::sync::Arc<dyn vnode::provider::Provider>) {
    let end = Instant::now() + Duration::from_secs(40);
    while let Err(error) = provider.ping().await {
        assert!(Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_device_that_takes_packets_and_answers_none_is_unavailable_within_bounds() {
    let Some(world) = world() else { return };
    let provider = world.provider();
    let reference = script(1, "sleep 1000").create(&provider).await;
    let before = world.runs(&reference).await;
    world.sshd.signal("-STOP");
    let begin = Instant::now();
    let away = provider.ping().await;
    assert!(matches!(away, Err(ProviderError::Unavailable { .. })), "{away:?}");
    assert!(begin.elapsed() < Duration::from_secs(50), "{:?}", begin.elapsed());
    world.sshd.signal("-CONT");
    eventually_reached(&provider).await;
    let after = provider.get_pod(&reference).await.unwrap();
    assert_eq!(main(&after).container_id, main(&before).container_id);
    provider.remove_pod(&reference).await.unwrap();
}

#[tokio::test]
async fn processes_of_an_earlier_boot_are_over_and_started_anew_by_policy() {
    let Some(world) = world() else { return };
    let provider = world.provider();
    let never = script(1, "sleep 1000").create(&provider).await;
    let always = pod(2, "Always", &["sleep", "1000"]).create(&provider).await;
    world.runs(&never).await;
    world.runs(&always).await;
    drop(provider);
    // As it is after the device was switched off and on: other processes have their numbers, if any.
    let pods = world.sshd.directory().join("nodes").join(&*world.context().node_uid).join("pods");
    for reference in [&never, &always] {
        let file = pods.join(&*reference.uid).join("containers/main/0/sup");
        let text = std::fs::read_to_string(&file).unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        std::fs::write(&file, format!("{} {} another-boot\n", words[0], words[1])).unwrap();
    }
    let provider = world.provider();
    assert_eq!(world.ends(&never).await, 137);
    let again = world.wait(&always, "started anew", |o| main(o).restart_count == 1).await;
    let last = main(&again).last_state.clone().and_then(|s| s.terminated).expect("how it was");
    assert_eq!(last.reason.as_deref(), Some("ContainerStatusUnknown"));
    assert!(last.message.is_some_and(|m| m.contains("restarted")));
    for pod in [&never, &always] {
        provider.remove_pod(pod).await.unwrap();
    }
}

#[tokio::test]
async fn a_supervisor_that_was_killed_is_noticed() {
    let Some(world) = world() else { return };
    let provider = world.provider();
    let reference = script(1, "sleep 1000").create(&provider).await;
    world.runs(&reference).await;
    drop(provider);
    let dir = world.sshd.directory().join("nodes").join(&*world.context().node_uid).join("pods").join(&*reference.uid);
    let text = std::fs::read_to_string(dir.join("containers/main/0/sup")).unwrap();
    let pid = text.split(' ').next().unwrap().to_owned();
    assert!(std::process::Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    let provider = world.provider();
    assert_eq!(world.ends(&reference).await, 137);
    provider.remove_pod(&reference).await.unwrap();
    world.nothing_runs().await;
}

#[tokio::test]
async fn an_operator_that_was_succeeded_by_another_changes_nothing() {
    let Some(world) = world() else { return };
    let provider = world.provider();
    let reference = script(1, "sleep 1000").create(&provider).await;
    world.runs(&reference).await;
    let newer = world.build(ProviderContext { epoch: world.context().epoch + 1, ..world.context() }).unwrap();
    newer.ping().await.unwrap();
    let stale = provider.ping().await.unwrap_err().to_string();
    assert!(stale.contains("another operator owns this node"), "{stale}");
    assert!(provider.remove_pod(&reference).await.is_err());
    let found = newer.get_pod(&reference).await.unwrap();
    assert!(main(&found).state.as_ref().is_some_and(|s| s.running.is_some()), "the older one ended nothing");
    newer.remove_pod(&reference).await.unwrap();
    world.nothing_runs().await;
}

/// A small file system, unmounted with its handle.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(at: &std::path::Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).ok()?;
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at)
            .output();
        if mount.is_ok_and(|o| o.status.success()) {
            return Some(Self(at.to_owned()));
        }
        eprintln!("\n*** SKIPPED, NOTHING WAS TESTED: no file system can be mounted here\n");
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_runs_goes_on() {
    let Some(world) = world() else { return };
    let Some(disk) = Small::mount(&world.sshd.directory(), "512k") else { return };
    let provider = world.provider();
    let first = script(1, "sleep 5; echo said; exit 3").create(&provider).await;
    world.runs(&first).await;
    let filler = disk.0.join("filler");
    let mut content = 512 * 1024;
    while content > 0 {
        let file = disk.0.join(format!("filler-{content}"));
        if std::fs::write(&file, vec![0; content]).is_err() {
            content /= 2;
        }
    }
    drop(filler);
    let told = provider.ping().await.unwrap_err().to_string();
    assert!(told.contains("disk is full"), "{told}");
    let second = script(2, "sleep 1000").create(&provider).await;
    eventually("it is an event", || {
        let events = world.events();
        let told = events.iter().any(|e| e.pod == second && e.message.contains("disk is full"));
        if told { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    for file in std::fs::read_dir(&disk.0).unwrap().flatten() {
        if file.file_name().to_string_lossy().starts_with("filler") {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
    assert_eq!(world.ends(&first).await, 3, "how it ended was not forgotten");
    world.runs(&second).await;
    for pod in [&first, &second] {
        provider.remove_pod(pod).await.unwrap();
    }
    world.nothing_runs().await;
}
