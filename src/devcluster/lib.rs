//! The embedded development cluster: a Kubernetes API server, scheduler and controllers in one process.

pub mod controllers;
pub mod status;
pub mod tables;
