//! Service account tokens of pods, renewed before they expire.
//!
//! A token is kept for as long as its pod is there and it is good, so that resolving a pod anew costs no
//! request. It is renewed when a fifth of its time is left or it is a day old. Kubernetes: `pkg/kubelet/token`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::core::{Request, Resource as _};
use rand::Rng as _;
use tokio::time::Instant;

use crate::cluster::identity::NodeClient;

/// Kubernetes' default for `expirationSeconds`.
const DEFAULT_SECONDS: i64 = 3600;
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// So that tokens made together are not renewed together.
const MAX_JITTER: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(10);

/// A token. Without Debug, since it is one.
#[derive(Clone)]
pub(crate) struct Token {
    pub text: Bytes,
    pub renew_at: Instant,
    expires_at: Instant,
}

/// Audience, seconds asked for, and the token.
type Kept = (String, i64, Token);

/// The tokens of all pods.
pub(crate) struct Tokens {
    client: NodeClient,
    /// By the pod's uid.
    kept: Mutex<HashMap<String, Vec<Kept>>>,
}

impl Tokens {
    pub fn new(client: NodeClient) -> Self {
        Self { client, kept: Mutex::default() }
    }

    /// A token of the pod's service account that is good for a while.
    pub async fn get(
        &self,
        node: &Arc<str>,
        pod: &Pod,
        audience: Option<&str>,
        seconds: Option<i64>,
    ) -> Result<Token, String> {
        let (audience, seconds) = (audience.unwrap_or_default(), seconds.unwrap_or(DEFAULT_SECONDS));
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let old = self.kept(uid, audience, seconds);
        let now = Instant::now();
        if let Some(token) = old.as_ref().filter(|t| now < t.renew_at) {
            return Ok(token.clone());
        }
        match self.request(node, pod, audience, seconds).await {
            Ok(token) => {
                let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                let tokens = kept.entry(uid.to_owned()).or_default();
                tokens.retain(|(a, s, _)| (a.as_str(), *s) != (audience, seconds));
                tokens.push((audience.to_owned(), seconds, token.clone()));
                Ok(token)
            }
            // The old one still serves; it is tried again soon.
            Err(error) => match old.filter(|t| now < t.expires_at) {
                Some(token) => Ok(Token { renew_at: now + Duration::from_secs(20), ..token }),
                None => Err(format!("failed to fetch token: {error}")),
            },
        }
    }

    /// Forgets a pod's tokens.
    pub fn forget(&self, uid: &str) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    fn kept(&self, uid: &str, audience: &str, seconds: i64) -> Option<Token> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(uid)?.iter().find(|(a, s, _)| (a.as_str(), *s) == (audience, seconds)).map(|(.., t)| t.clone())
    }

    async fn request(&self, node: &Arc<str>, pod: &Pod, audience: &str, seconds: i64) -> Result<Token, String> {
        let meta = &pod.metadata;
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone());
        let account = account.filter(|a| !a.is_empty()).unwrap_or_else(|| "default".into());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: (!audience.is_empty()).then(|| vec![audience.to_owned()]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: meta.name.clone(),
                    uid: meta.uid.clone(),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let body = serde_json::to_vec(&request).map_err(|e| e.to_string())?;
        let request = Request::new(ServiceAccount::url_path(&(), meta.namespace.as_deref()))
            .create_subresource("token", &account, &PostParams::default(), body)
            .map_err(|e| e.to_string())?;
        let speaker = self.client.speaker(node);
        let asked = self.client.request::<TokenRequest>(speaker.as_deref(), request);
        let answer = match tokio::time::timeout(DEADLINE, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(kube::Error::Api(status))) => return Err(status.message),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("the API server did not answer in time".into()),
        };
        let status = answer.status.ok_or("the API server gave no token")?;
        let (Some(text), Some(expires)) = (status.token, status.expiration_timestamp) else {
            return Err("the API server gave no token".into());
        };
        let good_for = expires.0.duration_since(Timestamp::now());
        let good_for = Duration::try_from(good_for).unwrap_or_default();
        // Servers may give a longer life than they say in the answer's spec, for old programs' sake; what the
        // spec says is the time to renew by.
        let said =
            answer.spec.and_then(|s| s.expiration_seconds).and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
        let jitter = MAX_JITTER.mul_f64(rand::rng().random_range(0.0..1.0));
        let now = Instant::now();
        Ok(Token {
            text: Bytes::from(text),
            renew_at: now + renewal(said.map_or(good_for, |s| s.min(good_for)), jitter),
            expires_at: now + good_for,
        })
    }
}

/// How long a new token is used.
fn renewal(good_for: Duration, jitter: Duration) -> Duration {
    (good_for.mul_f64(0.8)).min(MAX_AGE).saturating_sub(jitter).max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_its_time_is_left_or_it_is_a_day_old() {
        let s = Duration::from_secs;
        assert_eq!(renewal(s(3600), s(0)), s(2880));
        assert_eq!(renewal(s(3600), s(10)), s(2870));
        assert_eq!(renewal(s(7 * 24 * 3600), s(10)), s(24 * 3600 - 10));
        assert_eq!(renewal(s(5), s(10)), s(1));
    }
}
