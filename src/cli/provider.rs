//! `vnode provider check`: the conformance suite against a provider, for those who write one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::node::provider::{Asked, duration};
use super::node::read_credentials;
use super::operator::OfHost;
use crate::api::{ProviderSpec, ProviderType};
use crate::pod::support;
use crate::provider::conformance::{self, Options, Outcome, Report, Verdict};
use crate::provider::process;
use crate::provider::{ProviderContext, registry};

/// Subcommands of `vnode provider`.
#[derive(Debug, Subcommand)]
pub(super) enum ProviderCommand {
    /// Check what a provider does against what it says that it can do.
    ///
    /// Pods are made in the namespace `conformance` of a node `conformance`, and removed again. Exit code 1 when a check
    /// fails.
    Check(CheckArgs),
}

/// Flags of `vnode provider check`.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// What to check: a type of spec.provider, or a provider that the program brings along.
    #[arg(long = "type", value_name = "TYPE")]
    kind: String,
    /// The provider's configuration: what spec.provider has under the type, as YAML or JSON, or all of spec.provider.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A folder with what would be in the credentials Secret: one file for each key.
    #[arg(long, value_name = "FOLDER")]
    credentials: Option<PathBuf>,
    /// The image of the pods, which must have a sh.
    #[arg(long, default_value = "busybox", value_name = "IMAGE")]
    image: String,
    /// Containers are simulated: leave out what would show that their commands are run. Always so for mock.
    #[arg(long)]
    simulated: bool,
    /// The endpoint has the pods of one node only: leave out what another node would see.
    #[arg(long)]
    one_node: bool,
    /// How long something that must happen may take.
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "TIME")]
    patience: Duration,
    /// Only checks with this word in their name; may be repeated.
    #[arg(long, value_name = "WORD")]
    only: Vec<String>,
    /// Where pods of types process and docker have their files. A passing folder without it.
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
    /// How the report is printed.
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people, as the checks are done.
    #[default]
    Table,
    /// For programs, at the end.
    Json,
}

/// Runs until all checks are done.
pub(super) async fn run(command: ProviderCommand, shutdown: CancellationToken) -> Result<()> {
    let ProviderCommand::Check(args) = command;
    let passing = std::env::temp_dir().join(format!("vnode-provider-check-{}", std::process::id()));
    let state = args.state_dir.clone().unwrap_or_else(|| passing.clone());
    // Whoever checks a provider allows it.
    OfHost::ALL.register_providers(&state);
    let checked = shutdown.run_until_cancelled(check(&args)).await;
    if args.kind == ProviderType::Process.as_str() {
        process::remove_all(&state).await;
    }
    if args.state_dir.is_none() {
        // Best effort: it is a folder among temporary ones.
        let _ = std::fs::remove_dir_all(&passing);
    }
    let Some(report) = checked else { bail!("stopped before it was done; pods may be left at the provider") };
    let failed = report?.failures().count();
    if failed > 0 {
        bail!("{failed} checks failed");
    }
    Ok(())
}

fn spec(args: &CheckArgs) -> Result<ProviderSpec> {
    let file = match &args.config {
        Some(file) => Some(
            std::fs::read_to_string(file).with_context(|| format!("--config: {} cannot be read", file.display()))?,
        ),
        None => None,
    };
    let asked = Asked { kind: &args.kind, node: "conformance", file: file.as_deref(), web: None };
    let mut spec = asked.read().context("--config")?.provider;
    registry::global().check(&spec).context("--type")?;
    // Whoever checks as root means it.
    if let Some(process) = &mut spec.process {
        process.allow_root |= rustix::process::geteuid().is_root();
    }
    Ok(spec)
}

async fn check(args: &CheckArgs) -> Result<Report> {
    let spec = spec(args)?;
    let credentials = args.credentials.as_deref().map(read_credentials).transpose()?.map(Arc::new);
    let make = |context: ProviderContext| {
        let context = ProviderContext { credentials: credentials.clone(), ..context };
        std::future::ready(registry::build(&spec, context))
    };
    let options = Options {
        patience: args.patience,
        image: args.image.clone(),
        simulated: args.simulated || spec.kind == ProviderType::Mock,
        one_node: args.one_node,
        only: args.only.clone(),
        ..Options::default()
    };
    let mut group = "";
    let told = |outcome: &Outcome| {
        if args.output == Output::Table {
            if std::mem::replace(&mut group, outcome.group) != outcome.group {
                println!("{}", outcome.group);
            }
            print!("{}", lines(outcome));
        }
    };
    let report = conformance::check(make, options, told).await.context("making the provider")?;
    match args.output {
        Output::Table => print!("\n{}", summary(&report)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&as_json(&args.kind, &report))?),
    }
    if report.outcomes.is_empty() {
        bail!("--only: no check has such a word in its name");
    }
    Ok(report)
}

