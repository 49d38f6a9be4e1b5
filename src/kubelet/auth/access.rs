//! Rights, which the API server decides.

use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use moka::future::Cache;
use sha2::{Digest, Sha256};

use super::{Answer, AuthOptions, ByAnswer, Denied, User};

/// The digest of a whole question, so that a user in very many groups costs no more than another.
type Key = [u8; 32];

impl Answer for bool {
    fn is_yes(&self) -> bool {
        *self
    }
}

pub(super) struct Access {
    api: Api<SubjectAccessReview>,
    cache: Cache<Key, bool>,
    timeout: Duration,
}

impl Access {
    pub(super) fn new(client: kube::Client, options: &AuthOptions) -> Self {
        let expiry = ByAnswer { yes: options.allow_ttl, no: options.deny_ttl };
        Self {
            api: Api::all(client),
            cache: Cache::builder().max_capacity(options.cache_size).expire_after(expiry).build(),
            timeout: options.review_timeout,
        }
    }

    /// One right is enough. A question that got no answer ends it: a later yes could hide that an
    /// earlier question would have been answered no by a policy that is only out of reach.
    pub(super) async fn check(
        &self,
        user: &User,
        node: &str,
        verb: &'static str,
        subresources: &[&'static str],
    ) -> Result<(), Denied> {
        for subresource in subresources {
            let spec = question(user, node, verb, subresource);
            let key = key(&spec);
            match self.cache.try_get_with(key, self.review(spec)).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, user = %user.name, node, "access to a node could not be reviewed; it is refused");
                    return Err(Denied::Unknown {
                        user: user.name.clone(),
                        verb,
                        subresources: subresources.join(" "),
                    });
                }
            }
        }
        Err(Denied::Forbidden { user: user.name.clone(), verb, subresources: subresources.join(" ") })
    }

    async fn review(&self, spec: SubjectAccessReviewSpec) -> Result<bool, String> {
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let params = PostParams::default();
        let answer = tokio::time::timeout(self.timeout, self.api.create(&params, &review)).await;
        let answer = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|e| e.to_string())?;
        Ok(answer.status.is_some_and(|s| s.allowed && s.denied != Some(true)))
    }
}

fn question(user: &User, node: &str, verb: &str, subresource: &str) -> SubjectAccessReviewSpec {
    SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        uid: user.uid.clone(),
        groups: Some(user.groups.clone()).filter(|g| !g.is_empty()),
        extra: Some(user.extra.clone().into_iter().collect()).filter(|_| !user.extra.is_empty()),
        resource_attributes: Some(ResourceAttributes {
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(subresource.to_owned()),
            // Without a name it is about all nodes.
            name: Some(node.to_owned()).filter(|n| !n.is_empty()),
            verb: Some(verb.to_owned()),
            ..ResourceAttributes::default()
        }),
        ..SubjectAccessReviewSpec::default()
    }
}

/// Different questions have different serialised forms, so their digests may stand for them.
fn key(spec: &SubjectAccessReviewSpec) -> Key {
    // A structure of strings and maps with string keys always serialises.
    let text = serde_json::to_vec(spec).unwrap_or_default();
    Sha256::digest(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_that_differ_anywhere_are_cached_apart() {
        let user = |name: &str, group: &str| User {
            name: name.into(),
            uid: None,
            groups: vec![group.into()],
            extra: Default::default(),
        };
        let base = key(&question(&user("a", "g"), "n", "get", "proxy"));
        assert_eq!(base, key(&question(&user("a", "g"), "n", "get", "proxy")));
        for other in [
            question(&user("b", "g"), "n", "get", "proxy"),
            question(&user("a", "h"), "n", "get", "proxy"),
            question(&user("a", "g"), "m", "get", "proxy"),
            question(&user("a", "g"), "n", "create", "proxy"),
            question(&user("a", "g"), "n", "get", "stats"),
        ] {
            assert_ne!(base, key(&other));
        }
    }
}
