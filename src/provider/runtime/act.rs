//! Doing what the machine asks for: each action a future that ends in an input for it.
//!
//! Every call to the engine has a deadline. What is not answered in time counts as unknown.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, ResourceRequirements};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::{Instant, timeout};

use super::core::Core;
use super::engine::{ContainerRef, Engine, Exit, Image, PullRequest, Signal};
use super::machine::state::ProbeKind;
use super::machine::{Failure, Input, NotStarted};
use super::probe::{Answer, Target};
use super::runner::Done;
use super::spec::{self, PodDir};
use super::{files, volumes};
use crate::provider::{EventType, LogOptions, PodFeature, PodRef, ProviderError, ResolvedPod, ResolvedVolume, Result};

/// No call to an engine but a pull takes longer.
const CALL: Duration = Duration::from_secs(60);
const PULL: Duration = Duration::from_secs(1800);
/// A postStart hook that takes longer has failed.
const POST_START: Duration = Duration::from_secs(600);
/// For two questions to an engine, which may be another machine that has much to do.
const LAST_WORDS: Duration = Duration::from_secs(20);
/// kubelet: `MaxContainerTerminationMessageLogLength`, `…LogLines`.
const FALLBACK: (usize, u64) = (2048, 80);

/// A pod's volumes are written by one at a time, and whoever writes them writes what is newest then: of two updates
/// that are under way, the older one cannot land last.
pub(super) struct VolumeWriter {
    newest: watch::Sender<Arc<ResolvedPod>>,
    turn: AsyncMutex<()>,
}

impl VolumeWriter {
    pub fn new(pod: Arc<ResolvedPod>) -> Arc<Self> {
        Arc::new(Self { newest: watch::Sender::new(pod), turn: AsyncMutex::default() })
    }

    /// What is to be written from now on.
    pub fn set(&self, pod: Arc<ResolvedPod>) {
        self.newest.send_replace(pod);
    }
}

/// What actions of one pod need.
pub(super) struct Acts {
    pub core: Arc<Core>,
    pub pod: Arc<ResolvedPod>,
    pub writer: Arc<VolumeWriter>,
    pub dir: PodDir,
    pub ip: Option<IpAddr>,
}

