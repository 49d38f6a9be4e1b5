//! Bearer tokens, which the API server reviews.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::{Api, PostParams};
use moka::future::Cache;
use sha2::{Digest, Sha256};

use super::{Answer, AuthOptions, ByAnswer, User};

/// Longer than any token of a cluster; nothing longer is sent on.
const MAX_TOKEN: usize = 16 * 1024;

/// A token's digest: tokens themselves are not kept.
type Key = [u8; 32];
type Verdict = Option<Arc<User>>;

impl Answer for Verdict {
    fn is_yes(&self) -> bool {
        self.is_some()
    }
}

pub(super) struct Tokens {
    api: Api<TokenReview>,
    cache: Cache<Key, Verdict>,
    timeout: Duration,
}

impl Tokens {
    pub(super) fn new(client: kube::Client, options: &AuthOptions) -> Self {
        let expiry = ByAnswer { yes: options.token_ttl, no: options.token_failure_ttl };
        Self {
            api: Api::all(client),
            cache: Cache::builder().max_capacity(options.cache_size).expire_after(expiry).build(),
            timeout: options.review_timeout,
        }
    }

    /// Whose token this is; `None` when it is nobody's, or when the API server does not say.
    pub(super) async fn user(&self, token: &str) -> Option<User> {
        let key: Key = Sha256::digest(token.as_bytes()).into();
        // Many requests with a new token are one review; a failed review is not remembered.
        match self.cache.try_get_with(key, self.review(token)).await {
            Ok(verdict) => verdict.as_deref().cloned(),
            Err(error) => {
                tracing::warn!(%error, "a bearer token could not be reviewed; its request is refused");
                None
            }
        }
    }

    async fn review(&self, token: &str) -> Result<Verdict, String> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let answer = tokio::time::timeout(self.timeout, self.api.create(&params, &review)).await;
        let answer = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|e| e.to_string())?;
        Ok(verdict(answer))
    }
}

fn verdict(review: TokenReview) -> Verdict {
    let status = review.status?;
    if status.authenticated != Some(true) {
        return None;
    }
    let user = status.user?;
    let name = user.username.filter(|n| !n.is_empty())?;
    Some(Arc::new(User {
        name,
        uid: user.uid.filter(|u| !u.is_empty()),
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default().into_iter().collect(),
    }))
}

/// The bearer token of a request, if it has a usable one.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    // Two credentials leave it open who asks.
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    let usable = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= MAX_TOKEN;
    (usable && !token.contains(' ')).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_one_well_formed_bearer_token_counts() {
        let long = format!("Bearer {}", "a".repeat(MAX_TOKEN + 1));
        for (values, want) in [
            (vec!["Bearer abc"], Some("abc")),
            (vec!["bearer  abc "], Some("abc")),
            (vec!["Bearer"], None),
            (vec!["Bearer "], None),
            (vec!["Bearer a b"], None),
            (vec!["Basic abc"], None),
            (vec!["Bearer a", "Bearer b"], None),
            (vec![long.as_str()], None),
            (vec![], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in &values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            assert_eq!(bearer(&headers), want, "{:?}", values.first().map(|v| v.len()));
        }
    }

    #[test]
    fn a_review_without_a_clear_yes_and_a_name_is_a_no() {
        let review =
            |status: serde_json::Value| serde_json::from_value(serde_json::json!({ "status": status })).unwrap();
        assert!(verdict(review(serde_json::json!({}))).is_none());
        assert!(verdict(review(serde_json::json!({"authenticated": true}))).is_none());
        assert!(verdict(review(serde_json::json!({"authenticated": true, "user": {"username": ""}}))).is_none());
        assert!(verdict(review(serde_json::json!({"authenticated": false, "user": {"username": "a"}}))).is_none());
        let user =
            verdict(review(serde_json::json!({"authenticated": true, "user": {"username": "a", "groups": ["g"]}})));
        assert_eq!(user.unwrap().groups, ["g"]);
    }
}
