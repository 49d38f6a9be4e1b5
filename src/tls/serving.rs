//! A serving certificate of an authority that lives in this process.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::TlsError;
use super::client::ProofOfPossession;
use crate::telemetry::metrics::metrics;

const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
const LEAF_LIFE: Duration = Duration::from_secs(90 * 86_400);
/// How far back certificates are valid, for clients whose clocks are late.
const SKEW: Duration = Duration::from_secs(3600);

/// The serving certificate of the process: renewed at 80 % of its life, when a client next connects, and
/// issued anew when a node brings an address that it does not name yet.
pub struct ServingCerts {
    authority: Issuer<'static, KeyPair>,
    authority_der: CertificateDer<'static>,
    /// The names to serve for. Held while a certificate is issued, so that only one is.
    sans: Mutex<BTreeSet<String>>,
    served: ArcSwap<Served>,
    leaf_life: Duration,
}

struct Served {
    key: Arc<CertifiedKey>,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

impl fmt::Debug for ServingCerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingCerts").field("expires_at", &self.served.load().expires_at).finish_non_exhaustive()
    }
}

impl ServingCerts {
    /// A certificate of an authority that lives in this process only. `sans` are names and IP addresses.
    pub fn self_signed<S: AsRef<str>>(sans: &[S]) -> Result<Arc<Self>, TlsError> {
        Self::with_life(sans, LEAF_LIFE)
    }

    fn with_life<S: AsRef<str>>(sans: &[S], leaf_life: Duration) -> Result<Arc<Self>, TlsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, "vnode kubelet CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid_for(&mut params, Timestamp::now(), AUTHORITY_LIFE);
        let authority_der = params.self_signed(&key)?.der().clone();
        let authority = Issuer::new(params, key);
        let sans: BTreeSet<String> = sans.iter().map(|s| s.as_ref().to_owned()).collect();
        let served = issue(&authority, &authority_der, &sans, Timestamp::now(), leaf_life)?;
        Ok(Arc::new(Self {
            authority,
            authority_der,
            sans: Mutex::new(sans),
            served: ArcSwap::from_pointee(served),
            leaf_life,
        }))
    }

    /// Makes sure that the certificate names all of `sans` beside those that it names already.
    pub fn ensure_sans<S: AsRef<str>>(&self, sans: &[S]) -> Result<(), TlsError> {
        let mut held = self.sans.lock().unwrap_or_else(PoisonError::into_inner);
        if sans.iter().all(|s| held.contains(s.as_ref())) {
            return Ok(());
        }
        let mut wanted = held.clone();
        wanted.extend(sans.iter().map(|s| s.as_ref().to_owned()));
        let served = issue(&self.authority, &self.authority_der, &wanted, Timestamp::now(), self.leaf_life)?;
        self.served.store(Arc::new(served));
        *held = wanted;
        Ok(())
    }

    /// When the certificate now served expires.
    pub fn expires_at(&self) -> Timestamp {
        self.served.load().expires_at
    }

    /// The authority's certificate in DER, for clients that want to verify the node.
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority_der
    }

    /// TLS 1.2 and 1.3 with this certificate; clients are asked for a certificate but need not have one.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = ProofOfPossession { algorithms: provider.signature_verification_algorithms };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Issues a new certificate when 80 % of the old one's life is over. It is done on a handshake, which
    /// costs that handshake some tens of microseconds and the process no timer.
    fn renew_if_due(&self, now: Timestamp) {
        if now < self.served.load().renew_at {
            return;
        }
        let sans = self.sans.lock().unwrap_or_else(PoisonError::into_inner);
        if now < self.served.load().renew_at {
            return;
        }
        match issue(&self.authority, &self.authority_der, &sans, now, self.leaf_life) {
            Ok(served) => {
                tracing::info!(expires_at = %served.expires_at, "the kubelet serving certificate was renewed");
                self.served.store(Arc::new(served));
            }
            Err(error) => tracing::error!(%error, "the kubelet serving certificate could not be renewed"),
        }
    }
}

impl ResolvesServerCert for ServingCerts {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.renew_if_due(Timestamp::now());
        Some(self.served.load().key.clone())
    }
}

fn valid_for(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    // Clocks before 1970 are not supported by X.509 either.
    let since_1970 = Duration::from_secs(now.as_second().max(0).unsigned_abs());
    let now = date_time_ymd(1970, 1, 1) + since_1970;
    params.not_before = now - SKEW;
    params.not_after = now + life;
}

fn issue(
    authority: &Issuer<'static, KeyPair>,
    authority_der: &CertificateDer<'static>,
    sans: &BTreeSet<String>,
    now: Timestamp,
    life: Duration,
) -> Result<Served, TlsError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(sans.iter().cloned().collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, "vnode kubelet");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, now, life);
    let cert = params.signed_by(&key, authority)?;
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signer = ring::sign::any_ecdsa_type(&private)?;
    let expires_at = now + life;
    metrics().serving_certificate_expiry.set(expires_at.as_second() as f64);
    Ok(Served {
        key: Arc::new(CertifiedKey::new(vec![cert.der().clone(), authority_der.clone()], signer)),
        renew_at: now + life.mul_f64(0.8),
        expires_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(certs: &ServingCerts) -> usize {
        let served = certs.served.load();
        let (_, cert) = x509_parser::parse_x509_certificate(&served.key.cert[0]).unwrap();
        cert.subject_alternative_name().unwrap().map_or(0, |s| s.value.general_names.len())
    }

    #[test]
    fn a_new_address_is_added_and_a_known_one_changes_nothing() {
        let certs = ServingCerts::self_signed(&["127.0.0.1", "localhost"]).unwrap();
        let first = certs.served.load().key.clone();
        certs.ensure_sans(&["127.0.0.1"]).unwrap();
        assert!(Arc::ptr_eq(&first, &certs.served.load().key));
        certs.ensure_sans(&["10.0.0.7"]).unwrap();
        assert_eq!(names(&certs), 3);
    }

    #[test]
    fn a_bad_name_is_refused_and_the_old_certificate_stays() {
        let certs = ServingCerts::self_signed(&["localhost"]).unwrap();
        assert!(certs.ensure_sans(&["no\u{e4}scii"]).is_err());
        assert_eq!(names(&certs), 1);
        certs.ensure_sans(&["other"]).unwrap();
        assert_eq!(names(&certs), 2);
    }

    #[test]
    fn the_certificate_is_renewed_at_four_fifths_of_its_life() {
        let certs = ServingCerts::with_life(&["localhost"], Duration::from_secs(1000)).unwrap();
        let first = certs.expires_at();
        certs.renew_if_due(first - Duration::from_secs(300));
        assert_eq!(certs.expires_at(), first);
        certs.renew_if_due(first - Duration::from_secs(150));
        assert!(certs.expires_at() > first);
        certs.server_config().unwrap();
    }
}
