//! The command line: one file for each subcommand.

mod completion;
mod crd;
#[cfg(feature = "devcluster")]
mod dev;
mod kubectl;
mod node;
mod operator;
mod program;
mod provider;
#[cfg(test)]
mod reference;
mod uninstall;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::telemetry::logging;

/// How long tasks that no longer matter may hold up the end.
const LAST_TASKS: Duration = Duration::from_secs(5);
pub use program::Program;

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
    /// Run one node without custom resources, with the flags and variables of Virtual Kubelet.
    Node(Box<node::NodeArgs>),
    /// Run a development cluster, the operator and a sample fleet, in this one process.
    #[cfg(feature = "devcluster")]
    Dev(dev::DevArgs),
    /// Run one container of the process provider. Started by vnode itself.
    #[command(hide = true)]
    Supervise(crate::provider::process::supervisor::SuperviseArgs),
    /// Tools for those who write a provider.
    #[command(subcommand)]
    Provider(provider::ProviderCommand),
    /// Look at the fleet and find what is wrong with it: the same as `kubectl vnode`.
    Kubectl(kubectl::KubectlArgs),
    /// Delete all VirtualNodes and wait until nothing of them is left, before the operator is removed.
    Uninstall(uninstall::UninstallArgs),
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

/// The program under its other name: `kubectl` runs `kubectl-vnode` for `kubectl vnode`.
#[derive(Debug, Parser)]
#[command(name = "kubectl-vnode", bin_name = "kubectl vnode", version, about, max_term_width = 100)]
struct Plugin {
    #[command(flatten)]
    args: kubectl::KubectlArgs,
    #[command(flatten)]
    logging: LoggingArgs,
}

/// The name that the program was started under.
fn program() -> Option<String> {
    let path = std::path::PathBuf::from(std::env::args_os().next()?);
    Some(path.file_name()?.to_str()?.to_owned())
}

/// The command line, by the name that the program was started under.
fn parse() -> Cli {
    if program().is_some_and(|name| name.starts_with("kubectl-vnode")) {
        let plugin = Plugin::parse();
        return Cli { command: Command::Kubectl(plugin.args), logging: plugin.logging };
    }
    Cli::parse()
}

/// Runs the program and returns its exit code: 0, or 1 with one line on standard error.
pub fn main() -> ExitCode {
    if program().is_some_and(|name| name.starts_with("kubectl_complete-vnode")) {
        completion::answer_kubectl(&std::env::args().skip(1).collect::<Vec<_>>());
        return ExitCode::SUCCESS;
    }
    let cli = parse();
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
        Command::Kubectl(_) | Command::Uninstall(_) | Command::Provider(_) => Some("warn"),
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
    #[cfg(feature = "devcluster")]
    let passing = if let Command::Dev(args) = &cli.command { args.passing() } else { None };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let logging = {
        let _inside = runtime.enter();
        // What a person waits for is not held up by a collector.
        logging::init(level, format, quiet.is_none()).map_err(anyhow::Error::msg)?
    };
    let done = runtime.block_on(async {
        let shutdown = until_signal()?;
        match cli.command {
            Command::Operator(args) => operator::run(args, shutdown).await,
            Command::Node(args) => node::run(*args, shutdown).await,
            #[cfg(feature = "devcluster")]
            Command::Dev(args) => dev::run(args, shutdown).await,
            Command::Provider(command) => provider::run(command, shutdown).await,
            Command::Kubectl(args) => kubectl::run(args, shutdown).await,
            Command::Uninstall(args) => {
                let done = shutdown.run_until_cancelled(uninstall::run(args)).await;
                done.unwrap_or_else(|| Err(anyhow::anyhow!("stopped before it was done")))
            }
            Command::Supervise(_) | Command::Crd | Command::Version | Command::Completion { .. } => Ok(()),
        }
    });
    logging.finish();
    runtime.shutdown_timeout(LAST_TASKS);
    #[cfg(feature = "devcluster")]
    if let Some(passing) = passing {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(passing.remove());
    }
    done
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
