//! The replicas of the operator: each has a Lease in the operator's namespace and follows those of the others.
//!
//! A replica whose Lease does not change any more is dead to the others after [`MEMBER_TTL`]; it stops acting by itself
//! earlier than that ([`VALID`] after the last renewal that was accepted), so that nobody acts twice. Who starts under
//! the name of another supersedes it: names belong to pods or machines, where the older process must be gone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch as watch_channel;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ring;
use super::view::{MEMBER_TTL, View};
use crate::cluster::fence::Fence;
use crate::cluster::watch::watch;
use crate::fleet::{is_conflict, is_not_found};

/// Label of members' Leases.
const LABEL: &str = "vnode.dev/component";
const REPLICA: &str = "replica";
/// Which process of that name a Lease is of.
const INSTANCE: &str = "vnode.dev/instance";
/// How often a member renews.
const RENEWAL: Duration = Duration::from_secs(2);
/// How long a renewal is good for by the member's own clock.
const VALID: Duration = Duration::from_secs(8);
/// How soon a renewal that failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How often the list of those alive is looked over.
const LOOK: Duration = Duration::from_secs(1);
/// How long the Lease of a dead member is kept for people to see.
const KEPT: Duration = Duration::from_secs(300);

/// What a watch of the members has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fleet) enum News {
    /// Other members are alive than before.
    Members,
    /// This process was silent for too long: nodes must be confirmed anew.
    Term,
}

/// This replica among the others.
pub(in crate::fleet) struct Members {
    api: Api<Lease>,
    me: String,
    instance: String,
    /// Until when this process may act.
    pub fence: Arc<Fence>,
    view: Mutex<View>,
    alive: ArcSwap<Vec<String>>,
    /// Others' Leases as they were asked for: when the question was sent, and whether there was no living owner.
    asked: Mutex<HashMap<String, (Instant, bool)>>,
    /// The version of our Lease.
    version: Mutex<Option<String>>,
    joined: watch_channel::Sender<bool>,
    replaced: CancellationToken,
    /// There is nobody else, and nothing to tell anybody.
    alone: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of a member's Lease: its own, as far as names of objects allow.
fn lease_name(member: &str) -> String {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let name: String = member.to_ascii_lowercase().chars().map(|c| if fits(c) { c } else { '-' }).collect();
    format!("vnode-replica-{}", name.trim_matches(['-', '.']))
}

impl Members {
    pub fn new(client: Client, namespace: &str, me: &str) -> Arc<Self> {
        Arc::new(Self {
            api: Api::namespaced(client, namespace),
            me: me.into(),
            instance: uuid::Uuid::new_v4().to_string(),
            fence: Fence::closed(),
            view: Mutex::new(View::new(me)),
            alive: ArcSwap::default(),
            asked: Mutex::default(),
            version: Mutex::default(),
            joined: watch_channel::Sender::new(false),
            replaced: CancellationToken::new(),
            alone: false,
        })
    }

    /// The only member of a process that shares its node with nobody: it writes no Lease of its own.
    pub fn alone(client: Client, me: &str) -> Arc<Self> {
        Arc::new(Self {
            api: Api::namespaced(client, crate::api::names::LEASE_NAMESPACE),
            me: me.into(),
            instance: String::new(),
            fence: Fence::open(),
            view: Mutex::new(View::new(me)),
            alive: ArcSwap::from_pointee(vec![me.to_owned()]),
            asked: Mutex::default(),
            version: Mutex::default(),
            joined: watch_channel::Sender::new(true),
            replaced: CancellationToken::new(),
            alone: true,
        })
    }

    /// The member that a node belongs to; `None` while this replica does not know.
    pub fn owner(&self, node: &str) -> Option<String> {
        self.fence.term()?;
        let alive = self.alive.load();
        if !alive.contains(&self.me) {
            return None;
        }
        ring::owner(node, alive.iter().map(String::as_str)).map(str::to_owned)
    }

    /// The replicas that are alive, by name.
    pub fn alive(&self) -> Vec<String> {
        self.alive.load().to_vec()
    }

