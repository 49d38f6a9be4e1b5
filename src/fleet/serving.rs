//! The serving certificates of the fleet: where they come from, and what stands in their way.
//!
//! With `--serving-cert csr` each node asks the cluster's signer for its own, in its own name. All of them share one
//! queue and one watch of the requests to that signer: nothing here grows with nodes but a map.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::PostParams;
use kube::core::{Request, Resource as _};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use rand::Rng as _;
use rand::distr::{Alphanumeric, SampleString as _};
use tokio::sync::watch as watch_channel;
use tokio_util::sync::CancellationToken;

use super::plan::Problem;
use super::{is_conflict, within};
use crate::cluster::identity::{NodeClient, NodeIdentity};
use crate::cluster::queue::{Backoff, Outcome, WorkQueue};
use crate::cluster::watch::watch;
use crate::tls::leaf::Leaf;
use crate::tls::request::{self, Pending, SIGNER, Step};
use crate::tls::{CertSource, CertState, ServingCerts, given, kept};

/// The share of its life after which a certificate is renewed, and how far around it: a fleet that started together
/// does not ask together again.
const RENEW_AT: std::ops::Range<f64> = 0.75..0.85;
/// Of a request that was refused: approvers do not change their minds in seconds.
const REFUSED: Backoff = Backoff { base: Duration::from_secs(60), max: Duration::from_secs(3600) };
/// Requests under way at a time.
const WORKERS: usize = 8;
/// How long nodes wait for the first word on certificates.
const SETTLING: Duration = Duration::from_secs(10);
const BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(120) };

/// The certificates of this process's nodes.
pub(crate) struct Serving {
    pub(super) certs: Arc<ServingCerts>,
    source: CertSource,
    client: Client,
    /// Asks in the names of nodes, whatever they read in.
    nodes: NodeClient,
    namespace: String,
    wanted: Mutex<Wanted>,
    /// Nodes whose requests are to be looked at.
    queue: Arc<WorkQueue<Arc<str>>>,
    /// VirtualNodes to look at when something has changed.
    told: Arc<WorkQueue<Arc<str>>>,
    /// What can be known of certificates at the start is known.
    settled: watch_channel::Sender<bool>,
}

#[derive(Default)]
struct Wanted {
    nodes: HashMap<Arc<str>, Entry>,
    /// Which node a request is of.
    requests: HashMap<String, Arc<str>>,
}

#[derive(Default)]
struct Entry {
    names: Arc<Vec<String>>,
    pending: Option<Pending>,
    renew_at: Timestamp,
    /// Why the last request brought nothing, and how often that happened in a row.
    refused: Option<String>,
    refusals: u32,
}

