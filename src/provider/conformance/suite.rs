//! What checks are made of: a provider, what it has told, and waiting for something.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fmt::Debug;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::LocalBoxFuture;
use rand::Rng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::super::{
    LogLine, LogOptions, PodNotifier, PodObservation, PodRef, Provider, ProviderContext, ProviderError, ResolvedPod,
    Result, SessionIo,
};
use super::Options;
use super::pods::PodPlan;
use super::seen::{is_not_found, is_running};

/// The uid of the node that the checks are made with.
const NODE_UID: &str = "0c0f0000-0000-4000-8000-000000000001";
/// And of another one.
const OTHER_UID: &str = "0c0f0000-0000-4000-8000-000000000002";
/// How often something that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(25);

/// Why a check does not pass.
#[derive(Debug)]
pub(super) enum Failure {
    /// What was expected and what was seen.
    Seen(String),
    /// It has turned out that the provider does not claim it.
    NotClaimed(String),
}

impl Failure {
    pub fn new(what: impl Into<String>) -> Self {
        Self::Seen(what.into())
    }
}

/// A check fails with this sentence unless something holds.
pub(super) fn ensure(holds: bool, what: impl fmt::Display) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::new(what.to_string())) }
}

/// A check fails unless both are the same.
pub(super) fn same<T: PartialEq + fmt::Debug>(seen: T, wanted: T, what: impl fmt::Display) -> Result<(), Failure> {
    if seen == wanted { Ok(()) } else { Err(Failure::new(format!("{what}: {seen:?}, not {wanted:?}"))) }
}

/// A call that must succeed.
pub(super) fn must<T>(what: &str, result: Result<T>) -> Result<T, Failure> {
    result.map_err(|error| Failure::new(format!("must {what}, but: {error}")))
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

type Make<'m> = dyn Fn(ProviderContext) -> LocalBoxFuture<'m, Result<Arc<dyn Provider>>> + 'm;

/// What all checks of a run share.
struct Stage<'m> {
    make: &'m Make<'m>,
    provider: RefCell<Option<Arc<dyn Provider>>>,
    recorder: RefCell<Arc<Recorder>>,
    /// Part of every uid, so that what an earlier run has left behind is not taken for ours.
    run: u32,
    number: Cell<u32>,
}

/// The provider under test, for one check.
pub(super) struct Suite<'m> {
    stage: Rc<Stage<'m>>,
    pub options: Options,
    /// What this check has made.
    made: RefCell<Vec<PodRef>>,
}

fn context(recorder: &Arc<Recorder>, uid: &str) -> ProviderContext {
    ProviderContext {
        node: "conformance".into(),
        node_uid: uid.into(),
        notifier: recorder.clone(),
        credentials: None,
        epoch: 0,
    }
}

impl<'m> Suite<'m> {
    pub async fn new(make: &'m Make<'m>, options: Options) -> Result<Self> {
        let recorder = Arc::new(Recorder::default());
        let provider = make(context(&recorder, NODE_UID)).await?;
        let stage = Stage {
            make,
            provider: RefCell::new(Some(provider)),
            recorder: RefCell::new(recorder),
            run: rand::rng().random_range(0x1000..0xffff),
            number: Cell::new(0),
        };
        let suite = Self { stage: Rc::new(stage), options, made: RefCell::default() };
        // What an earlier run that was killed has left; only pods of this suite are touched.
        let left = timeout(suite.options.patience, suite.provider().list_pods()).await;
        for pod in left.ok().and_then(Result::ok).into_iter().flatten() {
            if &*pod.pod.namespace == "conformance" {
                suite.made.borrow_mut().push(pod.pod);
            }
        }
        // What cannot be removed is what the first check tells.
        let _ = suite.clear().await;
        Ok(suite)
    }

    /// For another check, which may run at the same time.
    pub fn another(&self) -> Self {
        Self { stage: self.stage.clone(), options: self.options.clone(), made: RefCell::default() }
    }

