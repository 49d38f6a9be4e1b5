//! What one node's configuration comes to.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Uri};
use jiff::Timestamp;

use super::connect::Target;
use crate::api::{WebConfig, WebInterface};
use crate::provider::remote::tls;
use crate::provider::{Credentials, PodFeature, PodFeatures, ProviderError, Result};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(20);
const DEFAULT_POLL: (u32, u32) = (1000, 30_000);
/// Key of the credentials Secret: the bearer token.
const TOKEN: &str = "token";

/// What a service gets nothing of by interface V1: content that is at the API server, and what comes later.
const NOT_BY_V1: &[PodFeature] = &[
    PodFeature::ConfigMapVolumes,
    PodFeature::SecretVolumes,
    PodFeature::DownwardApiVolumes,
    PodFeature::ProjectedVolumes,
    PodFeature::ServiceAccountTokens,
    PodFeature::ClusterTrustBundles,
    PodFeature::VolumeUpdates,
    PodFeature::ImagePullSecrets,
    PodFeature::PodIpInEnvironment,
    PodFeature::EphemeralContainers,
    PodFeature::Resize,
];

/// A checked configuration.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub target: Target,
    /// What stands before the paths of the interface: empty, or beginning with a slash and ending without one.
    pub base: String,
    /// `Authorization`; never shown.
    pub authorization: Option<HeaderValue>,
    pub interface: WebInterface,
    pub timeout: Duration,
    pub poll: Poll,
    /// What a service with interface V1 can do with a pod.
    pub features: PodFeatures,
}

/// The bounds of the time between two questions for all pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Poll {
    pub min: Duration,
    pub max: Duration,
}

fn invalid(field: &str, message: impl Into<String>) -> ProviderError {
    ProviderError::Invalid { field: format!("spec.provider.web.{field}"), message: message.into() }
}

