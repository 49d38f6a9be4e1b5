//! Log lines on standard error: for people on a terminal, JSON otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// [`Text`](Self::Text) when standard error is a terminal, else [`Json`](Self::Json).
    #[default]
    Auto,
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// The libraries' share: warnings. Whoever makes a request tells of its failure, so that the client's own line of
/// each would only double it.
const LIBRARIES: &str = "warn,kube_client::client::builder=off";

/// Sets up logging for the process; a second call changes nothing.
///
/// `level` is the `--log-level` flag, a level or a filter such as `info,vnode::pod=debug`. Without it
/// `VNODE_LOG` counts, then `RUST_LOG`. A filter that cannot be read is an error.
pub fn init(level: Option<&str>, format: Format) -> Result<(), String> {
    let env = |name| std::env::var(name).ok().filter(|v: &String| !v.is_empty());
    let chosen = choose(level, env("VNODE_LOG").as_deref(), env("RUST_LOG").as_deref());
    let filter = EnvFilter::try_new(&chosen).map_err(|e| format!("log filter {chosen:?}: {e}"))?;
    let json = match format {
        Format::Auto => !std::io::stderr().is_terminal(),
        Format::Text => false,
        Format::Json => true,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A test or an embedding program may have set a subscriber of its own; that one stays.
    let _already_set = if json {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
    Ok(())
}

/// The filter that counts. A bare level is for our own lines and leaves the libraries at `warn`, below
/// which HTTP libraries log headers; a full filter is taken as it is.
fn choose(flag: Option<&str>, vnode_log: Option<&str>, rust_log: Option<&str>) -> String {
    match flag.or(vnode_log).or(rust_log) {
        None => ours("info"),
        Some(level) if level.contains(['=', ',']) => level.to_owned(),
        Some(level) => match level.to_ascii_lowercase().as_str() {
            level @ ("error" | "off") => level.to_owned(),
            level @ ("warn" | "info" | "debug" | "trace") => ours(level),
            _ => level.to_owned(),
        },
    }
}

fn ours(level: &str) -> String {
    format!("{LIBRARIES},vnode={level},vnode_devcluster={level}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_over_the_environment_and_a_bare_level_is_ours_only() {
        for (flag, vnode, rust, want) in [
            (None, None, None, ours("info")),
            (Some("debug"), Some("info"), None, ours("debug")),
            (Some("DEBUG"), None, None, ours("debug")),
            (None, Some("trace"), Some("info"), ours("trace")),
            (None, None, Some("kube=debug"), "kube=debug".into()),
            (Some("off"), None, None, "off".into()),
        ] {
            assert_eq!(choose(flag, vnode, rust), want);
        }
        assert!(EnvFilter::try_new(ours("info")).is_ok());
    }
}
