//! Flags of Virtual Kubelet that mean nothing here: they are taken, so that a command line that works there works
//! here, and each says what to do instead.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

/// A flag, whether it has a value, and what to do instead.
const FLAGS: [(&str, bool, &str); 27] = [
    ("namespace", true, "pods of all namespaces run on the node; remove it"),
    ("cluster-domain", true, "names are the provider's to resolve; remove it"),
    ("pod-sync-workers", true, "pods are not synced by a fixed number of workers; remove it"),
    ("enable-node-lease", false, "the node always has a Lease; remove it"),
    ("full-resync-period", true, "changes are seen as they happen; remove it"),
    ("startup-timeout", true, "use kubectl wait --for=condition=Ready node/NAME --timeout=TIME"),
    ("trace-exporter", true, "there are no traces; see the metrics at --metrics-addr"),
    ("trace-service-name", true, "there are no traces; remove it"),
    ("trace-tag", true, "there are no traces; remove it"),
    ("trace-sample-rate", true, "there are no traces; remove it"),
    ("klog.v", true, LOGS),
    ("klog.vmodule", true, LOGS),
    ("klog.logtostderr", false, LOGS),
    ("klog.alsologtostderr", false, LOGS),
    ("klog.stderrthreshold", true, LOGS),
    ("klog.log_dir", true, LOGS),
    ("klog.log_file", true, LOGS),
    ("klog.log_file_max_size", true, LOGS),
    ("klog.log_backtrace_at", true, LOGS),
    ("klog.skip_headers", false, LOGS),
    ("klog.skip_log_headers", false, LOGS),
    ("klog.add_dir_header", false, LOGS),
    ("klog.one_output", false, LOGS),
    (
        "no-verify-clients",
        false,
        "every caller of the kubelet API is identified; give the caller a right to nodes/proxy",
    ),
    ("authentication-token-webhook", false, "tokens are always reviewed; remove it"),
    ("client-verify-ca", true, "use --client-ca-file"),
    ("enable-leader-election", false, "start one process for each node"),
];
const LOGS: &str = "use --log-level and --log-format; logs go to standard error";

/// Variables that mean nothing here, by prefix.
const VARIABLES: [(&str, &str); 3] = [
    ("ZPAGES_PORT", "there are no traces; see the metrics at --metrics-addr"),
    ("JAEGER_", "there are no traces; see the metrics at --metrics-addr"),
    ("OCAGENT_", "there are no traces; see the metrics at --metrics-addr"),
];

/// Which of the obsolete flags were given.
#[derive(Debug, Default)]
pub(super) struct Obsolete(Vec<&'static (&'static str, bool, &'static str)>);

impl Obsolete {
    /// A sentence for each obsolete flag and variable that was given.
    pub(super) fn words(&self) -> Vec<String> {
        let flags = self.0.iter().map(|(flag, _, advice)| format!("--{flag} does nothing here: {advice}"));
        let set = |prefix: &str| std::env::vars_os().any(|(name, _)| name.to_string_lossy().starts_with(prefix));
        let variables = VARIABLES.iter().filter(|(prefix, _)| set(prefix));
        flags.chain(variables.map(|(name, advice)| format!("{name}* does nothing here: {advice}"))).collect()
    }
}

impl FromArgMatches for Obsolete {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut given = Self::default();
        given.update_from_arg_matches(matches)?;
        Ok(given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        let given = |flag: &str| matches.value_source(flag) == Some(clap::parser::ValueSource::CommandLine);
        self.0 = FLAGS.iter().filter(|(flag, ..)| given(flag)).collect();
        Ok(())
    }
}

impl Args for Obsolete {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, (flag, value, _)| {
            let arg = Arg::new(*flag).long(*flag).hide(true);
            // Go's flags may be repeated, and switches may be given a value.
            let arg = match value {
                true => arg.action(ArgAction::Append),
                false => {
                    arg.action(ArgAction::Append).num_args(0..=1).require_equals(true).default_missing_value("true")
                }
            };
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
