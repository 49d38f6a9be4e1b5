//! The checks that every provider must pass.
//!
//! ```ignore
//! #[tokio::test]
//! async fn my_provider_conforms() {
//!     conformance::run(|context| MyProvider::connect(context), conformance::Options::default()).await;
//! }
//! ```
//!
//! A check that fails panics with a sentence about what was expected. `make` is called more than once;
//! each call must yield a provider that knows nothing of the pods of a volatile provider made before.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout};

use super::{
    EnvVar, LogOptions, PodNotifier, PodObservation, PodRef, Provider, ProviderContext, ProviderError,
    ResolvedContainer, ResolvedPod, Result, SessionIo,
};

/// How the checks are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The longest to wait for something that must happen.
    pub patience: Duration,
    /// The image of the pods; it must be one that keeps running and, when there is `exec`, has a `sh`.
    pub image: String,
    /// The command of the pods' container.
    pub command: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(30),
            image: "busybox".into(),
            command: ["sh", "-c", "echo hello; sleep 3600"].map(str::to_owned).to_vec(),
        }
    }
}

/// Keeps what a provider tells.
#[derive(Default)]
struct Recorder(Mutex<Vec<PodObservation>>);

impl PodNotifier for Recorder {
    fn changed(&self, observation: PodObservation) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(observation);
    }
}

impl Recorder {
    fn last(&self, uid: &str) -> Option<PodObservation> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().rev().find(|o| *o.pod.uid == *uid).cloned()
    }
}

struct Suite {
    provider: Arc<dyn Provider>,
    recorder: Arc<Recorder>,
    options: Options,
}

fn context(recorder: &Arc<Recorder>) -> ProviderContext {
    ProviderContext {
        node: "conformance".into(),
        node_uid: "0c0f0000-0000-4000-8000-000000000001".into(),
        notifier: recorder.clone(),
        credentials: None,
    }
}

/// Runs every check that the provider's capabilities call for.
pub async fn run<F, Fut>(make: F, options: Options)
where
    F: Fn(ProviderContext) -> Fut,
    Fut: Future<Output = Result<Arc<dyn Provider>>>,
{
    let recorder = Arc::new(Recorder::default());
    let provider = must("make the provider", make(context(&recorder)).await);
    let suite = Suite { provider, recorder, options };
    suite.answers().await;
    suite.unknown_pods_are_not_found().await;
    suite.create_is_idempotent_and_the_pod_runs().await;
    suite.pods_are_told_apart_by_uid().await;
    suite.stop_ends_all_containers().await;
    suite.abilities_match_capabilities().await;
    if suite.provider.capabilities().logs {
        suite.logs_honour_their_options().await;
    }
    if suite.provider.capabilities().exec {
        suite.exec_returns_exit_codes().await;
    }
    if suite.provider.capabilities().stats {
        suite.stats_name_running_pods().await;
    }
    let volatile = suite.provider.capabilities().volatile;
    let left = must("list pods", suite.provider.list_pods().await);
    assert!(left.is_empty(), "every pod was removed, yet {} are listed", left.len());
    if volatile {
        let options = suite.options.clone();
        drop(suite);
        restore_keeps_start_times_and_restarts(&make, options).await;
    }
}

fn must<T>(what: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("must {what}, but: {error}"))
}

impl Suite {
    fn pod(&self, name: &str, number: u32) -> ResolvedPod {
        resolved(&self.options, name, number)
    }

