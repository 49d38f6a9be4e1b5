//! Pods on an engine that fails, hangs and answers late. Time is simulated, so nothing here waits.

use std::collections::{HashMap, VecDeque};
use std::sync::OnceLock;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::*;
use crate::provider::{
    EventType, FileSet, PodEvent, PodNotifier, ResolvedContainer, ResolvedMount, ResolvedVolume, VolumeFile,
};

/// How the engine takes a call. What it does, it does at once; only the answer may come late.
#[derive(Clone, Copy, Debug)]
enum How {
    /// It does it.
    Well,
    /// It does not do it, and says so.
    Refuses(&'static str),
    /// It does nothing and says that it cannot be reached.
    Away,
    /// It does nothing and never answers.
    Hangs,
    /// It does it, and answers after so many seconds.
    Late(u64),
}

#[derive(Default)]
struct World {
    calls: Vec<String>,
    how: HashMap<&'static str, VecDeque<How>>,
    sandboxes: Vec<PodRef>,
    containers: Vec<ListedContainer>,
    /// What was copied into containers last.
    copied: String,
}

struct Fake {
    world: Mutex<World>,
    events: broadcast::Sender<EngineEvent>,
}

fn now() -> Timestamp {
    static BASE: OnceLock<Timestamp> = OnceLock::new();
    thread_local! { static START: std::cell::Cell<Option<Instant>> = const { std::cell::Cell::new(None) }; }
    let start = START.get().unwrap_or_else(|| {
        let start = Instant::now();
        START.set(Some(start));
        start
    });
    let passed = SignedDuration::try_from(start.elapsed()).unwrap();
    *BASE.get_or_init(Timestamp::now) + passed
}

impl Fake {
    fn new() -> Arc<Self> {
        Arc::new(Self { world: Mutex::default(), events: broadcast::Sender::new(64) })
    }

    /// The next calls of this name are taken so.
    fn will(&self, call: &'static str, how: &[How]) {
        guard(&self.world).how.entry(call).or_default().extend(how.iter().copied());
    }

    fn calls(&self, call: &str) -> usize {
        guard(&self.world).calls.iter().filter(|c| c.starts_with(call)).count()
    }

    async fn take<T>(&self, call: &'static str, what: String, act: impl FnOnce(&mut World) -> T) -> Result<T> {
        let (how, done) = {
            let mut world = guard(&self.world);
            world.calls.push(format!("{call} {what}"));
            let how = world.how.get_mut(call).and_then(VecDeque::pop_front).unwrap_or(How::Well);
            let done = matches!(how, How::Well | How::Late(_)).then(|| act(&mut world));
            (how, done)
        };
        match (how, done) {
            (How::Refuses(reason), _) => {
                Err(ProviderError::Rejected { reason: reason.to_owned(), message: format!("{call} is refused") })
            }
            (How::Away, _) => Err(ProviderError::unavailable("gone fishing")),
            (How::Late(seconds), Some(done)) => {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                guard(&self.world).calls.push(format!("answered {call}"));
                Ok(done)
            }
            (_, Some(done)) => Ok(done),
            (_, None) => std::future::pending().await,
        }
    }

