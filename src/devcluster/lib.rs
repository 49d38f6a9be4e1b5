//! The embedded development cluster: a Kubernetes API server, scheduler and controllers in one process.

mod apply;
mod openapi;
mod patch;
mod schema;
pub mod status;