fn failure(error: ProviderError) -> Failure {
    match error {
        ProviderError::Unavailable { .. } => {
            tracing::debug!(%error, "a container engine did not answer; tried again");
            Failure::Unknown
        }
        ProviderError::Rejected { reason, message } => Failure::Answer { reason, message },
        other => Failure::Answer { reason: String::new(), message: other.to_string() },
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T, Failure> {
    match timeout(limit, call).await {
        Ok(result) => result.map_err(failure),
        Err(_) => Err(Failure::Unknown),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    // Fails only when the runtime shuts down or the work panicked; both say nothing of the pod.
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Failure::Unknown))
}

impl Acts {
    fn spec(&self, container: &str) -> Container {
        spec::container(&self.pod.pod, container).unwrap_or_default()
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.core.engine()
    }

    fn target(&self, container: ContainerRef) -> Target {
        let spec = Arc::new(self.spec(&container.name));
        Target { engine: self.engine(), container, spec, ip: self.ip }
    }

    /// Volumes, then what the containers share.
    pub async fn sandbox(self) -> Done {
        let turn = self.writer.turn.lock().await;
        let prepared = self.prepare_volumes().await;
        drop(turn);
        let made = async {
            prepared?;
            let sandbox = spec::sandbox(&self.pod, &self.dir);
            within(CALL, self.engine().create_sandbox(&sandbox)).await.map(|s| s.ips)
        };
        Done::Input(Input::Sandbox(made.await))
    }

    /// The image, pulled if the policy and its absence call for it.
    pub async fn image(self, c: usize, name: String, field: String) -> Done {
        Done::Input(Input::Image { c, result: self.find_image(&name, &field).await })
    }

    async fn find_image(&self, name: &str, field: &str) -> Result<Image, Failure> {
        let container = self.spec(name);
        let image = container.image.clone().unwrap_or_default();
        let engine = self.engine();
        let policy = match container.image_pull_policy.as_deref() {
            Some(policy) => policy,
            None if is_latest(&image) => "Always",
            None => "IfNotPresent",
        };
        let tell = |reason: &'static str, message: String| {
            self.core.tell(&self.pod.pod_ref(), Some(field.to_owned()), EventType::Normal, reason, message);
        };
        if policy != "Always"
            && let Some(found) = within(CALL, engine.image(&image)).await?
        {
            tell("Pulled", format!("Container image {image:?} already present on machine"));
            return Ok(found);
        }
        if policy == "Never" {
            return Err(Failure::Answer {
                reason: "ErrImageNeverPull".into(),
                message: format!("Container image {image:?} is not present with pull policy of Never"),
            });
        }
        tell("Pulling", format!("Pulling image {image:?}"));
        let begin = tokio::time::Instant::now();
        let request = PullRequest { image: image.clone(), pod: (*self.pod).clone() };
        let pulled = within(PULL, engine.pull(&request)).await?;
        let took = Duration::from_millis(u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX));
        let size = pulled.size.map(|n| format!(" Image size: {n} bytes.")).unwrap_or_default();
        tell("Pulled", format!("Successfully pulled image {image:?} in {took:?} ({took:?} including waiting).{size}"));
        Ok(pulled)
    }

    pub async fn start(self, c: usize, container: ContainerRef, image_id: String, ips: Vec<IpAddr>) -> Done {
        let attempt = container.attempt;
        Done::Input(Input::Started { c, attempt, result: self.make_and_start(container, image_id, ips).await })
    }

    async fn make_and_start(
        &self,
        mut container: ContainerRef,
        image_id: String,
        ips: Vec<IpAddr>,
    ) -> Result<(String, jiff::Timestamp), NotStarted> {
        let (pod, dir, host_paths) = (self.pod.clone(), self.dir.clone(), self.core.setup().host_paths);
        let (name, attempt) = (container.name.clone(), container.attempt);
        let built = move || spec::build(&pod, &name, attempt, &image_id, &ips, &dir, &host_paths);
        let spec = blocking(built).await.map_err(NotStarted::Create)?;
        let engine = self.engine();
        container.id = within(CALL, engine.create(&spec)).await.map_err(NotStarted::Create)?;
        let since = within(CALL, engine.start(&container)).await;
        let since = since.map_err(|failure| NotStarted::Start { id: container.id.clone(), failure })?;
        Ok((container.id, since))
    }

    pub async fn post_start(self, c: usize, container: ContainerRef) -> Done {
        let attempt = container.attempt;
        let hook = self.spec(&container.name).lifecycle.and_then(|l| l.post_start);
        let error = self.hook("PostStartHook", hook, container, POST_START).await.err();
        Done::Input(Input::PostStart { c, attempt, error })
    }

    pub async fn pre_stop(self, c: usize, container: ContainerRef, limit: Duration) -> Done {
        let attempt = container.attempt;
        let hook = self.spec(&container.name).lifecycle.and_then(|l| l.pre_stop);
        let error = self.hook("PreStopHook", hook, container, limit).await.err();
        Done::Input(Input::PreStop { c, attempt, error })
    }

    async fn hook(
        &self,
        what: &str,
        hook: Option<LifecycleHandler>,
        container: ContainerRef,
        limit: Duration,
    ) -> Result<(), String> {
        let Some(hook) = hook else { return Ok(()) };
        match timeout(limit, self.target(container).hook(&hook)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(message)) => Err(format!("{what} failed: {message}")),
            Err(_) => Err(format!("{what} failed: not finished within {limit:?}")),
        }
    }

    pub async fn probe(self, c: usize, container: ContainerRef, kind: ProbeKind) -> Done {
        let attempt = container.attempt;
        let spec = self.spec(&container.name);
        let probe = match kind {
            ProbeKind::Startup => spec.startup_probe,
            ProbeKind::Readiness => spec.readiness_probe,
            ProbeKind::Liveness => spec.liveness_probe,
        };
        let (good, message) = match probe {
            None => (Some(true), String::new()),
            Some(probe) => {
                let (entry, name) = (self.core.find(&container.pod.uid), container.name.clone());
                let began = Instant::now();
                let answer = self.target(container).probe(&probe).await;
                if let (Some(entry), false) = (entry, matches!(answer, Answer::Unknown)) {
                    entry.probed.count(&name, kind, matches!(answer, Answer::Good), began.elapsed());
                }
                match answer {
                    Answer::Good => (Some(true), String::new()),
                    Answer::Bad(message) => (Some(false), message),
                    Answer::Unknown => (None, String::new()),
                }
            }
        };
        Done::Input(Input::Probed { c, attempt, kind, good, message })
    }

    pub async fn resize(self, c: usize, container: ContainerRef, resources: Box<ResourceRequirements>) -> Done {
        let (engine, attempt) = (self.engine(), container.attempt);
        // Where it cannot be done the agent has said so, and there is nothing to do.
        let result = match engine.capabilities().pod.has(PodFeature::Resize) {
            true => within(CALL, engine.resize(&container, &resources)).await,
            false => Ok(()),
        };
        Done::Input(Input::Resized { c, attempt, resources, result })
    }

    pub async fn signal(self, container: ContainerRef, signal: Signal) -> Done {
        // The machine asks again for what has no effect.
        if let Err(failure) = within(CALL, self.engine().signal(&container, &signal)).await {
            tracing::debug!(%container, signal = signal.0, ?failure, "a signal could not be sent");
        }
        Done::Nothing
    }

    pub async fn remove_attempt(self, container: ContainerRef) -> Done {
        let removed = within(CALL, self.engine().remove(&container)).await;
        let dir = self.dir.attempt(&container.name, container.attempt);
        // What is left of it goes with the pod.
        let _ = tokio::fs::remove_dir_all(dir).await;
        if let Err(failure) = removed {
            tracing::debug!(%container, ?failure, "a container that has ended could not be removed");
        }
        Done::Nothing
    }

    /// What a container left to say, by its termination message policy.
    pub async fn last_words(self, c: usize, container: ContainerRef, exit: Exit) -> Done {
        let attempt = container.attempt;
        let message = timeout(LAST_WORDS, self.read_last_words(&container, exit.code)).await.unwrap_or_default();
        Done::Input(Input::Exited { c, attempt, exit, message })
    }

    async fn read_last_words(&self, container: &ContainerRef, code: i32) -> Option<String> {
        let engine = self.engine();
        let file = self.dir.message(&container.name, container.attempt);
        let written = engine.termination_message(container, &file).await.unwrap_or_default();
        if !written.is_empty() {
            let end = written.len().min(usize::try_from(files::MESSAGE_LIMIT).unwrap_or(usize::MAX));
            return Some(String::from_utf8_lossy(&written[..end]).into_owned());
        }
        let policy = self.spec(&container.name).termination_message_policy;
        if code == 0 || policy.as_deref() != Some("FallbackToLogsOnError") {
            return None;
        }
        let options = LogOptions { tail: Some(FALLBACK.1), ..LogOptions::default() };
        let mut lines = engine.logs(container, &options).await.ok()?;
        let mut text = Vec::new();
        while let Some(Ok(line)) = lines.next().await {
            text.extend_from_slice(&line.text);
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        let from = text.len().saturating_sub(FALLBACK.0);
        let from = (from..=text.len()).find(|n| text.is_char_boundary(*n)).unwrap_or(text.len());
        Some(text[from..].to_owned())
    }

    /// Which volumes hold more than they may.
    pub async fn measure(self) -> Done {
        let limits: Vec<_> = self
            .pod
            .volumes
            .iter()
            .filter_map(|(name, volume)| match volume {
                ResolvedVolume::EmptyDir { size_limit: Some(limit), .. } => Some((name.clone(), *limit)),
                _ => None,
            })
            .collect();
        let dir = self.dir.volumes();
        let look = move || {
            // What cannot be looked at now is looked at the next time.
            let used = |name: &String| volumes::usage(&dir.join(name)).unwrap_or_default();
            Ok(limits.into_iter().filter(|(name, limit)| used(name) > *limit).map(|(name, _)| name).collect())
        };
        Done::Input(Input::Measured { over: blocking(look).await.unwrap_or_default() })
    }

    /// Must be called in one's turn.
    async fn prepare_volumes(&self) -> Result<(), Failure> {
        let pod = self.writer.newest.borrow().clone();
        let (dir, host_paths) = (self.dir.clone(), self.core.setup().host_paths);
        blocking(move || spec::prepare_volumes(&pod, &dir, &host_paths)).await
    }

    /// Brings the files of volumes up to date, and engines that copy.
    pub async fn refresh(self, changed: Vec<String>, running: Vec<ContainerRef>) -> Done {
        let _turn = self.writer.turn.lock().await;
        let prepared = self.prepare_volumes().await;
        if let Err(Failure::Answer { message, .. }) = prepared {
            self.core.tell(&self.pod.pod_ref(), None, EventType::Warning, "FailedMount", message);
            return Done::Nothing;
        }
        for container in running {
            let mounts = self.pod.containers.get(&*container.name).map(|c| c.mounts.clone()).unwrap_or_default();
            for mount in mounts.into_iter().filter(|m| m.sub_path.is_none() && changed.contains(&m.volume)) {
                let mount = super::engine::Mount {
                    source: self.dir.volumes().join(&mount.volume),
                    volume: mount.volume,
                    target: mount.path,
                    read_only: true,
                    generated: true,
                    propagation: None,
                };
                if let Err(failure) = within(CALL, self.engine().refresh(&container, &mount)).await {
                    tracing::debug!(%container, volume = mount.volume, ?failure, "a volume could not be refreshed");
                }
            }
        }
        Done::Nothing
    }
}

/// Removes all that there is of a pod.
pub(super) async fn remove(engine: &dyn Engine, pod: &PodRef, dir: PodDir) -> Result<()> {
    match timeout(CALL, engine.remove_sandbox(pod)).await {
        Ok(Ok(()) | Err(ProviderError::NotFound(_))) => {}
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(ProviderError::unavailable("the pod's sandbox was not removed in time")),
    }
    let path = dir.0.clone();
    let removed = tokio::task::spawn_blocking(move || volumes::remove_pod(&dir.0, &dir.volumes())).await;
    removed.unwrap_or(Ok(())).map_err(|e| files::failed("removing", &path, e))
}

/// No tag, or `latest`; a digest is never that.
fn is_latest(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or(image);
    !name.contains('@') && name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

#[cfg(test)]
mod tests {
    use super::is_latest;

    #[test]
    fn only_the_latest_tag_is_pulled_again() {
        for (image, latest) in [
            ("busybox", true),
            ("busybox:latest", true),
            ("busybox:1.36", false),
            ("localhost:5000/busybox", true),
            ("localhost:5000/busybox:1", false),
            ("busybox@sha256:0123", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}
