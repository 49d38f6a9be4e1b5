//! The embedded development cluster: a Kubernetes API server, scheduler and controllers in one process.
//!
//! ```no_run
//! # async fn run() -> Result<(), vnode_devcluster::Error> {
//! use vnode_devcluster::{DevCluster, Options};
//! let cluster = DevCluster::start(Options::default()).await?;
//! std::fs::write("kubeconfig", cluster.admin_kubeconfig()?)?;
//! cluster.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! A request comes in through `server` (TLS, routing, one file a verb), which asks `auth` whether it may, `kinds` what
//! the resource is, `schema`, `validate`, `patch` and `apply` what the object becomes, and writes it to `store`, which
//! tells its watchers and, when there is a data directory, its log. `controllers` are plain clients of that API.

mod apply;
mod auth;
mod bootstrap;
mod cluster;
mod controllers;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod kinds;
mod openapi;
mod patch;
mod pki;
mod schema;
mod selector;
mod server;
pub mod status;
mod store;
pub mod tables;
mod validate;

pub use cluster::{DevCluster, Error, KubeletStreams, Options};
pub use kinds::supported_kinds;
pub use pki::PkiError;
