//! The certificates that nodes serve with.
use std::sync::Arc;

use jiff::Timestamp;

/// What can go wrong with a serving certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A key or certificate could not be made.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// rustls refused what it was given.
    #[error("setting up TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// The serving certificate of the process, renewed before it expires.
pub struct ServingCerts {}

impl ServingCerts {
    /// A certificate of an authority that lives in this process only. `sans` are names and IP addresses.
    pub fn self_signed(_sans: &[String]) -> Result<Arc<Self>, TlsError> {
        todo!()
    }

    /// Makes sure that the certificate names all of `sans` beside those that it names already.
    pub fn ensure_sans(&self, _sans: &[String]) -> Result<(), TlsError> {
        todo!()
    }

    /// When the certificate now served expires.
    pub fn expires_at(&self) -> Timestamp {
        todo!()
    }
}