/// A check for people: its claim, and what is wrong with it.
fn lines(outcome: &Outcome) -> String {
    let claim = outcome.name.replace('_', " ");
    let took = outcome.took.as_secs_f32();
    match &outcome.verdict {
        Verdict::Passed => format!("  pass  {claim} ({took:.1} s)\n"),
        Verdict::Skipped(why) => format!("  skip  {claim}: {why}\n"),
        Verdict::Failed(why) => {
            format!("  FAIL  {claim} ({took:.1} s)\n        {why}\n        hint: {}\n", outcome.hint)
        }
    }
}

/// Passed, failed, skipped.
fn counts(report: &Report) -> (usize, usize, usize) {
    let failed = report.failures().count();
    let skipped = report.outcomes.iter().filter(|o| matches!(o.verdict, Verdict::Skipped(_))).count();
    (report.outcomes.len() - failed - skipped, failed, skipped)
}

fn summary(report: &Report) -> String {
    let (passed, failed, skipped) = counts(report);
    let words = support::words(&report.capabilities).join(", ");
    let words = if words.is_empty() { "to run pods".to_owned() } else { words };
    format!("it says that it can: {words}\n{passed} passed, {failed} failed, {skipped} skipped\n")
}

fn as_json(kind: &str, report: &Report) -> Value {
    let (passed, failed, skipped) = counts(report);
    let check = |outcome: &Outcome| {
        let (result, why) = match &outcome.verdict {
            Verdict::Passed => ("passed", None),
            Verdict::Failed(why) => ("failed", Some(why)),
            Verdict::Skipped(why) => ("skipped", Some(why)),
        };
        json!({
            "group": outcome.group,
            "name": outcome.name,
            "result": result,
            "why": why,
            "hint": (result == "failed").then_some(outcome.hint),
            "seconds": (outcome.took.as_secs_f64() * 1000.0).round() / 1000.0,
        })
    };
    json!({
        "type": kind,
        "capabilities": support::words(&report.capabilities),
        "passed": passed,
        "failed": failed,
        "skipped": skipped,
        "checks": report.outcomes.iter().map(check).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(verdict: Verdict) -> Outcome {
        Outcome { group: "g", name: "pods_run", verdict, hint: "let them run", took: Duration::from_millis(1500) }
    }

    #[test]
    fn a_report_tells_what_failed_and_what_to_look_at() {
        let report = Report {
            capabilities: Default::default(),
            outcomes: vec![
                outcome(Verdict::Passed),
                outcome(Verdict::Failed("it did not".into())),
                outcome(Verdict::Skipped("no need".into())),
            ],
        };
        let text: String = report.outcomes.iter().map(lines).collect();
        assert_eq!(
            text,
            "  pass  pods run (1.5 s)\n  FAIL  pods run (1.5 s)\n        it did not\n        hint: let them run\n  skip  \
             pods run: no need\n"
        );
        assert!(summary(&report).ends_with("1 passed, 1 failed, 1 skipped\n"));
        let json = as_json("toy", &report);
        assert_eq!((&json["failed"], &json["checks"][1]["why"]), (&json!(1), &json!("it did not")));
        assert_eq!(json["checks"][0]["hint"], Value::Null);
    }

    #[tokio::test]
    async fn the_simulator_passes_by_the_command_line_too() {
        let args = CheckArgs {
            kind: "mock".into(),
            config: None,
            credentials: None,
            image: "busybox".into(),
            simulated: false,
            one_node: false,
            patience: Duration::from_secs(10),
            only: vec!["pod".into()],
            state_dir: None,
            output: Output::Json,
        };
        let report = check(&args).await.unwrap();
        assert_eq!(counts(&report).1, 0, "{:?}", report.failures().collect::<Vec<_>>());
        let none = CheckArgs { only: vec!["nonsense".into()], ..args };
        assert!(check(&none).await.is_err());
    }
}
