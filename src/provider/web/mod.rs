//! Pods that an HTTP service runs, written in any language.
//!
//! ```text
//!  agent ──▶ WebProvider ──▶ session: V2, or V1 when the service has no V2 ──▶ Http ──▶ service
//!    ▲                                                                                   │
//!    └───── guard: what can be believed ◀── follow: change feed, or questions ◀──────────┘
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | `settings` | the configuration, checked |
//! | `connect`, `http` | connections, requests, and answers that are bounded in time and size |
//! | `v1` | the interface of Virtual Kubelet's web provider |
//! | `v2` | the interface of `docs/provider-http.yaml` |
//! | `follow` | how news of pods come |

mod connect;
mod follow;
mod http;
mod settings;
mod v1;
mod v2;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::http::{Http, Pool};
use super::registry::Factory;
use super::remote::guard::Guard;
use super::{
    Capabilities, Credentials, Duplex, ExitStatus, LogOptions, LogStream, NodeDescription, NodeUsage, PodNotifier,
    PodObservation, PodRef, Provider, ProviderContext, ProviderError, ResolvedPod, Result, SessionIo,
};
use crate::api::{ProviderSpec, WebInterface};
use follow::Sink;
use settings::Settings;
use v1::V1;
use v2::wire::{About, Notice};
use v2::{Probe, V2};

/// How long a service may take to say which interface it has, and that it is there: the agent waits 5 s.
const SOON: Duration = Duration::from_millis(4500);

/// Makes nodes whose pods an HTTP service runs. Those that have the same credentials for a service share connections.
#[derive(Default)]
pub struct WebFactory {
    pools: std::sync::Mutex<HashMap<[u8; 32], Weak<Pool>>>,
}

impl WebFactory {
    fn pool(&self, settings: &Settings, credentials: Option<&Credentials>) -> Arc<Pool> {
        let mut hash = Sha256::new();
        let origin = settings.target.origin();
        let parts = credentials.into_iter().flat_map(|c| &c.0).flat_map(|(k, v)| [k.as_bytes(), &v[..]]);
        for part in [origin.as_bytes()].into_iter().chain(parts) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        // A map of whole entries, so a panic leaves it sound.
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|_, pool| pool.strong_count() > 0);
        let kept = pools.entry(hash.finalize().into()).or_default();
        if let Some(pool) = kept.upgrade() {
            return pool;
        }
        let pool = Arc::new(Pool::new(settings.target.clone()));
        *kept = Arc::downgrade(&pool);
        pool
    }
}

impl Factory for WebFactory {
    fn build(&self, spec: &ProviderSpec, context: ProviderContext) -> Result<Arc<dyn Provider>> {
        let Some(config) = &spec.web else {
            let message = "must be set, with the url of the service".to_owned();
            return Err(ProviderError::Invalid { field: "spec.provider.web".into(), message });
        };
        let settings = settings::check(config, context.credentials.as_deref())?;
        let pool = self.pool(&settings, context.credentials.as_deref());
        Ok(Arc::new(WebProvider::new(Http::new(settings, pool), context)))
    }

    fn capabilities(&self) -> Option<Capabilities> {
        Some(v2::wire::most())
    }
}

/// An interface that the service has.
enum Session {
    V1(V1),
    V2(V2, About),
}

/// Every pod of the node: as it is and whether that is news, and those that are there no more.
struct Listed {
    pods: Vec<(PodObservation, bool)>,
    gone: Vec<PodRef>,
    cursor: Option<String>,
}

/// What the provider and what follows its news have in common.
struct Shared {
    http: Arc<Http>,
    node: Arc<str>,
    node_uid: Arc<str>,
    epoch: i64,
    notifier: Arc<dyn PodNotifier>,
    guard: Arc<Guard>,
    session: Mutex<Option<Arc<Session>>>,
    /// The session as it was last settled, and what the service can do.
    settled: ArcSwap<(Option<Arc<Session>>, Capabilities)>,
    /// Something was done, so news are to be expected.
    poke: Notify,
    /// No news come now, since something went wrong.
    deaf: AtomicBool,
}

