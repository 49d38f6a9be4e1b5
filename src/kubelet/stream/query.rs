//! What a request for a session says in its query.

use http::{StatusCode, Uri};

use crate::kubelet::handler::Refusal;

/// The decoded query.
pub(super) type Pairs = Vec<(String, String)>;

/// More words than any command line needs.
const MAX_WORDS: usize = 4096;
/// Ports of one port-forward over WebSocket channels, of which there are 255.
const MAX_PORTS: usize = 127;

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, message)
}

/// Decodes a query.
pub(super) fn pairs(uri: &Uri) -> Result<Pairs, Refusal> {
    let undecodable = || bad("the query cannot be decoded\n");
    let pairs = axum::extract::Query::<Pairs>::try_from_uri(uri).map_err(|_| undecodable())?.0;
    // What is not UTF-8 was replaced: another command than the one asked for must not be run.
    if pairs.iter().any(|(_, value)| value.contains('\u{fffd}')) { Err(undecodable()) } else { Ok(pairs) }
}

fn all<'a>(pairs: &'a Pairs, name: &'a str) -> impl Iterator<Item = &'a str> {
    pairs.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
}

/// The streams that a client wants of a command, and the command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CommandOptions {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
    /// `None` to attach to the main process.
    pub(super) command: Option<Vec<String>>,
}

impl CommandOptions {
    /// Reads the parameters as the API server writes them.
    pub(super) fn read(pairs: &Pairs, exec: bool) -> Result<Self, Refusal> {
        let set = |name: &str| all(pairs, name).next().is_some_and(|v| v == "1" || v == "true");
        let tty = set("tty");
        let command: Vec<String> = all(pairs, "command").map(str::to_owned).collect();
        let options = Self {
            stdin: set("input"),
            stdout: set("output"),
            // A terminal has one output.
            stderr: set("error") && !tty,
            tty,
            command: exec.then_some(command),
        };
        if !options.stdin && !options.stdout && !options.stderr {
            return Err(bad("you must specify at least 1 of stdin, stdout, stderr\n"));
        }
        match &options.command {
            Some(words) if words.is_empty() || words[0].is_empty() => Err(bad("you must specify a command\n")),
            Some(words) if words.len() > MAX_WORDS => Err(bad("the command has too many words\n")),
            _ => Ok(options),
        }
    }
}

/// The command of `/run`, whose words are separated by blanks.
pub(super) fn run_command(pairs: &Pairs) -> Result<Vec<String>, Refusal> {
    let text = all(pairs, "cmd").next().unwrap_or_default();
    let words: Vec<String> = text.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect();
    match words.len() {
        0 => Err(bad("you must specify a command as the parameter cmd\n")),
        1..=MAX_WORDS => Ok(words),
        _ => Err(bad("the command has too many words\n")),
    }
}

/// The ports of a port-forward over WebSocket channels.
pub(super) fn ports(pairs: &Pairs) -> Result<Vec<u16>, Refusal> {
    let mut ports = Vec::new();
    for text in all(pairs, "port").flat_map(|v| v.split(',')) {
        match text.parse::<u16>() {
            Ok(port) if port > 0 => ports.push(port),
            _ => return Err(bad(format!("unable to parse {text:?} as a port\n"))),
        }
    }
    match ports.len() {
        0 => Err(bad("query parameter \"port\" is required\n")),
        1..=MAX_PORTS => Ok(ports),
        _ => Err(bad(format!("no more than {MAX_PORTS} ports can be forwarded over one connection\n"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Pairs {
        pairs(&format!("/x?{query}").parse().unwrap()).unwrap()
    }

    #[test]
    fn a_command_has_words_and_at_least_one_stream() {
        let options =
            CommandOptions::read(&read("command=sh&command=-c&command=a%20b&input=1&output=1"), true).unwrap();
        assert_eq!(options.command.as_deref().unwrap(), ["sh", "-c", "a b"]);
        assert_eq!((options.stdin, options.stdout, options.stderr, options.tty), (true, true, false, false));
        for (query, exec) in
            [("command=sh", true), ("output=1", true), ("command=&output=1", true), ("input=0", false), ("", false)]
        {
            assert!(CommandOptions::read(&read(query), exec).is_err(), "{query}");
        }
        assert_eq!(CommandOptions::read(&read("output=1"), false).unwrap().command, None);
    }

    #[test]
    fn a_terminal_has_no_standard_error_of_its_own() {
        let options = CommandOptions::read(&read("output=1&error=1&tty=1"), false).unwrap();
        assert!(options.stdout && options.tty && !options.stderr);
        assert!(CommandOptions::read(&read("error=1&tty=1"), false).is_err());
    }

    #[test]
    fn ports_are_listed_or_repeated_and_never_zero() {
        assert_eq!(ports(&read("port=80&port=81,82")).unwrap(), [80, 81, 82]);
        for query in ["", "port=", "port=0", "port=65536", "port=80,", "port=-1", "port=http"] {
            assert!(ports(&read(query)).is_err(), "{query}");
        }
        let many = (1..=128).map(|p| format!("port={p}")).collect::<Vec<_>>().join("&");
        assert!(ports(&read(&many)).is_err());
    }

    #[test]
    fn run_splits_its_command_at_blanks() {
        assert_eq!(run_command(&read("cmd=ls%20-l%20%20/")).unwrap(), ["ls", "-l", "/"]);
        assert!(run_command(&read("cmd=%20")).is_err());
        assert!(run_command(&read("command=ls")).is_err());
    }
}
