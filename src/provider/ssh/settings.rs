//! What one node's configuration comes to.

use std::fmt;
use std::path::{Component, Path};
use std::sync::Arc;

use russh::keys::{PrivateKey, decode_secret_key};

use super::hosts::{Hosts, Pin};
use crate::api::{HostKeyPolicy, SshConfig};
use crate::provider::{Credentials, ProviderContext, ProviderError, Result};

/// Keys of the credentials Secret.
const KEY: &str = "ssh-privatekey";
const PASSPHRASE: &str = "passphrase";
const PASSWORD: &str = "password";
const KNOWN_HOSTS: &str = "known_hosts";

const DIRECTORY: &str = ".vnode";
const PORT: u16 = 22;

#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The mark on everything that is made: a VirtualNode's uid.
    pub node: Arc<str>,
    pub epoch: i64,
    /// The hosts to log in to, one over the other; the last is the device.
    pub way: Vec<Host>,
    pub hosts: Hosts,
    pub login: Login,
    /// The folder on the device, as a word for any shell.
    pub directory: String,
    pub shell: String,
    pub host_paths: Vec<String>,
    pub log_bytes: u64,
    pub log_files: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Host {
    pub name: String,
    pub port: u16,
    pub user: String,
    pub pin: Option<Pin>,
}

/// What is shown to be let in. Its Debug output has none of it.
#[derive(Clone, Default)]
pub(super) struct Login {
    pub key: Option<Arc<PrivateKey>>,
    pub password: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, password) = (self.key.is_some(), self.password.is_some());
        f.debug_struct("Login").field("key", &key).field("password", &password).finish()
    }
}

impl Settings {
    pub fn device(&self) -> &Host {
        // There is always one: `check` puts the device at the end.
        &self.way[self.way.len() - 1]
    }
}

fn invalid(field: &str, message: impl Into<String>) -> ProviderError {
    ProviderError::Invalid { field: format!("spec.provider.ssh.{field}"), message: message.into() }
}

fn wrong_secret(message: impl Into<String>) -> ProviderError {
    ProviderError::Invalid { field: "spec.credentialsSecretRef".into(), message: message.into() }
}

/// Checks a node's configuration. `state` is the folder of this machine for what has to be remembered.
pub(super) fn check(config: &SshConfig, context: &ProviderContext, state: &Path) -> Result<Settings> {
    if config.host.is_empty() {
        return Err(invalid("host", "must name the device"));
    }
    if config.user.is_empty() {
        return Err(invalid("user", "must say as whom to log in"));
    }
    let pin =
        |field: &str, text: &Option<String>| text.as_deref().map(Pin::read).transpose().map_err(|e| invalid(field, e));
    let mut way = Vec::new();
    for (n, jump) in config.jumps.iter().enumerate() {
        way.push(Host {
            name: jump.host.clone(),
            port: jump.port.unwrap_or(PORT),
            user: jump.user.clone().unwrap_or_else(|| config.user.clone()),
            pin: pin(&format!("jumps[{n}].hostKey"), &jump.host_key)?,
        });
    }
    way.push(Host {
        name: config.host.clone(),
        port: config.port.unwrap_or(PORT),
        user: config.user.clone(),
        pin: pin("hostKey", &config.host_key)?,
    });
    for (n, path) in config.host_paths.iter().enumerate() {
        if !is_plain(path) {
            return Err(invalid(&format!("hostPaths[{n}]"), "must be an absolute path without \"..\""));
        }
    }
    let none = Credentials(Default::default());
    let credentials = context.credentials.as_deref().unwrap_or(&none);
    let first_use = match config.host_key_policy.unwrap_or_default() {
        HostKeyPolicy::Pinned => None,
        HostKeyPolicy::TrustOnFirstUse => Some(state.join(&*context.node_uid).join("known_hosts")),
    };
    let known = text(credentials, KNOWN_HOSTS)?.unwrap_or_default();
    let hosts = Hosts::read(known, first_use).map_err(|e| wrong_secret(format!("{KNOWN_HOSTS} of the Secret, {e}")))?;
    let known_of_all = !known.trim().is_empty() || hosts.first_use.is_some();
    if !known_of_all && way.iter().any(|h| h.pin.is_none()) {
        return Err(invalid(
            "hostKey",
            format!(
                "must be set for the device and each jump (ssh-keyscan -t ed25519 {} prints it), or the credentials \
                 Secret must have {KNOWN_HOSTS}, or hostKeyPolicy be TrustOnFirstUse",
                config.host
            ),
        ));
    }
    Ok(Settings {
        node: context.node_uid.clone(),
        epoch: context.epoch,
        way,
        hosts,
        login: login(credentials)?,
        directory: directory(config.directory.as_deref().unwrap_or(DIRECTORY))?,
        shell: shell(config.shell.as_deref().unwrap_or("sh"))?,
        host_paths: config.host_paths.clone(),
        log_bytes: config.log_max_bytes.unwrap_or(1 << 20).max(4096),
        log_files: config.log_max_files.unwrap_or(4).max(2),
    })
}

/// True for an absolute path that leads nowhere else.
pub(super) fn is_plain(path: &str) -> bool {
    let path = Path::new(path);
    path.is_absolute() && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
}

