//! Certificate signing requests: what is in one, and the certificate that answers it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rcgen::SigningKey;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Authority, PkiError, der};

/// Clocks of clients may be behind ours. kube-controller-manager: the signer's backdate.
const BACKDATE: Duration = Duration::from_secs(300);

/// A parsed request whose signature shows that its key is held.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Request {
    pub(crate) common_name: String,
    pub(crate) organizations: Vec<String>,
    pub(crate) dns_names: Vec<String>,
    pub(crate) addresses: usize,
    pub(crate) emails: usize,
    pub(crate) uris: usize,
    subject: Vec<u8>,
    public_key: Vec<u8>,
    /// The extension as it was asked for.
    alternative_names: Option<Vec<u8>>,
}

impl Request {
    /// Reads a request from PEM.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it, in the words of the API server.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(pem)
            .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
        let malformed = |error: &dyn std::fmt::Display| format!("x509: malformed certificate request: {error}");
        let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|error| malformed(&error))?;
        parsed.verify_signature().map_err(|error| malformed(&error))?;
        let info = &parsed.certification_request_info;
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().ok().map(String::from);
        let mut request = Self {
            common_name: info.subject.iter_common_name().last().and_then(text).unwrap_or_default(),
            organizations: info.subject.iter_organization().filter_map(text).collect(),
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            ..Self::default()
        };
        for attribute in info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else { continue };
            for extension in &asked.extensions {
                let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
                request.alternative_names = Some(extension.value.to_vec());
                for name in &names.general_names {
                    match name {
                        GeneralName::DNSName(name) => request.dns_names.push((*name).to_owned()),
                        GeneralName::IPAddress(_) => request.addresses += 1,
                        GeneralName::RFC822Name(_) => request.emails += 1,
                        GeneralName::URI(_) => request.uris += 1,
                        _ => {}
                    }
                }
            }
        }
        Ok(request)
    }
}

/// Numbers of the flags and object identifiers of usages. RFC 5280, 4.2.1.3 and 4.2.1.12.
fn usages(named: &[String]) -> (Vec<u8>, Vec<&'static [u8]>) {
    let (mut flags, mut purposes): (Vec<u8>, Vec<&[u8]>) = (Vec::new(), Vec::new());
    for usage in named {
        match usage.as_str() {
            "signing" | "digital signature" => flags.push(0),
            "content commitment" => flags.push(1),
            "key encipherment" => flags.push(2),
            "data encipherment" => flags.push(3),
            "key agreement" => flags.push(4),
            "server auth" => purposes.push(&[0x2b, 6, 1, 5, 5, 7, 3, 1]),
            "client auth" => purposes.push(&[0x2b, 6, 1, 5, 5, 7, 3, 2]),
            _ => {}
        }
    }
    (flags, purposes)
}

impl Authority {
    /// The certificate (PEM) that a request asks for, for `usages` and as long as `life`.
    pub(crate) fn answer(&self, request: &Request, usages: &[String], life: Duration) -> Result<String, PkiError> {
        let names = request.alternative_names.as_deref();
        self.issue(&request.subject, &request.public_key, usages, names, BACKDATE, life)
    }

