//! One simulated node: its pods, and how it behaves.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;

use super::engine::{Core, guard};
use super::settings::{Settings, draw};
use super::sim::SimPod;
use crate::api::MockConfig;
use crate::provider::{EnvVar, PodNotifier, PodObservation, PodRef, ProviderError, ResolvedPod, Result};

/// Creation attempts that are remembered; more are counted anew.
const MAX_ATTEMPTS: usize = 4096;

/// How a node behaves; replaced as a whole when its configuration changes.
pub(super) struct Behaviour {
    pub settings: Arc<Settings>,
    pub config: MockConfig,
    pub notifier: Arc<dyn PodNotifier>,
}

/// A simulated node.
pub(super) struct SimNode {
    name: Arc<str>,
    behaviour: RwLock<Arc<Behaviour>>,
    pods: Mutex<HashMap<Arc<str>, Pod>>,
    attempts: Mutex<HashMap<Arc<str>, u64>>,
    /// The environment of the latest pod, which the next one often shares.
    latest: Mutex<Option<Environment>>,
    /// Wakes those who follow logs or are attached.
    pub changed: Notify,
    pub core: Arc<Core>,
}

struct Pod {
    sim: Box<SimPod>,
    env: Environment,
}

/// Resolved environment by container, for those that have one. Pods of one workload share it.
type Environment = Arc<[(Box<str>, Vec<EnvVar>)]>;

impl SimNode {
    pub fn new(name: Arc<str>, behaviour: Behaviour, core: Arc<Core>) -> Self {
        Self {
            name,
            behaviour: RwLock::new(Arc::new(behaviour)),
            pods: Mutex::default(),
            attempts: Mutex::default(),
            latest: Mutex::default(),
            changed: Notify::new(),
            core,
        }
    }

    pub fn behaviour(&self) -> Arc<Behaviour> {
        self.behaviour.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(behaviour);
    }

    /// What everything random about a pod follows from.
    fn seed(&self, uid: &str) -> u64 {
        let seed = self.behaviour().config.seed.unwrap_or(0);
        draw(draw(seed, self.name.as_bytes(), 0), uid.as_bytes(), 1)
    }

    pub fn create(self: &Arc<Self>, resolved: &ResolvedPod, restore: bool) -> Result<()> {
        let reference = resolved.pod_ref();
        if guard(&self.pods).contains_key(&reference.uid) {
            return Ok(());
        }
        let behaviour = self.behaviour();
        let annotations = resolved.pod.metadata.annotations.as_ref();
        let settings = match behaviour.settings.overridden(annotations) {
            Ok(Some(own)) => Arc::new(own),
            Ok(None) => behaviour.settings.clone(),
            // What runs already keeps running, whatever has become of its annotations.
            Err(_) if restore => behaviour.settings.clone(),
            Err(error) => return Err(error),
        };
        let seed = self.seed(&reference.uid);
        if !restore {
            self.maybe_fail(&reference, &settings, seed)?;
        }
        let now = self.core.now();
        let status = resolved.pod.status.as_ref();
        let wanted = status.filter(|_| restore).and_then(|s| s.pod_ip.as_deref()).and_then(|ip| ip.parse().ok());
        let ip = self.core.take_address(wanted);
        let mut sim = SimPod::new(&resolved.pod, settings, seed, ip, now);
        if restore {
            sim.restore(&resolved.pod, now);
        }
        sim.advance(now);
        let env = resolved.containers.iter().filter(|(_, c)| !c.env.is_empty());
        let env = env.map(|(name, c)| (name.as_str().into(), c.with_pod_ips(&[ip.into()]).env)).collect();
        let env = self.shared(env);
        let mut pods = guard(&self.pods);
        if pods.contains_key(&reference.uid) {
            drop(pods);
            self.core.free_address(ip);
            return Ok(());
        }
        self.reschedule(&mut sim);
        let observation = sim.observation();
        pods.insert(reference.uid, Pod { sim: Box::new(sim), env });
        drop(pods);
        behaviour.notifier.changed(observation);
        Ok(())
    }

    /// The same environment, in memory once if it is that of the latest pod.
    fn shared(&self, new: Vec<(Box<str>, Vec<EnvVar>)>) -> Environment {
        let mut latest = guard(&self.latest);
        match &*latest {
            Some(same) if **same == *new => same.clone(),
            _ => latest.insert(new.into()).clone(),
        }
    }

