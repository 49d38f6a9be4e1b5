//! A certificate that somebody else keeps up to date, as cert-manager does: in a Secret or in two files.
//!
//! What cannot be read changes nothing: the last good one is served on, and why there is no newer one is told.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use super::ServingCerts;
use super::leaf::Leaf;
use crate::cluster::watch::watch;

/// How often files are looked at: a mounted Secret changes by a symbolic link, which no one notification covers.
const LOOK: Duration = Duration::from_secs(10);
/// Larger than any chain.
const MAX_FILE: u64 = 1 << 20;

/// Keeps `certs` at what the Secret holds until the shutdown. `changed` is called after each change.
pub async fn follow_secret(
    client: Client,
    namespace: &str,
    name: &str,
    certs: &ServingCerts,
    changed: impl Fn() + Send + Sync,
    shutdown: CancellationToken,
) {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watch(api, config));
    let place = format!("Secret {namespace}/{name}");
    let mut seen = false;
    while let Some(Some(event)) = shutdown.run_until_cancelled(events.next()).await {
        let said = match event {
            Ok(watcher::Event::Init) => {
                seen = false;
                continue;
            }
            Ok(watcher::Event::Apply(secret) | watcher::Event::InitApply(secret)) => {
                seen = true;
                read_secret(&secret)
            }
            Ok(watcher::Event::InitDone) if seen => continue,
            Ok(watcher::Event::InitDone) => Err("it does not exist".to_owned()),
            Ok(watcher::Event::Delete(_)) => Err("it was deleted".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        take(certs, &place, said);
        changed();
    }
}

/// Keeps `certs` at what the files hold until the shutdown. `changed` is called after each change.
pub async fn follow_files(
    certificate: &Path,
    key: &Path,
    certs: &ServingCerts,
    changed: impl Fn() + Send + Sync,
    shutdown: CancellationToken,
) {
    let place = format!("{} and {}", certificate.display(), key.display());
    let mut before = None;
    loop {
        let paths = (certificate.to_owned(), key.to_owned());
        // Reading a file may block, as on a network's.
        let now = tokio::task::spawn_blocking(move || (bytes_of(&paths.0), bytes_of(&paths.1)));
        let now = match now.await {
            Ok((Ok(chain), Ok(key))) => Ok((chain, key)),
            Ok((Err(why), _) | (_, Err(why))) => Err(why),
            Err(error) => Err(error.to_string()),
        };
        if before.as_ref() != Some(&now) {
            let read = |(chain, key): &(Vec<u8>, Vec<u8>)| Leaf::from_pem(chain, key).map_err(|e| e.to_string());
            take(certs, &place, now.as_ref().map_err(Clone::clone).and_then(read));
            changed();
            before = Some(now);
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
            return;
        }
    }
}

fn take(certs: &ServingCerts, place: &str, said: Result<Leaf, String>) {
    match said {
        Ok(leaf) => {
            tracing::info!(%place, expires_at = %leaf.expires_at, names = ?leaf.names, "the serving certificate was read");
            certs.set_given(leaf);
        }
        Err(why) => {
            tracing::warn!(%place, %why, "the serving certificate cannot be read; the last good one stays in use");
            certs.set_trouble(Some(format!("{place}: {why}")));
        }
    }
}

fn read_secret(secret: &Secret) -> Result<Leaf, String> {
    let part = |key: &str| {
        let data = secret.data.as_ref().and_then(|d| d.get(key));
        data.map(|b| b.0.as_slice()).ok_or_else(|| format!("it has no {key}"))
    };
    Leaf::from_pem(part("tls.crt")?, part("tls.key")?).map_err(|e| e.to_string())
}

fn bytes_of(path: &PathBuf) -> Result<Vec<u8>, String> {
    let say = |e: std::io::Error| format!("{}: {e}", path.display());
    let size = std::fs::metadata(path).map_err(say)?.len();
    if size > MAX_FILE {
        return Err(format!("{}: it is too large", path.display()));
    }
    std::fs::read(path).map_err(say)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use tokio::sync::Notify;

    #[tokio::test]
    async fn files_are_read_again_when_they_change_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (chain, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let write = |name: &str| {
            let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
            std::fs::write(&chain, made.cert.pem()).unwrap();
            std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        };
        let (certs, changed, shutdown) = (ServingCerts::given(), Arc::new(Notify::new()), CancellationToken::new());
        let following = {
            let (chain, key, certs) = (chain.clone(), key.clone(), certs.clone());
            let (changed, shutdown) = (changed.clone(), shutdown.clone());
            tokio::spawn(async move {
                follow_files(&chain, &key, &certs, move || changed.notify_one(), shutdown).await;
            })
        };
        let names = Arc::new(Vec::new());
        let served = || certs.of_node("n", &names).map(|l| l.names.clone());
        changed.notified().await;
        assert_eq!(served(), None);
        assert!(certs.trouble().unwrap().contains("tls.crt"));
        write("one");
        tokio::time::pause();
        changed.notified().await;
        assert_eq!(served().unwrap(), ["one"]);
        std::fs::write(&key, "damaged").unwrap();
        changed.notified().await;
        assert_eq!(served().unwrap(), ["one"]);
        assert!(certs.trouble().is_some());
        write("two");
        changed.notified().await;
        assert_eq!((served().unwrap(), certs.trouble()), (vec!["two".to_owned()], None));
        shutdown.cancel();
        following.await.unwrap();
    }
}
