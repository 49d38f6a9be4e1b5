//! What one node's configuration comes to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Uri};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::connect::Target;
use crate::api::GrpcConfig;
use crate::provider::remote::tls::{self, CA, CERT, KEY, Tls, wrong_secret};
use crate::provider::{Credentials, ProviderError, Result};

/// The key of the credentials Secret with a bearer token.
const TOKEN: &str = "token";
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Nodes with equal keys share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub endpoint: String,
    /// Digest of what is used of the credentials.
    credentials: [u8; 32],
    pub call_timeout: Duration,
    pub keep_alive: Duration,
}

/// A configuration that can work.
#[derive(Clone)]
pub(super) struct Settings {
    pub key: Key,
    pub target: Target,
    /// What the service is called in requests.
    pub origin: Uri,
    pub authorization: Option<HeaderValue>,
    pub config: BTreeMap<String, String>,
}

fn wrong_endpoint(message: impl Into<String>) -> ProviderError {
    ProviderError::Invalid { field: "spec.provider.grpc.endpoint".into(), message: message.into() }
}

/// Checks a node's configuration. `sockets` says whether unix sockets of this machine may be used.
pub(super) fn check(config: &GrpcConfig, credentials: Option<&Credentials>, sockets: bool) -> Result<Settings> {
    let authorization = token(credentials)?;
    let (target, origin) = target(&config.endpoint, credentials, authorization.is_some(), sockets)?;
    let seconds = |wanted: Option<u32>, default| wanted.map_or(default, |s| Duration::from_secs(u64::from(s)));
    let key = Key {
        endpoint: config.endpoint.clone(),
        credentials: digest(credentials),
        call_timeout: seconds(config.call_timeout_seconds, CALL_TIMEOUT).max(Duration::from_secs(1)),
        keep_alive: seconds(config.keep_alive_seconds, KEEP_ALIVE).max(Duration::from_secs(1)),
    };
    Ok(Settings { key, target, origin, authorization, config: config.config.clone() })
}

fn digest(credentials: Option<&Credentials>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for key in [CA, CERT, KEY, TOKEN] {
        let value = credentials.and_then(|c| c.0.get(key));
        hash.update(value.map_or(u64::MAX, |v| v.len() as u64).to_be_bytes());
        hash.update(value.map(|v| &v[..]).unwrap_or_default());
    }
    hash.finalize().into()
}