/// The pods of one node at a service.
struct WebProvider {
    shared: Arc<Shared>,
    following: OnceLock<DropGuard>,
}

impl WebProvider {
    fn new(http: Http, context: ProviderContext) -> Self {
        // Until the service has said what it can do: no pod comes before that.
        let capabilities = v1::capabilities(http.settings.features);
        let shared = Shared {
            http: Arc::new(http),
            guard: Arc::new(Guard::new(context.node.clone(), context.notifier.clone())),
            node: context.node,
            node_uid: context.node_uid,
            epoch: context.epoch,
            notifier: context.notifier,
            session: Mutex::default(),
            settled: ArcSwap::from_pointee((None, capabilities)),
            poke: Notify::new(),
            deaf: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), following: OnceLock::new() }
    }

    /// Begins to follow the news, once.
    fn follow(&self) {
        self.following.get_or_init(|| {
            let stop = CancellationToken::new();
            let (shared, stopped) = (self.shared.clone(), stop.clone());
            tokio::spawn(async move { stopped.run_until_cancelled(follow::follow(shared)).await });
            stop.drop_guard()
        });
    }

    /// The same answer for a request of V2 in a session of V1.
    fn unsupported<T>(what: &'static str) -> Result<T> {
        Err(ProviderError::Unsupported(what))
    }
}

impl Shared {
    fn settings(&self) -> &Settings {
        &self.http.settings
    }

    fn is_current(&self, session: &Arc<Session>) -> bool {
        self.settled.load().0.as_ref().is_some_and(|s| Arc::ptr_eq(s, session))
    }

    /// The interface that the service has, found out once until something goes wrong.
    async fn session(&self) -> Result<Arc<Session>> {
        let mut session = self.session.lock().await;
        if let Some(known) = &*session {
            return Ok(known.clone());
        }
        let found = self.negotiate().await?;
        Ok(self.settle(&mut session, found))
    }

    fn settle(&self, session: &mut Option<Arc<Session>>, found: Session) -> Arc<Session> {
        let (version, capabilities) = match &found {
            Session::V1(_) => ("V1", v1::capabilities(self.settings().features)),
            Session::V2(_, about) => ("V2", about.capabilities()),
        };
        let found = Arc::new(found);
        let before = self.settled.load();
        if before.0.is_none() || before.1 != capabilities {
            tracing::info!(node = %self.node, interface = version, service = ?self.settings().target, "the service has told its interface");
        }
        self.settled.store(Arc::new((Some(found.clone()), capabilities)));
        *session = Some(found.clone());
        found
    }

    async fn negotiate(&self) -> Result<Session> {
        let v1 = || V1::new(self.http.clone(), self.node.clone(), self.node_uid.clone(), self.guard.clone());
        let v2 = || V2::new(self.http.clone(), self.node.clone(), self.node_uid.clone(), self.epoch);
        let interface = self.settings().interface;
        if interface == WebInterface::V1 {
            return Ok(Session::V1(v1()));
        }
        let answer = match v2::probe(&self.http, SOON.min(self.settings().timeout)).await? {
            Probe::Ours(about) => return Ok(Session::V2(v2(), about)),
            Probe::Other(answer) => answer,
        };
        let strange = || {
            let wanted = "it must say that it has interface V2 of vnode.dev/provider";
            ProviderError::unavailable(format!("{}; {wanted}", answer.story()))
        };
        // Whoever does not accept us, or is not well, has not said that it does not have the interface.
        let says_no = answer.status.is_success() || matches!(answer.status.as_u16(), 400 | 404 | 405 | 501);
        if !says_no {
            return Err(answer.unavailable());
        }
        if interface == WebInterface::V2 {
            return Err(strange());
        }
        let v1 = v1();
        v1.ping().await?;
        Ok(Session::V1(v1))
    }

    /// Finds out anew what the service is: it may have been replaced.
    async fn forget_session(&self) {
        *self.session.lock().await = None;
    }

