//! What is promised of a pod's processes.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Lifecycle;
use vnode::provider::{FileSet, LogOptions, ResolvedMount, ResolvedVolume, VolumeFile};

use crate::sshd::{Flavour, Sshd};
use crate::world::{World, exec, log, main, pod, script};

/// On a machine's shell and on BusyBox's.
fn worlds() -> Vec<World> {
    let small = Sshd::start(Flavour::BusyBox).map(|s| World::new(s, Some("busybox sh")));
    Sshd::start(Flavour::Machine).map(|s| World::new(s, None)).into_iter().chain(small).collect()
}

#[tokio::test]
async fn commands_and_environments_arrive_as_they_were_given() {
    const NASTY: &str = "it's \"a\" $HOME `id` \\n %s\n*;& !! ä😀 -n";
    for world in worlds() {
        let provider = world.provider();
        let print = "for w in \"$@\"; do printf '[%s]' \"$w\"; done; printf '<%s><%s><%s>\\n' \"$NASTY\" \"$EMPTY\" \
                     \"$(tr '\\0' '\\n' < /proc/$$/environ | sed -n 's/^odd[.]name=//p')\"";
        let made = pod(1, "Never", &["sh", "-c", print, "sh", NASTY, "", "-e"]);
        let made = made.env("NASTY", NASTY, true).env("EMPTY", "", false).env("odd.name", "odd", false);
        let reference = made.create(&provider).await;
        assert_eq!(world.ends(&reference).await, 0);
        assert_eq!(log(&provider, &reference).await, format!("[{NASTY}][][-e]<{NASTY}><><odd>\n"));
        provider.remove_pod(&reference).await.unwrap();
        world.nothing_runs().await;
    }
}

#[tokio::test]
async fn no_secret_is_in_a_command_line_on_the_device() {
    let Some(sshd) = Sshd::start(Flavour::Machine) else { return };
    let world = World::new(sshd, None);
    let provider = world.provider();
    let reference = script(1, "sleep 1000").env("SECRET", "qwertzuiop-secret", true).create(&provider).await;
    // Looked for all the while that it is made and started.
    let seen = async {
        let mut seen = Vec::new();
        for _ in 0..100 {
            for process in std::fs::read_dir("/proc").unwrap().flatten() {
                let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).into_owned();
                seen.extend(Some(line).filter(|l| l.contains("qwertzuiop")));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        seen
    };
    let (seen, _) = tokio::join!(seen, world.runs(&reference));
    assert_eq!(seen, Vec::<String>::new());
    let (code, said) = exec(&provider, &reference, &["sh", "-c", "echo $SECRET"], b"").await;
    assert_eq!((code, said.trim()), (0, "qwertzuiop-secret"));
    let env = walk(&world.sshd.directory());
    let open: Vec<_> = env.iter().filter(|(_, mode)| mode & 0o077 != 0).collect();
    assert!(env.len() > 5 && open.is_empty(), "nothing is for others: {open:?}");
    provider.remove_pod(&reference).await.unwrap();
}

/// All files and folders below one, with their modes; links are not followed.
fn walk(dir: &std::path::Path) -> Vec<(std::path::PathBuf, u32)> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let meta = entry.metadata().unwrap();
        if !meta.is_symlink() {
            found.push((entry.path(), meta.permissions().mode()));
        }
        if meta.is_dir() {
            found.extend(walk(&entry.path()));
        }
    }
    found
}

fn file(path: &str, content: &[u8]) -> VolumeFile {
    VolumeFile { path: path.into(), content: Bytes::copy_from_slice(content), mode: 0o644, owner: None, secret: false }
}

