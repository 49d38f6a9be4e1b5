//! Interface V1: that of Virtual Kubelet's web provider.
//!
//! It knows pods by name only and has one question for all of them, so most of what the agent wants to know is told
//! from the answers of that.

mod convert;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeAddress, NodeCondition, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use super::http::{Answer, Ask, Http, LARGE, SMALL, encode};
use crate::provider::remote::guard::Guard;
use crate::provider::remote::sane::Complaint;
use crate::provider::{
    Capabilities, LogLine, LogOptions, LogSource, LogStream, NodeDescription, PodFeatures, PodObservation, PodRef,
    ProviderError, ResolvedPod, Result,
};
use convert::{Whose, whose};

/// Questions for single pods under way at a time, where the list does not say how they are.
const QUESTIONS: usize = 4;

/// What a service can do by this interface.
pub(super) fn capabilities(pod: PodFeatures) -> Capabilities {
    Capabilities {
        logs: true,
        plain_logs: true,
        notifies: true,
        by_name: true,
        forgets_stopped: true,
        pod,
        ..Capabilities::default()
    }
}

/// A service that has this interface.
pub(super) struct V1 {
    http: Arc<Http>,
    node: Arc<str>,
    node_uid: Arc<str>,
    guard: Arc<Guard>,
    /// Pods that were stopped and that the service has no more, until the agent forgets them.
    ended: Mutex<HashMap<Arc<str>, PodObservation>>,
    /// Pods that nobody here gave to the service.
    ignored: Mutex<HashSet<Arc<str>>>,
}

/// A pod at the service.
struct Found {
    pod: Pod,
    reference: PodRef,
    whose: Whose,
}

fn lock<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Maps that are changed whole entries at a time, so a panic leaves them sound.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// True for the answer of a service that does not have the path.
fn is_absent(answer: &Answer) -> bool {
    matches!(answer.status.as_u16(), 404 | 405 | 501)
}

impl V1 {
    pub fn new(http: Arc<Http>, node: Arc<str>, node_uid: Arc<str>, guard: Arc<Guard>) -> Self {
        Self { http, node, node_uid, guard, ended: Mutex::default(), ignored: Mutex::default() }
    }

    fn named(path: &str, pod: &PodRef) -> Ask {
        Ask::get(format!("/{path}?namespace={}&name={}", encode(&pod.namespace), encode(&pod.name)))
    }

    /// The answer, when it is a success without an error in it.
    fn success(answer: Answer) -> Result<Answer> {
        if !answer.status.is_success() {
            return Err(answer.unavailable());
        }
        match answer.error_inside() {
            Some(error) => Err(ProviderError::unavailable(format!(
                "{}: the service answers {} with an error in it: {error}",
                answer.what,
                answer.status.as_u16()
            ))),
            None => Ok(answer),
        }
    }

    /// An answer to a request to do something: what the service refuses for good is refused for good.
    fn done(answer: Answer) -> Result<()> {
        if matches!(answer.status.as_u16(), 400 | 413 | 422) {
            return Err(ProviderError::Rejected { reason: "ProviderRefused".into(), message: answer.story() });
        }
        Self::success(answer).map(drop)
    }