    /// Believes what makes sense of all that the service has, and tells of the news.
    async fn list(&self, session: &Session) -> Result<(Listed, bool)> {
        let listed = match session {
            Session::V1(v1) => v1.pods().await?,
            Session::V2(v2, _) => {
                let asked = Instant::now();
                let (said, cursor) = v2.pods().await?;
                let uids: HashSet<Arc<str>> = said.iter().map(|(o, _)| o.pod.uid.clone()).collect();
                let take = |(said, sequence)| self.guard.take(said, asked, sequence);
                let pods: Vec<_> = said.into_iter().filter_map(take).collect();
                if pods.len() < uids.len() {
                    // Something is there of which nothing can be believed: it is not missing either.
                    let message = "the service's list of pods has one of which nothing makes sense";
                    return Err(ProviderError::unavailable(message));
                }
                Listed { pods, gone: self.guard.take_missing(&uids, asked), cursor }
            }
        };
        let mut news = !listed.gone.is_empty();
        for (observation, _) in listed.pods.iter().filter(|(_, new)| *new) {
            news = true;
            self.notifier.changed(observation.clone());
        }
        for pod in &listed.gone {
            self.notifier.missing(pod);
        }
        Ok((listed, news))
    }

    /// What an answer about one pod leaves behind.
    fn note<T>(&self, pod: &PodRef, result: Result<T>) -> Result<T> {
        if result.as_ref().is_err_and(ProviderError::is_not_found) {
            self.guard.forget(&pod.uid);
        }
        result
    }
}

impl Sink for Shared {
    fn pod(&self, observation: PodObservation, asked: Instant, sequence: Option<i64>) {
        self.guard.tell(observation, asked, sequence);
    }

    fn gone(&self, uid: &str) {
        if let Some(last) = self.guard.last(uid) {
            self.notifier.missing(&last.pod);
        }
    }

    fn notice(&self, notice: Notice) {
        if let Some(last) = self.guard.last(&notice.uid) {
            self.notifier.event(notice.event(last.pod));
        }
    }
}

#[async_trait]
impl Provider for WebProvider {
    fn capabilities(&self) -> Capabilities {
        self.shared.settled.load().1
    }

    async fn create_pod(&self, pod: &ResolvedPod) -> Result<()> {
        // Whoever lists first follows already.
        self.follow();
        let reference = pod.pod_ref();
        if reference.uid.is_empty() {
            return Err(ProviderError::Invalid { field: "metadata.uid".into(), message: "is empty".into() });
        }
        match &*self.shared.session().await? {
            Session::V1(v1) => v1.create(pod).await?,
            Session::V2(v2, _) => {
                v2.create(pod).await?;
                self.shared.guard.given(reference, &pod.pod);
            }
        }
        self.shared.poke.notify_one();
        Ok(())
    }

    async fn update_pod(&self, pod: &ResolvedPod) -> Result<()> {
        let reference = pod.pod_ref();
        match &*self.shared.session().await? {
            Session::V1(v1) => v1.update(pod).await?,
            Session::V2(v2, _) => {
                v2.update(pod, None).await?;
                self.shared.guard.given(reference, &pod.pod);
            }
        }
        self.shared.poke.notify_one();
        Ok(())
    }

    async fn update_volumes(&self, pod: &ResolvedPod, changed: &[String]) -> Result<()> {
        match &*self.shared.session().await? {
            Session::V1(_) => Self::unsupported("changing the files of volumes by interface V1"),
            Session::V2(v2, _) => v2.update(pod, Some(changed)).await,
        }
    }

    async fn stop_pod(&self, pod: &PodRef, grace: Duration) -> Result<()> {
        match &*self.shared.session().await? {
            Session::V1(v1) => v1.stop(pod, grace).await?,
            Session::V2(v2, _) => {
                v2.stop(pod, grace).await?;
                self.shared.guard.stopping(&pod.uid);
            }
        }
        self.shared.poke.notify_one();
        Ok(())
    }

    async fn remove_pod(&self, pod: &PodRef) -> Result<()> {
        match &*self.shared.session().await? {
            Session::V1(v1) => v1.remove(pod).await?,
            Session::V2(v2, _) => v2.remove(pod).await?,
        }
        self.shared.guard.forget(&pod.uid);
        Ok(())
    }

