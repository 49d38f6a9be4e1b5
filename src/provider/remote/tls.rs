//! TLS from the credentials Secret: `ca.crt`, and `tls.crt` with `tls.key`.

use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::provider::{Credentials, ProviderError, Result};

/// The authority that a service is known by.
pub(crate) const CA: &str = "ca.crt";
/// The operator's own certificate.
pub(crate) const CERT: &str = "tls.crt";
/// Its key.
pub(crate) const KEY: &str = "tls.key";

/// How to speak TLS with a service.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    /// Without protocols for ALPN.
    pub config: Arc<ClientConfig>,
    /// Until when the operator's own certificate is valid, if it shows one.
    pub until: Option<Timestamp>,
}

/// What is wrong with the credentials Secret.
pub(crate) fn wrong_secret(message: impl Into<String>) -> ProviderError {
    ProviderError::Invalid { field: "spec.credentialsSecretRef".into(), message: message.into() }
}

/// The authorities that this machine trusts.
static MACHINE: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "an authority that this machine trusts cannot be read");
    }
    roots.add_parsable_certificates(found.certs);
    Arc::new(roots)
});

/// TLS as the Secret says. Without `ca.crt`, the authorities of this machine are trusted.
pub(crate) fn client(credentials: Option<&Credentials>, now: Timestamp) -> Result<Tls> {
    let get = |key: &str| credentials.and_then(|c| c.0.get(key));
    let roots = match get(CA) {
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(CA, pem)? {
                roots.add(certificate).map_err(|e| wrong_secret(format!("{CA} of the Secret: {e}")))?;
            }
            Arc::new(roots)
        }
        None if MACHINE.is_empty() => {
            return Err(wrong_secret(format!(
                "this machine trusts no authority, so the Secret must hold {CA}: the authority that the service's \
                 certificate is from"
            )));
        }
        None => MACHINE.clone(),
    };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong_secret(e.to_string()))?
        .with_root_certificates(roots);
    let (mut config, until) = match (get(CERT), get(KEY)) {
        (Some(cert), Some(key)) => {
            let key = PrivateKeyDer::from_pem_slice(key);
            let key = key.map_err(|_| wrong_secret(format!("{KEY} of the Secret holds no private key")))?;
            let chain = certificates(CERT, cert)?;
            let until = chain.first().and_then(|c| valid_until(c));
            if let Some(until) = until.filter(|u| *u <= now) {
                return Err(wrong_secret(format!("{CERT} of the Secret expired at {until}; put a new one into it")));
            }
            let config = config.with_client_auth_cert(chain, key);
            (config.map_err(|e| wrong_secret(format!("{CERT} and {KEY} of the Secret: {e}")))?, until)
        }
        (None, None) => (config.with_no_client_auth(), None),
        _ => return Err(wrong_secret(format!("{CERT} and {KEY} of the Secret go together; one is missing"))),
    };
    // A resumed session is one whose certificate nobody looks at again.
    config.resumption = Resumption::disabled();
    Ok(Tls { config: Arc::new(config), until })
}

fn certificates(key: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|e| wrong_secret(format!("{key} of the Secret: {e}")))?;
    if all.is_empty() { Err(wrong_secret(format!("{key} of the Secret holds no certificate"))) } else { Ok(all) }
}

/// Until when a certificate is valid; `None` for one that cannot be read.
pub(crate) fn valid_until(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Timestamp::from_second(parsed.validity().not_after.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_secret_is_said_by_key() {
        let mut params = rcgen::CertificateParams::new(vec!["service".into()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap().pem();
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let (old, key) = (params.self_signed(&key).unwrap().pem(), key.serialize_pem());
        for (keys, want) in [
            (vec![("ca.crt", cert.as_str())], None),
            (vec![("ca.crt", &cert), ("tls.crt", &cert), ("tls.key", &key)], None),
            (vec![("ca.crt", &cert), ("tls.crt", &cert)], Some("go together")),
            (vec![("ca.crt", "nothing")], Some("ca.crt of the Secret holds no certificate")),
            (vec![("ca.crt", &cert), ("tls.crt", &cert), ("tls.key", "x")], Some("holds no private key")),
            (
                vec![("ca.crt", &cert), ("tls.crt", &old), ("tls.key", &key)],
                Some("expired at 2020-01-01T00:00:00Z; put a new one"),
            ),
        ] {
            let data = keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned().into())).collect();
            let said = client(Some(&Credentials(data)), Timestamp::now()).err().map(|e| e.to_string());
            match want {
                None => assert_eq!(said, None),
                Some(want) => assert!(said.as_ref().is_some_and(|s| s.contains(want)), "{said:?}, not {want}"),
            }
        }
    }
}
