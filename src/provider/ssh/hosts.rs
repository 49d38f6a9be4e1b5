//! Which host keys a device may show.
//!
//! known_hosts as sshd(8) describes it: lists of names with `*`, `?` and `!`, `[name]:port`, hashed names, and
//! `@revoked`. Certificates are not looked at.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use russh::keys::{Algorithm, HashAlg, PublicKey};

/// What is known of the hosts that one node talks to.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts {
    known: Vec<Line>,
    /// The file of the keys that were taken because they were the first, if that is allowed.
    pub first_use: Option<PathBuf>,
}

#[derive(Clone, Debug)]
struct Line {
    names: String,
    key: PublicKey,
    revoked: bool,
}

/// A key that was pinned for one host.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Pin {
    Key(Box<PublicKey>),
    /// `SHA256:` and so on.
    Fingerprint(String),
}

impl Pin {
    /// From `hostKey` of a VirtualNode.
    pub fn read(text: &str) -> Result<Self, String> {
        if text.starts_with("SHA256:") {
            return Ok(Self::Fingerprint(text.trim_end_matches('=').to_owned()));
        }
        let key = PublicKey::from_openssh(text).map_err(|e| format!("is no public key of SSH: {e}"))?;
        Ok(Self::Key(Box::new(key)))
    }

    fn fits(&self, key: &PublicKey) -> bool {
        match self {
            Self::Key(pinned) => pinned.key_data() == key.key_data(),
            Self::Fingerprint(pinned) => *pinned == fingerprint(key),
        }
    }
}

pub(super) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

impl Hosts {
    /// From the text of `known_hosts`. The error names the line.
    pub fn read(text: &str, first_use: Option<PathBuf>) -> Result<Self, String> {
        let mut known = Vec::new();
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(line) = parse(line).map_err(|e| format!("line {}: {e}", n + 1))? {
                known.push(line);
            }
        }
        Ok(Self { known, first_use })
    }

    /// Whether a host may show this key; `Err` says why not.
    pub fn check(&self, host: &str, port: u16, pin: Option<&Pin>, key: &PublicKey) -> Result<(), String> {
        let shown = fingerprint(key);
        let at = name(host, port);
        if let Some(pin) = pin {
            let told = format!("{at} has host key {shown} and not the one that hostKey says: is it the right device?");
            return if pin.fits(key) { Ok(()) } else { Err(told) };
        }
        let lines: Vec<&Line> = self.known.iter().filter(|l| matches(&l.names, host, port)).collect();
        let same = |l: &&Line| l.key.key_data() == key.key_data();
        if lines.iter().any(|l| l.revoked && same(l)) {
            return Err(format!("the host key {shown} of {at} is revoked by known_hosts"));
        }
        if lines.iter().any(|l| !l.revoked && same(l)) {
            return Ok(());
        }
        if lines.iter().any(|l| !l.revoked) {
            return Err(format!("{at} has host key {shown}, and known_hosts has another: is it the right device?"));
        }
        let Some(file) = &self.first_use else {
            return Err(format!(
                "the host key {shown} of {at} is not known: put it into hostKey, or into known_hosts of the \
                 credentials Secret"
            ));
        };
        first_use(file, &at, key).map_err(|why| format!("{at} has host key {shown}, {why}"))
    }

    /// The kinds of keys to ask a host for first: those that are known of it.
    pub fn prefer(&self, host: &str, port: u16, pin: Option<&Pin>) -> Vec<Algorithm> {
        let kept = self.first_use.iter().flat_map(|file| kept(file)).filter(|(at, _)| *at == name(host, port));
        let known =
            self.known.iter().filter(|l| !l.revoked && matches(&l.names, host, port)).map(|l| l.key.algorithm());
        match pin {
            Some(Pin::Key(key)) => vec![key.algorithm()],
            Some(Pin::Fingerprint(_)) => Vec::new(),
            None => known.chain(kept.map(|(_, key)| key.algorithm())).collect(),
        }
    }
}

fn parse(line: &str) -> Result<Option<Line>, String> {
    let mut words = line.split_whitespace();
    let mut first = words.next().unwrap_or_default();
    let mut revoked = false;
    if first.starts_with('@') {
        if first != "@revoked" {
            return Ok(None);
        }
        revoked = true;
        first = words.next().unwrap_or_default();
    }
    let (Some(kind), Some(key)) = (words.next(), words.next()) else {
        return Err("must be names, a kind of key and a key".into());
    };
    match PublicKey::from_openssh(&format!("{kind} {key}")) {
        Ok(key) => Ok(Some(Line { names: first.to_owned(), key, revoked })),
        // One of a kind that is not spoken any more says nothing about the others.
        Err(_) if STANDARD.decode(key).is_ok() => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// As known_hosts has it.
fn name(host: &str, port: u16) -> String {
    if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") }
}

fn matches(names: &str, host: &str, port: u16) -> bool {
    let wanted = name(host, port).to_ascii_lowercase();
    let mut found = false;
    for pattern in names.split(',') {
        if let Some(hashed) = pattern.strip_prefix("|1|") {
            found |= is_hash_of(hashed, &wanted);
            continue;
        }
        let (not, pattern) = pattern.strip_prefix('!').map_or((false, pattern), |p| (true, p));
        if glob(pattern.to_ascii_lowercase().as_bytes(), wanted.as_bytes()) {
            if not {
                return false;
            }
            found = true;
        }
    }
    found
}

/// `<salt>|<hash>`, the HMAC-SHA1 of the name.
fn is_hash_of(hashed: &str, name: &str) -> bool {
    let Some((salt, hash)) = hashed.split_once('|') else { return false };
    let (Ok(salt), Ok(hash)) = (STANDARD.decode(salt), STANDARD.decode(hash)) else { return false };
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    hmac::verify(&key, name.as_bytes(), &hash).is_ok()
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => glob(&pattern[1..], text) || (!text.is_empty() && glob(pattern, &text[1..])),
        (Some(b'?'), Some(_)) => glob(&pattern[1..], &text[1..]),
        (Some(p), Some(t)) if p == t => glob(&pattern[1..], &text[1..]),
        _ => false,
    }
}

/// The keys that were taken at first use.
fn kept(file: &Path) -> Vec<(String, PublicKey)> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = |line: &str| {
        let (at, key) = line.split_once(' ')?;
        Some((at.to_owned(), PublicKey::from_openssh(key).ok()?))
    };
    text.lines().filter_map(line).collect()
}