    /// True when a replica of this name is alive.
    pub fn is_alive(&self, member: &str) -> bool {
        self.alive.load().iter().any(|m| m == member)
    }

    /// Waits until this replica is one of the members.
    pub async fn wait_joined(&self) {
        // Fails only when the sender is gone, which is in `self`.
        let _ = self.joined.subscribe().wait_for(|joined| *joined).await;
    }

    /// Cancelled when another process has taken our name.
    pub fn replaced(&self) -> &CancellationToken {
        &self.replaced
    }

    /// Whether a Lease that was read at `read` and names `holder` may be taken from it: nobody of that name can be
    /// acting. A name that is not known, or known as dead, is asked for once more, since it may have come (back).
    pub async fn may_take_from(&self, holder: &str, read: Instant) -> kube::Result<bool> {
        // Alone, a Lease says who had the Node before: nobody, or the program that this one stands in for.
        if self.alone || holder.is_empty() || holder == self.me {
            return Ok(true);
        }
        if self.is_alive(holder) {
            return Ok(false);
        }
        if let Some((at, gone)) = lock(&self.asked).get(holder)
            && *at >= read
        {
            return Ok(*gone);
        }
        let at = Instant::now();
        let found = self.api.get_opt(&lease_name(holder)).await?;
        let gone = match found {
            Some(lease) if holder_of(&lease) == Some(holder) => {
                lock(&self.view).dead(holder) == lease.metadata.resource_version.as_deref()
            }
            _ => true,
        };
        lock(&self.asked).insert(holder.into(), (at, gone));
        Ok(gone)
    }

    /// Renews and watches until `shutdown`, then leaves, which lets the others take over at once.
    pub async fn run(&self, news: impl Fn(News), shutdown: CancellationToken) {
        if self.alone {
            return shutdown.cancelled().await;
        }
        tokio::join!(self.keep(&news, &shutdown), self.watch(&news, &shutdown));
        self.fence.close();
        // Let go before the call is waited for.
        let version = lock(&self.version).take();
        if let Some(version) = version {
            let mine = Preconditions { uid: None, resource_version: Some(version) };
            let params = DeleteParams { preconditions: Some(mine), ..DeleteParams::default() };
            // Best effort: without it the others wait for the Lease to run out.
            let _ = tokio::time::timeout(VALID, self.api.delete(&lease_name(&self.me), &params)).await;
        }
    }

