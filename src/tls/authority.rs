//! An authority of our own, which issues the certificates of `--serving-cert self-signed`.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::TlsError;
use super::leaf::Leaf;

const LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// The share of its life after which another one takes its place. What it has issued is long over by its end.
const RENEW_AT: f64 = 0.8;
/// How far back certificates are valid, for clients whose clocks are late.
const SKEW: Duration = Duration::from_secs(3600);

/// An authority with its key. `Debug` shows no key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    renew_at: Timestamp,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("renew_at", &self.renew_at).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, valid for ten years.
    pub fn generate(now: Timestamp) -> Result<Self, TlsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        // The time makes two of them tell apart in a bundle.
        params.distinguished_name.push(DnType::CommonName, format!("vnode kubelet CA {}", now.as_second()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid_for(&mut params, now, LIFE);
        let pem = params.self_signed(&key)?.pem();
        Self::from_pem(&pem, &key.serialize_pem())
    }

    /// One that was kept.
    ///
    /// # Errors
    /// When one of the two cannot be read, or when they do not belong together.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, TlsError> {
        let unreadable = |what: String| TlsError::Unreadable(format!("the authority: {what}"));
        let key = KeyPair::from_pem(key)?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|e| unreadable(e.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|e| unreadable(e.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(unreadable("the key is not that of the certificate".into()));
        }
        if !parsed.is_ca() {
            return Err(unreadable("it is no certificate of an authority".into()));
        }
        let (from, until) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let renew_at = from + ((until - from) as f64 * RENEW_AT) as i64;
        let renew_at = Timestamp::from_second(renew_at).unwrap_or(Timestamp::MAX);
        let pem = certificate.to_owned();
        Ok(Self { issuer: Issuer::from_ca_cert_der(&der, key)?, certificate: der.into_owned(), pem, renew_at })
    }

    /// Its certificate, for clients that want to verify nodes.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its certificate as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its key as PEM, which goes into a Secret and nowhere else.
    pub(crate) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// From when another one is to take its place.
    pub fn renew_at(&self) -> Timestamp {
        self.renew_at
    }

    /// A certificate for these names and addresses.
    pub(super) fn issue(&self, names: &[String], now: Timestamp, life: Duration) -> Result<Leaf, TlsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, "vnode kubelet");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, now, life);
        let cert = params.signed_by(&key, &self.issuer)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Leaf::new(vec![cert.der().clone(), self.certificate.clone()], &private)
    }
}

fn valid_for(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    // Clocks before 1970 are not supported by X.509 either.
    let since_1970 = Duration::from_secs(now.as_second().max(0).unsigned_abs());
    let now = date_time_ymd(1970, 1, 1) + since_1970;
    params.not_before = now - SKEW;
    params.not_after = now + life;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_that_was_kept_issues_as_before() {
        let now = Timestamp::now();
        let first = Authority::generate(now).unwrap();
        let kept = Authority::from_pem(first.pem(), &first.key_pem()).unwrap();
        assert_eq!(first.certificate(), kept.certificate());
        assert!(kept.renew_at() > now + Duration::from_secs(7 * 365 * 86_400));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(first.certificate().clone()).unwrap();
        let leaf = kept.issue(&["10.0.0.1".into(), "edge".into()], now, Duration::from_secs(3600)).unwrap();
        assert!(leaf.missing(&["10.0.0.1".into(), "edge".into()]).is_empty());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            roots.into(),
            rustls::crypto::ring::default_provider().into(),
        );
        let at = rustls::pki_types::UnixTime::now();
        let name = rustls::pki_types::ServerName::try_from("10.0.0.1").unwrap();
        let verifier = verifier.build().unwrap();
        use rustls::client::danger::ServerCertVerifier as _;
        verifier.verify_server_cert(&leaf.key.cert[0], &leaf.key.cert[1..], &name, &[], at).unwrap();
    }

    #[test]
    fn what_is_no_authority_or_has_another_key_is_refused() {
        let (a, b) = (Authority::generate(Timestamp::now()).unwrap(), Authority::generate(Timestamp::now()).unwrap());
        assert!(Authority::from_pem(a.pem(), &b.key_pem()).is_err());
        assert!(Authority::from_pem("", &a.key_pem()).is_err());
        let leaf = rcgen::generate_simple_self_signed(vec!["edge".to_owned()]).unwrap();
        assert!(Authority::from_pem(&leaf.cert.pem(), &leaf.signing_key.serialize_pem()).is_err());
    }
}