    /// A container's process ends by itself. `told`: with an event.
    fn end(&self, name: &str, code: i32, told: bool) {
        let mut world = guard(&self.world);
        let found = world.containers.iter_mut().rev().find(|c| *c.container.name == *name).unwrap();
        found.state = ContainerState::Exited(exit(code));
        let event = EngineEvent::Container { container: found.container.clone(), state: found.state.clone() };
        drop(world);
        if told {
            let _ = self.events.send(event);
        }
    }
}

fn exit(code: i32) -> Exit {
    let (signal, reason, message) = (None, None, None);
    Exit { code, signal, started_at: Some(now()), finished_at: now(), oom_killed: false, reason, message }
}

#[async_trait]
impl Engine for Fake {
    fn scheme(&self) -> &'static str {
        "fake"
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
    async fn ping(&self) -> Result<()> {
        Ok(())
    }
    async fn describe_node(&self) -> Result<NodeDescription> {
        Ok(NodeDescription::default())
    }
    async fn list(&self) -> Result<Listing> {
        let list = |world: &mut World| Listing {
            sandboxes: world.sandboxes.iter().map(sandbox).collect(),
            containers: world.containers.clone(),
        };
        self.take("list", String::new(), list).await
    }
    fn events(&self) -> BoxStream<'static, EngineEvent> {
        let receiver = self.events.subscribe();
        futures::stream::unfold(receiver, |mut r| async move { r.recv().await.ok().map(|e| (e, r)) }).boxed()
    }
    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox> {
        let pod = spec.pod.clone();
        let make = |world: &mut World| {
            let made = sandbox(&pod).sandbox;
            world.sandboxes.push(pod);
            made
        };
        self.take("sandbox", String::new(), make).await
    }
    async fn remove_sandbox(&self, pod: &PodRef) -> Result<()> {
        let remove = |world: &mut World| {
            world.sandboxes.retain(|p| p != pod);
            world.containers.retain(|c| c.container.pod != *pod);
        };
        self.take("unsandbox", String::new(), remove).await
    }
    async fn image(&self, image: &str) -> Result<Option<Image>> {
        self.take("image", image.to_owned(), |_| Some(Image { id: "sha".into(), size: None })).await
    }
    async fn pull(&self, request: &PullRequest) -> Result<Image> {
        self.take("pull", request.image.clone(), |_| Image { id: "sha".into(), size: None }).await
    }
    async fn create(&self, spec: &ContainerSpec) -> Result<String> {
        let what = format!("{} {}", spec.container.name, spec.container.attempt);
        let make = |world: &mut World| {
            let id = format!("{}-{}", spec.container.name, spec.container.attempt);
            // Idempotent, as an engine must be.
            if !world.containers.iter().any(|c| c.container.id == id) {
                let container = ContainerRef { id: id.clone(), ..spec.container.clone() };
                let (image, image_id) = (spec.image.clone(), spec.image_id.clone());
                world.containers.push(ListedContainer { container, image, image_id, state: ContainerState::Created });
            }
            id
        };
        self.take("create", what, make).await
    }
    async fn start(&self, container: &ContainerRef) -> Result<Timestamp> {
        let start = |world: &mut World| {
            let found = world.containers.iter_mut().find(|c| c.container.id == container.id).unwrap();
            if found.state == ContainerState::Created {
                found.state = ContainerState::Running { started_at: now() };
            }
            now()
        };
        self.take("start", format!("{} {}", container.name, container.attempt), start).await
    }
    async fn signal(&self, container: &ContainerRef, signal: &Signal) -> Result<()> {
        let name = container.name.clone();
        self.take("signal", format!("{} {name}", signal.0), |_| ()).await?;
        self.end(&name, 128 + signal.number().unwrap(), true);
        Ok(())
    }
    async fn refresh(&self, _: &ContainerRef, mount: &Mount) -> Result<()> {
        // As an engine that copies: it reads now, and is done with it later.
        let read = std::fs::read_to_string(mount.source.join("key")).unwrap();
        self.take("refresh", String::new(), |_| ()).await?;
        guard(&self.world).copied = read;
        Ok(())
    }
    async fn remove(&self, container: &ContainerRef) -> Result<()> {
        let remove = |world: &mut World| world.containers.retain(|c| c.container != *container);
        self.take("remove", container.name.to_string(), remove).await
    }
    async fn logs(&self, _: &ContainerRef, _: &LogOptions) -> Result<LogStream> {
        Ok(futures::stream::empty().boxed())
    }
    async fn exec(&self, _: &ContainerRef, _: &[String], _: SessionIo) -> Result<ExitStatus> {
        self.take("exec", String::new(), |_| ExitStatus { code: 0 }).await
    }
    async fn attach(&self, _: &ContainerRef, _: SessionIo) -> Result<ExitStatus> {
        Ok(ExitStatus { code: 0 })
    }
    async fn connect(&self, _: &PodRef, _: u16) -> Result<Box<dyn Duplex>> {
        Err(ProviderError::unavailable("nobody listens"))
    }
    async fn stats(&self) -> Result<EngineUsage> {
        Ok(EngineUsage::default())
    }
}

