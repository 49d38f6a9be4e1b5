//! Fleets of virtual Kubernetes nodes from one custom resource.
//!
//! Data flows through the modules in this order: a [`api::VirtualNode`] is watched by [`fleet`], which
//! runs an agent for it: [`node`] keeps its Node and Lease, [`pod`] its pods, [`kubelet`] answers for it.
//! All three act through a [`provider`].
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | one file for each subcommand |
//! | [`fleet`] | the controller: from VirtualNodes to agents and back to their status |
//! | [`node`] | one node: its Node object, Lease and conditions |
//! | [`pod`] | the pods of all nodes: what to do (pure) apart from doing it |
//! | [`kubelet`] | the kubelet API: routes, who may ask, logs, statistics |
//! | [`provider`] | the [`provider::Provider`] trait, and a folder for each provider |
//! | [`cluster`] | what is shared when talking to Kubernetes |
//! | [`tls`] | serving certificates |
//! | [`telemetry`] | logs, metrics, health |
//! | [`api`] | the custom resource types |
//!
//! A program with providers of its own is a [`Program`] with them: see [`provider::External`].

pub mod api;
pub mod cli;
pub mod cluster;
pub mod fleet;
pub mod kubelet;
pub mod node;
pub mod pod;
pub mod provider;
pub mod telemetry;
pub mod tls;

pub use cli::Program;
