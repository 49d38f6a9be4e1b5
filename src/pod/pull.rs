//! Image pull secrets, read and taken apart for providers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::objects::Kind;
use super::resolve::{Gathered, Remark, Resolver};
use crate::provider::{PodFeature, PullCredentials};

impl Resolver<'_> {
    /// The credentials of `imagePullSecrets`. A Secret that is missing or makes no sense holds up no pod.
    pub(super) async fn pull_secrets(&self, gathered: &mut Gathered) -> Vec<PullCredentials> {
        let mut all = Vec::new();
        let mut missing = Vec::new();
        if !self.capabilities.pod.has(PodFeature::ImagePullSecrets) {
            return all;
        }
        let named = self.pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten());
        for name in named.map(|r| r.name.as_str()).filter(|n| !n.is_empty()) {
            match self.object(Kind::Secret, name, gathered).await {
                Ok(Some(object)) => match parse(&object.data) {
                    Some(credentials) => all.extend(credentials),
                    None => missing.push(name),
                },
                _ => missing.push(name),
            }
        }
        if !missing.is_empty() {
            gathered.remarks.push(Remark {
                reason: "FailedToRetrieveImagePullSecret",
                message: format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    missing.join(", ")
                ),
            });
        }
        all
    }
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, Auth>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    username: String,
    password: String,
    auth: String,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// Of `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`.
fn parse(data: &std::collections::BTreeMap<String, bytes::Bytes>) -> Option<Vec<PullCredentials>> {
    let auths = match (data.get(".dockerconfigjson"), data.get(".dockercfg")) {
        (Some(json), _) => serde_json::from_slice::<Config>(json).ok()?.auths,
        (None, Some(json)) => serde_json::from_slice(json).ok()?,
        (None, None) => return None,
    };
    Some(auths.into_iter().map(|(registry, auth)| credentials(registry, auth)).collect())
}

fn credentials(registry: String, auth: Auth) -> PullCredentials {
    let decoded = STANDARD.decode(auth.auth.trim()).ok().and_then(|b| String::from_utf8(b).ok());
    let (username, password) = match decoded.as_deref().and_then(|d| d.split_once(':')) {
        // Programs that write the file pad it with zeros.
        Some((user, password)) => (user.to_owned(), password.trim_end_matches('\0').to_owned()),
        None => (auth.username, auth.password),
    };
    let token = |t: Option<String>| t.filter(|t| !t.is_empty());
    PullCredentials {
        registry,
        username,
        password,
        identity_token: token(auth.identitytoken),
        registry_token: token(auth.registrytoken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: &str, json: &str) -> Option<Vec<(String, String, String)>> {
        let data = [(key.to_owned(), bytes::Bytes::from(json.to_owned()))].into();
        parse(&data).map(|all| all.into_iter().map(|c| (c.registry, c.username, c.password)).collect())
    }

    #[test]
    fn both_kinds_of_secrets_are_read() {
        let want = |r: &str, u: &str, p: &str| Some(vec![(r.to_owned(), u.to_owned(), p.to_owned())]);
        let encoded = STANDARD.encode("me:pass:word");
        let json = format!(r#"{{"auths": {{"quay.io": {{"auth": "{encoded}", "email": "e"}}}}}}"#);
        assert_eq!(of(".dockerconfigjson", &json), want("quay.io", "me", "pass:word"));
        let json = r#"{"auths": {"quay.io": {"username": "me", "password": "p"}}}"#;
        assert_eq!(of(".dockerconfigjson", json), want("quay.io", "me", "p"));
        assert_eq!(of(".dockercfg", r#"{"r": {"username": "a", "password": "b"}}"#), want("r", "a", "b"));
        assert_eq!(of(".dockerconfigjson", "no"), None);
        assert_eq!(of("other", "{}"), None);
    }
}