#[tokio::test]
async fn files_of_volumes_arrive_whole_and_change_while_a_pod_runs() {
    let every: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    for world in worlds() {
        let provider = world.provider();
        let mut made = script(1, "sleep 1000");
        let files =
            |text: &[u8]| FileSet { files: vec![file("sub/bytes", &every), file("it's", text), file("empty", b"")] };
        made.pod.volumes.insert("config".into(), ResolvedVolume::Files(files(b"old")));
        made.pod.volumes.insert("scratch".into(), ResolvedVolume::EmptyDir { medium: String::new(), size_limit: None });
        let mount = |volume: &str, path: &str, sub_path: Option<&str>| ResolvedMount {
            volume: volume.into(),
            path: path.into(),
            sub_path: sub_path.map(str::to_owned),
            read_only: false,
        };
        made.pod.containers.get_mut("main").unwrap().mounts = vec![
            mount("config", "/etc/my config", None),
            mount("config", "/one", Some("it's")),
            mount("scratch", "/scratch", Some("a/b")),
        ];
        let mut again = made.pod.clone();
        let reference = made.create(&provider).await;
        world.runs(&reference).await;
        let sum = async |text: &str| exec_text(&provider, &reference, text).await;
        assert_eq!(sum("wc -c < \"$VNODE_CONTAINER_ROOT/etc/my config/sub/bytes\"").await, "70000");
        let there = world.sshd.directory().join("nodes").join(&*world.context().node_uid).join("pods");
        let there = there.join(&*reference.uid).join("volumes");
        assert!(std::fs::read(there.join("config/sub/bytes")).unwrap() == every, "all bytes as they were");
        assert_eq!(sum("cat \"$VNODE_CONTAINER_ROOT/etc/my config/it's\" $VNODE_CONTAINER_ROOT/one").await, "oldold");
        assert_eq!(sum("echo x > $VNODE_CONTAINER_ROOT/scratch/y; echo done").await, "done");
        assert_eq!(std::fs::read_to_string(there.join("scratch/a/b/y")).unwrap(), "x\n");

        again.volumes.insert(
            "config".into(),
            ResolvedVolume::Files(FileSet { files: vec![file("it's", b"new"), file("more", b"m")] }),
        );
        provider.update_volumes(&again, &["config".to_owned()]).await.unwrap();
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        while std::fs::read(there.join("config/it's")).unwrap_or_default() != b"new" {
            assert!(tokio::time::Instant::now() < end, "the new text is shown");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(sum("cat $VNODE_CONTAINER_ROOT/one").await, "old", "a part does not change");
        let mut left: Vec<_> =
            std::fs::read_dir(there.join("config")).unwrap().flatten().map(|e| e.file_name()).collect();
        left.sort();
        assert_eq!(left.len(), 4, "one version, ..data and two names: {left:?}");
        provider.remove_pod(&reference).await.unwrap();
        world.nothing_runs().await;
    }
}

async fn exec_text(
    provider: &std::sync::Arc<dyn vnode::provider::Provider>,
    pod: &vnode::provider::PodRef,
    text: &str,
) -> String {
    let (code, said) = exec(provider, pod, &["sh", "-c", text], b"").await;
    assert_eq!(code, 0, "{text}: {said}");
    said.trim().to_owned()
}

#[tokio::test]
async fn signals_reach_the_main_process_and_what_it_leaves_behind_is_ended() {
    for world in worlds() {
        let provider = world.provider();
        // Shells make what they start in the background deaf to this one.
        let traps = "trap 'echo got INT; exit 5' INT; trap 'echo got TERM; exit 6' TERM; \
                     (trap '' TERM INT HUP; exec sleep 999) & echo ready; while :; do sleep 0.1; done";
        let made = script(1, traps).spec(|spec| {
            spec.containers[0].lifecycle =
                Some(Lifecycle { stop_signal: Some("SIGINT".into()), ..Lifecycle::default() });
        });
        let reference = made.create(&provider).await;
        world.runs(&reference).await;
        while !log(&provider, &reference).await.contains("ready") {}
        provider.stop_pod(&reference, Duration::from_secs(20)).await.unwrap();
        assert_eq!(world.ends(&reference).await, 5);
        assert!(log(&provider, &reference).await.contains("got INT"));
        provider.remove_pod(&reference).await.unwrap();

        let deaf = "trap '' TERM INT; command -v setsid >/dev/null && setsid sleep 998 & echo ready; while :; do sleep 0.1; done";
        let reference = script(2, deaf).create(&provider).await;
        world.runs(&reference).await;
        while !log(&provider, &reference).await.contains("ready") {}
        provider.stop_pod(&reference, Duration::from_secs(1)).await.unwrap();
        assert_eq!(world.ends(&reference).await, 137);
        provider.remove_pod(&reference).await.unwrap();
        world.nothing_runs().await;
    }
}

#[tokio::test]
async fn a_command_that_is_not_there_is_told_and_a_shell_that_kills_its_group_ends_itself_alone() {
    for world in worlds() {
        let provider = world.provider();
        let reference = pod(1, "Never", &["no-such-program"]).create(&provider).await;
        world
            .wait(&reference, "told of", |o| {
                let text = format!("{:?}", main(o).state);
                text.contains("executable file not found in $PATH")
            })
            .await;
        provider.remove_pod(&reference).await.unwrap();
        let reference = script(2, "trap 'kill -TERM 0' EXIT; echo out; echo err >&2; exit 3").create(&provider).await;
        let code = world.ends(&reference).await;
        assert!(code == 3 || code == 143, "{code}");
        assert_eq!(log(&provider, &reference).await.len(), "out\nerr\n".len());
        provider.remove_pod(&reference).await.unwrap();
        world.nothing_runs().await;
    }
}

#[tokio::test]
async fn a_log_is_bounded_and_one_that_is_followed_is_whole() {
    for mut world in worlds() {
        world.config.log_max_bytes = Some(8192);
        world.config.log_max_files = Some(3);
        let provider = world.provider();
        let text = "sleep 2; i=0; while [ $i -lt 1200 ]; do echo line $i of many; i=$((i+1)); \
                    [ $((i % 50)) -ne 0 ] || sleep 0.2; done; printf end";
        let reference = script(1, text).create(&provider).await;
        world.runs(&reference).await;
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let lines = provider.logs(&reference, "main", &options).await.unwrap();
        let lines: Vec<_> = tokio::time::timeout(Duration::from_secs(60), lines.collect()).await.expect("it ends");
        let said: Vec<String> =
            lines.into_iter().map(|l| String::from_utf8_lossy(&l.unwrap().text).into_owned()).collect();
        let mut wanted: Vec<String> = (0..1200).map(|n| format!("line {n} of many\n")).collect();
        wanted.push("end".into());
        assert!(said == wanted, "{} lines, the last {:?}", said.len(), said.last());
        let size: u64 = walk(&world.sshd.directory())
            .iter()
            .filter(|(p, _)| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("log.")))
            .map(|(p, _)| p.metadata().unwrap().len())
            .sum();
        assert!(size > 8192 && size < 8192 * 5, "{size} bytes are kept");
        let options = LogOptions { tail: Some(2), ..LogOptions::default() };
        let tail: Vec<_> = provider.logs(&reference, "main", &options).await.unwrap().collect().await;
        assert_eq!(tail.len(), 2);
        provider.remove_pod(&reference).await.unwrap();
        world.nothing_runs().await;
    }
}
