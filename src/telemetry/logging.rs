//! Log lines on standard error: for people on a terminal, JSON otherwise.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt, reload};

#[cfg(feature = "opentelemetry")]
use super::traces;

/// Exchanges the filter of the subscriber that this process set up.
type Exchange = Box<dyn Fn(Option<EnvFilter>) -> Result<String, String> + Send + Sync>;
static EXCHANGE: OnceLock<Exchange> = OnceLock::new();

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

/// What is to be finished before the process ends.
#[derive(Debug, Default)]
pub struct Logging {
    #[cfg(feature = "opentelemetry")]
    traces: Option<traces::Traces>,
}

impl Logging {
    /// Sends what is on its way. May take seconds.
    pub fn finish(self) {
        #[cfg(feature = "opentelemetry")]
        if let Some(traces) = self.traces {
            traces.finish();
        }
    }
}

/// Sets up logging for the process, inside its runtime; a second call changes nothing. With `spans`, spans go to the
/// OpenTelemetry collector that the environment names, by the same filter.
///
/// `level` is the `--log-level` flag, a level or a filter such as `info,vnode::pod=debug`. Without it
/// `VNODE_LOG` counts, then `RUST_LOG`. A filter that cannot be read is an error.
pub fn init(level: Option<&str>, format: Format, spans: bool) -> Result<Logging, String> {
    let env = |name| std::env::var(name).ok().filter(|v: &String| !v.is_empty());
    let chosen = choose(level, env("VNODE_LOG").as_deref(), env("RUST_LOG").as_deref());
    let filter = EnvFilter::try_new(&chosen).map_err(|e| format!("log filter {chosen:?}: {e}"))?;
    // Below this it writes down whole requests, in which containers have their secrets.
    let quiet = "bollard=warn".parse().map_err(|e| format!("log filter: {e}"))?;
    let filter = filter.add_directive(quiet);
    let json = match format {
        Format::Auto => !std::io::stderr().is_terminal(),
        Format::Text => false,
        Format::Json => true,
    };
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    // Lines for people name node and pod themselves.
    let lines = match json {
        true => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
        false => {
            let lines = lines.with_ansi(std::io::stderr().is_terminal());
            lines.with_filter(filter_fn(|metadata| metadata.is_event())).boxed()
        }
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    #[cfg(feature = "opentelemetry")]
    let (subscriber, logging) = {
        let (layer, traces) = if spans { traces::layer()? } else { None }.unzip();
        (subscriber.with(layer), Logging { traces })
    };
    #[cfg(not(feature = "opentelemetry"))]
    let (_no_spans, logging) = (spans, Logging::default());
    // A test or an embedding program may have set a subscriber of its own; that one stays.
    if subscriber.try_init().is_ok() {
        let exchange = move |new| exchange(new, |f| handle.reload(f), || handle.with_current(EnvFilter::to_string));
        let _first = EXCHANGE.set(Box::new(exchange));
    }
    Ok(logging)
}

/// Puts a new filter in place, if there is one, and says which is in place then.
fn exchange<E: std::fmt::Display>(
    new: Option<EnvFilter>,
    put: impl FnOnce(EnvFilter) -> Result<(), E>,
    get: impl FnOnce() -> Result<String, E>,
) -> Result<String, String> {
    if let Some(new) = new {
        put(new).map_err(|e| e.to_string())?;
    }
    get().map_err(|e| e.to_string())
}

/// What is logged at this moment.
///
/// # Errors
/// When this process has not set up its own logging.
pub fn level() -> Result<String, String> {
    EXCHANGE.get().ok_or("logging is set up by another program")?(None)
}

/// Logs by another level or filter from now on, and returns it in full.
///
/// # Errors
/// A filter that cannot be read, or logging that is not this module's.
pub fn set_level(level: &str) -> Result<String, String> {
    let chosen = choose(Some(level.trim()), None, None);
    let filter = EnvFilter::try_new(&chosen).map_err(|e| format!("log filter {chosen:?}: {e}"))?;
    EXCHANGE.get().ok_or("logging is set up by another program")?(Some(filter))
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
