//! What all nodes of a service share: its connections, the watch, and whether it is healthy.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::time::Duration;

use http::Uri;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use vnode_proto::HEALTH_NAME;
use vnode_proto::v1::provider_service_client::ProviderServiceClient;

use super::channel::Channel;
use super::settings::{Key, Settings};
use super::subscriptions::{Subscription, Subscriptions};
use super::{failure, watch};
use crate::provider::{ProviderError, Result};

/// Nodes that ask within this time get the same answer.
const FRESH: Duration = Duration::from_secs(1);
/// How long a service may take to say how it is; shorter than a probe of a node may take.
const CHECK: Duration = Duration::from_secs(4);

pub(super) type Client = ProviderServiceClient<Channel>;

/// The connections that there are, by endpoint and credentials.
#[derive(Default)]
pub(super) struct Connections(Mutex<HashMap<Key, Weak<Connection>>>);

impl Connections {
    /// The connection for these settings, which lives as long as a node uses it.
    pub fn get(&self, settings: &Settings) -> Arc<Connection> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&settings.key).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, connection| connection.strong_count() > 0);
        let connection = Arc::new(Connection::new(settings));
        all.insert(settings.key.clone(), Arc::downgrade(&connection));
        connection
    }
}

/// A service as all its nodes see it.
pub(super) struct Connection {
    endpoint: String,
    origin: Uri,
    pub call_timeout: Duration,
    control: Channel,
    /// What users do with pods has a connection of its own, so that bytes that nobody takes hold up no pod.
    sessions: Channel,
    health: tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>,
    subscriptions: Arc<Subscriptions>,
    watching: Once,
    /// How often the service was lost, after which it may be another one.
    lost: Arc<AtomicU64>,
    stop: CancellationToken,
    _stop: DropGuard,
}

impl Connection {
    fn new(settings: &Settings) -> Self {
        let channel = || Channel::new(settings.target.clone(), settings.authorization.clone(), settings.key.keep_alive);
        let stop = CancellationToken::new();
        Self {
            endpoint: settings.key.endpoint.clone(),
            origin: settings.origin.clone(),
            call_timeout: settings.key.call_timeout,
            control: channel(),
            sessions: channel(),
            health: tokio::sync::Mutex::default(),
            subscriptions: Arc::default(),
            watching: Once::new(),
            lost: Arc::default(),
            _stop: stop.clone().drop_guard(),
            stop,
        }
    }

    /// For pods and nodes.
    pub fn control(&self) -> Client {
        Client::with_origin(self.control.clone(), self.origin.clone())
    }

    /// For what users do with them.
    pub fn sessions(&self) -> Client {
        Client::with_origin(self.sessions.clone(), self.origin.clone())
    }

    /// A number that changes when the service may be another one than before.
    pub fn generation(&self) -> u64 {
        self.lost.load(Ordering::Acquire)
    }

    /// Follows the changes of a node. Must be called within a tokio runtime.
    pub fn subscribe(&self, subscription: &Arc<Subscription>) {
        self.subscriptions.add(subscription);
        self.watching.call_once(|| {
            let watch = watch::Watch {
                endpoint: self.endpoint.clone(),
                client: self.control(),
                channel: self.control.clone(),
                subscriptions: self.subscriptions.clone(),
                lost: self.lost.clone(),
                patience: self.call_timeout,
            };
            let stop = self.stop.clone();
            tokio::spawn(async move { stop.run_until_cancelled(watch.run()).await });
        });
    }

    /// Follows them no more.
    pub fn unsubscribe(&self, subscription: &Subscription) {
        self.subscriptions.remove(subscription);
    }

    /// Succeeds when the service says that it serves. Asked once for all nodes that want to know.
    pub async fn check(&self) -> Result<()> {
        let mut known = self.health.lock().await;
        let answer = match &*known {
            Some((at, answer)) if at.elapsed() < FRESH => answer.clone(),
            _ => {
                let answer = match timeout(CHECK, self.ask()).await {
                    Ok(answer) => answer,
                    Err(_) => Err(format!("no answer within {} s", CHECK.as_secs())),
                };
                *known = Some((Instant::now(), answer.clone()));
                answer
            }
        };
        answer.map_err(|why| ProviderError::unavailable(format!("{}: {why}", self.endpoint)))
    }

    async fn ask(&self) -> Result<(), String> {
        let health = HealthClient::with_origin(self.control.clone(), self.origin.clone());
        let ask = |service: &str| {
            let (mut health, service) = (health.clone(), service.to_owned());
            async move { health.check(HealthCheckRequest { service }).await }
        };
        let answer = match ask(HEALTH_NAME).await {
            // It speaks for the whole server only.
            Err(status) if status.code() == Code::NotFound => ask("").await,
            other => other,
        };
        match answer {
            Ok(answer) => match answer.get_ref().status() {
                ServingStatus::Serving => Ok(()),
                other => Err(format!("the service says that it is {}", other.as_str_name())),
            },
            // A server without a health service has at least answered.
            Err(status) if status.code() == Code::Unimplemented => Ok(()),
            Err(status) => Err(plain(&status)),
        }
    }
}

/// What an error says, without what every provider's error begins with.
fn plain(status: &Status) -> String {
    match failure::error("the health check", "the service", status) {
        ProviderError::Unavailable { message, .. } => message,
        other => other.to_string(),
    }
}
