//! The command line: one file for each subcommand.

mod completion;
mod crd;
#[cfg(feature = "devcluster")]
mod dev;
mod operator;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::telemetry::logging;

/// Fleets of virtual Kubernetes nodes from one custom resource.
#[derive(Debug, Parser)]
#[command(name = "vnode", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logging: LoggingArgs,
}

#[derive(Debug, clap::Args)]
struct LoggingArgs {
    /// What is logged: error, warn, info, debug, trace, or levels by module as in `info,vnode::pod=debug`.
    #[arg(long, global = true, env = "VNODE_LOG", value_name = "LEVEL")]
    log_level: Option<String>,
    /// How it is logged: human, json, or auto (human on a terminal).
    #[arg(long, global = true, env = "VNODE_LOG_FORMAT", default_value = "auto", value_name = "FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogFormat {
    Auto,
    Human,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the nodes of a cluster's VirtualNodes.
    Operator(operator::OperatorArgs),
    /// Run a development cluster, the operator and a sample fleet, in this one process.
    #[cfg(feature = "devcluster")]
    Dev(dev::DevArgs),
    /// Run one container of the process provider. Started by vnode itself.
    #[command(hide = true)]
    Supervise(crate::provider::process::supervisor::SuperviseArgs),
    /// Print the CustomResourceDefinitions.
    Crd,
    /// Print the version.
    Version,
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the program and returns its exit code: 0, or 1 with one line on standard error.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let quiet = match &cli.command {
        #[cfg(feature = "devcluster")]
        Command::Dev(args) if !args.verbose() => Some("warn"),
        _ => None,
    };
    match cli.command {
        // Before there are threads, which it must not have.
        Command::Supervise(args) => return Ok(crate::provider::process::supervisor::main(&args)?),
        Command::Crd => return crd::run(),
        Command::Version => {
            println!("vnode {}", env!("CARGO_PKG_VERSION"));
            return Ok(());
        }
        Command::Completion { shell } => {
            completion::run(shell);
            return Ok(());
        }
        _ => {}
    }
    let format = match cli.logging.log_format {
        LogFormat::Auto => logging::Format::Auto,
        LogFormat::Human => logging::Format::Text,
        LogFormat::Json => logging::Format::Json,
    };
    let level = cli.logging.log_level.as_deref().or(quiet);
    logging::init(level, format).map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = until_signal()?;
        match cli.command {
            Command::Operator(args) => operator::run(args, shutdown).await,
            #[cfg(feature = "devcluster")]
            Command::Dev(args) => dev::run(args, shutdown).await,
            Command::Supervise(_) | Command::Crd | Command::Version | Command::Completion { .. } => Ok(()),
        }
    })
}

/// A token that is cancelled by SIGINT or SIGTERM. A second signal ends the process at once.
fn until_signal() -> Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let token = shutdown.clone();
    tokio::spawn(async move {
        for last in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if last {
                std::process::exit(130);
            }
            token.cancel();
        }
    });
    Ok(shutdown)
}