impl Serving {
    pub(super) fn new(
        client: Client,
        source: CertSource,
        namespace: String,
        addresses: &[IpAddr],
        told: Arc<WorkQueue<Arc<str>>>,
    ) -> Self {
        let mut names: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        names.dedup();
        names.push("localhost".into());
        // Nodes ask for their own when they are registered.
        let settled = watch_channel::Sender::new(source == CertSource::Csr);
        let certs = match &source {
            CertSource::SelfSigned { .. } | CertSource::InMemory => ServingCerts::awaiting_authority(&names),
            CertSource::Csr => ServingCerts::per_node(),
            CertSource::Secret { .. } | CertSource::Files { .. } => ServingCerts::given(),
        };
        Self {
            certs,
            source,
            nodes: NodeClient::new(client.clone(), NodeIdentity::Impersonate),
            client,
            namespace,
            wanted: Mutex::default(),
            queue: WorkQueue::new(BACKOFF),
            told,
            settled,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Wanted> {
        // Maps that are changed whole entries at a time, so a panic leaves them sound.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps certificates good until the shutdown.
    pub(super) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let (client, certs) = (self.client.clone(), self.certs.clone());
        match &self.source {
            CertSource::SelfSigned { secret } => {
                let (namespace, secret) = (self.namespace.clone(), secret.clone());
                kept::follow(client, namespace, secret, certs, || self.changed(), shutdown).await;
            }
            CertSource::InMemory => {
                shutdown.run_until_cancelled(kept::in_memory(&certs, || self.changed())).await;
            }
            CertSource::Secret { name } => {
                given::follow_secret(client, &self.namespace, name, &certs, || self.changed(), shutdown).await;
            }
            CertSource::Files { certificate, key } => {
                given::follow_files(certificate, key, &certs, || self.changed(), shutdown).await;
            }
            CertSource::Csr => {
                let this = self.clone();
                let working = self.queue.clone().run(WORKERS, shutdown.clone(), move |node| this.clone().step(node));
                tokio::join!(working, self.watch(shutdown));
            }
        }
    }

    /// Waits until a first look at a node's certificate tells more than that nothing is known yet.
    pub(super) async fn wait_settled(&self) {
        let mut settled = self.settled.subscribe();
        // Fails only when the sender is gone, which is ours. Whoever is late is told of later.
        let _ = tokio::time::timeout(SETTLING, settled.wait_for(|s| *s)).await;
    }

    fn changed(&self) {
        self.settled.send_replace(true);
        let nodes: Vec<_> = self.lock().nodes.keys().cloned().collect();
        nodes.into_iter().for_each(|node| self.told.add(node));
    }

    /// The node is registered and publishes these addresses.
    pub(super) fn want(&self, node: &Arc<str>, names: &Arc<Vec<String>>) {
        let mut wanted = self.lock();
        match wanted.nodes.get_mut(node) {
            Some(entry) if entry.names == *names => return,
            Some(entry) => entry.names = names.clone(),
            None => {
                let entry = Entry { names: names.clone(), ..Entry::default() };
                wanted.nodes.insert(node.clone(), entry);
            }
        }
        drop(wanted);
        if self.source == CertSource::Csr {
            self.queue.add(node.clone());
        }
    }

    /// Forgets a node.
    pub(super) fn forget(&self, node: &str) {
        let mut wanted = self.lock();
        if let Some(pending) = wanted.nodes.remove(node).and_then(|e| e.pending) {
            wanted.requests.remove(&pending.name);
        }
        self.certs.forget_node(node);
    }

    /// How it is with a node's certificate: a word for metrics, what stands in its way, and until when it is valid
    /// where that is the node's own.
    pub(super) fn state(
        &self,
        node: &str,
        names: &Arc<Vec<String>>,
    ) -> (&'static str, Option<Problem>, Option<Timestamp>) {
        let state = self.certs.state(node, names, Timestamp::now());
        let (pending, refused) = {
            let wanted = self.lock();
            let entry = wanted.nodes.get(node);
            let pending = entry.and_then(|e| e.pending.as_ref()).map(|p| (p.name.clone(), p.outcome.clone()));
            (pending, entry.and_then(|e| e.refused.clone()))
        };
        let trouble = self.certs.trouble().map(|t| t.to_string()).or(refused);
        let own = self.source == CertSource::Csr;
        let valid_until = match state {
            CertState::Valid { expires_at } if own => Some(expires_at),
            _ => None,
        };
        let (word, problem) = judge(&state, own, pending.as_ref(), trouble.as_deref());
        (word, problem, valid_until)
    }

    /// Does the next thing for a node's certificate.
    async fn step(self: Arc<Self>, node: Arc<str>) -> Outcome {
        let leaf = self.certs.of_node(&node, &Arc::default());
        let (step, names) = {
            let wanted = self.lock();
            let Some(entry) = wanted.nodes.get(&node) else { return Outcome::Done };
            let step =
                request::plan(Timestamp::now(), leaf.as_deref(), entry.renew_at, &entry.names, entry.pending.as_ref());
            (step, entry.names.clone())
        };
        match step {
            Step::Await => Outcome::Done,
            Step::Rest(until) => {
                let left = until.duration_since(Timestamp::now());
                Outcome::After(Duration::try_from(left).unwrap_or_default().max(Duration::from_secs(1)))
            }
            Step::Ask => self.ask(&node, names).await,
            Step::Take => self.take(&node),
            Step::Refused(why) => self.refused(&node, why),
        }
    }

    async fn ask(&self, node: &Arc<str>, names: Arc<Vec<String>>) -> Outcome {
        let random = Alphanumeric.sample_string(&mut rand::rng(), 8).to_lowercase();
        // Chosen here rather than by the server, so that an answer that comes at once finds its node.
        let name = format!("vnode-{node}-{random}");
        let (pending, csr) = match Pending::new(name.clone(), node, names) {
            Ok(made) => made,
            Err(error) => return self.refused(node, error.to_string()),
        };
        {
            let mut wanted = self.lock();
            let Some(entry) = wanted.nodes.get_mut(node) else { return Outcome::Done };
            let old = entry.pending.replace(pending);
            wanted.requests.insert(name.clone(), node.clone());
            if let Some(old) = old {
                wanted.requests.remove(&old.name);
            }
        }
        match within(self.create(node, &csr)).await {
            Ok(_) => {
                tracing::info!(%node, csr = name, "the node asks for its serving certificate");
                self.told.add(node.clone());
                Outcome::Done
            }
            Err(error) => {
                tracing::warn!(%node, %error, "the node could not ask for its serving certificate");
                let mut wanted = self.lock();
                wanted.requests.remove(&name);
                if let Some(entry) = wanted.nodes.get_mut(node) {
                    entry.pending = None;
                    entry.refused = (!is_conflict(&error)).then(|| format!("the request could not be made: {error}"));
                }
                drop(wanted);
                self.told.add(node.clone());
                Outcome::Retry
            }
        }
    }

    async fn create(&self, node: &str, csr: &CertificateSigningRequest) -> kube::Result<CertificateSigningRequest> {
        let body = serde_json::to_vec(csr).map_err(kube::Error::SerdeError)?;
        let request = Request::new(CertificateSigningRequest::url_path(&(), None))
            .create(&PostParams::default(), body)
            .map_err(kube::Error::BuildRequest)?;
        self.nodes.request(Some(node), request).await
    }

    fn take(&self, node: &Arc<str>) -> Outcome {
        let taken = {
            let mut wanted = self.lock();
            let Some(entry) = wanted.nodes.get_mut(node) else { return Outcome::Done };
            let Some(pending) = entry.pending.take() else { return Outcome::Done };
            let taken = pending.take();
            if let Ok(leaf) = &taken {
                entry.renew_at = renewal(leaf);
                (entry.refused, entry.refusals) = (None, 0);
            }
            wanted.requests.remove(&pending.name);
            taken
        };
        match taken {
            Ok(leaf) => {
                tracing::info!(%node, expires_at = %leaf.expires_at, "the node has a serving certificate");
                self.certs.set_node(node.clone(), leaf);
                self.told.add(node.clone());
                // Comes back to rest until the renewal.
                Outcome::After(Duration::from_secs(1))
            }
            Err(error) => self.refused(node, error.to_string()),
        }
    }

    fn refused(&self, node: &Arc<str>, why: String) -> Outcome {
        tracing::warn!(%node, why, "the node's request for a serving certificate brought nothing");
        let mut wanted = self.lock();
        let Some(entry) = wanted.nodes.get_mut(node) else { return Outcome::Done };
        entry.refused = Some(why);
        entry.refusals = entry.refusals.saturating_add(1);
        let again = REFUSED.delay(entry.refusals - 1).mul_f64(rand::rng().random_range(0.9..1.1));
        if let Some(pending) = entry.pending.take() {
            wanted.requests.remove(&pending.name);
        }
        drop(wanted);
        self.told.add(node.clone());
        Outcome::After(again)
    }

    /// Follows what becomes of the requests.
    async fn watch(&self, shutdown: CancellationToken) {
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let config = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
        let mut events = pin!(watch(api, config));
        // Those that were open when a list began: what it does not show is gone.
        let mut before: HashSet<String> = HashSet::new();
        let mut told = false;
        while let Some(Some(event)) = shutdown.run_until_cancelled(events.next()).await {
            match event {
                Ok(watcher::Event::Init) => before = self.lock().requests.keys().cloned().collect(),
                Ok(watcher::Event::Apply(csr) | watcher::Event::InitApply(csr)) => {
                    before.remove(&csr.name_any());
                    self.decided(&csr.name_any(), request::outcome(&csr));
                }
                Ok(watcher::Event::InitDone) => {
                    told = false;
                    before.drain().for_each(|name| self.decided(&name, request::Outcome::Gone));
                }
                Ok(watcher::Event::Delete(csr)) => self.decided(&csr.name_any(), request::Outcome::Gone),
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "the nodes' requests for serving certificates cannot be watched");
                    }
                }
            }
        }
    }

    fn decided(&self, name: &str, outcome: request::Outcome) {
        let mut wanted = self.lock();
        let Some(node) = wanted.requests.get(name).cloned() else { return };
        let Some(pending) = wanted.nodes.get_mut(&node).and_then(|e| e.pending.as_mut()) else { return };
        // A certificate that was issued is taken even if its request is removed at the same moment.
        let issued = matches!(pending.outcome, request::Outcome::Issued(_)) && outcome == request::Outcome::Gone;
        if pending.name == name && !issued && pending.outcome != outcome {
            pending.outcome = outcome;
            drop(wanted);
            self.queue.add(node.clone());
            self.told.add(node);
        }
    }
}

