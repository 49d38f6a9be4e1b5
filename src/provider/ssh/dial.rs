//! Connecting: each host on the way over the one before, its key checked, logged in.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::client::{self, AuthResult, Handle, KeyboardInteractiveAuthResponse};
use russh::keys::{Algorithm, HashAlg, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{MethodKind, Preferred};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::hosts::{Hosts, Pin};
use super::settings::{Host, Login, Settings};

/// For one host on the way, from its name to being logged in.
const STEP: Duration = Duration::from_secs(20);
/// How long nothing may come before the other side is asked, and how often it may stay silent.
const KEEP_ALIVE: (Duration, usize) = (Duration::from_secs(5), 3);
/// More questions than this are no login.
const QUESTIONS: usize = 8;

/// A connection to a device.
pub(super) struct Link {
    pub handle: Handle<Trust>,
    /// The connections that it goes through.
    _way: Vec<Handle<Trust>>,
    /// Where the first host was found.
    pub peer: Option<IpAddr>,
}

/// Decides whether a host is who it should be.
pub(super) struct Trust {
    hosts: Hosts,
    name: String,
    port: u16,
    pin: Option<Pin>,
    /// Why it was not believed.
    refusal: Arc<Mutex<Option<String>>>,
}

impl client::Handler for Trust {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        match self.hosts.check(&self.name, self.port, self.pin.as_ref(), key) {
            Ok(()) => Ok(true),
            Err(why) => {
                *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                Ok(false)
            }
        }
    }
}

/// Connects to the device. The error is for people.
pub(super) async fn dial(settings: &Settings) -> Result<Link, String> {
    let (mut way, mut peer) = (Vec::<Handle<Trust>>::new(), None);
    for host in &settings.way {
        let at = format!("{}@{}:{}", host.user, host.name, host.port);
        let step = async {
            match way.last() {
                None => {
                    let stream = TcpStream::connect((host.name.as_str(), host.port));
                    let stream = stream.await.map_err(|e| format!("cannot be connected to: {e}"))?;
                    peer = stream.peer_addr().ok().map(|a| a.ip());
                    // Small messages go both ways; fails only when the connection is gone, which is seen next.
                    let _ = stream.set_nodelay(true);
                    greet(settings, host, stream).await
                }
                Some(before) => {
                    let port = u32::from(host.port);
                    let channel = before.channel_open_direct_tcpip(host.name.clone(), port, "127.0.0.1", 0);
                    let channel =
                        channel.await.map_err(|e| format!("cannot be reached from the jump before it: {e}"))?;
                    greet(settings, host, channel.into_stream()).await
                }
            }
        };
        let handle = timeout(STEP, step).await.unwrap_or_else(|_| Err("does not answer".into()));
        way.push(handle.map_err(|e| format!("{at} {e}"))?);
    }
    // Never empty: the settings have the device at least.
    let handle = way.pop().ok_or("there is no host to connect to")?;
    Ok(Link { handle, _way: way, peer })
}

/// The protocol's beginning on a connection that is there.
async fn greet<S>(settings: &Settings, host: &Host, stream: S) -> Result<Handle<Trust>, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let refusal = Arc::new(Mutex::new(None));
    let trust = Trust {
        hosts: settings.hosts.clone(),
        name: host.name.clone(),
        port: host.port,
        pin: host.pin.clone(),
        refusal: refusal.clone(),
    };
    let wanted = settings.hosts.prefer(&host.name, host.port, host.pin.as_ref());
    let config = Arc::new(client::Config {
        preferred: preferred(&wanted),
        keepalive_interval: Some(KEEP_ALIVE.0),
        keepalive_max: KEEP_ALIVE.1,
        nodelay: true,
        ..client::Config::default()
    });
    let connected = client::connect_stream(config, stream, trust).await;
    let mut handle = connected.map_err(|e| {
        let refused = refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
        refused.unwrap_or_else(|| format!("speaks no SSH that is understood: {e}"))
    })?;
    log_in(&mut handle, &host.user, &settings.login).await?;
    Ok(handle)
}

fn is_rsa(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { .. })
}

/// A host with keys of several kinds shows the one that is asked for first, so the known ones are.
fn preferred(known: &[Algorithm]) -> Preferred {
    let mut preferred = Preferred::DEFAULT;
    let is_known = |a: &Algorithm| known.iter().any(|k| k == a || (is_rsa(k) && is_rsa(a)));
    let (mut first, rest): (Vec<_>, Vec<_>) = preferred.key.iter().cloned().partition(is_known);
    first.extend(rest);
    // The one that is signed with SHA-1 is not taken from anybody.
    first.retain(|a| *a != Algorithm::Rsa { hash: None });
    preferred.key = Cow::Owned(first);
    preferred
}

async fn log_in(handle: &mut Handle<Trust>, user: &str, login: &Login) -> Result<(), String> {
    let broken = |e: russh::Error| format!("ended the connection during the login: {e}");
    let mut tried = Vec::new();
    if let Some(key) = &login.key {
        let hash = match is_rsa(&key.algorithm()) {
            true => handle.best_supported_rsa_hash().await.map_err(broken)?.unwrap_or(Some(HashAlg::Sha256)),
            false => None,
        };
        let shown = PrivateKeyWithHashAlg::new(key.clone(), hash);
        let answer = handle.authenticate_publickey(user, shown).await.map_err(broken)?;
        if answer.success() {
            return Ok(());
        }
        tried.push("the key");
    }
    if let Some(password) = &login.password {
        tried.push("the password");
        match handle.authenticate_password(user, password.clone()).await.map_err(broken)? {
            AuthResult::Success => return Ok(()),
            AuthResult::Failure { remaining_methods, .. }
                if remaining_methods.contains(&MethodKind::KeyboardInteractive) =>
            {
                if answer_questions(handle, user, password).await.map_err(broken)? {
                    return Ok(());
                }
            }
            AuthResult::Failure { .. } => {}
        }
    }
    Err(format!("does not let {user} in with {} of the credentials Secret", tried.join(" or ")))
}

/// Some servers ask for the password as a question.
async fn answer_questions(handle: &mut Handle<Trust>, user: &str, password: &str) -> Result<bool, russh::Error> {
    let mut answer = handle.authenticate_keyboard_interactive_start(user, None).await?;
    for _ in 0..QUESTIONS {
        let prompts = match answer {
            KeyboardInteractiveAuthResponse::Success => return Ok(true),
            KeyboardInteractiveAuthResponse::Failure { .. } => return Ok(false),
            KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => prompts,
        };
        // Only what is not shown while it is typed is a password.
        let answers = prompts.iter().map(|p| if p.echo { String::new() } else { password.to_owned() }).collect();
        answer = handle.authenticate_keyboard_interactive_respond(answers).await?;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_kinds_of_keys_are_asked_for_first_and_sha1_never() {
        let keys = preferred(&[Algorithm::Rsa { hash: None }]).key.into_owned();
        assert!(is_rsa(&keys[0]) && is_rsa(&keys[1]) && !is_rsa(&keys[2]), "{keys:?}");
        assert!(!keys.contains(&Algorithm::Rsa { hash: None }));
        assert_eq!(preferred(&[]).key[0], Algorithm::Ed25519);
    }
}
