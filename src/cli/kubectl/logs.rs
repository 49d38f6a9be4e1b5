//! `kubectl vnode logs`: what the operator says of one node, out of what it says of all.

use anyhow::{Result, bail};
use clap::Args;
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use serde_json::Value;

use super::output::say;
use super::{Session, fleet};

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// The node.
    node: String,
    /// Go on with what comes.
    #[arg(long, short)]
    follow: bool,
    /// Look through the last so many lines of the operator's log.
    #[arg(long, default_value_t = 10_000, value_name = "NUMBER")]
    tail: i64,
    /// The operator's namespace.
    #[arg(long, default_value = "vnode-system", value_name = "NAMESPACE")]
    operator_namespace: String,
}

pub(super) async fn run(session: &Session, args: &LogsArgs) -> Result<()> {
    let found = fleet::virtual_nodes(&session.client, std::slice::from_ref(&args.node)).await?;
    let shard = found.first().and_then(|vn| vn.status.as_ref()).and_then(|s| s.shard.clone());
    let Some(shard) = shard else {
        bail!("no operator has looked at {} yet; see `kubectl vnode doctor {}`", args.node, args.node)
    };
    let pods: Api<Pod> = Api::namespaced(session.client.clone(), &args.operator_namespace);
    let params = LogParams { follow: args.follow, tail_lines: Some(args.tail), ..LogParams::default() };
    let log = match pods.log_stream(&shard, &params).await {
        Ok(log) => log,
        Err(kube::Error::Api(status)) if status.code == 404 => bail!(
            "the operator that runs {}, {shard}, is no pod in namespace {}: its log is where it was started \
             (--operator-namespace names another namespace)",
            args.node,
            args.operator_namespace
        ),
        Err(error) => return Err(error.into()),
    };
    let mut lines = log.lines();
    while let Some(Some(line)) = session.shutdown.run_until_cancelled(lines.try_next()).await.transpose()? {
        if concerns(&line, &args.node) {
            say(&format!("{line}\n"))?;
        }
    }
    Ok(())
}

/// Whether a line is about the node: a field of JSON that is the name, or the name as a word.
fn concerns(line: &str, node: &str) -> bool {
    if let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(line) {
        let is = |name: &str| ["node", "name", "key", "virtual_node"].contains(&name);
        if fields.iter().any(|(name, value)| is(name) && value.as_str().map(|v| v.trim_matches('"')) == Some(node)) {
            return true;
        }
    }
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    line.match_indices(node).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let mut after = line[at + node.len()..].chars();
        let next = after.next();
        // A full stop at the end of a sentence is no part of a name.
        let ends = next.is_none_or(|c| !part(c) || (c == '.' && after.next().is_none_or(|c| !part(c))));
        before.is_none_or(|c| !part(c)) && ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_about_the_node_that_it_names_and_not_about_its_namesakes() {
        for (line, want) in [
            (r#"{"level":"WARN","node":"edge-1","message":"x"}"#, true),
            (r#"{"level":"WARN","key":"\"edge-1\"","message":"x"}"#, true),
            (r#"{"level":"WARN","node":"edge-10","message":"x"}"#, false),
            ("WARN vnode::fleet: late node=edge-1 error=y", true),
            ("the Lease of edge-1.", true),
            ("the Lease of edge-1.b", false),
            ("the Lease of my-edge-1", false),
            ("edge-12 then edge-1", true),
        ] {
            assert_eq!(concerns(line, "edge-1"), want, "{line}");
        }
    }
}