    fn maybe_fail(&self, pod: &PodRef, settings: &Settings, seed: u64) -> Result<()> {
        if settings.create_failure_percent == 0 {
            return Ok(());
        }
        let mut attempts = guard(&self.attempts);
        if attempts.len() >= MAX_ATTEMPTS && !attempts.contains_key(&pod.uid) {
            attempts.clear();
        }
        let attempt = attempts.entry(pod.uid.clone()).or_default();
        *attempt += 1;
        if draw(seed, b"create", *attempt) % 100 < u64::from(settings.create_failure_percent) {
            return Err(ProviderError::unavailable(format!("simulated failure of attempt {attempt} to create {pod}")));
        }
        attempts.remove(&pod.uid);
        Ok(())
    }

    fn reschedule(self: &Arc<Self>, sim: &mut SimPod) {
        let next = sim.next(self.core.now());
        if next == sim.due && next.is_some() {
            return;
        }
        sim.due = next;
        sim.timer = sim.timer.wrapping_add(1);
        if let Some(at) = next {
            self.core.schedule(Arc::downgrade(self), sim.reference.uid.clone(), sim.timer, at);
        }
    }

    /// A timer's time has come.
    pub fn fire(self: &Arc<Self>, uid: &str, number: u32) {
        let mut pods = guard(&self.pods);
        let Some(pod) = pods.get_mut(uid).filter(|p| p.sim.timer == number) else { return };
        pod.sim.due = None;
        self.live(pods, uid);
    }

    /// Lets a pod live up to now, and tells of it.
    fn live(self: &Arc<Self>, mut pods: std::sync::MutexGuard<'_, HashMap<Arc<str>, Pod>>, uid: &str) {
        let Some(pod) = pods.get_mut(uid) else { return };
        let changed = pod.sim.advance(self.core.now());
        self.reschedule(&mut pod.sim);
        let observation = changed.then(|| pod.sim.observation());
        drop(pods);
        if let Some(observation) = observation {
            self.changed.notify_waiters();
            self.behaviour().notifier.changed(observation);
        }
    }

    pub fn stop(self: &Arc<Self>, pod: &PodRef, grace: Duration) -> Result<()> {
        let mut pods = guard(&self.pods);
        let Some(found) = pods.get_mut(&pod.uid) else { return Err(not_found(pod)) };
        found.sim.stop(self.core.now(), u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        self.live(pods, &pod.uid);
        Ok(())
    }

    pub fn remove(&self, pod: &PodRef) {
        guard(&self.attempts).remove(&pod.uid);
        let removed = guard(&self.pods).remove(&pod.uid);
        if let Some(pod) = removed {
            self.core.free_address(pod.sim.ip);
            self.changed.notify_waiters();
        }
    }

    pub fn observe(&self, pod: &PodRef) -> Result<PodObservation> {
        self.with(pod, SimPod::observation)
    }

    pub fn observe_all(&self) -> Vec<PodObservation> {
        guard(&self.pods).values().map(|p| p.sim.observation()).collect()
    }

    pub fn with<T>(&self, pod: &PodRef, look: impl FnOnce(&SimPod) -> T) -> Result<T> {
        guard(&self.pods).get(&pod.uid).map(|p| look(&p.sim)).ok_or_else(|| not_found(pod))
    }

    pub fn each<T>(&self, look: impl Fn(&SimPod) -> T) -> Vec<T> {
        guard(&self.pods).values().map(|p| look(&p.sim)).collect()
    }

    pub fn env(&self, pod: &PodRef, container: &str) -> BTreeMap<String, String> {
        let pods = guard(&self.pods);
        let env = pods.get(&pod.uid).into_iter().flat_map(|p| p.env.iter()).filter(|(name, _)| **name == *container);
        env.flat_map(|(_, env)| env.iter().map(|v| (v.name.clone(), v.value.clone()))).collect()
    }

    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        self.each(|p| p.ip)
    }
}

impl Drop for SimNode {
    fn drop(&mut self) {
        for ip in self.addresses() {
            self.core.free_address(ip);
        }
    }
}

pub(super) fn not_found(pod: &PodRef) -> ProviderError {
    ProviderError::NotFound(format!("pod {pod}"))
}
