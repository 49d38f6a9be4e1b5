//! What providers share whose pods are run by a service outside of this process.
//!
//! | module | what it is |
//! |---|---|
//! | [`sane`] | pure: what can be believed of what a service says of a pod |
//! | [`guard`] | what a node's service was given and has said, and the complaints about it |
//! | [`tls`] | TLS from the credentials Secret |
//! | [`pooled`] | connections in the pool of an HTTP client |

pub(crate) mod guard;
pub(crate) mod pooled;
pub(crate) mod sane;
pub(crate) mod tls;
