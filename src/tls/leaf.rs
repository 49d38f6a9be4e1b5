//! A certificate with its key, ready to be served, and what it says of itself.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::TlsError;

/// A certificate with its key. `Debug` shows no key.
pub struct Leaf {
    /// What rustls serves.
    pub key: Arc<CertifiedKey>,
    /// Names and addresses that it is for.
    pub names: Vec<String>,
    /// From when it is good.
    pub since: Timestamp,
    /// Until when.
    pub expires_at: Timestamp,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("names", &self.names).field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

impl Leaf {
    /// From PEM, the certificate itself first and then those that lead to its authority.
    ///
    /// # Errors
    /// When one of the two cannot be read, or when the key is another's.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|e| TlsError::Unreadable(format!("the certificate: {e}")))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| TlsError::Unreadable(format!("the key: {e}")))?;
        Self::new(chain, &key)
    }

    /// From a chain, the certificate itself first, and its key.
    pub(super) fn new(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'_>) -> Result<Self, TlsError> {
        let unreadable = |what: &str| TlsError::Unreadable(format!("the certificate: {what}"));
        let first = chain.first().ok_or_else(|| unreadable("there is none"))?;
        let (_, cert) = X509Certificate::from_der(first).map_err(|e| unreadable(&e.to_string()))?;
        let time = |t: i64| Timestamp::from_second(t).unwrap_or(Timestamp::MAX);
        let validity = cert.validity();
        let (since, expires_at) = (time(validity.not_before.timestamp()), time(validity.not_after.timestamp()));
        let names = names_of(&cert);
        let signer = ring::sign::any_supported_type(key)?;
        let key = CertifiedKey::new(chain, signer);
        if let Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) = key.keys_match() {
            return Err(TlsError::Unreadable("the key is not that of the certificate".into()));
        }
        Ok(Self { key: Arc::new(key), names, since, expires_at })
    }

    /// When so much of its life is over.
    pub fn at(&self, share: f64) -> Timestamp {
        let life = self.expires_at.duration_since(self.since).as_secs_f64().max(0.0);
        let since = jiff::SignedDuration::from_secs_f64(life * share);
        self.since.checked_add(since).unwrap_or(self.expires_at)
    }

    /// Those of `wanted` that it is not for.
    pub fn missing<'a>(&self, wanted: &'a [String]) -> Vec<&'a str> {
        wanted.iter().filter(|name| !self.names.iter().any(|has| covers(has, name))).map(String::as_str).collect()
    }
}

/// RFC 6125: a wildcard stands for one whole label, the first.
fn covers(has: &str, name: &str) -> bool {
    if let (Ok(a), Ok(b)) = (has.parse::<IpAddr>(), name.parse::<IpAddr>()) {
        return a == b;
    }
    let matches = |has: &str, name: &str| has.eq_ignore_ascii_case(name);
    match (has.strip_prefix("*."), name.split_once('.')) {
        (Some(rest), Some((_, of))) => matches(rest, of),
        _ => matches(has, name),
    }
}

/// The names and addresses that a certificate is for.
pub(crate) fn names_of(cert: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = cert.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pems(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_certificate_says_what_it_is_for_and_until_when() {
        let (chain, key) = pems(&["10.0.0.7", "*.nodes.example", "edge"]);
        let leaf = Leaf::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        let wanted = ["10.0.0.7", "a.nodes.example", "EDGE", "a.b.nodes.example", "10.0.0.8"].map(str::to_owned);
        assert_eq!(leaf.missing(&wanted), ["a.b.nodes.example", "10.0.0.8"]);
        assert!(leaf.expires_at > Timestamp::now());
        assert!(leaf.at(0.5) > leaf.since && leaf.at(0.5) < leaf.expires_at);
        assert!(!format!("{leaf:?}").contains("PRIVATE"));
    }

    #[test]
    fn the_key_of_another_certificate_is_refused() {
        let ((chain, _), (_, key)) = (pems(&["a"]), pems(&["a"]));
        let error = Leaf::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("the key is not that of the certificate"), "{error}");
        assert!(Leaf::from_pem(b"", key.as_bytes()).is_err());
        assert!(Leaf::from_pem(chain.as_bytes(), b"x").is_err());
    }
}