fn first_use(file: &Path, at: &str, key: &PublicKey) -> Result<(), String> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let known = kept(file);
    let mut of_host = known.iter().filter(|(host, _)| host == at).peekable();
    if of_host.peek().is_some() {
        let same = of_host.any(|(_, known)| known.key_data() == key.key_data());
        let told =
            || format!("and it had another when it was first used: is it the right device? {} has it", file.display());
        return if same { Ok(()) } else { Err(told()) };
    }
    let cannot = |e: &dyn std::fmt::Display| format!("which cannot be kept in {}: {e}", file.display());
    let key = key.to_openssh().map_err(|e| cannot(&e))?;
    let write = || {
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut open = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
        open.write_all(format!("{at} {key}\n").as_bytes())
    };
    write().map_err(|e: std::io::Error| cannot(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G1sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X";

    fn key(text: &str) -> PublicKey {
        PublicKey::from_openssh(text).unwrap()
    }

    #[test]
    fn a_host_may_show_the_key_that_is_known_of_it_and_no_other() {
        let text = format!(
            "# a comment\n\ngate.example,10.0.0.1 {A} somebody\n[gate.example]:2222 {B}\n*.lab,!bad.lab {A}\n\
             @revoked * {B}\n@cert-authority * {A}\n"
        );
        let hosts = Hosts::read(&text, None).unwrap();
        for (host, port, shown, want) in [
            ("gate.example", 22, A, None),
            ("GATE.example", 22, A, None),
            ("10.0.0.1", 22, A, None),
            ("gate.example", 22, B, Some("revoked")),
            ("x.lab", 22, A, None),
            ("bad.lab", 22, A, Some("not known")),
            ("gate.example", 23, A, Some("not known")),
            ("other", 22, A, Some("not known")),
        ] {
            let said = hosts.check(host, port, None, &key(shown)).err();
            match want {
                None => assert_eq!(said, None, "{host}"),
                Some(want) => assert!(said.as_ref().is_some_and(|s| s.contains(want)), "{host}: {said:?}"),
            }
        }
        let hosts = Hosts::read(&format!("gate {A}"), None).unwrap();
        assert!(hosts.check("gate", 22, None, &key(B)).unwrap_err().contains("another"));
        assert_eq!(hosts.prefer("gate", 22, None), [Algorithm::Ed25519]);
        assert!(Hosts::read("gate ssh-ed25519 nothing", None).unwrap_err().starts_with("line 1"));
    }

    #[test]
    fn hashed_names_are_found() {
        let salt = b"0123456789abcdefghij";
        let made = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt), b"[gate]:2222");
        let line = format!("|1|{}|{} {A}", STANDARD.encode(salt), STANDARD.encode(made.as_ref()));
        let hosts = Hosts::read(&line, None).unwrap();
        assert_eq!(hosts.check("gate", 2222, None, &key(A)), Ok(()));
        assert!(hosts.check("gate", 22, None, &key(A)).is_err());
    }

    #[test]
    fn a_pin_goes_before_all_else() {
        let hosts = Hosts::read(&format!("gate {A}"), None).unwrap();
        let pin = Pin::read(B).unwrap();
        assert_eq!(hosts.check("gate", 22, Some(&pin), &key(B)), Ok(()));
        assert!(hosts.check("gate", 22, Some(&pin), &key(A)).is_err());
        let print = Pin::read(&fingerprint(&key(A))).unwrap();
        assert_eq!(hosts.check("gate", 22, Some(&print), &key(A)), Ok(()));
        assert!(hosts.check("gate", 22, Some(&print), &key(B)).is_err());
        assert!(Pin::read("nonsense").is_err());
    }

    #[test]
    fn the_first_key_is_kept_and_another_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/known");
        let hosts = Hosts::read("", Some(file.clone())).unwrap();
        assert_eq!(hosts.check("gate", 22, None, &key(A)), Ok(()));
        assert_eq!(hosts.check("gate", 22, None, &key(A)), Ok(()));
        let again = Hosts::read("", Some(file)).unwrap();
        assert!(again.check("gate", 22, None, &key(B)).unwrap_err().contains("first used"));
        assert_eq!(again.check("gate", 2222, None, &key(B)), Ok(()), "another port is another host");
        assert_eq!(again.prefer("gate", 22, None), [Algorithm::Ed25519]);
    }
}
