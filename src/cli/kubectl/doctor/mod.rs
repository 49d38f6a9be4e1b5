//! `kubectl vnode doctor`: the chain from the CRD to a command in a pod, link by link.
//!
//! | module | what it is |
//! |---|---|
//! | [`judge`] | pure: from what was seen to a verdict and the way to mend it |
//! | [`look`] | asks the cluster, and dials the node |
//!
//! The later links hang on the earlier ones, so the first broken one is the one to mend.

mod judge;
mod look;

use anyhow::{Result, bail};
use clap::Args;
use kube::ResourceExt as _;
use serde::Serialize;

use super::output::{self, Paint};
use super::{Session, fleet};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The node. Without it: what all nodes share, and those that are not ready.
    node: Option<String>,
    /// The operator's namespace.
    #[arg(long, default_value = "vnode-system", value_name = "NAMESPACE")]
    operator_namespace: String,
    /// The operator's ServiceAccount.
    #[arg(long, default_value = "vnode", value_name = "NAME")]
    operator_account: String,
    /// Run no command in a pod: leave the round trip of `exec` out.
    #[arg(long)]
    no_exec: bool,
}

/// What a look at one link found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Worth knowing; nothing is broken.
    Note,
    /// Could not be looked at, for what is said.
    Skipped,
    Broken,
}

/// One link of the chain.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Check {
    /// The node, or empty for what all nodes share.
    #[serde(skip_serializing_if = "String::is_empty")]
    node: String,
    /// The link.
    link: &'static str,
    verdict: Verdict,
    /// What was seen.
    seen: String,
    /// What mends it.
    #[serde(skip_serializing_if = "String::is_empty")]
    fix: String,
}

impl Check {
    fn new(link: &'static str, verdict: Verdict, seen: impl Into<String>) -> Self {
        Self { node: String::new(), link, verdict, seen: seen.into(), fix: String::new() }
    }

    fn ok(link: &'static str, seen: impl Into<String>) -> Self {
        Self::new(link, Verdict::Ok, seen)
    }

    fn broken(link: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { fix: fix.into(), ..Self::new(link, Verdict::Broken, seen) }
    }

    fn with_fix(self, fix: impl Into<String>) -> Self {
        Self { fix: fix.into(), ..self }
    }
}

pub(super) async fn run(session: &Session, args: &DoctorArgs) -> Result<()> {
    let mut checks = look::shared(&session.client, args).await;
    // Without the CRD there is no node to look at.
    if !checks.iter().any(|c| c.link == judge::CRD && c.verdict == Verdict::Broken) {
        let names: Vec<String> = args.node.iter().cloned().collect();
        let mut nodes = fleet::virtual_nodes(&session.client, &names).await?;
        if args.node.is_none() {
            let all = nodes.len();
            nodes.retain(|vn| fleet::problem(vn).is_some());
            let seen = format!("{} of {all} ready", all - nodes.len());
            checks.push(Check::new("nodes", if nodes.is_empty() { Verdict::Ok } else { Verdict::Note }, seen));
            // The first few tell what the others would say.
            nodes.truncate(5);
        }
        for vn in &nodes {
            let mut found = look::node(&session.client, vn, args).await;
            found.iter_mut().for_each(|c| c.node = vn.name_any());
            checks.append(&mut found);
        }
    }
    output::print(session.format, &checks, |paint| draw(&checks, paint))?;
    let broken: Vec<_> = checks.iter().filter(|c| c.verdict == Verdict::Broken).collect();
    match broken.first() {
        None => Ok(()),
        Some(first) if first.node.is_empty() => bail!("broken: {}", first.link),
        Some(first) => bail!("broken: {} of node {}", first.link, first.node),
    }
}

fn draw(checks: &[Check], paint: Paint) -> String {
    let width = checks.iter().map(|c| c.link.len()).max().unwrap_or_default();
    let mut out = String::new();
    let mut node = "";
    for check in checks {
        if check.node != node {
            node = &check.node;
            out.push_str(&format!("\n{node}\n"));
        }
        let mark = match check.verdict {
            Verdict::Ok => paint.good("ok     "),
            Verdict::Note => paint.careful("note   "),
            Verdict::Skipped => paint.faint("skipped"),
            Verdict::Broken => paint.bad("BROKEN "),
        };
        out.push_str(&format!("{mark}  {:<width$}  {}\n", check.link, check.seen));
        if !check.fix.is_empty() {
            out.push_str(&format!("         {:<width$}  → {}\n", "", check.fix));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_link_is_drawn_with_its_fix_under_its_node() {
        let mut broken = Check::broken("lease", "renewed 70 s ago", "look at the operator");
        broken.node = "edge-0".into();
        let drawn = draw(&[Check::ok("API server", "v1.34"), broken], Paint::stdout());
        let want = "ok       API server  v1.34\n\nedge-0\nBROKEN   lease       renewed 70 s ago\n                     → look at the operator\n";
        assert_eq!(drawn, want);
    }
}
