//! A node's request for its serving certificate, and when it makes one.
//!
//! As kubelet does it with `serverTLSBootstrap`: the node asks the signer `kubernetes.io/kubelet-serving` in its own
//! name for the addresses that its Node publishes, somebody approves, and it asks anew when 80 % of the certificate's
//! life is over. The key never leaves this process's memory, so a restart asks anew.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::ObjectMeta;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};

use super::TlsError;
use super::leaf::Leaf;
use crate::cluster::identity::{NODES, user_of};

/// The signer of serving certificates.
pub const SIGNER: &str = "kubernetes.io/kubelet-serving";
/// An EC key has no use for key encipherment, and signers take these two alone.
const USAGES: [&str; 2] = ["digital signature", "server auth"];

/// A request that was made, with its key. `Debug` shows no key.
pub struct Pending {
    /// The name of the CertificateSigningRequest.
    pub name: String,
    /// What it asks for.
    pub names: Arc<Vec<String>>,
    /// What has become of it.
    pub outcome: Outcome,
    key: KeyPair,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("name", &self.name).field("names", &self.names).finish_non_exhaustive()
    }
}

/// What has become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody has decided yet.
    Open,
    /// It was approved and the signer is at it.
    Approved,
    /// The certificate, as PEM.
    Issued(Vec<u8>),
    /// An approver or the signer refused it, in these words.
    Refused(String),
    /// It was deleted undecided.
    Gone,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this time.
    Rest(Timestamp),
    /// Wait for a decision.
    Await,
    /// Make a request.
    Ask,
    /// Take the certificate.
    Take,
    /// It was refused: note why, and ask anew later.
    Refused(String),
}

/// What to do for a node that should have a certificate for `names`. `renew_at` is for the one that it has.
pub fn plan(
    now: Timestamp,
    leaf: Option<&Leaf>,
    renew_at: Timestamp,
    names: &Arc<Vec<String>>,
    pending: Option<&Pending>,
) -> Step {
    if let Some(pending) = pending.filter(|p| p.names == *names) {
        return match &pending.outcome {
            Outcome::Open | Outcome::Approved => Step::Await,
            Outcome::Issued(_) => Step::Take,
            Outcome::Refused(why) => Step::Refused(why.clone()),
            Outcome::Gone => Step::Ask,
        };
    }
    match leaf {
        Some(leaf) if leaf.missing(names).is_empty() && now < renew_at => Step::Rest(renew_at),
        _ => Step::Ask,
    }
}

/// What the cluster says of a request.
pub fn outcome(csr: &CertificateSigningRequest) -> Outcome {
    let status = csr.status.as_ref();
    let find = |kind: &str| {
        let mut all = status.into_iter().flat_map(|s| s.conditions.iter().flatten());
        all.find(|c| c.type_ == kind && c.status == "True")
    };
    if let Some(refused) = find("Denied").or_else(|| find("Failed")) {
        let why = refused.message.clone().or_else(|| refused.reason.clone()).unwrap_or_default();
        let why = if why.is_empty() { "no reason was given".to_owned() } else { why };
        return Outcome::Refused(format!("{}: {why}", refused.type_));
    }
    match status.and_then(|s| s.certificate.as_ref()).filter(|c| !c.0.is_empty()) {
        Some(certificate) => Outcome::Issued(certificate.0.clone()),
        None if find("Approved").is_some() => Outcome::Approved,
        None => Outcome::Open,
    }
}

