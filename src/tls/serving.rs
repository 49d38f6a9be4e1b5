//! Which certificate a node serves with.
//!
//! Nothing here waits: a handshake takes what is there. Certificates of our own authority are issued when a client
//! first asks for one and renewed at 80 % of their life in the same way, so that nodes cost neither a timer nor, as
//! long as they publish the same addresses, a certificate of their own.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::TlsError;
use super::authority::Authority;
use super::client::ProofOfPossession;
use super::leaf::Leaf;
use crate::telemetry::metrics::metrics;

const LEAF_LIFE: Duration = Duration::from_secs(90 * 86_400);
const RENEW_AT: f64 = 0.8;
/// The share of its life from which a certificate is about to expire: its renewal has been failing for a while.
const EXPIRING_AT: f64 = 0.9;
/// Certificates for other names than the process's own that are kept; the next one empties the lot.
const MAX_KEPT: usize = 16_384;

/// The certificates that the nodes of this process serve with.
pub struct ServingCerts {
    source: Source,
    /// What every certificate is for, whatever else a node publishes.
    names: Arc<Vec<String>>,
    /// Why there is none, or none that is newer.
    trouble: ArcSwapOption<String>,
}

enum Source {
    /// Issued here.
    Authority(Issued),
    /// Given to us: one for all nodes.
    Given(ArcSwapOption<Leaf>),
    /// One for each node.
    PerNode(RwLock<HashMap<Arc<str>, Arc<Leaf>>>),
}

struct Issued {
    authority: ArcSwapOption<Authority>,
    life: Duration,
    /// By the names that they are for. Held while one is issued, so that only one is.
    kept: Mutex<HashMap<Arc<Vec<String>>, Arc<Leaf>>>,
}

/// How it is with a node's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertState {
    /// It is valid and for all the addresses of the node.
    Valid {
        /// Until when.
        expires_at: Timestamp,
    },
    /// It is valid for a tenth of its life only.
    Expiring {
        /// Until when.
        expires_at: Timestamp,
    },
    /// It is not valid any more.
    Expired {
        /// Since when.
        expires_at: Timestamp,
    },
    /// It is for other addresses.
    Mismatched {
        /// What it should be for.
        missing: Vec<String>,
    },
    /// There is none.
    Missing,
}

impl CertState {
    /// One word for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Valid { .. } => "valid",
            Self::Expiring { .. } => "expiring",
            Self::Expired { .. } => "expired",
            Self::Mismatched { .. } => "mismatched",
            Self::Missing => "missing",
        }
    }

    /// How it is with a certificate that should be for these names.
    pub fn of(leaf: Option<&Leaf>, names: &[String], now: Timestamp) -> Self {
        let Some(leaf) = leaf else { return Self::Missing };
        let expires_at = leaf.expires_at;
        if now >= expires_at {
            return Self::Expired { expires_at };
        }
        let missing = leaf.missing(names);
        if !missing.is_empty() {
            return Self::Mismatched { missing: missing.into_iter().map(str::to_owned).collect() };
        }
        if now >= leaf.at(EXPIRING_AT) { Self::Expiring { expires_at } } else { Self::Valid { expires_at } }
    }
}

impl fmt::Debug for ServingCerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Authority(_) => "authority",
            Source::Given(_) => "given",
            Source::PerNode(_) => "per node",
        };
        f.debug_struct("ServingCerts").field("source", &source).field("names", &self.names).finish_non_exhaustive()
    }
}

impl ServingCerts {
    /// Certificates of an authority that lives in this process only. `names` are names and IP addresses.
    pub fn self_signed<S: AsRef<str>>(names: &[S]) -> Result<Arc<Self>, TlsError> {
        Self::with_life(names, LEAF_LIFE)
    }

    fn with_life<S: AsRef<str>>(names: &[S], life: Duration) -> Result<Arc<Self>, TlsError> {
        let this = Self::new(names, Source::Authority(Issued::new(life)));
        this.set_authority(Authority::generate(Timestamp::now())?);
        Ok(this)
    }

    /// Certificates of an authority that is not there yet; see [`set_authority`](Self::set_authority).
    pub fn awaiting_authority<S: AsRef<str>>(names: &[S]) -> Arc<Self> {
        Self::new(names, Source::Authority(Issued::new(LEAF_LIFE)))
    }

    /// One certificate for all nodes that somebody else makes; see [`set_given`](Self::set_given).
    pub fn given() -> Arc<Self> {
        Self::new::<&str>(&[], Source::Given(ArcSwapOption::empty()))
    }

    /// A certificate for each node; see [`set_node`](Self::set_node).
    pub fn per_node() -> Arc<Self> {
        Self::new::<&str>(&[], Source::PerNode(RwLock::default()))
    }

