//! The table of scenarios: what a pod's author sees, the same for every provider.
//!
//! Each `*.yaml` file of this folder holds scenarios, one a document: objects, and steps that are taken one
//! after the other through the API, as a user would. All run at once, each in a namespace of its own, on the
//! same few nodes of one provider.
//!
//! | module | what it is |
//! |---|---|
//! | [`table`] | what a scenario can say |
//! | [`adapt`] | from a scenario to manifests for one provider |
//! | [`world`] | the cluster as it was seen: every version of every pod, every event |
//! | [`expect`] | whether a pod is as it should be |
//! | [`play`] | taking the steps |
//! | `samples` | which ones are played where playing all takes long |
//!
//! What a provider cannot do is read from `docs/pod-support.md`. A scenario that `needs` it is played there as
//! well, and then its pod must be refused or its author warned.
//!
//! `VNODE_SCENARIO=word cargo test --test e2e scenarios` plays only those whose name has the word in it. Where
//! playing takes long, a [`Stage`] plays only some of them, and `VNODE_SCENARIOS=all` plays all.
//! Another provider is one more [`Stage`] and one more test at the end of this file.

mod adapt;
mod expect;
mod play;
#[cfg(any(feature = "docker", feature = "ssh"))]
mod samples;
mod table;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::process;
use crate::support::Bed;
use table::Scenario;
use world::World;

/// Scenarios under way at one time. More would only wait for the processor.
const AT_A_TIME: usize = 24;
/// The same where each container costs an engine much.
#[cfg(feature = "docker")]
const CONTAINERS_AT_A_TIME: usize = 12;
/// How long the last pods may take to go.
const END: Duration = Duration::from_secs(150);

/// A provider to play on.
pub struct Stage {
    /// As in `spec.provider.type`, and in `docs/pod-support.md`.
    pub provider: &'static str,
    /// `spec.provider` of the nodes, in YAML's flow style.
    pub spec: String,
    /// The image of containers that name none. It has a POSIX shell.
    pub image: &'static str,
    /// A part of `status.imageID` of that image.
    pub image_id: &'static str,
    /// An image that cannot be had. Scenarios that name one are not played where all images can.
    pub missing_image: Option<&'static str>,
    /// What containers say is really run; otherwise it is simulated, and only annotations decide.
    pub programs: bool,
    /// A shell command that serves HTTP in the current folder on a port, for ever.
    pub serve: fn(u16) -> String,
    /// A shell command that succeeds while HTTP is served on that port of the same pod.
    pub fetch: fn(u16) -> String,
    /// Features that it lacks on this machine, whatever the documentation says of others.
    pub lacks: &'static [&'static str],
    /// The scenarios to play unless all are asked for; all when empty.
    pub sample: &'static [&'static str],
    /// How many are under way at one time.
    pub at_a_time: usize,
    /// Whether what is behind the provider loses a container now and then, so that a scenario may be played twice.
    pub second_chance: bool,
}

impl Stage {
    /// The features that the documentation says the provider has.
    fn features(&self) -> BTreeSet<String> {
        let text = include_str!("../../docs/pod-support.md");
        let mut column = None;
        let mut found = BTreeSet::new();
        for line in text.lines() {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            if line.starts_with("| field of a pod") {
                column = cells.iter().position(|c| *c == self.provider);
            } else if let (Some(n), Some(word)) =
                (column, cells[0].strip_suffix("`)").and_then(|c| c.rsplit('`').next()))
                && cells.get(n) == Some(&"yes")
                && !self.lacks.contains(&word)
            {
                found.insert(word.to_owned());
            }
        }
        assert!(!found.is_empty(), "docs/pod-support.md says nothing of {}", self.provider);
        found
    }

    /// Whether a scenario has something to say here.
    fn plays(&self, scenario: &Scenario, features: &BTreeSet<String>) -> bool {
        scenario.only_with.iter().all(|f| features.contains(f))
            && !scenario.only_without.iter().any(|f| features.contains(f))
            && (self.missing_image.is_some() || !scenario.needs_missing_image())
    }