fn renewal(leaf: &Leaf) -> Timestamp {
    leaf.at(rand::rng().random_range(RENEW_AT))
}

/// What a certificate's state means for a node: a word for metrics, and what stands in the way.
fn judge(
    state: &CertState,
    own: bool,
    pending: Option<&(String, request::Outcome)>,
    trouble: Option<&str>,
) -> (&'static str, Option<Problem>) {
    let because = trouble.map(|t| format!(": {t}")).unwrap_or_default();
    let waits = pending.map(|(name, outcome)| match outcome {
        request::Outcome::Approved | request::Outcome::Issued(_) => {
            format!("request {name} is approved and waits for its signer")
        }
        _ => format!("request {name} waits for approval: kubectl certificate approve {name}"),
    });
    let message = |what: String| waits.as_ref().map_or(format!("{what}{because}"), |w| format!("{what}; {w}"));
    match state {
        CertState::Valid { .. } => ("valid", None),
        CertState::Missing => match (&waits, own, trouble) {
            (Some(waits), ..) => {
                let text = format!("the serving certificate is not there yet: {waits}");
                ("pending", Some(Problem::new("CertificatePending", text)))
            }
            (None, true, Some(why)) => {
                let text = format!("the serving certificate was refused and is asked for again later: {why}");
                ("rejected", Some(Problem::new("CertificateRejected", text)))
            }
            _ => (
                "missing",
                Some(Problem::new("CertificateMissing", format!("there is no serving certificate{because}"))),
            ),
        },
        CertState::Expired { expires_at } => {
            let text = message(format!("the serving certificate expired at {expires_at}"));
            ("expired", Some(Problem::new("CertificateExpired", text)))
        }
        CertState::Expiring { expires_at } => {
            let text = message(format!("the serving certificate expires at {expires_at} and was not renewed"));
            ("expiring", Some(Problem::new("CertificateExpiring", text)))
        }
        CertState::Mismatched { missing } => {
            let missing = missing.join(", ");
            let text = message(format!("the serving certificate is not for {missing}, which the Node publishes"));
            ("mismatched", Some(Problem::new("CertificateMismatch", text)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_says_what_is_wrong_and_what_would_mend_it() {
        let at = Timestamp::UNIX_EPOCH;
        let open = ("csr-1".to_owned(), request::Outcome::Open);
        let approved = ("csr-1".to_owned(), request::Outcome::Approved);
        let mismatched = CertState::Mismatched { missing: vec!["10.0.0.1".into()] };
        for (state, own, pending, trouble, word, says) in [
            (CertState::Valid { expires_at: at }, true, Some(&open), None, "valid", ""),
            (CertState::Missing, true, Some(&open), None, "pending", "kubectl certificate approve csr-1"),
            (CertState::Missing, true, Some(&approved), None, "pending", "waits for its signer"),
            (CertState::Missing, true, None, Some("Denied: no"), "rejected", "Denied: no"),
            (CertState::Missing, false, None, Some("Secret a/b: it does not exist"), "missing", "Secret a/b"),
            (CertState::Expired { expires_at: at }, false, None, Some("x"), "expired", "1970-01-01T00:00:00Z: x"),
            (CertState::Expiring { expires_at: at }, true, Some(&open), None, "expiring", "approve csr-1"),
            (mismatched, false, None, None, "mismatched", "is not for 10.0.0.1"),
        ] {
            let (got, problem) = judge(&state, own, pending, trouble);
            let message = problem.map(|p| p.message).unwrap_or_default();
            assert_eq!(got, word, "{state:?}");
            assert!(message.contains(says) && message.is_empty() == says.is_empty(), "{state:?}: {message}");
        }
    }
}