    fn new<S: AsRef<str>>(names: &[S], source: Source) -> Arc<Self> {
        let names = Arc::new(names.iter().map(|n| n.as_ref().to_owned()).collect());
        Arc::new(Self { source, names, trouble: ArcSwapOption::empty() })
    }

    /// Certificates are this authority's from now on.
    pub fn set_authority(&self, authority: Authority) {
        if let Source::Authority(issued) = &self.source {
            issued.authority.store(Some(Arc::new(authority)));
            issued.lock().clear();
            self.set_trouble(None);
        }
    }

    /// All nodes serve with this certificate from now on.
    pub fn set_given(&self, leaf: Leaf) {
        if let Source::Given(given) = &self.source {
            note_expiry(&leaf);
            given.store(Some(Arc::new(leaf)));
            self.set_trouble(None);
        }
    }

    /// The node serves with this certificate from now on.
    pub fn set_node(&self, node: Arc<str>, leaf: Leaf) {
        if let Source::PerNode(nodes) = &self.source {
            note_expiry(&leaf);
            nodes.write().unwrap_or_else(PoisonError::into_inner).insert(node, Arc::new(leaf));
        }
    }

    /// Forgets a node's certificate.
    pub fn forget_node(&self, node: &str) {
        if let Source::PerNode(nodes) = &self.source {
            nodes.write().unwrap_or_else(PoisonError::into_inner).remove(node);
        }
    }

    /// Notes why there is no certificate, or no newer one.
    pub fn set_trouble(&self, why: Option<String>) {
        self.trouble.store(why.map(Arc::new));
    }

    /// Why there is no certificate, or no newer one.
    pub fn trouble(&self) -> Option<Arc<String>> {
        self.trouble.load_full()
    }

    /// The authority, for clients that want to verify nodes; `None` where certificates come from elsewhere.
    pub fn authority(&self) -> Option<CertificateDer<'static>> {
        match &self.source {
            Source::Authority(issued) => issued.authority.load().as_ref().map(|a| a.certificate().clone()),
            Source::Given(_) | Source::PerNode(_) => None,
        }
    }

    /// The certificate of a node that publishes these names and addresses, `None` when there is none.
    pub fn of_node(&self, node: &str, names: &Arc<Vec<String>>) -> Option<Arc<Leaf>> {
        match &self.source {
            Source::Authority(issued) => {
                let ours = names.iter().all(|n| self.names.contains(n));
                issued.leaf(if ours { &self.names } else { names }, Timestamp::now())
            }
            Source::Given(given) => given.load_full(),
            Source::PerNode(nodes) => nodes.read().unwrap_or_else(PoisonError::into_inner).get(node).cloned(),
        }
    }

    /// How it is with a node's certificate.
    pub fn state(&self, node: &str, names: &Arc<Vec<String>>, now: Timestamp) -> CertState {
        match &self.source {
            // It is issued when a client comes, which must not be made ten thousand times to say that it can be.
            Source::Authority(issued) if !names.iter().all(|n| self.names.contains(n)) => {
                match issued.authority.load().as_ref() {
                    Some(_) => {
                        issued.lock().get(names).map_or(CertState::Valid { expires_at: Timestamp::MAX }, |leaf| {
                            CertState::of(Some(leaf), names, now)
                        })
                    }
                    None => CertState::Missing,
                }
            }
            _ => CertState::of(self.of_node(node, names).as_deref(), names, now),
        }
    }

    /// TLS 1.2 and 1.3; clients are asked for a certificate but need not have one. It serves nothing by itself: see
    /// [`serve_with`](Self::serve_with).
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = ProofOfPossession { algorithms: provider.signature_verification_algorithms };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(Only(None)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// The same with this certificate. Costs some counters: all that is large is shared.
    pub fn serve_with(config: &ServerConfig, leaf: &Leaf) -> Arc<ServerConfig> {
        let mut config = config.clone();
        config.cert_resolver = Arc::new(Only(Some(leaf.key.clone())));
        Arc::new(config)
    }
}