    async fn get_pod(&self, pod: &PodRef) -> Result<PodObservation> {
        let result = match &*self.shared.session().await? {
            Session::V1(v1) => v1.pod(pod).await,
            Session::V2(v2, _) => {
                let asked = Instant::now();
                v2.pod(pod).await.and_then(|(said, sequence)| {
                    let holds = self.shared.guard.take(said, asked, sequence);
                    let nothing =
                        || ProviderError::unavailable(format!("nothing the service says of pod {pod} makes sense"));
                    holds.map(|(observation, _)| observation).ok_or_else(nothing)
                })
            }
        };
        self.shared.note(pod, result)
    }

    async fn list_pods(&self) -> Result<Vec<PodObservation>> {
        self.follow();
        let session = self.shared.session().await?;
        let (listed, _) = self.shared.list(&session).await?;
        Ok(listed.pods.into_iter().map(|(observation, _)| observation).collect())
    }

    async fn ping(&self) -> Result<()> {
        let asked = async {
            match &*self.shared.session().await? {
                Session::V1(v1) => v1.ping().await,
                Session::V2(_, known) => match v2::probe(&self.shared.http, SOON).await? {
                    Probe::Ours(about)
                        if about.capabilities() == known.capabilities() && about.abilities == known.abilities =>
                    {
                        Ok(())
                    }
                    // It was replaced by another version of itself.
                    Probe::Ours(_) => Err(ProviderError::unavailable("the service has other abilities than before")),
                    Probe::Other(answer) => Err(answer.unavailable()),
                },
            }
        };
        let answer = tokio::time::timeout(SOON, asked).await.unwrap_or_else(|_| {
            let origin = self.shared.settings().target.origin();
            Err(ProviderError::unavailable(format!("{origin}: no answer within {} s", SOON.as_secs_f32())))
        });
        if answer.is_err() {
            self.shared.forget_session().await;
        } else if self.shared.deaf.load(Ordering::Acquire) {
            self.shared.poke.notify_one();
        }
        answer
    }

    async fn describe_node(&self) -> Result<NodeDescription> {
        match &*self.shared.session().await? {
            Session::V1(v1) => {
                let described = v1.describe().await?;
                // A newer version of the service may have taken its place without anybody noticing.
                let auto = self.shared.settings().interface == WebInterface::Auto;
                if auto && matches!(v2::probe(&self.shared.http, SOON).await, Ok(Probe::Ours(_))) {
                    self.shared.forget_session().await;
                }
                Ok(described)
            }
            Session::V2(v2, _) => v2.describe().await,
        }
    }

    async fn logs(&self, pod: &PodRef, container: &str, options: &LogOptions) -> Result<LogStream> {
        match &*self.shared.session().await? {
            Session::V1(v1) => v1.logs(pod, container, options).await,
            Session::V2(_, about) if !about.abilities.logs => Self::unsupported("reading logs"),
            Session::V2(v2, _) => v2.logs(pod, container, options).await,
        }
    }

    async fn exec(&self, pod: &PodRef, container: &str, command: &[String], io: SessionIo) -> Result<ExitStatus> {
        match &*self.shared.session().await? {
            Session::V2(v2, about) if about.abilities.exec => v2.exec(pod, container, command, io).await,
            _ => Self::unsupported("exec"),
        }
    }

    async fn attach(&self, pod: &PodRef, container: &str, io: SessionIo) -> Result<ExitStatus> {
        match &*self.shared.session().await? {
            Session::V2(v2, about) if about.abilities.attach => v2.attach(pod, container, io).await,
            _ => Self::unsupported("attach"),
        }
    }

    async fn port_forward(&self, pod: &PodRef, port: u16) -> Result<Box<dyn Duplex>> {
        match &*self.shared.session().await? {
            Session::V2(v2, about) if about.abilities.port_forward => v2.port_forward(pod, port).await,
            _ => Self::unsupported("port-forward"),
        }
    }

    async fn stats(&self) -> Result<NodeUsage> {
        match &*self.shared.session().await? {
            Session::V2(v2, about) if about.abilities.stats => v2.stats().await,
            _ => Self::unsupported("statistics"),
        }
    }
}