fn token(credentials: Option<&Credentials>) -> Result<Option<HeaderValue>> {
    let Some(token) = credentials.and_then(|c| c.0.get(TOKEN)) else { return Ok(None) };
    let token = token.trim_ascii();
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(wrong_secret(format!("{TOKEN} of the Secret must be one word of printable characters")));
    }
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token].concat())
        .map_err(|_| wrong_secret(format!("{TOKEN} of the Secret cannot be sent in a header")))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn target(endpoint: &str, credentials: Option<&Credentials>, has_token: bool, sockets: bool) -> Result<(Target, Uri)> {
    if let Some(path) = endpoint.strip_prefix("unix:") {
        let Some(path) = path.strip_prefix("//").filter(|p| p.starts_with('/') && p.len() > 1) else {
            return Err(wrong_endpoint(format!(
                "{endpoint:?} must have three slashes, as in unix:///run/service.sock"
            )));
        };
        if !sockets {
            return Err(wrong_endpoint(
                "this operator uses no sockets of its machine; it must be started with --allow-host-sockets, or the \
                 service be reached at https://host:port",
            ));
        }
        return Ok((Target::Unix(path.into()), Uri::from_static("http://localhost")));
    }
    let shape = || wrong_endpoint(format!("{endpoint:?} must be https://host:port, http://host:port or unix:///path"));
    let uri: Uri = endpoint.parse().map_err(|_| shape())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(shape()) };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || authority.as_str().contains('@') {
        return Err(wrong_endpoint(format!("{endpoint:?} must have nothing but a host and a port")));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() || authority.port().is_none() && authority.as_str() != authority.host() {
        return Err(shape());
    }
    let default = if scheme == "https" { 443 } else { 80 };
    let port = authority.port_u16().unwrap_or(default);
    let tls = match scheme {
        "https" => {
            let tls = tls::client(credentials, Timestamp::now())?;
            let mut config = (*tls.config).clone();
            // Without it servers take the connection for HTTP/1.
            config.alpn_protocols = vec![b"h2".to_vec()];
            Some(Tls { config: Arc::new(config), ..tls })
        }
        "http" => {
            let secret = |key| credentials.is_some_and(|c| c.0.contains_key(key));
            if has_token || [CA, CERT, KEY].into_iter().any(secret) {
                return Err(wrong_endpoint("credentials are not sent over http://; write https://"));
            }
            None
        }
        _ => return Err(shape()),
    };
    let origin = format!("{scheme}://{authority}").parse().map_err(|_| shape())?;
    Ok((Target::Tcp { host, port, tls }, origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(keys: &[(&str, &str)]) -> Credentials {
        Credentials(keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned().into())).collect())
    }

    fn with(endpoint: &str, credentials: Option<&Credentials>, sockets: bool) -> Result<Settings> {
        check(&GrpcConfig { endpoint: endpoint.into(), ..GrpcConfig::default() }, credentials, sockets)
    }

    fn authority() -> String {
        let mut params = rcgen::CertificateParams::new(vec!["service".into()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn endpoints_are_taken_or_refused_with_what_would_be_right() {
        let ca = secret(&[("ca.crt", &authority())]);
        let (token, bad) = (secret(&[("token", "abc\n")]), secret(&[("token", "a b")]));
        for (endpoint, credentials, sockets, want) in [
            ("https://service.example:9443", Some(&ca), false, None),
            ("https://[fd00::1]", Some(&ca), false, None),
            ("http://127.0.0.1:9000/", None, false, None),
            ("unix:///run/service.sock", Some(&token), true, None),
            ("unix:///run/service.sock", None, false, Some("--allow-host-sockets")),
            ("unix://run/service.sock", None, true, Some("three slashes")),
            ("http://service:1", Some(&token), false, Some("https://")),
            ("http://service:1", Some(&ca), false, Some("https://")),
            ("http://service:99999", None, false, Some("http://host:port")),
            ("https://service/path", Some(&ca), false, Some("nothing but")),
            ("https://me@service", Some(&ca), false, Some("nothing but")),
            ("service:9000", None, false, Some("https://host:port")),
            ("grpc://service:9000", None, false, Some("https://host:port")),
            ("", None, false, Some("https://host:port")),
            ("http://service:1", Some(&bad), false, Some("token of the Secret")),
        ] {
            let said = with(endpoint, credentials, sockets).err().map(|e| e.to_string());
            match want {
                None => assert_eq!(said, None, "{endpoint}"),
                Some(want) => assert!(said.as_ref().is_some_and(|s| s.contains(want)), "{endpoint}: {said:?}"),
            }
        }
        let Target::Tcp { host, port, .. } = with("https://[fd00::1]", Some(&ca), false).unwrap().target else {
            panic!("TCP")
        };
        assert_eq!((host.as_str(), port), ("fd00::1", 443));
    }

    #[test]
    fn nodes_share_a_connection_only_with_equal_credentials() {
        let (one, two) = (secret(&[("token", "one")]), secret(&[("token", "two")]));
        let other = secret(&[("token", "one"), ("unrelated", "x")]);
        let key = |c| with("unix:///run/s", Some(c), true).unwrap().key;
        assert_eq!(key(&one), key(&other));
        assert_ne!(key(&one), key(&two));
        assert_ne!(key(&one), with("unix:///run/s", None, true).unwrap().key);
        assert!(!format!("{:?}", key(&one)).contains("one"));
        let header = with("unix:///run/s", Some(&one), true).unwrap().authorization.unwrap();
        assert!(header.is_sensitive());
        assert_eq!(header.as_bytes(), b"Bearer one");
    }
}