    /// Writes and signs a certificate.
    pub(super) fn issue(
        &self,
        subject: &[u8],
        public_key: &[u8],
        named_usages: &[String],
        alternative_names: Option<&[u8]>,
        backdate: Duration,
        life: Duration,
    ) -> Result<String, PkiError> {
        let own = self.certificate()?;
        let (_, own) = X509Certificate::from_der(&own).map_err(|error| PkiError::Parse(error.to_string()))?;
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX / 4);
        let now = Timestamp::now().as_second();
        let from = now - seconds(backdate);
        // No certificate outlives its issuer.
        let until = (from + seconds(life)).min(own.validity().not_after.timestamp());
        let at = |second| der::time(Timestamp::from_second(second).unwrap_or(Timestamp::MAX));
        let (flags, purposes) = usages(named_usages);
        let mut extensions = Vec::new();
        if !flags.is_empty() {
            extensions.push(der::extension(der::KEY_USAGE, true, &der::flags(&flags)));
        }
        if !purposes.is_empty() {
            let purposes: Vec<_> = purposes.iter().map(|purpose| der::oid(purpose)).collect();
            extensions.push(der::extension(der::EXTENDED_KEY_USAGE, false, &der::sequence(&purposes)));
        }
        extensions.push(der::extension(der::BASIC_CONSTRAINTS, true, &der::sequence(&[])));
        let key_id = own.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        if let Some(id) = key_id {
            let value = der::sequence(&[der::implicit(0, &id)]);
            extensions.push(der::extension(der::AUTHORITY_KEY, false, &value));
        }
        if let Some(names) = alternative_names {
            extensions.push(der::extension(der::SUBJECT_ALTERNATIVE_NAME, false, names));
        }
        let algorithm = der::sequence(&[der::oid(der::ECDSA_SHA256)]);
        let mut serial: [u8; 16] = rand::random();
        serial[0] &= 0x7f;
        let body = der::sequence(&[
            der::explicit(0, &der::integer(&[2])),
            der::integer(&serial),
            algorithm.clone(),
            own.subject().as_raw().to_vec(),
            der::sequence(&[at(from), at(until)]),
            subject.to_vec(),
            public_key.to_vec(),
            der::explicit(3, &der::sequence(&extensions)),
        ]);
        let signature = self.issuer.key().sign(&body)?;
        let certificate = der::sequence(&[body, algorithm, der::bits(&signature)]);
        Ok(pem("CERTIFICATE", &certificate))
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in encoded.as_bytes().chunks(64) {
        // Base64 is ASCII.
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::User;

    fn request(organizations: &str, names: &[&str]) -> String {
        let mut params =
            rcgen::CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, organizations);
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n");
        params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn a_request_is_answered_with_its_subject_key_and_names() {
        let authority = Authority::open(None).unwrap();
        let request = Request::from_pem(request("system:nodes", &["host", "10.0.0.1"]).as_bytes()).unwrap();
        assert_eq!(request.common_name, "system:node:n");
        assert_eq!(request.organizations, ["system:nodes"]);
        assert_eq!((request.dns_names.as_slice(), request.addresses), (&["host".to_owned()][..], 1));
        let life = Duration::from_secs(3600);
        let usages = ["digital signature".to_owned(), "server auth".to_owned()];
        let pem = authority.answer(&request, &usages, life).unwrap();
        let der = rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, made) = X509Certificate::from_der(&der).unwrap();
        let ca = authority.certificate().unwrap();
        let (_, ca) = X509Certificate::from_der(&ca).unwrap();
        made.verify_signature(Some(ca.public_key())).unwrap();
        assert_eq!(made.public_key().raw, request.public_key);
        assert_eq!(made.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 2);
        assert!(made.extended_key_usage().unwrap().unwrap().value.server_auth);
        assert!(!made.extended_key_usage().unwrap().unwrap().value.client_auth);
        let validity = made.validity();
        assert_eq!(validity.not_after.timestamp() - validity.not_before.timestamp(), 3600);
    }

    #[test]
    fn garbage_and_foreign_keys_are_refused() {
        for garbage in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert_eq!(
                Request::from_pem(garbage.as_bytes()).unwrap_err(),
                "PEM block type must be CERTIFICATE REQUEST"
            );
        }
        let mut der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(request("o", &[]).as_bytes())
            .unwrap()
            .to_vec();
        // The last byte belongs to the signature.
        *der.last_mut().unwrap() ^= 1;
        assert!(Request::from_pem(pem("CERTIFICATE REQUEST", &der).as_bytes()).is_err());
    }

    #[test]
    fn a_client_is_in_as_many_groups_as_it_is_given() {
        let authority = Authority::open(None).unwrap();
        let identity = authority.client("jane", &["a", "b", "c", "d"]).unwrap();
        let (certificate, _) = identity.der().unwrap();
        let user = User::from_certificate(&certificate).unwrap();
        assert_eq!(user.groups, ["a", "b", "c", "d", "system:authenticated"]);
        assert!(authority.client("jane", &[]).unwrap().der().is_ok());
    }
}
