//! The TLS identity that nodes serve with, one for all nodes of the process.
//!
//! [`ServingCerts`] makes and renews the certificate; [`client`] asks clients for theirs and makes sure
//! that they hold its key. Whether a client's certificate is trusted is decided for each request by
//! [`kubelet::auth`](crate::kubelet::auth), so that a changed authority or an expiry counts at once, on
//! open connections too, and a stranger gets an HTTP 401 that says so rather than a broken handshake.

mod client;
mod serving;

pub use serving::ServingCerts;

/// What can go wrong with a serving certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A key or certificate could not be made, as with a name that is no DNS name.
    #[error("making a serving certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// rustls refused what it was given.
    #[error("setting up TLS: {0}")]
    Rustls(#[from] rustls::Error),
}