fn text<'a>(credentials: &'a Credentials, key: &str) -> Result<Option<&'a str>> {
    let Some(bytes) = credentials.0.get(key) else { return Ok(None) };
    std::str::from_utf8(bytes).map(Some).map_err(|_| wrong_secret(format!("{key} of the Secret is not text")))
}

fn login(credentials: &Credentials) -> Result<Login> {
    let line = |key: &str| Ok::<_, ProviderError>(text(credentials, key)?.map(|t| t.trim_end_matches(['\n', '\r'])));
    let passphrase = line(PASSPHRASE)?.filter(|p| !p.is_empty());
    let key = match text(credentials, KEY)? {
        None => None,
        Some(pem) => {
            let key = decode_secret_key(pem, passphrase);
            Some(Arc::new(key.map_err(|e| match passphrase {
                // Its text may not say more: what it has is secret.
                None => wrong_secret(format!("{KEY} of the Secret cannot be read ({e}); does it need a {PASSPHRASE}?")),
                Some(_) => wrong_secret(format!("{KEY} of the Secret cannot be read with its {PASSPHRASE}: {e}")),
            })?))
        }
    };
    let password = line(PASSWORD)?.map(str::to_owned);
    if key.is_none() && password.is_none() {
        return Err(wrong_secret(format!(
            "a Secret is needed to log in to the device: {KEY} (and {PASSPHRASE}), or {PASSWORD}"
        )));
    }
    Ok(Login { key, password })
}

/// Only of what means itself to every shell.
fn directory(path: &str) -> Result<String> {
    let rest = path.strip_prefix("~/").unwrap_or(path);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '+' | '-');
    let part = |p: &str| !p.is_empty() && p != "." && p != "..";
    let relative = rest.strip_prefix('/').unwrap_or(rest);
    if !rest.chars().all(plain) || !relative.split('/').all(part) {
        return Err(invalid(
            "directory",
            format!("{path:?} must be made of letters, digits and ./_+-, without \"..\""),
        ));
    }
    Ok(if rest.starts_with('/') { format!("\"{rest}\"") } else { format!("\"$HOME/{rest}\"") })
}

fn shell(words: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | '/' | '.' | '_' | '+' | '-');
    if words.trim().is_empty() || !words.chars().all(plain) {
        return Err(invalid("shell", format!("{words:?} must be a path, or a path and words")));
    }
    Ok(words.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SshJump;
    use crate::provider::{PodNotifier, PodObservation};

    struct Deaf;
    impl PodNotifier for Deaf {
        fn changed(&self, _: PodObservation) {}
    }

    const HOST_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn with(config: SshConfig, secret: &[(&str, &str)]) -> Result<Settings> {
        let data = secret.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned().into())).collect();
        let context = ProviderContext {
            node: "n".into(),
            node_uid: "u".into(),
            epoch: 3,
            notifier: Arc::new(Deaf),
            credentials: Some(Arc::new(Credentials(data))),
        };
        check(&config, &context, Path::new("/nowhere"))
    }

    fn config() -> SshConfig {
        SshConfig { host: "dev".into(), user: "me".into(), host_key: Some(HOST_KEY.into()), ..SshConfig::default() }
    }

    #[test]
    fn a_whole_configuration_is_read() {
        let jump = SshJump { host: "gate".into(), host_key: Some(HOST_KEY.into()), ..SshJump::default() };
        let settings = with(SshConfig { jumps: vec![jump], ..config() }, &[("password", "x\n")]).unwrap();
        let way: Vec<_> = settings.way.iter().map(|h| (h.name.as_str(), h.port, h.user.as_str())).collect();
        assert_eq!(way, [("gate", 22, "me"), ("dev", 22, "me")]);
        assert_eq!(settings.directory, "\"$HOME/.vnode\"");
        assert_eq!(settings.login.password.as_deref(), Some("x"));
        assert!(!format!("{settings:?}").contains("\"x\""), "no secret in what is printed");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_field() {
        let key = &[("password", "x")][..];
        for (config, secret, want) in [
            (SshConfig { host_key: None, ..config() }, key, "ssh.hostKey: must be set"),
            (SshConfig { host_key: Some("ssh-ed25519 AAAA".into()), ..config() }, key, "ssh.hostKey: is no public key"),
            (SshConfig { directory: Some("../x".into()), ..config() }, key, "ssh.directory"),
            (SshConfig { directory: Some("a b".into()), ..config() }, key, "ssh.directory"),
            (SshConfig { directory: Some("$(id)".into()), ..config() }, key, "ssh.directory"),
            (SshConfig { shell: Some("sh; id".into()), ..config() }, key, "ssh.shell"),
            (SshConfig { host_paths: vec!["/a/../b".into()], ..config() }, key, "ssh.hostPaths[0]"),
            (config(), &[], "a Secret is needed"),
            (config(), &[("ssh-privatekey", "x")], "ssh-privatekey of the Secret cannot be read"),
            (config(), &[("password", "x"), ("known_hosts", "a b")], "known_hosts of the Secret, line 1"),
        ] {
            let said = with(config, secret).unwrap_err().to_string();
            assert!(said.contains(want), "{want}: {said}");
        }
        let first = SshConfig { host_key: None, host_key_policy: Some(HostKeyPolicy::TrustOnFirstUse), ..config() };
        assert!(with(first, key).unwrap().hosts.first_use.is_some());
    }
}