    /// What is known of a pod, by notification where there are some.
    async fn wait(&self, pod: &PodRef, what: &str, holds: impl Fn(&PodObservation) -> bool) -> PodObservation {
        let end = Instant::now() + self.options.patience;
        loop {
            let seen = match self.provider.capabilities().notifies {
                true => self.recorder.last(&pod.uid),
                false => Some(must("get the pod", self.provider.get_pod(pod).await)),
            };
            match seen {
                Some(seen) if holds(&seen) => return seen,
                seen => assert!(Instant::now() < end, "waited in vain for {pod} to be {what}; last seen: {seen:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn start(&self, name: &str, number: u32) -> PodRef {
        let pod = self.pod(name, number);
        must("create a pod", self.provider.create_pod(&pod).await);
        let reference = pod.pod_ref();
        self.wait(&reference, "running", is_running).await;
        reference
    }

    async fn remove(&self, pod: &PodRef) {
        must("remove a pod", self.provider.remove_pod(pod).await);
        match self.provider.get_pod(pod).await {
            Err(ProviderError::NotFound(_)) => {}
            other => panic!("a removed pod must be NotFound, not {other:?}"),
        }
    }

    async fn answers(&self) {
        must("answer a ping", self.provider.ping().await);
        must("describe the node", self.provider.describe_node().await);
        let pods = must("list pods", self.provider.list_pods().await);
        assert!(pods.is_empty(), "must begin without pods of this node, not with {}", pods.len());
    }

    async fn unknown_pods_are_not_found(&self) {
        let pod = self.pod("unknown", 99).pod_ref();
        for (call, result) in [
            ("get_pod", self.provider.get_pod(&pod).await.map(|_| ())),
            ("stop_pod", self.provider.stop_pod(&pod, Duration::ZERO).await),
        ] {
            assert!(matches!(result, Err(ProviderError::NotFound(_))), "{call} of an unknown pod: {result:?}");
        }
        must("succeed in removing a pod that is not there", self.provider.remove_pod(&pod).await);
    }

    async fn create_is_idempotent_and_the_pod_runs(&self) {
        let pod = self.pod("once", 1);
        let reference = pod.pod_ref();
        must("create a pod", self.provider.create_pod(&pod).await);
        let first = self.wait(&reference, "running", is_running).await;
        must("create a pod that is there", self.provider.create_pod(&pod).await);
        let again = must("get the pod", self.provider.get_pod(&reference).await);
        assert_eq!(again.pod, reference, "the observation must name the pod");
        assert_eq!(again.start_time, first.start_time, "a second create must not restart the pod");
        assert_eq!(names(&again), ["main"], "one status for each container");
        assert!(!again.pod_ips.is_empty(), "a running pod has an address");
        must("update a pod", self.provider.update_pod(&pod).await);
        assert_eq!(must("list pods", self.provider.list_pods().await).len(), 1);
        self.remove(&reference).await;
        must("remove a pod twice", self.provider.remove_pod(&reference).await);
    }

    async fn pods_are_told_apart_by_uid(&self) {
        let (a, b) = (self.start("twin", 2).await, self.start("twin", 3).await);
        let uids = |pods: Vec<PodObservation>| pods.into_iter().map(|o| o.pod.uid).collect::<HashSet<_>>();
        let listed = uids(must("list pods", self.provider.list_pods().await));
        assert_eq!(listed, HashSet::from([a.uid.clone(), b.uid.clone()]), "both pods of one name are listed");
        self.remove(&a).await;
        let kept = must("get the other pod of the name", self.provider.get_pod(&b).await);
        assert!(is_running(&kept), "removing one pod must not touch another of its name");
        self.remove(&b).await;
    }

    async fn stop_ends_all_containers(&self) {
        let pod = self.start("stopped", 4).await;
        let grace = Duration::from_secs(2);
        let begin = Instant::now();
        must("stop a pod", self.provider.stop_pod(&pod, grace).await);
        must("stop a pod again", self.provider.stop_pod(&pod, Duration::from_secs(1)).await);
        let ended = self.wait(&pod, "terminated", PodObservation::is_terminated).await;
        assert!(begin.elapsed() <= grace + self.options.patience / 2, "stopping must honour the grace period");
        assert_eq!(names(&ended), ["main"], "the containers are still reported");
        let listed = must("list pods", self.provider.list_pods().await);
        assert!(listed.iter().any(|o| o.pod.uid == pod.uid), "a stopped pod is listed until it is removed");
        self.remove(&pod).await;
    }

    async fn abilities_match_capabilities(&self) {
        let can = self.provider.capabilities();
        let pod = self.start("able", 5).await;
        let command = ["true".to_owned()];
        let port = match can.port_forward {
            // A port that nothing listens on may be refused; only "not supported" is of interest.
            true => {
                timeout(self.options.patience, self.provider.port_forward(&pod, 80)).await.ok().and_then(Result::err)
            }
            false => self.provider.port_forward(&pod, 80).await.err(),
        };
        let checks = [
            ("logs", can.logs, self.provider.logs(&pod, "main", &LogOptions::default()).await.err()),
            ("exec", can.exec, self.provider.exec(&pod, "main", &command, no_io()).await.err()),
            ("stats", can.stats, self.provider.stats().await.err()),
            ("port_forward", can.port_forward, port),
        ];
        for (ability, can, error) in checks {
            let unsupported = matches!(error, Some(ProviderError::Unsupported(_)));
            assert_eq!(unsupported, !can, "capabilities say {ability}: {can}, the call says {error:?}");
        }
        if !can.attach {
            let result = self.provider.attach(&pod, "main", no_io()).await;
            assert!(matches!(result, Err(ProviderError::Unsupported(_))), "attach without the capability: {result:?}");
        }
        self.remove(&pod).await;
    }

    async fn lines(&self, pod: &PodRef, options: LogOptions) -> Vec<super::LogLine> {
        let stream = must("open a log", self.provider.logs(pod, "main", &options).await);
        let all = timeout(self.options.patience, stream.collect::<Vec<_>>()).await;
        let all = all.unwrap_or_else(|_| panic!("the log must end with options {options:?}"));
        all.into_iter().map(|line| must("read a log", line)).collect()
    }

    async fn logs_honour_their_options(&self) {
        let pod = self.start("logging", 6).await;
        let end = Instant::now() + self.options.patience;
        let lines = loop {
            let lines = self.lines(&pod, LogOptions::default()).await;
            if !lines.is_empty() {
                break lines;
            }
            assert!(Instant::now() < end, "the container must write a line");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert!(lines.is_sorted_by_key(|l| l.time), "lines come oldest first");
        assert!(
            self.lines(&pod, LogOptions { tail: Some(0), ..Default::default() }).await.is_empty(),
            "tail 0 is nothing"
        );
        let tail = self.lines(&pod, LogOptions { tail: Some(1), ..Default::default() }).await;
        assert_eq!(tail.len(), 1, "tail 1 is one line");
        let late = lines[lines.len() - 1].time + Duration::from_secs(3600);
        assert!(
            self.lines(&pod, LogOptions { since: Some(late), ..Default::default() }).await.is_empty(),
            "since the future"
        );
        let since = LogOptions { since: Some(lines[0].time), ..Default::default() };
        assert!(self.lines(&pod, since).await.len() >= lines.len(), "since the first line is all");
        let previous = self.provider.logs(&pod, "main", &LogOptions { previous: true, ..Default::default() }).await;
        assert!(matches!(previous.err(), Some(ProviderError::NotFound(_))), "it has no previous instance");
        let unknown = self.provider.logs(&pod, "nobody", &LogOptions::default()).await;
        assert!(matches!(unknown.err(), Some(ProviderError::NotFound(_))), "an unknown container is NotFound");
        let follow = LogOptions { follow: true, ..Default::default() };
        let (followed, stopped) = tokio::join!(self.lines(&pod, follow), self.provider.stop_pod(&pod, Duration::ZERO));
        must("stop a pod", stopped);
        assert!(followed.len() >= lines.len(), "following begins with what there is, and ends with the container");
        self.wait(&pod, "terminated", PodObservation::is_terminated).await;
        assert!(!self.lines(&pod, LogOptions::default()).await.is_empty(), "the log outlives the container");
        self.remove(&pod).await;
    }

    async fn exec_returns_exit_codes(&self) {
        let pod = self.start("shell", 7).await;
        for (script, code, output) in [("exit 3", 3, ""), ("echo one two", 0, "one two\n"), ("true", 0, "")] {
            let (mut near, far) = tokio::io::duplex(4096);
            let io = SessionIo { stdout: Some(Box::pin(far)), ..no_io() };
            let command = ["sh", "-c", script].map(str::to_owned);
            let mut text = String::new();
            let (status, read) =
                tokio::join!(self.provider.exec(&pod, "main", &command, io), near.read_to_string(&mut text));
            assert!(read.is_ok(), "standard output is closed at the end");
            assert_eq!(must("exec", status).code, code, "exit code of {script:?}");
            assert_eq!(text, output, "output of {script:?}");
        }
        let unknown = self.provider.exec(&pod, "nobody", &["true".to_owned()], no_io()).await;
        assert!(matches!(unknown, Err(ProviderError::NotFound(_))), "an unknown container: {unknown:?}");
        self.remove(&pod).await;
    }

    async fn stats_name_running_pods(&self) {
        let pod = self.start("busy", 8).await;
        let usage = must("tell statistics", self.provider.stats().await);
        let Some(found) = usage.pods.iter().find(|p| p.pod.uid == pod.uid) else {
            panic!("a running pod is among the statistics");
        };
        assert!(found.containers.iter().any(|c| c.name == "main"), "with its container");
        self.remove(&pod).await;
    }
}

async fn restore_keeps_start_times_and_restarts<F, Fut>(make: &F, options: Options)
where
    F: Fn(ProviderContext) -> Fut,
    Fut: Future<Output = Result<Arc<dyn Provider>>>,
{
    let recorder = Arc::new(Recorder::default());
    let provider = must("make the provider", make(context(&recorder)).await);
    let suite = Suite { provider, recorder, options };
    let mut pod = suite.pod("restored", 9);
    let reference = pod.pod_ref();
    must("create a pod", suite.provider.create_pod(&pod).await);
    let mut before = suite.wait(&reference, "running", is_running).await;
    before.containers[0].restart_count = 3;
    let options = suite.options.clone();
    drop(suite);

    let recorder = Arc::new(Recorder::default());
    let provider = must("make the provider anew", make(context(&recorder)).await);
    let suite = Suite { provider, recorder, options };
    let gone = suite.provider.get_pod(&reference).await;
    assert!(gone.is_err_and(|e| e.is_not_found()), "a volatile provider made anew must not know the pod");
    Arc::make_mut(&mut pod.pod).status = Some(PodStatus {
        phase: Some("Running".into()),
        start_time: before.start_time.map(Time),
        pod_ip: before.pod_ips.first().map(ToString::to_string),
        container_statuses: Some(before.containers.clone()),
        ..PodStatus::default()
    });
    must("restore a pod", suite.provider.restore_pod(&pod).await);
    let after = suite.wait(&reference, "running", is_running).await;
    assert_eq!(after.start_time, before.start_time, "the start time is kept");
    assert_eq!(after.containers[0].restart_count, 3, "so is the number of restarts");
    let started = |o: &PodObservation| o.containers[0].state.clone().and_then(|s| s.running).map(|r| r.started_at);
    assert_eq!(started(&after), started(&before), "the container was not started anew");
    suite.remove(&reference).await;
}

fn is_running(o: &PodObservation) -> bool {
    !o.containers.is_empty() && o.containers.iter().all(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()))
}

fn names(o: &PodObservation) -> Vec<&str> {
    o.containers.iter().map(|c| c.name.as_str()).collect()
}

fn no_io() -> SessionIo {
    SessionIo { stdin: None, stdout: None, stderr: None, tty: false, resize: None }
}

fn resolved(options: &Options, name: &str, number: u32) -> ResolvedPod {
    let container = Container {
        name: "main".into(),
        image: Some(options.image.clone()),
        command: Some(options.command.clone()),
        ..Container::default()
    };
    let pod = Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("conformance".into()),
            uid: Some(format!("0c0f0000-0000-4000-8000-{number:012}")),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: Some("conformance".into()),
            restart_policy: Some("Always".into()),
            containers: vec![container],
            ..PodSpec::default()
        }),
        status: None,
    };
    let env = vec![EnvVar { name: "CONFORMANCE".into(), value: "yes".into(), secret: false }];
    let container = ResolvedContainer { env, command: options.command.clone(), ..ResolvedContainer::default() };
    ResolvedPod { pod: Arc::new(pod), containers: [("main".to_owned(), container)].into(), ..ResolvedPod::default() }
}
