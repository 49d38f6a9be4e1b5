//! The cluster's certificate authority: signs the serving certificate, clients' certificates and what is requested.

mod der;
pub(crate) mod request;

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Clocks of clients may be behind ours.
const BACKDATE: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why keys or certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key or certificate could not be generated or signed.
    #[error("making a certificate")]
    Generate(#[from] rcgen::Error),
    /// PEM read back from disk or just generated did not parse.
    #[error("reading PEM")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// TLS did not take the certificate or key.
    #[error("configuring TLS")]
    Tls(#[from] rustls::Error),
    /// A file could not be read or written.
    #[error("keeping keys in the data directory")]
    File(#[from] std::io::Error),
    /// The authority's own certificate could not be read.
    #[error("reading the authority's certificate: {0}")]
    Parse(String),
}

/// The authority that all certificates of the cluster descend from, and the key that signs service account tokens.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate_pem: String,
    pub(crate) token_key: KeyPair,
}

/// A certificate and its key.
pub(crate) struct Identity {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

impl Authority {
    /// The authority kept in `directory`, made when there is none; a fresh one without a directory.
    pub(crate) fn open(directory: Option<&Path>) -> Result<Self, PkiError> {
        let Some(directory) = directory.map(|d| d.join("pki")) else { return Self::generate() };
        let file = |name: &str| directory.join(name);
        if file("ca.crt").exists() {
            let certificate_pem = std::fs::read_to_string(file("ca.crt"))?;
            let key = KeyPair::from_pem(&std::fs::read_to_string(file("ca.key"))?)?;
            let token_key = KeyPair::from_pem(&std::fs::read_to_string(file("sa.key"))?)?;
            return Ok(Self { issuer: Issuer::from_ca_cert_pem(&certificate_pem, key)?, certificate_pem, token_key });
        }
        let made = Self::generate()?;
        std::fs::create_dir_all(&directory)?;
        private(&file("sa.key"), &made.token_key.serialize_pem())?;
        private(&file("ca.key"), &made.issuer.key().serialize_pem())?;
        // Last: its presence says that the keys are there.
        std::fs::write(file("ca.crt"), &made.certificate_pem)?;
        Ok(made)
    }

    fn generate() -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params("kubernetes", YEAR * 10);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate_pem, token_key: KeyPair::generate()? })
    }

    /// A serving certificate for these addresses and the names that clients in a cluster use.
    pub(crate) fn serving(&self, addresses: &[IpAddr]) -> Result<Identity, PkiError> {
        let mut params = params("kube-apiserver", YEAR);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        self.sign(params)
    }

    /// A client certificate: the user is the common name, the groups are organizations.
    pub(crate) fn client(&self, user: &str, groups: &[&str]) -> Result<Identity, PkiError> {
        let key = KeyPair::generate()?;
        let mut attributes: Vec<(&[u8], &str)> = groups.iter().map(|group| (der::ORGANIZATION, *group)).collect();
        attributes.push((der::COMMON_NAME, user));
        let usages = ["digital signature".to_owned(), "client auth".to_owned()];
        let subject = der::name(&attributes);
        let certificate_pem = self.issue(&subject, &key.subject_public_key_info(), &usages, None, BACKDATE, YEAR)?;
        Ok(Identity { certificate_pem, key_pem: key.serialize_pem() })
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Identity, PkiError> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { certificate_pem, key_pem: key.serialize_pem() })
    }

    pub(crate) fn certificate(&self) -> Result<CertificateDer<'static>, PkiError> {
        Ok(CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())?)
    }
}

impl Identity {
    pub(crate) fn der(&self) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), PkiError> {
        let certificate = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())?;
        Ok((certificate, PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())?))
    }
}

fn params(common_name: &str, validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = (SystemTime::now() - BACKDATE).into();
    params.not_after = (SystemTime::now() + validity).into();
    params
}

fn private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())
}