    async fn optional<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        let answer = self.http.ask(Ask::get(path), SMALL).await?;
        if is_absent(&answer) {
            return Ok(None);
        }
        Self::success(answer)?.json()
    }

    pub async fn create(&self, resolved: &ResolvedPod) -> Result<()> {
        let reference = resolved.pod_ref();
        if let Some(found) = self.find(&reference).await? {
            if found.reference.uid == reference.uid {
                self.guard.given(reference.clone(), &resolved.pod);
                return Ok(());
            }
            return Err(ProviderError::unavailable(format!(
                "the service still has an older pod {reference} (uid {}); it knows pods by their names only, so the \
                 new one waits for the old one to go",
                found.reference.uid
            )));
        }
        let ask = Ask::with(Method::POST, "/createPod", &convert::outgoing(resolved, &self.node_uid, true))?;
        let answer = self.http.ask(ask, SMALL).await?;
        // A request whose answer was lost may have come to its end meanwhile: then the pod is there, and is this one.
        let made = answer.status.as_u16() == 409
            && self.find(&reference).await?.is_some_and(|found| found.reference.uid == reference.uid);
        if !made {
            Self::done(answer)?;
        }
        lock(&self.ignored).remove(&reference.uid);
        self.guard.given(reference.clone(), &resolved.pod);
        Ok(())
    }

    pub async fn update(&self, resolved: &ResolvedPod) -> Result<()> {
        let reference = resolved.pod_ref();
        let ask = Ask::with(Method::PUT, "/updatePod", &convert::outgoing(resolved, &self.node_uid, false))?;
        let answer = self.http.ask(ask, SMALL).await?;
        self.guard.given(reference.clone(), &resolved.pod);
        match answer.status.as_u16() {
            // Not there, or a service that does not have the path: the pod itself tells which.
            404 => match self.find(&reference).await? {
                Some(found) if found.reference.uid == reference.uid => Ok(()),
                _ => Err(ProviderError::NotFound(format!("pod {reference}"))),
            },
            405 | 501 => Ok(()),
            _ => Self::done(answer),
        }
    }

    pub async fn stop(&self, pod: &PodRef, grace: Duration) -> Result<()> {
        let missing = || ProviderError::NotFound(format!("pod {pod}"));
        let Some(found) = self.find(pod).await?.filter(|f| f.reference.uid == pod.uid) else {
            return if self.guard.is_stopping(&pod.uid) { Ok(()) } else { Err(missing()) };
        };
        if found.whose == Whose::Foreign {
            return Err(missing());
        }
        // Known from here on, so that it has ended when it is gone.
        self.guard.given(found.reference.clone(), &found.pod);
        self.guard.tell(self.said(&found), Instant::now(), None);
        // Before it is asked for: the answer may be lost, and then the pod is gone and nobody would know why.
        self.guard.stopping(&pod.uid);
        self.delete(found.pod, grace).await
    }

    async fn delete(&self, mut pod: Pod, grace: Duration) -> Result<()> {
        let seconds = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        pod.metadata.deletion_grace_period_seconds = Some(seconds);
        pod.metadata
            .deletion_timestamp
            .get_or_insert_with(|| k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()));
        let answer = self.http.ask(Ask::with(Method::DELETE, "/deletePod", &pod)?, SMALL).await?;
        if answer.status.as_u16() == 404 { Ok(()) } else { Self::success(answer).map(drop) }
    }

    pub async fn remove(&self, pod: &PodRef) -> Result<()> {
        let found = self.find(pod).await?.filter(|f| f.reference.uid == pod.uid && f.whose != Whose::Foreign);
        if let Some(found) = found {
            if found.whose == Whose::Unmarked && !self.guard.gave(&pod.uid) {
                let message = format!(
                    "the service has pod {pod} for this node, which was not given to it from here; it is left alone. \
                     If it is nobody's, delete it at the service"
                );
                self.guard.complain(pod.clone(), Complaint { reason: "UnknownPodAtProvider", message });
                lock(&self.ignored).insert(pod.uid.clone());
            } else {
                self.delete(found.pod, Duration::ZERO).await?;
            }
        }
        lock(&self.ended).remove(&pod.uid);
        Ok(())
    }

    /// The pod of this name, which may have another uid.
    async fn find(&self, pod: &PodRef) -> Result<Option<Found>> {
        let answer = self.http.ask(Self::named("getPod", pod), SMALL).await?;
        match answer.status.as_u16() {
            404 => Ok(None),
            // It has only the list.
            405 | 501 => {
                let same = |f: &Found| f.reference.namespace == pod.namespace && f.reference.name == pod.name;
                Ok(self.everything().await?.into_iter().find(same))
            }
            _ => {
                let answer = Self::success(answer)?;
                let Some(value) = answer.json::<Option<Value>>()? else { return Ok(None) };
                let wrong = |why: String| ProviderError::unavailable(format!("{}: {why}", answer.what));
                let found: Pod = serde_json::from_value(value).map_err(|e| wrong(format!("is no pod: {e}")))?;
                let name = (found.metadata.namespace.as_deref(), found.metadata.name.as_deref());
                if name != (Some(&*pod.namespace), Some(&*pod.name)) {
                    let other = format!("{}/{}", name.0.unwrap_or_default(), name.1.unwrap_or_default());
                    return Err(wrong(format!("asked for pod {pod}, the service answers with {other:?}")));
                }
                let uid = found.metadata.uid.as_deref().filter(|u| !u.is_empty()).unwrap_or(&pod.uid).into();
                let whose = whose(&found, &self.node, &self.node_uid);
                Ok(Some(Found { pod: found, reference: PodRef { uid, ..pod.clone() }, whose }))
            }
        }
    }

    /// Every pod that the service has, other nodes' included.
    async fn everything(&self) -> Result<Vec<Found>> {
        let answer = self.http.ask(Ask::get("/getPods"), LARGE).await?;
        if is_absent(&answer) {
            return Err(ProviderError::unavailable(format!(
                "{}; the service must list its pods, or a restart would lose them: is spec.provider.web.url right?",
                answer.story()
            )));
        }
        let answer = Self::success(answer)?;
        let items = match answer.json::<Value>()? {
            Value::Array(items) => items,
            // How Go writes a list that is empty.
            Value::Null => Vec::new(),
            Value::Object(mut map) if map.get("items").is_some_and(|i| i.is_array() || i.is_null()) => {
                match map.remove("items") {
                    Some(Value::Array(items)) => items,
                    _ => Vec::new(),
                }
            }
            _ => {
                let message = format!("{}: the answer must be a list of pods: {}", answer.what, answer.glimpse());
                return Err(ProviderError::unavailable(message));
            }
        };
        items.into_iter().map(|item| self.found(item, &answer.what)).collect()
    }

    /// A pod of the list. One that cannot be told apart makes the list useless: others would seem to be missing.
    fn found(&self, item: Value, what: &str) -> Result<Found> {
        let text = |key: &str| item["metadata"][key].as_str().unwrap_or_default().to_owned();
        let (namespace, name, uid) = (text("namespace"), text("name"), text("uid"));
        let known = match uid.is_empty() {
            true => self.guard.by_name(&namespace, &name),
            false => Some(PodRef { namespace: namespace.as_str().into(), name: name.as_str().into(), uid: uid.into() }),
        };
        let pod = serde_json::from_value::<Pod>(item);
        let Some(reference) = known.filter(|r| !r.name.is_empty()) else {
            let foreign = pod.is_ok_and(|p| whose(&p, &self.node, &self.node_uid) == Whose::Foreign);
            let reference = PodRef { namespace: namespace.into(), name: name.into(), uid: "".into() };
            if foreign {
                return Ok(Found { pod: Pod::default(), reference, whose: Whose::Foreign });
            }
            return Err(ProviderError::unavailable(format!(
                "{what}: pod {reference} has no metadata.uid; the service must keep pods as they are given to it"
            )));
        };
        match pod {
            Ok(pod) => {
                let whose = whose(&pod, &self.node, &self.node_uid);
                Ok(Found { pod, reference, whose })
            }
            // It is there; how it is, is not known, so what was known holds.
            Err(error) => {
                tracing::warn!(node = %self.node, pod = %reference, %error, "what the service says of a pod makes no sense");
                let whose = if self.guard.last(&reference.uid).is_some() { Whose::Ours } else { Whose::Unmarked };
                Ok(Found { pod: Pod::default(), reference, whose })
            }
        }
    }

    /// What the service says of a pod, whether it can be believed or not.
    fn said(&self, found: &Found) -> PodObservation {
        let last = self.guard.last(&found.reference.uid);
        convert::observation(found.reference.clone(), &found.pod, last.as_ref(), Timestamp::now())
    }

    /// What is known of a pod.
    pub async fn pod(&self, pod: &PodRef) -> Result<PodObservation> {
        let missing = || ProviderError::NotFound(format!("pod {pod}"));
        let found = match self.find(pod).await? {
            // A page of something in between also says 404, so a pod that was there must be missing from a list.
            None if self.guard.last(&pod.uid).is_some() => {
                self.everything().await?.into_iter().find(|f| f.reference.uid == pod.uid)
            }
            found => found,
        };
        match found.filter(|f| f.reference.uid == pod.uid) {
            Some(found) if found.whose == Whose::Foreign => Err(missing()),
            Some(found) => Ok(self.with_status(found).await?.0),
            None => self.end(&pod.uid).map(|(ended, _)| ended).ok_or_else(missing),
        }
    }

    /// How a pod is; asked for by itself when its JSON does not say.
    async fn with_status(&self, mut found: Found) -> Result<(PodObservation, bool)> {
        let asked = Instant::now();
        if found.pod.status.is_none() {
            let answer = self.http.ask(Self::named("getPodStatus", &found.reference), SMALL).await?;
            if !is_absent(&answer) {
                found.pod.status = Self::success(answer)?.json::<Option<PodStatus>>()?;
            }
        }
        let nothing = || ProviderError::unavailable(format!("the service says nothing of pod {}", found.reference));
        self.guard.take(self.said(&found), asked, None).ok_or_else(nothing)
    }

    /// The end of a pod that was stopped and is gone, and whether that is news.
    fn end(&self, uid: &Arc<str>) -> Option<(PodObservation, bool)> {
        let mut all = lock(&self.ended);
        if let Some(ended) = all.get(uid) {
            return Some((ended.clone(), false));
        }
        let last = self.guard.is_stopping(uid).then(|| self.guard.last(uid)).flatten()?;
        let (ended, news) = self.guard.take(convert::ended(last, Timestamp::now()), Instant::now(), None)?;
        all.insert(uid.clone(), ended.clone());
        Some((ended, news))
    }

    /// Every pod of this node, and those that it had before and that are not there any more.
    pub async fn pods(&self) -> Result<super::Listed> {
        let asked = Instant::now();
        let ours = |found: &Found| found.whose != Whose::Foreign && !lock(&self.ignored).contains(&found.reference.uid);
        let found: Vec<Found> = self.everything().await?.into_iter().filter(ours).collect();
        let listed: HashSet<Arc<str>> = found.iter().map(|f| f.reference.uid.clone()).collect();
        let mut pods = Vec::with_capacity(found.len());
        let mut answers = stream::iter(found).map(|f| self.with_status(f)).buffer_unordered(QUESTIONS);
        while let Some(answer) = answers.next().await {
            pods.push(answer?);
        }
        drop(answers);
        let before: Vec<PodObservation> = lock(&self.ended).values().cloned().collect();
        pods.extend(before.into_iter().filter(|o| !listed.contains(&o.pod.uid)).map(|o| (o, false)));
        let mut gone = self.guard.take_missing(&listed, asked);
        // Those that were stopped have ended.
        gone.retain(|pod| match self.end(&pod.uid) {
            Some((ended, news)) => {
                if news {
                    pods.push((ended, news));
                }
                false
            }
            None => true,
        });
        Ok(super::Listed { pods, gone, cursor: None })
    }

    pub async fn ping(&self) -> Result<()> {
        let Some(conditions) = self.optional::<Option<Vec<NodeCondition>>>("/nodeConditions").await? else {
            return self.everything().await.map(drop);
        };
        let ready = conditions.iter().flatten().find(|c| c.type_ == "Ready");
        match ready.filter(|r| r.status != "True") {
            Some(ready) => {
                let why = [&ready.reason, &ready.message].into_iter().flatten().cloned().collect::<Vec<_>>().join(": ");
                Err(ProviderError::unavailable(format!("the service says that it is not ready: {why}")))
            }
            None => Ok(()),
        }
    }

    pub async fn describe(&self) -> Result<NodeDescription> {
        let capacity = self.optional::<Option<BTreeMap<String, Value>>>("/capacity").await?.flatten();
        let conditions = self.optional::<Option<Vec<NodeCondition>>>("/nodeConditions").await?.flatten();
        let addresses = self.optional::<Option<Vec<NodeAddress>>>("/nodeAddresses").await?.flatten();
        let amount = |(name, value): (String, Value)| match value {
            Value::String(text) => Some((name, Quantity(text))),
            Value::Number(number) => Some((name, Quantity(number.to_string()))),
            _ => None,
        };
        // Nobody reaches the node at an address that means everybody's own machine.
        let reachable = |a: &NodeAddress| {
            let ip = a.address.parse::<std::net::IpAddr>();
            !a.address.is_empty() && !ip.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
        };
        Ok(NodeDescription {
            capacity: capacity.unwrap_or_default().into_iter().filter_map(amount).collect(),
            conditions: conditions.unwrap_or_default().into_iter().filter(|c| c.type_ != "Ready").collect(),
            addresses: addresses.unwrap_or_default().into_iter().filter(reachable).collect(),
            ..NodeDescription::default()
        })
    }

    pub async fn logs(&self, pod: &PodRef, container: &str, options: &LogOptions) -> Result<LogStream> {
        for (asked, what) in [
            (options.follow, "following logs by interface V1"),
            (options.previous, "logs of previous containers by interface V1"),
            (options.since.is_some(), "logs since a time by interface V1"),
        ] {
            if asked {
                return Err(ProviderError::Unsupported(what));
            }
        }
        if options.tail == Some(0) {
            return Ok(stream::empty().boxed());
        }
        let query = [("namespace", &*pod.namespace), ("podName", &*pod.name), ("containerName", container)];
        let query = query.map(|(key, value)| format!("{key}={}", encode(value))).join("&");
        // 0 is all there is.
        let path = format!("/getContainerLogs?{query}&tail={}", options.tail.unwrap_or_default());
        let answer = self.http.ask(Ask::get(path).header("accept", "*/*"), LARGE).await?;
        if answer.status.as_u16() == 404 {
            return Err(ProviderError::NotFound(format!("log of container {container:?} in pod {pod}")));
        }
        if !answer.status.is_success() {
            return Err(answer.unavailable());
        }
        let (text, time) = (Bytes::from(convert::log_text(&answer.body)), Timestamp::now());
        let mut lines: Vec<Bytes> = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |n| n + 1);
            lines.push(rest.split_to(end));
        }
        let skipped =
            options.tail.map_or(0, |tail| lines.len().saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX)));
        let line = move |text| Ok(LogLine { time, source: LogSource::Stdout, text });
        Ok(stream::iter(lines.into_iter().skip(skipped).map(line)).boxed())
    }
}