fn sandbox(pod: &PodRef) -> ListedSandbox {
    let sandbox = Sandbox { ips: vec!["10.0.0.1".parse().unwrap()] };
    ListedSandbox { pod: pod.clone(), sandbox, created_at: None }
}

/// What the agent is told.
#[derive(Default)]
struct Ear {
    events: Mutex<Vec<String>>,
    last: watch::Sender<Option<PodObservation>>,
    all: Mutex<Vec<String>>,
}

impl PodNotifier for Ear {
    fn changed(&self, observation: PodObservation) {
        guard(&self.all).push(words(&observation));
        self.last.send_replace(Some(observation));
    }
    fn event(&self, event: PodEvent) {
        let mark = if event.kind == EventType::Warning { "!" } else { "" };
        guard(&self.events).push(format!("{mark}{}: {}", event.reason, event.message));
    }
}

/// The states of the containers in a word each.
fn words(seen: &PodObservation) -> String {
    let word = |c: &k8s_openapi::api::core::v1::ContainerStatus| {
        let state = c.state.clone().unwrap();
        let text = match (state.waiting, state.running, state.terminated) {
            (Some(w), ..) => w.reason.unwrap(),
            (_, Some(_), _) => "running".into(),
            (.., Some(t)) => format!("{}({})", t.reason.unwrap(), t.exit_code),
            _ => "?".into(),
        };
        format!("{}={text}x{}", c.name, c.restart_count)
    };
    seen.init_containers.iter().chain(&seen.containers).map(word).collect::<Vec<_>>().join(" ")
}

struct Bench {
    engine: Arc<Fake>,
    ear: Arc<Ear>,
    runtime: Arc<Runtime>,
    dir: tempfile::TempDir,
}

fn runtime(dir: &Path, engine: &Arc<Fake>, ear: &Arc<Ear>) -> Arc<Runtime> {
    let setup = Setup { engine: engine.clone(), notifier: ear.clone(), host_paths: HostPaths::Refused };
    let mut core = Core::new(dir.join("pods"), "n".into(), setup);
    core.clock = now;
    Runtime::start(Arc::new(core))
}

impl Bench {
    fn new() -> Self {
        let (engine, ear, dir) = (Fake::new(), Arc::new(Ear::default()), tempfile::tempdir().unwrap());
        Self { runtime: runtime(dir.path(), &engine, &ear), engine, ear, dir }
    }

    async fn create(&self, spec: Value) -> PodRef {
        let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": spec});
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(pod).unwrap();
        let names = pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        let containers = names.map(|c| (c.name.clone(), ResolvedContainer::default())).collect();
        let pod = ResolvedPod { pod: Arc::new(pod), containers, ..ResolvedPod::default() };
        self.runtime.create_pod(&pod).await.unwrap();
        pod.pod_ref()
    }

    /// Waits until the pod's containers are so.
    async fn until(&self, wanted: &str) {
        let mut last = self.ear.last.subscribe();
        let seen = last.wait_for(|seen| seen.as_ref().is_some_and(|s| words(s) == wanted));
        if timeout(Duration::from_secs(3600), seen).await.is_err() {
            panic!("never {wanted}: {:?} {:?}", guard(&self.ear.all), guard(&self.engine.world).calls);
        }
    }

    fn warnings(&self) -> Vec<String> {
        guard(&self.ear.events).iter().filter(|e| e.starts_with('!')).cloned().collect()
    }
}

fn one(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "m", "image": "i:1"}]})
}