impl Issued {
    fn new(life: Duration) -> Self {
        Self { authority: ArcSwapOption::empty(), life, kept: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<Vec<String>>, Arc<Leaf>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The certificate for these names: a new one when there is none, or when 80 % of its life is over.
    fn leaf(&self, names: &Arc<Vec<String>>, now: Timestamp) -> Option<Arc<Leaf>> {
        let mut kept = self.lock();
        let old = kept.get(names).cloned();
        if let Some(leaf) = old.as_ref().filter(|leaf| now < leaf.at(RENEW_AT)) {
            return Some(leaf.clone());
        }
        let authority = self.authority.load_full()?;
        match authority.issue(names, now, self.life) {
            Ok(leaf) => {
                tracing::debug!(expires_at = %leaf.expires_at, ?names, "a kubelet serving certificate was issued");
                note_expiry(&leaf);
                if kept.len() >= MAX_KEPT {
                    kept.clear();
                }
                let leaf = Arc::new(leaf);
                kept.insert(names.clone(), leaf.clone());
                Some(leaf)
            }
            Err(error) => {
                tracing::error!(%error, ?names, "a kubelet serving certificate could not be issued");
                old
            }
        }
    }
}

fn note_expiry(leaf: &Leaf) {
    metrics().serving_certificate_expiry.set(leaf.expires_at.as_second() as f64);
}

#[derive(Debug)]
struct Only(Option<Arc<CertifiedKey>>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Arc<Vec<String>> {
        Arc::new(names.iter().map(|n| (*n).to_owned()).collect())
    }

    #[test]
    fn nodes_with_the_same_addresses_share_a_certificate() {
        let certs = ServingCerts::self_signed(&["127.0.0.1", "localhost"]).unwrap();
        let own = certs.of_node("a", &names(&["127.0.0.1"])).unwrap();
        assert!(Arc::ptr_eq(&own, &certs.of_node("b", &names(&[])).unwrap()));
        let other = certs.of_node("c", &names(&["10.0.0.7"])).unwrap();
        assert_eq!(other.names, ["10.0.0.7"]);
        assert!(Arc::ptr_eq(&other, &certs.of_node("d", &names(&["10.0.0.7"])).unwrap()));
        assert!(certs.of_node("e", &names(&["no\u{e4}scii"])).is_none());
    }

    #[test]
    fn a_certificate_is_renewed_at_four_fifths_of_its_life() {
        let issued = Issued::new(Duration::from_secs(100_000));
        issued.authority.store(Some(Arc::new(Authority::generate(Timestamp::now()).unwrap())));
        let (names, now) = (names(&["localhost"]), Timestamp::now());
        let first = issued.leaf(&names, now).unwrap();
        assert!(Arc::ptr_eq(&first, &issued.leaf(&names, first.at(0.79)).unwrap()));
        let second = issued.leaf(&names, first.at(0.81)).unwrap();
        assert!(second.expires_at > first.expires_at);
    }

    #[test]
    fn another_authority_replaces_what_the_first_has_issued() {
        let certs = ServingCerts::awaiting_authority(&["localhost"]);
        assert_eq!(certs.state("n", &names(&[]), Timestamp::now()), CertState::Missing);
        assert!(certs.of_node("n", &names(&[])).is_none());
        certs.set_authority(Authority::generate(Timestamp::now()).unwrap());
        let first = certs.of_node("n", &names(&[])).unwrap();
        certs.set_authority(Authority::generate(Timestamp::now()).unwrap());
        let second = certs.of_node("n", &names(&[])).unwrap();
        assert_ne!(first.key.cert[1], second.key.cert[1]);
        assert_eq!(second.key.cert[1], certs.authority().unwrap());
    }

    #[test]
    fn a_state_names_what_is_wrong_first() {
        let made = rcgen::generate_simple_self_signed(vec!["10.0.0.1".to_owned()]).unwrap();
        let key = made.signing_key.serialize_pem();
        let mut leaf = Leaf::from_pem(made.cert.pem().as_bytes(), key.as_bytes()).unwrap();
        (leaf.since, leaf.expires_at) = (Timestamp::from_second(0).unwrap(), Timestamp::from_second(1000).unwrap());
        let at = |s| Timestamp::from_second(s).unwrap();
        let (own, other) = (["10.0.0.1".to_owned()], ["10.0.0.2".to_owned()]);
        for (names, now, want) in [
            (&own, 10, "valid"),
            (&own, 950, "expiring"),
            (&own, 1000, "expired"),
            (&other, 10, "mismatched"),
            (&other, 2000, "expired"),
        ] {
            assert_eq!(CertState::of(Some(&leaf), names, at(now)).word(), want, "{names:?} {now}");
        }
        assert_eq!(CertState::of(None, &own, at(1)), CertState::Missing);
    }

    #[test]
    fn each_node_has_its_own_where_that_is_asked_for() {
        let certs = ServingCerts::per_node();
        let made = rcgen::generate_simple_self_signed(vec!["10.0.0.1".to_owned()]).unwrap();
        let leaf = Leaf::from_pem(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap();
        certs.set_node("a".into(), leaf);
        let ours = names(&["10.0.0.1"]);
        assert!(certs.of_node("a", &ours).is_some() && certs.of_node("b", &ours).is_none());
        certs.forget_node("a");
        assert!(certs.of_node("a", &ours).is_none());
        certs.server_config().unwrap();
    }
}