/// Checks a node's configuration.
pub(super) fn check(config: &WebConfig, credentials: Option<&Credentials>) -> Result<Settings> {
    let (scheme, host, port, base) = address(&config.url)?;
    let authorization = credentials.and_then(|c| c.0.get(TOKEN)).map(|t| bearer(t)).transpose()?;
    let tls = match scheme {
        Scheme::Https => Some(tls::client(credentials, Timestamp::now())?),
        Scheme::Http => {
            let secret = authorization.is_some() || credentials.is_some_and(|c| c.0.contains_key(tls::KEY));
            if !config.allow_insecure && (secret || !is_loopback(&host)) {
                return Err(invalid(
                    "url",
                    "http:// shows everybody on the way what pods have of Secrets, and the credentials: use https://, \
                     or say allowInsecure: true",
                ));
            }
            None
        }
    };
    let (min, max) = config.poll.as_ref().map_or(DEFAULT_POLL, |p| {
        let min = p.min_ms.unwrap_or(DEFAULT_POLL.0.min(p.max_ms.unwrap_or(u32::MAX)));
        (min, p.max_ms.unwrap_or(DEFAULT_POLL.1.max(min)))
    });
    if min > max {
        return Err(invalid("poll.minMs", format!("is {min}, which is more than poll.maxMs, {max}")));
    }
    let mut features = PodFeatures::ALL.without(NOT_BY_V1);
    if let Some(words) = &config.features {
        features = PodFeatures::NONE;
        for (n, word) in words.iter().enumerate() {
            let found = PodFeature::ALL.iter().find(|f| f.word() == word);
            let found = found.ok_or_else(|| {
                invalid(&format!("features[{n}]"), format!("{word:?} is no word of docs/pod-support.md"))
            })?;
            if NOT_BY_V1.contains(found) {
                return Err(invalid(&format!("features[{n}]"), format!("{word} needs interface V2")));
            }
            features = features.and(PodFeatures::of(&[*found]));
        }
    }
    Ok(Settings {
        target: Target::new(host, port, tls),
        base,
        authorization,
        interface: config.interface.unwrap_or(WebInterface::Auto),
        timeout: config.timeout_seconds.map_or(DEFAULT_TIMEOUT, |s| Duration::from_secs(u64::from(s.max(1)))),
        poll: Poll { min: Duration::from_millis(min.max(100).into()), max: Duration::from_millis(max.max(100).into()) },
        features,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

fn address(url: &str) -> Result<(Scheme, Arc<str>, u16, String)> {
    if url.is_empty() {
        return Err(invalid("url", "must say where the service is, as in https://service.example/path"));
    }
    let uri: Uri = url.parse().map_err(|e| invalid("url", format!("{url:?}: {e}")))?;
    let scheme = match uri.scheme_str() {
        Some("https") => Scheme::Https,
        Some("http") => Scheme::Http,
        _ => return Err(invalid("url", format!("{url:?} must begin with https:// (or http://)"))),
    };
    let Some(authority) = uri.authority() else { return Err(invalid("url", format!("{url:?} names no host"))) };
    if authority.as_str().contains('@') {
        return Err(invalid("url", "must not have credentials in it: they belong into the Secret"));
    }
    if uri.query().is_some() || url.contains('#') {
        return Err(invalid("url", "must end with a path: paths of the interface are appended to it"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(invalid("url", format!("{url:?} names no host")));
    }
    let port = match authority.port() {
        Some(port) => port.as_u16(),
        None if authority.as_str().ends_with(':') => {
            return Err(invalid("url", format!("{url:?} has a colon and no port")));
        }
        None if scheme == Scheme::Https => 443,
        None => 80,
    };
    Ok((scheme, host.into(), port, uri.path().trim_end_matches('/').to_owned()))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn bearer(token: &[u8]) -> Result<HeaderValue> {
    let token = token.trim_ascii();
    let value = [b"Bearer ", token].concat();
    let value = HeaderValue::from_bytes(&value).ok().filter(|_| !token.is_empty());
    let mut value = value
        .ok_or_else(|| tls::wrong_secret(format!("{TOKEN} of the Secret must be one line of printable characters")))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> WebConfig {
        WebConfig { url: url.into(), ..WebConfig::default() }
    }

    #[test]
    fn addresses_are_read_or_refused_with_what_would_be_right() {
        for (url, want) in [
            ("http://localhost:3000", Ok(("localhost", 3000, ""))),
            ("http://127.0.0.1/", Ok(("127.0.0.1", 80, ""))),
            ("http://[::1]:1/a/b/", Ok(("::1", 1, "/a/b"))),
            ("", Err("must say where")),
            ("ftp://a", Err("https://")),
            ("http://service.example", Err("allowInsecure")),
            ("http://u:p@localhost", Err("belong into the Secret")),
            ("http://localhost/x?y=z", Err("must end with a path")),
            ("http://localhost:", Err("no port")),
            ("localhost:3000", Err("https://")),
        ] {
            match (check(&config(url), None), want) {
                (Ok(settings), Ok((host, port, base))) => {
                    assert_eq!((&*settings.target.host, settings.target.port, &*settings.base), (host, port, base));
                }
                (Err(error), Err(want)) => {
                    let said = error.to_string();
                    assert!(said.starts_with("spec.provider.web.url: ") && said.contains(want), "{url}: {said}");
                }
                (got, want) => panic!("{url}: {got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn secrets_go_in_clear_only_where_that_is_asked_for() {
        let secret = Credentials([("token".to_owned(), "hidden\n".into())].into());
        let mut insecure = config("http://localhost");
        assert!(check(&insecure, Some(&secret)).unwrap_err().to_string().contains("allowInsecure"));
        insecure.allow_insecure = true;
        let settings = check(&insecure, Some(&secret)).unwrap();
        assert_eq!(settings.authorization.as_ref().map(|a| a.as_bytes()), Some(&b"Bearer hidden"[..]));
        assert!(!format!("{settings:?}").contains("hidden"));
        insecure.url = "http://service.example".into();
        assert!(check(&insecure, None).is_ok());
        let broken = Credentials([("token".to_owned(), "a\nb".into())].into());
        assert!(check(&insecure, Some(&broken)).unwrap_err().to_string().contains("one line"));
    }

    #[test]
    fn bounds_and_words_are_checked_by_field() {
        let with = |min, max| {
            let poll = Some(crate::api::WebPoll { min_ms: min, max_ms: max });
            check(&WebConfig { poll, ..config("http://localhost") }, None)
                .map(|s| (s.poll.min.as_millis(), s.poll.max.as_millis()))
        };
        assert_eq!(with(None, None).unwrap(), (1000, 30_000));
        assert_eq!(with(None, Some(200)).unwrap(), (200, 200));
        assert_eq!(with(Some(60_000), None).unwrap(), (60_000, 60_000));
        assert!(with(Some(2), Some(1)).unwrap_err().to_string().starts_with("spec.provider.web.poll.minMs: "));
        let with = |words: &[&str]| {
            let features = Some(words.iter().map(|w| (*w).to_owned()).collect());
            check(&WebConfig { features, ..config("http://localhost") }, None).map(|s| s.features)
        };
        assert_eq!(with(&["hostPath"]).unwrap(), PodFeatures::of(&[PodFeature::HostPath]));
        assert!(with(&["hostPath", "nothing"]).unwrap_err().to_string().starts_with("spec.provider.web.features[1]: "));
        assert!(with(&["secretVolumes"]).unwrap_err().to_string().contains("V2"));
    }
}