impl Pending {
    /// A request with a new key, and the object to create.
    pub fn new(
        name: String,
        node: &str,
        names: Arc<Vec<String>>,
    ) -> Result<(Self, CertificateSigningRequest), TlsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(names.to_vec())?;
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, NODES);
        subject.push(DnType::CommonName, user_of(node));
        params.distinguished_name = subject;
        let request = params.serialize_request(&key)?.pem()?;
        let csr = CertificateSigningRequest {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                request: ByteString(request.into_bytes()),
                signer_name: SIGNER.to_owned(),
                usages: Some(USAGES.map(str::to_owned).into()),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        Ok((Self { name, names, outcome: Outcome::Open, key }, csr))
    }

    /// The certificate that was issued, which must be for this key and for all names.
    pub fn take(&self) -> Result<Leaf, TlsError> {
        let Outcome::Issued(pem) = &self.outcome else {
            return Err(TlsError::Unreadable("no certificate was issued".into()));
        };
        let leaf = Leaf::from_pem(pem, self.key.serialize_pem().as_bytes())?;
        let missing = leaf.missing(&self.names);
        if !missing.is_empty() {
            return Err(TlsError::Unreadable(format!("it is not for {}", missing.join(", "))));
        }
        Ok(leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn leaf(name: &str) -> Leaf {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        Leaf::from_pem(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap()
    }

    fn pending(name: &str, outcome: Outcome) -> Pending {
        let (pending, _) = Pending::new("csr".into(), "edge", Arc::new(vec![name.to_owned()])).unwrap();
        Pending { outcome, ..pending }
    }

    #[test]
    fn a_node_asks_when_it_has_nothing_good_and_nothing_under_way() {
        let names = Arc::new(vec!["10.0.0.1".to_owned()]);
        let (now, later) = (Timestamp::from_second(10).unwrap(), Timestamp::from_second(20).unwrap());
        let (good, other) = (leaf("10.0.0.1"), leaf("10.0.0.2"));
        for (leaf, renew_at, pending, want) in [
            (None, later, None, Step::Ask),
            (Some(&good), later, None, Step::Rest(later)),
            (Some(&good), now, None, Step::Ask),
            (Some(&other), later, None, Step::Ask),
            (None, later, Some(pending("10.0.0.1", Outcome::Open)), Step::Await),
            (Some(&good), now, Some(pending("10.0.0.1", Outcome::Approved)), Step::Await),
            (None, later, Some(pending("10.0.0.1", Outcome::Issued(b"x".into()))), Step::Take),
            (None, later, Some(pending("10.0.0.1", Outcome::Refused("no".into()))), Step::Refused("no".into())),
            (None, later, Some(pending("10.0.0.1", Outcome::Gone)), Step::Ask),
            // The node has moved meanwhile.
            (None, later, Some(pending("10.0.0.9", Outcome::Open)), Step::Ask),
        ] {
            assert_eq!(plan(now, leaf, renew_at, &names, pending.as_ref()), want, "{pending:?}");
        }
    }

    #[test]
    fn the_clusters_word_on_a_request_is_understood() {
        let of = |status: serde_json::Value| {
            let csr = json!({"metadata": {}, "spec": {"request": "", "signerName": SIGNER}, "status": status});
            outcome(&serde_json::from_value(csr).unwrap())
        };
        let condition = |kind: &str| json!([{"type": kind, "status": "True", "message": "why"}]);
        assert_eq!(of(json!({})), Outcome::Open);
        assert_eq!(of(json!({"conditions": condition("Approved")})), Outcome::Approved);
        assert_eq!(of(json!({"conditions": condition("Denied")})), Outcome::Refused("Denied: why".into()));
        let failed = json!({"conditions": condition("Failed"), "certificate": "eA=="});
        assert_eq!(of(failed), Outcome::Refused("Failed: why".into()));
        let issued = json!({"conditions": condition("Approved"), "certificate": "eA=="});
        assert_eq!(of(issued), Outcome::Issued(b"x".into()));
    }

    #[test]
    fn a_request_names_the_node_and_takes_no_other_key() {
        let names = Arc::new(vec!["10.0.0.1".to_owned(), "edge.example".to_owned()]);
        let (mut pending, csr) = Pending::new("csr".into(), "edge", names).unwrap();
        let pem = String::from_utf8(csr.spec.request.0).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        use x509_parser::prelude::FromDer as _;
        let (_, request) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents).unwrap();
        let subject = &request.certification_request_info.subject;
        assert_eq!(subject.to_string(), "O=system:nodes, CN=system:node:edge");
        assert_eq!(csr.spec.usages.unwrap(), USAGES);
        let made = rcgen::generate_simple_self_signed(vec!["10.0.0.1".to_owned()]).unwrap();
        pending.outcome = Outcome::Issued(made.cert.pem().into_bytes());
        assert!(pending.take().unwrap_err().to_string().contains("the key is not that of the certificate"));
    }
}
