//! Who asks, and whether they may.
use std::sync::Arc;
use std::time::Duration;

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
        }
    }
}

/// Authenticates and authorises the callers of the kubelet API.
pub struct Auth {}

impl Auth {
    /// Reviews are sent through `client`.
    pub fn new(_client: kube::Client, _options: AuthOptions) -> Arc<Self> {
        todo!()
    }

    /// Follows the cluster's client CA until the shutdown.
    pub async fn run(self: Arc<Self>, _shutdown: CancellationToken) {
        todo!()
    }
}
