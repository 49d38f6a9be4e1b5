//! What a node's service was given and has said, and the complaints about it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::sane::{Complaint, Known, sane};
use crate::provider::{EventType, PodEvent, PodNotifier, PodObservation, PodRef};

struct Entry {
    known: Known,
    /// This process gave it to the service, rather than find it there.
    given: bool,
    /// When the question was asked that `known.last` answers.
    asked: Option<Instant>,
    /// The service's own number of that answer, where it numbers them.
    sequence: Option<i64>,
    /// What was complained of and has not been put right since.
    told: BTreeSet<&'static str>,
}

/// The pods of one node at its service. Believes only what makes sense, and tells each complaint once.
pub(crate) struct Guard {
    node: Arc<str>,
    notifier: Arc<dyn PodNotifier>,
    pods: Mutex<HashMap<Arc<str>, Entry>>,
}

impl Guard {
    /// Knows no pod.
    pub fn new(node: Arc<str>, notifier: Arc<dyn PodNotifier>) -> Self {
        Self { node, notifier, pods: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Entry>> {
        // Entries are replaced field by field with values made beforehand, so a panic leaves them sound.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The service has been given this pod, or a change of it.
    pub fn given(&self, reference: PodRef, pod: &Pod) {
        let mut pods = self.lock();
        let entry = pods.entry(reference.uid.clone()).or_insert_with(|| Entry::found(reference));
        entry.known.learn(pod);
        entry.given = true;
    }

    /// True when this process gave the pod to the service.
    pub fn gave(&self, uid: &str) -> bool {
        self.lock().get(uid).is_some_and(|e| e.given)
    }

    /// The service has been asked to stop the pod.
    pub fn stopping(&self, uid: &str) {
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.known.stopping = true;
        }
    }

    /// True when the service has been asked to stop the pod.
    pub fn is_stopping(&self, uid: &str) -> bool {
        self.lock().get(uid).is_some_and(|e| e.known.stopping)
    }

    /// The pod is no more.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// What was last believed of a pod.
    pub fn last(&self, uid: &str) -> Option<PodObservation> {
        self.lock().get(uid)?.known.last.clone()
    }

    /// The pod that goes by this name, when the service does not say its uid.
    pub fn by_name(&self, namespace: &str, name: &str) -> Option<PodRef> {
        let pods = self.lock();
        let mut found = pods.values().map(|e| &e.known.pod);
        found.find(|p| &*p.namespace == namespace && &*p.name == name).cloned()
    }

    /// What holds after the service has said this in answer to a question asked at `asked`, and whether that is
    /// news. `sequence` is a number that grows with every change of the pod, for services that have one. `None` when nothing of it can be believed and nothing was known.
    pub fn take(&self, said: PodObservation, asked: Instant, sequence: Option<i64>) -> Option<(PodObservation, bool)> {
        let mut pods = self.lock();
        let entry = pods.entry(said.pod.uid.clone()).or_insert_with(|| Entry::found(said.pod.clone()));
        // An answer to an older question came late, or news were overtaken by an answer.
        let overtaken = match (entry.sequence, sequence) {
            (Some(before), Some(now)) => before > now,
            _ => entry.asked.is_some_and(|before| before > asked),
        };
        if overtaken && let Some(last) = &entry.known.last {
            return Some((last.clone(), false));
        }
        let (believed, complaints) = sane(said, &entry.known, Timestamp::now());
        let new: Vec<Complaint> = complaints.iter().filter(|c| !entry.told.contains(c.reason)).cloned().collect();
        entry.told = complaints.iter().map(|c| c.reason).collect();
        let pod = entry.known.pod.clone();
        let holds = believed.or_else(|| entry.known.last.clone());
        let news = holds.is_some() && holds != entry.known.last;
        if news {
            entry.known.last.clone_from(&holds);
        }
        entry.asked = Some(asked);
        entry.sequence = sequence;
        drop(pods);
        for complaint in new {
            self.complain(pod.clone(), complaint);
        }
        Some((holds?, news))
    }

    /// Tells what holds after the service has said this, if it is news. For what nobody asked for.
    pub fn tell(&self, said: PodObservation, asked: Instant, sequence: Option<i64>) {
        if let Some((observation, true)) = self.take(said, asked, sequence) {
            self.notifier.changed(observation);
        }
    }

    /// The pods that the service knew before `asked` and that are not in its complete answer to that question. Each is
    /// named once.
    pub fn take_missing(&self, listed: &HashSet<Arc<str>>, asked: Instant) -> Vec<PodRef> {
        let mut missing = Vec::new();
        self.lock().retain(|uid, entry| {
            if entry.known.last.is_none() || entry.asked.is_none_or(|at| at >= asked) || listed.contains(uid) {
                return true;
            }
            missing.push(entry.known.pod.clone());
            entry.asked = None;
            // What was only found there has been removed by somebody else: nobody will ask for it.
            entry.given
        });
        missing
    }

    /// True while a pod is on its way to running or to its end, so that news are to be expected.
    pub fn unsettled(&self) -> bool {
        self.lock().values().any(|e| match &e.known.last {
            None => e.given,
            Some(last) => {
                let ended = last.is_terminated();
                let waits = last.containers.iter().any(|c| c.state.as_ref().is_none_or(|s| s.waiting.is_some()));
                !ended && (e.known.stopping || waits || last.containers.is_empty())
            }
        })
    }

    /// Tells of something that the service said of a pod and that is not believed.
    pub fn complain(&self, pod: PodRef, complaint: Complaint) {
        let Complaint { reason, message } = complaint;
        tracing::warn!(node = %self.node, %pod, reason, "{message}");
        self.notifier.event(PodEvent { pod, field: None, kind: EventType::Warning, reason, message });
    }
}

impl Entry {
    fn found(pod: PodRef) -> Self {
        Self { known: Known::found(pod), given: false, asked: None, sequence: None, told: BTreeSet::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[derive(Default)]
    struct Ear(Mutex<Vec<&'static str>>);

    impl PodNotifier for Ear {
        fn changed(&self, _: PodObservation) {}
        fn event(&self, event: PodEvent) {
            self.0.lock().unwrap().push(event.reason);
        }
    }

    fn said(name: &str, uid: &str) -> PodObservation {
        PodObservation {
            pod: PodRef { namespace: "ns".into(), name: name.into(), uid: uid.into() },
            start_time: None,
            pod_ips: Vec::new(),
            host_ip: None,
            init_containers: Vec::new(),
            containers: Vec::new(),
            ephemeral_containers: Vec::new(),
            reason: None,
            message: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_come_late_and_complaints_that_were_told_change_nothing() {
        let ear = Arc::new(Ear::default());
        let guard = Guard::new("n".into(), ear.clone());
        let early = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        let late = Instant::now();
        let new = PodObservation { reason: Some("New".into()), ..said("a", "1") };
        assert_eq!(guard.take(new.clone(), late, None), Some((new.clone(), true)));
        assert_eq!(guard.take(said("a", "1"), early, None), Some((new.clone(), false)), "an answer that was overtaken");
        assert_eq!(guard.take(new.clone(), late, None), Some((new.clone(), false)), "no news");
        for _ in 0..3 {
            assert_eq!(guard.take(said("b", "1"), Instant::now(), None), Some((new.clone(), false)));
        }
        assert_eq!(*ear.0.lock().unwrap(), ["ForeignPodStatus"]);
        guard.take(new.clone(), Instant::now(), None);
        guard.take(said("b", "1"), Instant::now(), None);
        assert_eq!(ear.0.lock().unwrap().len(), 2, "it is told again after it was right for once");
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_was_there_before_the_question_is_missing() {
        let guard = Guard::new("n".into(), Arc::new(Ear::default()));
        guard.take(said("a", "1"), Instant::now(), None);
        guard.take(said("b", "2"), Instant::now(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        let asked = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        guard.take(said("c", "3"), Instant::now(), None);
        let missing = || guard.take_missing(&HashSet::from(["1".into()]), asked);
        assert_eq!(missing().iter().map(|p| &*p.name).collect::<Vec<_>>(), ["b"]);
        assert!(missing().is_empty(), "it is told once");
        assert_eq!(guard.by_name("ns", "c").map(|p| p.uid.to_string()), Some("3".into()));
    }
}
