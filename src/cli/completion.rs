//! Completion: scripts for shells, and answers to `kubectl`, which completes its plugins by asking a program of the name
//! `kubectl_complete-PLUGIN` (cobra's protocol: a candidate a line, its description behind a tab, then `:` and a directive).

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, Command, CommandFactory as _};
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::api::VirtualNode;
use crate::cluster::client;

/// Whoever pressed a key does not wait longer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Candidates are all there is: no names of files.
const NO_FILES: &str = ":4";

/// Prints the script.
pub(super) fn run(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut super::Cli::command(), "vnode", &mut std::io::stdout());
}

/// Answers `kubectl`: `words` are those behind `kubectl vnode`, the last one being written.
pub(super) fn answer_kubectl(words: &[String]) {
    let mut plugin = super::Plugin::command();
    plugin.build();
    let (mut lines, names_nodes) = candidates(&plugin, words);
    if names_nodes {
        lines.extend(nodes(words));
    }
    let begun = words.last().map_or("", String::as_str);
    lines.retain(|line| line.starts_with(begun));
    lines.push(NO_FILES.into());
    // A shell that does not read gets no completion.
    let _ = writeln!(std::io::stdout(), "{}", lines.join("\n"));
}

/// What the command line itself offers, and whether names of nodes are due.
fn candidates(plugin: &Command, words: &[String]) -> (Vec<String>, bool) {
    let Some((begun, before)) = words.split_last() else { return (Vec::new(), false) };
    let described = |name: &str, about: Option<&clap::builder::StyledStr>| match about {
        Some(about) => format!("{name}\t{about}"),
        None => name.to_owned(),
    };
    let command = before.iter().find_map(|word| plugin.find_subcommand(word));
    let flags = || command.into_iter().chain([plugin]).flat_map(Command::get_arguments).filter(|a| !a.is_hide_set());
    let named = |word: &str| {
        let long = |a: &&Arg| word.strip_prefix("--").is_some_and(|w| a.get_long() == Some(w));
        let short = |a: &&Arg| word.len() == 2 && word.starts_with('-') && a.get_short() == word.chars().nth(1);
        flags().find(|a| long(a) || short(a)).filter(|a| a.get_action().takes_values())
    };
    if let Some(flag) = before.last().and_then(|word| named(word)) {
        let values = flag.get_possible_values();
        return (values.iter().map(|v| described(v.get_name(), v.get_help())).collect(), false);
    }
    if begun.starts_with('-') {
        let mut all: Vec<String> =
            flags().filter_map(|a| Some(described(&format!("--{}", a.get_long()?), a.get_help()))).collect();
        all.sort();
        all.dedup();
        return (all, false);
    }
    match command {
        None => (plugin.get_subcommands().map(|c| described(c.get_name(), c.get_about())).collect(), false),
        Some(command) => (Vec::new(), command.get_positionals().any(|a| a.get_id().as_str().starts_with("node"))),
    }
}

/// Names of VirtualNodes, if the cluster tells them in time.
fn nodes(words: &[String]) -> Vec<String> {
    let value = |flag: &str| {
        let joined = words.iter().find_map(|w| w.strip_prefix(flag)?.strip_prefix('='));
        joined.or_else(|| Some(words.get(words.iter().position(|w| w == flag)? + 1)?.as_str())).map(str::to_owned)
    };
    let (kubeconfig, context) = (value("--kubeconfig").map(PathBuf::from), value("--context"));
    let ask = async {
        let client = client::connect_as(kubeconfig.as_deref(), context.as_deref()).await.ok()?;
        let found = Api::<VirtualNode>::all(client).list_metadata(&ListParams::default()).await.ok()?;
        Some(found.items.iter().map(ResourceExt::name_any).collect())
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, ask).await.ok().flatten().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_is_told_commands_flags_values_and_when_nodes_are_due() {
        let mut plugin = super::super::Plugin::command();
        plugin.build();
        for (words, has, nodes) in [
            (&[""][..], Some("doctor\t"), false),
            (&["doctor", ""], None, true),
            (&["drain", "edge-0", "--"], Some("--timeout\t"), false),
            (&["drain", "--dry-run", ""], None, true),
            (&["status", "--"], Some("--kubeconfig\t"), false),
            (&["status", "-o", ""], Some("json"), false),
            (&["status", "--output", ""], Some("yaml"), false),
            (&["status", ""], None, false),
            (&[], None, false),
        ] {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            let (lines, names_nodes) = candidates(&plugin, &words);
            assert_eq!(names_nodes, nodes, "{words:?}");
            match has {
                Some(has) => assert!(lines.iter().any(|l| l.starts_with(has)), "{words:?}: {lines:?}"),
                None => assert!(lines.is_empty(), "{words:?}: {lines:?}"),
            }
        }
    }
}