    /// The provider as it is now. Not to be held over a [`restart`](Self::restart).
    pub fn provider(&self) -> Arc<dyn Provider> {
        let provider = self.stage.provider.borrow().clone();
        provider.unwrap_or_else(|| Arc::new(Gone))
    }

    /// Drops the provider, waits, and makes it anew: all that a restart of the process leaves is what is behind it.
    pub async fn restart(&self, pause: Duration) -> Result<(), Failure> {
        self.stage.provider.borrow_mut().take();
        tokio::time::sleep(pause).await;
        let recorder = Arc::new(Recorder::default());
        self.stage.recorder.replace(recorder.clone());
        // What ended the old one may still be under way, as with a process that is killed.
        let end = Instant::now() + self.options.patience;
        loop {
            match (self.stage.make)(context(&recorder, NODE_UID)).await {
                Ok(provider) => {
                    self.stage.provider.replace(Some(provider));
                    return Ok(());
                }
                Err(error) if Instant::now() >= end => {
                    return Err(Failure::new(format!("must make the provider anew, but: {error}")));
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// The provider of another node.
    pub async fn neighbour(&self) -> Result<Arc<dyn Provider>, Failure> {
        let recorder = Arc::new(Recorder::default());
        must("make the provider of another node", (self.stage.make)(context(&recorder, OTHER_UID)).await)
    }

    /// A pod that is not made yet; it is removed after the check.
    pub fn pod(&self, plan: PodPlan) -> ResolvedPod {
        let number = self.next();
        let uid = format!("0c0f{:04x}-0000-4000-8000-{number:012}", self.stage.run);
        let pod = plan.resolve(&self.options, number, &uid);
        self.made.borrow_mut().push(pod.pod_ref());
        pod
    }

    fn next(&self) -> u32 {
        let number = self.stage.number.get() + 1;
        self.stage.number.set(number);
        number
    }

    /// A path that a container can write to and that no other has, for scripts. Gone with the container where that has
    /// files of its own, so that scripts which may run elsewhere must remove it.
    pub fn note(&self) -> String {
        format!("${{VNODE_CONTAINER_ROOT:-/tmp}}/conformance-{:x}-{}", self.stage.run, self.next())
    }

    /// Removes what this check has made.
    pub async fn clear(&self) -> Result<(), Failure> {
        let made = self.made.take();
        for pod in &made {
            let end = Instant::now() + self.options.patience;
            loop {
                let removal = timeout(self.options.patience, self.provider().remove_pod(pod)).await;
                match removal.map_err(|_| Failure::new("must remove a pod, but: no answer"))? {
                    // As an agent does, it comes back: a connection may break.
                    Err(ProviderError::Unavailable { .. }) if Instant::now() < end => {
                        tokio::time::sleep(LOOK * 8).await
                    }
                    removal => break must("remove a pod", removal)?,
                }
            }
        }
        Ok(())
    }

    /// What is known of a pod, by notification where there are some, once it is as it should be.
    pub async fn wait(
        &self,
        pod: &PodRef,
        what: &str,
        holds: impl Fn(&PodObservation) -> bool,
    ) -> Result<PodObservation, Failure> {
        if self.provider().capabilities().notifies {
            let look = async || Ok(self.stage.recorder.borrow().last(&pod.uid));
            return self.until(what, "last told by its notifier", look, |seen| seen.as_ref(), holds).await;
        }
        let look = async || must("get the pod", self.provider().get_pod(pod).await).map(Some);
        self.until(what, "last seen", look, |seen| seen.as_ref(), holds).await
    }

    /// The same by asking, whatever the provider tells by itself.
    pub async fn wait_asking(
        &self,
        pod: &PodRef,
        what: &str,
        holds: impl Fn(&PodObservation) -> bool,
    ) -> Result<PodObservation, Failure> {
        let look = async || Ok(self.provider().get_pod(pod).await);
        self.until(what, "get_pod says", look, |seen| seen.as_ref().ok(), holds).await
    }

    /// Looks until what is seen has a pod that is as it should be; `source` says what was looked at.
    async fn until<S: Debug>(
        &self,
        what: &str,
        source: &str,
        look: impl AsyncFn() -> Result<S, Failure>,
        pod: impl Fn(&S) -> Option<&PodObservation>,
        holds: impl Fn(&PodObservation) -> bool,
    ) -> Result<PodObservation, Failure> {
        let end = Instant::now() + self.options.patience;
        loop {
            let seen = look().await?;
            if let Some(found) = pod(&seen).filter(|found| holds(found)) {
                return Ok(found.clone());
            }
            if Instant::now() >= end {
                return Err(Failure::new(format!("waited in vain for a pod to be {what}; {source}: {seen:?}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Runs a script in a container; its exit code, standard output and standard error.
    pub async fn sh(
        &self,
        pod: &PodRef,
        container: &str,
        script: &str,
        input: Option<&str>,
    ) -> Result<(i32, String, String), Failure> {
        let (mut out_near, out_far) = tokio::io::duplex(64 * 1024);
        let (mut err_near, err_far) = tokio::io::duplex(64 * 1024);
        let (mut in_near, in_far) = tokio::io::duplex(4096);
        let io = SessionIo {
            stdin: input.is_some().then(|| Box::pin(in_far) as _),
            stdout: Some(Box::pin(out_far)),
            stderr: Some(Box::pin(err_far)),
            ..no_io()
        };
        let command = ["sh", "-c", script].map(str::to_owned);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let typed = async {
            // Whoever does not read it is told by the output.
            let _ = in_near.write_all(input.unwrap_or_default().as_bytes()).await;
            drop(in_near);
        };
        let provider = self.provider();
        let all = async {
            tokio::join!(
                provider.exec(pod, container, &command, io),
                out_near.read_to_end(&mut out),
                err_near.read_to_end(&mut err),
                typed
            )
        };
        let done = timeout(self.options.patience, all).await;
        let Ok((status, ..)) = done else {
            return Err(Failure::new(format!("exec of {script:?} did not end, or did not close its output")));
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((must("exec", status)?.code, text(out), text(err)))
    }

    /// Runs a script that must succeed; its output.
    pub async fn run(&self, pod: &PodRef, container: &str, script: &str) -> Result<String, Failure> {
        let (code, out, err) = self.sh(pod, container, script, None).await?;
        same(code, 0, format!("the exit code of {script:?}, which says {out:?} and {err:?}"))?;
        Ok(out)
    }

    /// Makes a pod and waits until it is as it should be.
    pub async fn begin(
        &self,
        plan: PodPlan,
        what: &str,
        holds: impl Fn(&PodObservation) -> bool,
    ) -> Result<(ResolvedPod, PodObservation), Failure> {
        let pod = self.pod(plan);
        must("create a pod", self.provider().create_pod(&pod).await)?;
        let seen = self.wait(&pod.pod_ref(), what, holds).await?;
        Ok((pod, seen))
    }

    /// Makes a pod and waits until all of its containers run.
    pub async fn start(&self, plan: PodPlan) -> Result<(ResolvedPod, PodObservation), Failure> {
        self.begin(plan, "running", is_running).await
    }

    /// Makes a pod and waits until it has ended by itself.
    pub async fn run_to_end(&self, plan: PodPlan) -> Result<(ResolvedPod, PodObservation), Failure> {
        self.begin(plan, "ended", PodObservation::is_terminated).await
    }

    /// Makes a pod and waits until `main` has written a line with this word.
    pub async fn start_and_hear(&self, plan: PodPlan, word: &str) -> Result<ResolvedPod, Failure> {
        let (pod, _) = self.start(plan).await?;
        if self.provider().capabilities().logs {
            self.wait_log(&pod.pod_ref(), &format!("that says {word}"), |text| text.contains(word)).await?;
        } else {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(pod)
    }

    /// Removes a pod, which must then be unknown.
    pub async fn remove(&self, pod: &PodRef) -> Result<(), Failure> {
        must("remove a pod", self.provider().remove_pod(pod).await)?;
        let after = self.provider().get_pod(pod).await;
        ensure(is_not_found(&after), format!("a removed pod must be NotFound, not {after:?}"))
    }

    /// What is seen of a pod stays as it should be for so many seconds.
    pub async fn stays(
        &self,
        pod: &PodRef,
        seconds: u64,
        what: &str,
        holds: impl Fn(&PodObservation) -> bool,
    ) -> Result<(), Failure> {
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            let seen = must("get the pod", self.provider().get_pod(pod).await)?;
            ensure(holds(&seen), format!("{what}, but: {seen:?}"))?;
            tokio::time::sleep(LOOK * 4).await;
        }
        Ok(())
    }

    /// The lines of a log of `main` that ends.
    pub async fn lines(&self, pod: &PodRef, options: LogOptions) -> Result<Vec<LogLine>, Failure> {
        self.lines_of(pod, "main", options).await
    }

    async fn lines_of(&self, pod: &PodRef, container: &str, options: LogOptions) -> Result<Vec<LogLine>, Failure> {
        let stream = must("open a log", self.provider().logs(pod, container, &options).await)?;
        let all = timeout(self.options.patience, stream.collect::<Vec<_>>()).await;
        let all = all.map_err(|_| Failure::new(format!("the log must end with options {options:?}")))?;
        all.into_iter().map(|line| must("read a log", line)).collect()
    }

    /// The text of the log of `main`, once it is as it should be.
    pub async fn wait_log(&self, pod: &PodRef, what: &str, holds: impl Fn(&str) -> bool) -> Result<String, Failure> {
        self.wait_log_of(pod, "main", what, holds).await
    }

    /// The text of a log, once it is as it should be: what a container writes may arrive a little later.
    pub async fn wait_log_of(
        &self,
        pod: &PodRef,
        container: &str,
        what: &str,
        holds: impl Fn(&str) -> bool,
    ) -> Result<String, Failure> {
        let end = Instant::now() + self.options.patience;
        loop {
            let text = text(&self.lines_of(pod, container, LogOptions::default()).await?);
            if holds(&text) {
                return Ok(text);
            }
            ensure(Instant::now() < end, format!("waited in vain for a log {what}; it is: {text:?}"))?;
            tokio::time::sleep(LOOK * 2).await;
        }
    }
}

/// What the lines of a log say together.
pub(super) fn text(lines: &[LogLine]) -> String {
    let bytes: Vec<u8> = lines.iter().flat_map(|l| l.text.to_vec()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn no_io() -> SessionIo {
    SessionIo { stdin: None, stdout: None, stderr: None, tty: false, resize: None }
}

/// Stands in for a provider that could not be made anew.
struct Gone;

#[async_trait::async_trait]
impl Provider for Gone {
    fn capabilities(&self) -> super::Capabilities {
        super::Capabilities::default()
    }
    async fn create_pod(&self, _: &ResolvedPod) -> Result<()> {
        Err(gone())
    }
    async fn stop_pod(&self, _: &PodRef, _: Duration) -> Result<()> {
        Err(gone())
    }
    async fn remove_pod(&self, _: &PodRef) -> Result<()> {
        Err(gone())
    }
    async fn get_pod(&self, _: &PodRef) -> Result<PodObservation> {
        Err(gone())
    }
    async fn list_pods(&self) -> Result<Vec<PodObservation>> {
        Err(gone())
    }
    async fn ping(&self) -> Result<()> {
        Err(gone())
    }
}

fn gone() -> ProviderError {
    ProviderError::unavailable("it could not be made anew")
}
