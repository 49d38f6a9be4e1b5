//! Who asks, and whether they may.
//!
//! A caller is known by a client certificate of the cluster's authority ([`client_ca`]) or by a bearer
//! token ([`token`]); what they ask for is a subresource of their node ([`access`]), and the API server
//! says whether they may have it. Nothing is ever open: no answer is a refusal.

mod access;
mod client_ca;
mod token;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use moka::Expiry;
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

/// How long answers of the API server are believed, and how long it may take to give them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthOptions {
    /// How long a token stays accepted without asking again.
    pub token_ttl: Duration,
    /// How long a token stays refused without asking again.
    pub token_failure_ttl: Duration,
    /// How long a right stays granted without asking again.
    pub allow_ttl: Duration,
    /// How long a right stays denied without asking again.
    pub deny_ttl: Duration,
    /// How many answers are kept in each of the two caches.
    pub cache_size: u64,
    /// The deadline of one review.
    pub review_timeout: Duration,
    /// PEM of the authorities whose client certificates name users; the cluster's own, followed, without it.
    pub client_ca: Option<String>,
}

impl Default for AuthOptions {
    fn default() -> Self {
        Self {
            token_ttl: Duration::from_secs(120),
            token_failure_ttl: Duration::from_secs(10),
            allow_ttl: Duration::from_secs(300),
            deny_ttl: Duration::from_secs(30),
            cache_size: 4096,
            review_timeout: Duration::from_secs(10),
            client_ca: None,
        }
    }
}

/// Somebody whose identity is established.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's name.
    pub name: String,
    /// The user's uid, when the API server told one.
    pub uid: Option<String>,
    /// The groups the user is in.
    pub groups: Vec<String>,
    /// What else the API server knows and wants to have back.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Why somebody gets no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It is not known who asks.
    #[error("Unauthorized")]
    Unauthenticated,
    /// They may not.
    #[error("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[{subresources}])")]
    Forbidden {
        /// The caller's name.
        user: String,
        /// What they wanted to do.
        verb: &'static str,
        /// What they wanted to do it to.
        subresources: String,
    },
    /// The API server did not say.
    #[error("Authorization error (user={user}, verb={verb}, resource=nodes, subresource(s)=[{subresources}])")]
    Unknown {
        /// The caller's name.
        user: String,
        /// What they wanted to do.
        verb: &'static str,
        /// What they wanted to do it to.
        subresources: String,
    },
}

/// Authenticates and authorises the callers of the kubelet API, for all nodes of the process.
pub struct Auth {
    client: kube::Client,
    authorities: client_ca::ClientCas,
    tokens: token::Tokens,
    access: access::Access,
    options: AuthOptions,
}

impl Auth {
    /// Reviews are sent through `client`. Client certificates are refused until [`run`](Self::run) has
    /// read the cluster's authority.
    pub fn new(client: kube::Client, options: AuthOptions) -> Arc<Self> {
        Arc::new(Self {
            authorities: client_ca::ClientCas::default(),
            tokens: token::Tokens::new(client.clone(), &options),
            access: access::Access::new(client.clone(), &options),
            client,
            options,
        })
    }

    /// How long answers are believed.
    pub(super) fn options(&self) -> &AuthOptions {
        &self.options
    }

    /// Follows the cluster's client authority until the shutdown.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = async {
                match &self.options.client_ca {
                    None => self.authorities.follow(self.client.clone()).await,
                    Some(pem) => {
                        if let Err(why) = self.authorities.trust(pem) {
                            tracing::error!(why, "the client CA cannot be used: only bearer tokens are accepted");
                        }
                        std::future::pending().await
                    }
                }
            } => {}
        }
    }

    /// Who sent a request with these headers over a connection with this certificate chain.
    pub(super) async fn authenticate(
        &self,
        headers: &HeaderMap,
        certificates: &[CertificateDer<'static>],
    ) -> Result<User, Denied> {
        if let Some(user) = self.authorities.identify(certificates) {
            return Ok(user);
        }
        match token::bearer(headers) {
            Some(token) => self.tokens.user(token).await.ok_or(Denied::Unauthenticated),
            None => Err(Denied::Unauthenticated),
        }
    }

    /// Whether who sent these headers may do this to a subresource of every node.
    pub(crate) async fn allow_for_all_nodes(
        &self,
        headers: &HeaderMap,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<(), Denied> {
        let user = self.authenticate(headers, &[]).await?;
        // A review without a name asks for all of them.
        self.authorize(&user, "", verb, &[subresource]).await
    }

    /// Whether the user may do this to any of these subresources of the node, the finest one first.
    pub(super) async fn authorize(
        &self,
        user: &User,
        node: &str,
        verb: &'static str,
        subresources: &[&'static str],
    ) -> Result<(), Denied> {
        self.access.check(user, node, verb, subresources).await
    }
}

/// Lets a cached answer live for one time when it is yes, for another when it is no.
struct ByAnswer {
    yes: Duration,
    no: Duration,
}

trait Answer {
    fn is_yes(&self) -> bool;
}

impl<K, V: Answer> Expiry<K, V> for ByAnswer {
    fn expire_after_create(&self, _key: &K, value: &V, _created_at: Instant) -> Option<Duration> {
        Some(if value.is_yes() { self.yes } else { self.no })
    }
}
