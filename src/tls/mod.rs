//! The TLS identity that nodes serve with.
//!
//! [`ServingCerts`] says which certificate a node has. Where it comes from is `--serving-cert`:
//!
//! | module | where from |
//! |---|---|
//! | [`authority`], [`kept`] | an authority of our own, kept in a Secret so that restarts and replicas share it |
//! | [`given`] | files or a Secret that somebody else keeps up to date |
//! | [`request`] | pure: a node's requests to the cluster's signer; [`fleet`](crate::fleet) makes them |
//! | [`leaf`] | what a certificate says of itself |
//!
//! [`client`] asks clients for their certificates and makes sure that they hold the key. Whether a client's
//! certificate is trusted is decided for each request by [`kubelet::auth`](crate::kubelet::auth), so that a changed
//! authority or an expiry counts at once, on open connections too, and a stranger gets an HTTP 401 that says so rather
//! than a broken handshake.

pub mod authority;
mod client;
pub mod given;
pub mod kept;
pub mod leaf;
pub mod request;
mod serving;

use std::path::PathBuf;

pub use serving::{CertState, ServingCerts};

/// Where serving certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertSource {
    /// Our own authority, kept in this Secret of the operator's namespace.
    SelfSigned {
        /// The Secret's name.
        secret: String,
    },
    /// An authority of this process alone: clients see another one after every restart.
    InMemory,
    /// The cluster's signer: each node asks for its own.
    Csr,
    /// A Secret of the operator's namespace with `tls.crt` and `tls.key`.
    Secret {
        /// The Secret's name.
        name: String,
    },
    /// Two files of PEM.
    Files {
        /// The certificate, with those that lead to its authority.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

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
    /// What was to be served cannot be read.
    #[error("reading a serving certificate: {0}")]
    Unreadable(String),
}