#[tokio::test(start_paused = true)]
async fn silence_of_the_engine_is_no_answer_and_it_is_asked_again() {
    for call in ["sandbox", "image", "create", "start"] {
        for how in [How::Hangs, How::Away] {
            let bench = Bench::new();
            bench.engine.will(call, &[how, how]);
            bench.create(one("Never")).await;
            bench.until("m=runningx0").await;
            assert_eq!(bench.engine.calls(call), 3, "{call} {how:?}");
            assert_eq!(bench.warnings(), Vec::<String>::new(), "{call} {how:?}: nothing is concluded from it");
            assert_eq!(guard(&bench.engine.world).containers.len(), 1, "and nothing is done twice");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_shown_and_the_step_is_tried_again() {
    for (call, reason, shown) in [
        ("create", "", "m=CreateContainerErrorx0"),
        ("create", "CreateContainerConfigError", "m=CreateContainerConfigErrorx0"),
        ("image", "ErrImagePull", "m=ImagePullBackOffx0"),
    ] {
        let bench = Bench::new();
        bench.engine.will(call, &[How::Refuses(reason), How::Refuses(reason)]);
        bench.create(one("Always")).await;
        bench.until(shown).await;
        assert!(bench.warnings().iter().any(|w| w.contains("is refused")), "{:?}", bench.warnings());
        bench.until("m=runningx0").await;
        let seen = guard(&bench.ear.all).clone();
        let from = seen.iter().position(|s| s == shown).unwrap();
        assert!(!seen[from..].iter().any(|s| s == "m=ContainerCreatingx0"), "it does not flicker: {seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_does_not_start_has_ended() {
    let bench = Bench::new();
    bench.engine.will("start", &[How::Refuses("")]);
    bench.create(one("Never")).await;
    bench.until("m=StartError(128)x0").await;
}

#[tokio::test(start_paused = true)]
async fn an_end_that_comes_before_the_answer_to_its_start_counts() {
    let bench = Bench::new();
    bench.engine.will("start", &[How::Late(5)]);
    bench.create(one("Never")).await;
    while bench.engine.calls("start") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.engine.end("m", 3, true);
    bench.until("m=Error(3)x0").await;
}

#[tokio::test(start_paused = true)]
async fn what_starts_late_is_ended_when_the_pod_was_stopped_meanwhile() {
    let bench = Bench::new();
    bench.engine.will("start", &[How::Late(5)]);
    let pod = bench.create(one("Always")).await;
    while bench.engine.calls("start") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.runtime.stop_pod(&pod, Duration::from_secs(30)).await.unwrap();
    bench.until("m=Error(143)x0").await;
    assert!(bench.runtime.get_pod(&pod).await.unwrap().is_terminated());
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_does_not_get_through_is_followed_by_a_kill() {
    let bench = Bench::new();
    let pod = bench.create(one("Always")).await;
    bench.until("m=runningx0").await;
    bench.engine.will("signal", &[How::Hangs, How::Away]);
    bench.runtime.stop_pod(&pod, Duration::from_secs(30)).await.unwrap();
    bench.until("m=Error(137)x0").await;
    assert_eq!(bench.engine.calls("signal TERM"), 1);
    assert_eq!(bench.engine.calls("signal KILL"), 2, "the first one was not heard");
}

#[tokio::test(start_paused = true)]
async fn a_pod_can_be_removed_while_the_engine_hangs_over_it() {
    let bench = Bench::new();
    bench.engine.will("create", &[How::Hangs; 10]);
    let pod = bench.create(one("Always")).await;
    while bench.engine.calls("create") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let begin = Instant::now();
    bench.engine.will("unsandbox", &[How::Away]);
    assert!(bench.runtime.remove_pod(&pod).await.is_err(), "the engine could not be reached");
    assert!(bench.warnings().iter().any(|w| w.starts_with("!FailedKillPod: error killing pod:")));
    bench.runtime.remove_pod(&pod).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(11), "what is being made is waited for, but not for ever");
    assert!(bench.runtime.list_pods().await.unwrap().is_empty());
    assert!(!bench.dir.path().join("pods/u").exists(), "its folder is gone");
}

#[tokio::test(start_paused = true)]
async fn what_is_being_made_for_a_pod_is_there_before_the_pod_is_removed() {
    for call in ["sandbox", "create", "start"] {
        let bench = Bench::new();
        bench.engine.will(call, &[How::Late(3)]);
        let pod = bench.create(one("Always")).await;
        while bench.engine.calls(&format!("{call} ")) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (first, again) = tokio::join!(bench.runtime.remove_pod(&pod), bench.runtime.remove_pod(&pod));
        first.unwrap();
        again.unwrap();
        let calls = guard(&bench.engine.world).calls.clone();
        let at = |what: &str| calls.iter().position(|c| c.starts_with(what));
        assert!(at(&format!("answered {call}")) < at("unsandbox"), "{calls:?}");
        assert!(at(&format!("answered {call}")).is_some() && bench.engine.calls("unsandbox") == 1, "{calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_happened_while_events_were_lost_is_found_by_looking() {
    let bench = Bench::new();
    bench.create(one("Never")).await;
    bench.until("m=runningx0").await;
    bench.engine.end("m", 4, false);
    bench.engine.will("list", &[How::Away, How::Hangs]);
    bench.engine.events.send(EngineEvent::Lost).unwrap();
    bench.until("m=Error(4)x0").await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_somebody_removed_has_ended_and_is_run_again() {
    let bench = Bench::new();
    bench.create(one("Always")).await;
    bench.until("m=runningx0").await;
    guard(&bench.engine.world).containers.clear();
    bench.engine.events.send(EngineEvent::Lost).unwrap();
    bench.until("m=runningx1").await;
    let seen = bench.ear.last.borrow().clone().unwrap();
    let last = seen.containers[0].last_state.clone().unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_a_run_that_is_over_changes_nothing() {
    let bench = Bench::new();
    bench.create(one("Always")).await;
    bench.until("m=runningx0").await;
    let stale = guard(&bench.engine.world).containers[0].container.clone();
    bench.engine.end("m", 1, true);
    bench.until("m=runningx1").await;
    let state = ContainerState::Exited(exit(9));
    bench.engine.events.send(EngineEvent::Container { container: stale, state }).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(words(&bench.ear.last.borrow().clone().unwrap()), "m=runningx1");
}

#[tokio::test(start_paused = true)]
async fn another_process_takes_up_the_pod_where_it_was() {
    let bench = Bench::new();
    let pod = bench.create(one("Always")).await;
    bench.until("m=runningx0").await;
    bench.engine.end("m", 1, true);
    bench.until("m=runningx1").await;
    let Bench { engine, runtime: old, dir, .. } = bench;
    drop(old);
    engine.will("list", &[How::Away]);
    let ear = Arc::new(Ear::default());
    let new = runtime(dir.path(), &engine, &ear);
    let seen = loop {
        match new.get_pod(&pod).await {
            Ok(seen) => break seen,
            Err(error) => assert!(!matches!(error, ProviderError::NotFound(_)), "not before it has looked: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(words(&seen), "m=runningx1");
    assert_eq!(engine.calls("create"), 2, "it was not made again");
    engine.end("m", 1, true);
    let bench = Bench { engine, ear, runtime: new, dir };
    bench.until("m=CrashLoopBackOffx1").await;
    bench.until("m=runningx2").await;
}

#[tokio::test(start_paused = true)]
async fn of_two_changes_of_a_volume_the_newer_one_lands_last_whichever_is_faster() {
    let bench = Bench::new();
    let version = |text: &str| {
        let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": one("Always")});
        let content = text.to_owned().into();
        let file = VolumeFile { path: "key".into(), content, mode: 0o644, owner: None, secret: false };
        let volume = ResolvedVolume::Files(FileSet { files: vec![file] });
        let mount = ResolvedMount { volume: "v".into(), path: "/v".into(), read_only: true, sub_path: None };
        let container = ResolvedContainer { mounts: vec![mount], ..ResolvedContainer::default() };
        ResolvedPod {
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            containers: [("m".to_owned(), container)].into(),
            volumes: [("v".to_owned(), volume)].into(),
            ..ResolvedPod::default()
        }
    };
    bench.runtime.create_pod(&version("one")).await.unwrap();
    bench.until("m=runningx0").await;
    bench.engine.will("refresh", &[How::Late(20), How::Well]);
    for text in ["two", "three"] {
        bench.runtime.update_volumes(&version(text), &["v".to_owned()]).await.unwrap();
        while bench.engine.calls("refresh") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(guard(&bench.engine.world).copied, "three");
    assert_eq!(std::fs::read_to_string(bench.dir.path().join("pods/u/volumes/v/key")).unwrap(), "three");
}
