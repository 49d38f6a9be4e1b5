//! `kubectl vnode`, or `vnode kubectl`: the fleet as its operator's people see it, with their own rights.
//!
//! | module | command |
//! |---|---|
//! | [`status`] | how the fleet is |
//! | [`doctor`] | where a node's chain is broken, and what mends it |
//! | [`drain`] | takes the pods off a node |
//! | [`events`] | what happened to nodes and their pods |
//! | [`logs`] | what the operator logged of a node |
//! | [`top`] | what nodes use |
//! | [`bench`](mod@bench) | how fast simulated nodes and pods are made |
//! | [`certs`] | which certificates the nodes' kubelet APIs show |
//! | [`fleet`] | what these read from the cluster |
//! | [`output`] | tables, colours, JSON and YAML |

mod bench;
mod certs;
mod doctor;
mod drain;
mod events;
mod fleet;
mod logs;
pub(super) mod output;
mod peer;
mod status;
mod top;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::cluster::client;
use output::Format;

/// Arguments of `kubectl vnode`.
#[derive(Debug, Args)]
pub(super) struct KubectlArgs {
    #[command(subcommand)]
    command: KubectlCommand,
    /// The cluster's kubeconfig. KUBECONFIG or ~/.kube/config without it.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig. Its current one without it.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// How to print.
    #[arg(long, short, global = true, default_value = "table", value_name = "FORMAT")]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum KubectlCommand {
    /// Show how the fleet is, and which nodes are not ready.
    Status,
    /// Look for the broken link: CRDs, rights, credentials, provider, lease, address, certificate, round trips.
    Doctor(doctor::DoctorArgs),
    /// Cordon a node and evict its pods, PodDisruptionBudgets respected.
    Drain(drain::DrainArgs),
    /// Show what happened to virtual nodes and the pods on them.
    Events(events::EventsArgs),
    /// Show what the operator logged of a node.
    Logs(logs::LogsArgs),
    /// Show what nodes use.
    Top(top::TopArgs),
    /// Show the certificates of the nodes' kubelet APIs.
    Certs(certs::CertsArgs),
    /// Measure how fast simulated nodes and pods are made, and remove them again.
    Bench(bench::BenchArgs),
}

/// What every command has.
struct Session {
    client: Client,
    format: Format,
    shutdown: CancellationToken,
}

/// Runs one command.
pub(super) async fn run(args: KubectlArgs, shutdown: CancellationToken) -> Result<()> {
    let client = client::connect_as(args.kubeconfig.as_deref(), args.context.as_deref()).await?;
    let session = Session { client, format: args.output, shutdown: shutdown.clone() };
    // It removes what it has made, also when it is stopped.
    let stops_itself = matches!(args.command, KubectlCommand::Bench(_));
    let stop = if stops_itself { CancellationToken::new() } else { shutdown };
    let work = async {
        match args.command {
            KubectlCommand::Status => status::run(&session).await,
            KubectlCommand::Doctor(args) => doctor::run(&session, &args).await,
            KubectlCommand::Drain(args) => drain::run(&session, &args).await,
            KubectlCommand::Events(args) => events::run(&session, &args).await,
            KubectlCommand::Logs(args) => logs::run(&session, &args).await,
            KubectlCommand::Top(args) => top::run(&session, &args).await,
            KubectlCommand::Certs(args) => certs::run(&session, &args).await,
            KubectlCommand::Bench(args) => bench::run(&session, &args).await,
        }
    };
    match stop.run_until_cancelled(work).await {
        Some(done) => done,
        None => Ok(()),
    }
}
