//! The embedded development cluster: a Kubernetes API server, scheduler and controllers in one process.

pub mod status;
pub(crate) mod validate;