    async fn keep(&self, news: &impl Fn(News), shutdown: &CancellationToken) {
        let mut told = false;
        loop {
            let sent = Instant::now();
            let renewal = tokio::time::timeout(VALID / 2, self.renew());
            let Some(answer) = shutdown.run_until_cancelled(renewal).await else { return };
            let wait = match answer {
                Ok(Ok(true)) => {
                    if self.fence.extend(sent, VALID) {
                        news(News::Term);
                    }
                    told = false;
                    RENEWAL
                }
                Ok(Ok(false)) => {
                    self.fence.close();
                    tracing::error!(
                        identity = self.me,
                        "another operator has started under this one's name; each needs a name of its own (--identity)"
                    );
                    return self.replaced.cancel();
                }
                Ok(Err(error)) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "this replica's Lease in the operator's namespace (--namespace) could not be written; tried again");
                    }
                    AGAIN
                }
                Err(_) => AGAIN,
            };
            if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    /// False when another process has our name.
    async fn renew(&self) -> kube::Result<bool> {
        let now = Timestamp::now();
        let name = lease_name(&self.me);
        let version = lock(&self.version).clone();
        if let Some(version) = version {
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"renewTime": MicroTime(now)}});
            return match self.api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(meta) => {
                    *lock(&self.version) = meta.metadata.resource_version;
                    Ok(true)
                }
                Err(error) if is_conflict(&error) => match self.api.get_opt(&name).await? {
                    // An answer of ours was lost on its way.
                    Some(lease) if instance_of(&lease) == Some(&self.instance) => {
                        *lock(&self.version) = lease.metadata.resource_version;
                        Box::pin(self.renew()).await
                    }
                    Some(_) => Ok(false),
                    None => self.create(now).await,
                },
                Err(error) if is_not_found(&error) => self.create(now).await,
                Err(error) => Err(error),
            };
        }
        match self.api.get_opt(&name).await? {
            None => self.create(now).await,
            Some(old) => {
                let mut new = self.lease(now);
                new.metadata.resource_version = old.metadata.resource_version;
                let kept = self.api.replace(&name, &PostParams::default(), &new).await?;
                *lock(&self.version) = kept.metadata.resource_version;
                Ok(true)
            }
        }
    }

    async fn create(&self, now: Timestamp) -> kube::Result<bool> {
        let lease = self.api.create(&PostParams::default(), &self.lease(now)).await?;
        *lock(&self.version) = lease.metadata.resource_version;
        Ok(true)
    }

    fn lease(&self, now: Timestamp) -> Lease {
        Lease {
            metadata: ObjectMeta {
                name: Some(lease_name(&self.me)),
                labels: Some(BTreeMap::from([(LABEL.into(), REPLICA.into())])),
                annotations: Some(BTreeMap::from([(INSTANCE.into(), self.instance.clone())])),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.me.clone()),
                lease_duration_seconds: Some(MEMBER_TTL.as_secs() as i32),
                acquire_time: Some(MicroTime(now)),
                renew_time: Some(MicroTime(now)),
                ..LeaseSpec::default()
            }),
        }
    }

    async fn watch(&self, news: &impl Fn(News), shutdown: &CancellationToken) {
        let config = watcher::Config::default().labels(&format!("{LABEL}={REPLICA}"));
        let mut events = watch(self.api.clone(), config).boxed();
        let mut listed = HashSet::new();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // What has arrived comes before conclusions from what has not.
                biased;
                () = shutdown.cancelled() => return,
                event = events.next() => match event {
                    Some(Ok(event)) => self.saw(event, &mut listed),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "the watch of replicas is interrupted");
                        continue;
                    }
                    None => return,
                },
                _ = look.tick() => self.clear_away().await,
            }
            let alive = lock(&self.view).alive();
            if **self.alive.load() != alive {
                tracing::info!(replicas = alive.join(" "), "replicas of this fleet");
                self.alive.store(Arc::new(alive));
                news(News::Members);
            }
            if !*self.joined.borrow() && self.is_alive(&self.me) && self.fence.term().is_some() {
                self.joined.send_replace(true);
            }
        }
    }

    fn saw(&self, event: watcher::Event<Lease>, listed: &mut HashSet<String>) {
        let now = Instant::now();
        let mut view = lock(&self.view);
        let note = |view: &mut View, lease: &Lease| {
            let member = holder_of(lease)?.to_owned();
            view.saw(&member, lease.metadata.resource_version.as_deref().unwrap_or_default(), now);
            Some(member)
        };
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(lease) => listed.extend(note(&mut view, &lease)),
            watcher::Event::InitDone => view.retain(|member| listed.contains(member)),
            watcher::Event::Apply(lease) => drop(note(&mut view, &lease)),
            watcher::Event::Delete(lease) => {
                if let Some(member) = holder_of(&lease) {
                    view.gone(member);
                }
            }
        }
    }

    /// The first of those alive deletes the Leases of the long dead.
    async fn clear_away(&self) {
        if self.alive.load().first() != Some(&self.me) {
            return;
        }
        let dead = lock(&self.view).long_dead(KEPT);
        for (member, version) in dead {
            let same = Preconditions { uid: None, resource_version: Some(version) };
            let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
            // Best effort: the next look tries again.
            let _ = tokio::time::timeout(LOOK, self.api.delete(&lease_name(&member), &params)).await;
        }
    }
}

fn holder_of(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

fn instance_of(lease: &Lease) -> Option<&str> {
    Some(lease.annotations().get(INSTANCE)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_host_makes_a_name_of_a_lease() {
        for (member, want) in [("vnode-0", "vnode-replica-vnode-0"), ("My_Host.", "vnode-replica-my-host")] {
            assert_eq!(lease_name(member), want);
        }
    }
}