    /// The nodes that scenarios name, and what is special about each.
    fn nodes(&self) -> [(&'static str, String); 4] {
        let of = |more: &str| format!("  provider: {}\n{more}", self.spec);
        [
            ("main", of("  capacity: {pods: 500, cpu: \"64\", memory: 256Gi}\n")),
            ("strict", of("  capacity: {pods: 500}\n  unsupportedFields: Reject\n")),
            ("small", of("  capacity: {pods: 2, cpu: \"1\", memory: 1Gi}\n")),
            ("agents", of("  daemonSetPods: Ignore\n")),
        ]
    }
}

/// Plays the whole table on a bed with an operator that may run this provider.
pub fn play_all(stage: Stage, bed: &Bed) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, play_table(stage, bed));
}

async fn play_table(stage: Stage, bed: &Bed) {
    let begin = Instant::now();
    for (name, spec) in stage.nodes() {
        bed.apply(&crate::support::virtual_node(&bed.name(name), &spec));
    }
    for (name, _) in stage.nodes() {
        bed.wait(&format!("node/{}", bed.name(name)), "condition=Ready");
    }
    let only = std::env::var("VNODE_SCENARIO").unwrap_or_default();
    let all = !only.is_empty() || stage.sample.is_empty() || std::env::var("VNODE_SCENARIOS").is_ok_and(|v| v == "all");
    let mut scenarios = table::load();
    let unknown = stage.sample.iter().find(|name| !scenarios.iter().any(|s| s.name == **name));
    assert_eq!(unknown, None, "the sample of {} names a scenario that is not there", stage.provider);
    scenarios.retain(|s| s.name.contains(&only) && (all || stage.sample.contains(&s.name.as_str())));
    let features = stage.features();
    scenarios.retain(|s| stage.plays(s, &features));
    let (count, provider, at_a_time) = (scenarios.len(), stage.provider, stage.at_a_time);
    let world = World::watch(bed, features, stage).await;
    let places = Arc::new(Semaphore::new(at_a_time));
    let mut playing = tokio::task::JoinSet::new();
    for (n, scenario) in scenarios.into_iter().enumerate() {
        let (world, places) = (world.clone(), places.clone());
        playing.spawn_local(async move {
            let _place = places.acquire_owned().await.expect("never closed");
            let start = Instant::now();
            let name = scenario.name.clone();
            let mut played = play::play(&world, &scenario, n).await;
            if let (true, Err(why)) = (world.stage.second_chance, &played) {
                eprintln!("--- {name} is played again, since (after {:.1?}): {why}", start.elapsed());
                played = play::play(&world, &Scenario { name: format!("again-{name}"), ..scenario }, n).await;
            }
            (name, start.elapsed(), played)
        });
    }
    let (mut failed, mut times) = (Vec::new(), Vec::new());
    while let Some(played) = playing.join_next().await {
        let (name, took, result) = played.expect("a scenario does not panic");
        times.push((took, name.clone()));
        if let Err(why) = result {
            failed.push(format!("--- {name} (after {took:.1?}): {why}"));
        }
    }
    let gone = world.all_gone(END).await;
    times.sort();
    times.reverse();
    eprintln!(
        "{count} scenarios on {provider} took {:.1?}; the longest: {:.1?}",
        begin.elapsed(),
        &times[..times.len().min(5)]
    );
    if let Err(left) = gone {
        failed.push(format!("--- pods that did not go: {left}"));
    }
    assert!(failed.is_empty(), "{} of {count} scenarios failed on {provider}:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn scenarios_on_mock_are_as_on_a_kubelet() {
    let stage = Stage {
        provider: "mock",
        spec: "{type: mock, mock: {}}".into(),
        image: "example/app:1",
        image_id: "",
        missing_image: None,
        programs: false,
        serve: |_| String::new(),
        fetch: |_| String::new(),
        lacks: &[],
        sample: &[],
        at_a_time: AT_A_TIME,
        second_chance: false,
    };
    play_all(stage, &Bed::new());
}

#[test]
fn scenarios_on_process_are_as_on_a_kubelet() {
    let mut bed = Bed::cluster_only();
    let state = bed.dir.path().join("pods").display().to_string();
    // The others have so few nodes that each is watched by itself.
    bed.start_operator_with(&["--allow-host-processes", "--state-dir", &state, "--pod-watch=shared"]);
    let stage = Stage {
        provider: "process",
        spec: "{type: process, process: {allowRoot: true, podIP: 127.0.0.1, hostPaths: [/tmp]}}".into(),
        image: "host",
        image_id: "host",
        missing_image: None,
        programs: true,
        serve: serve_with_python,
        fetch: fetch_with_python,
        lacks: if process::limits_can_be_set() { &[] } else { &["resourceLimits", "resize"] },
        sample: &[],
        at_a_time: AT_A_TIME,
        second_chance: false,
    };
    play_all(stage, &bed);
    let left = supervisors(&state);
    assert!(left.is_empty(), "processes outlive their pods: {left:?}");
}

#[cfg(feature = "docker")]
#[test]
fn scenarios_on_docker_are_as_on_a_kubelet() {
    use crate::support::eventually;
    use crate::support::podman::{IMAGE, Podman};
    let Some(engine) = Podman::start() else { return };
    // What a scenario changes the image to.
    let tagged = engine.podman(&["tag", IMAGE, &format!("{IMAGE}-2")]).expect("podman tag");
    assert!(tagged.status.success(), "{}", String::from_utf8_lossy(&tagged.stderr));
    let mut bed = Bed::cluster_only();
    let state = bed.dir.path().join("pods").display().to_string();
    bed.start_operator_with(&["--allow-host-engine", "--state-dir", &state]);
    let stage = Stage {
        provider: "docker",
        spec: format!(
            "{{type: docker, docker: {{host: \"{}\", sandboxImage: \"{IMAGE}\", \
             sandboxCommand: [sleep, \"1000000\"], hostPaths: [/tmp]}}}}",
            engine.host()
        ),
        image: IMAGE,
        image_id: "sha256:",
        missing_image: Some("localhost:1/nowhere:1"),
        programs: true,
        // busybox lists no folders.
        serve: |port| format!("cd /tmp; echo served > index.html; exec httpd -f -p 127.0.0.1:{port} -h ."),
        fetch: |port| format!("wget -q -O /dev/null http://127.0.0.1:{port}/"),
        lacks: &[],
        sample: samples::DOCKER,
        at_a_time: CONTAINERS_AT_A_TIME,
        second_chance: true,
    };
    play_all(stage, &bed);
    eventually("nothing is left at the engine", || {
        let out = engine.podman(&["ps", "--all", "--quiet"]).ok()?;
        out.stdout.is_empty().then_some(())
    });
}

#[cfg(feature = "ssh")]
#[test]
fn scenarios_on_ssh_are_as_on_a_kubelet() {
    use crate::support::sshd::{Flavour, Sshd};
    // One sshd has many nodes here, and each has connections of its own.
    let Some(sshd) = Sshd::start(Flavour::Machine) else { return };
    let mut bed = Bed::cluster_only();
    let state = bed.dir.path().join("pods").display().to_string();
    bed.start_operator_with(&["--state-dir", &state]);
    let key = bed.dir.path().join("key");
    std::fs::write(&key, sshd.key("user")).expect("a file");
    bed.kubectl(&format!("-n vnode-system create secret generic device --from-file=ssh-privatekey={}", key.display()));
    let stage = Stage {
        provider: "ssh",
        spec: format!(
            "{{type: ssh, ssh: {{host: 127.0.0.1, port: {}, user: {}, hostKey: \"{}\", directory: \"{}\", \
             hostPaths: [/tmp]}}}}\n  credentialsSecretRef: {{name: device}}",
            sshd.port,
            sshd.user(),
            sshd.host_key(),
            sshd.directory().display()
        ),
        image: "device",
        image_id: "device",
        missing_image: None,
        programs: true,
        serve: serve_with_python,
        fetch: fetch_with_python,
        lacks: &[],
        sample: samples::SSH,
        at_a_time: AT_A_TIME,
        second_chance: false,
    };
    play_all(stage, &bed);
    let left: Vec<String> = sshd.running().into_iter().filter(|l| l.contains("supervise")).collect();
    assert!(left.is_empty(), "processes outlive their pods: {left:?}");
}

fn serve_with_python(port: u16) -> String {
    format!("exec python3 -m http.server --bind 127.0.0.1 {port}")
}

fn fetch_with_python(port: u16) -> String {
    format!("python3 -c \"import socket; socket.create_connection(('127.0.0.1', {port}))\"")
}

/// The command lines of supervisors whose pods are below a folder.
pub fn supervisors(state: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    let line = |e: std::fs::DirEntry| std::fs::read_to_string(e.path().join("cmdline")).ok();
    all.filter_map(line)
        .filter(|l| l.contains("supervise") && l.contains(state))
        .map(|l| l.replace('\0', " "))
        .collect()
}
