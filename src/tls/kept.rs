//! The authority of our own, kept in a Secret or in this process.
//!
//! Whoever comes first makes it; the others take what they find. One that is damaged or near its end is replaced, and
//! its predecessor stays in `ca.crt` for clients that verify nodes by it. While the Secret cannot be reached, an
//! authority of this process alone serves, so that logs are not the price of a missing right.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use tokio_util::sync::CancellationToken;

use super::ServingCerts;
use super::authority::Authority;
use crate::api::names::FIELD_MANAGER;
use crate::cluster::watch::watch;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// What clients trust: the authority, and the one before it.
const BUNDLE: &str = "ca.crt";
const DEADLINE: Duration = Duration::from_secs(15);
/// How often the time is compared with the authority's end.
const LOOK: Duration = Duration::from_secs(6 * 3600);
/// Between two tries to write it.
const AGAIN: Duration = Duration::from_secs(20);

/// Keeps `certs` at the authority of this Secret until the shutdown. `changed` is called when there is another one.
pub async fn follow(
    client: Client,
    namespace: String,
    name: String,
    certs: Arc<ServingCerts>,
    changed: impl Fn() + Send + Sync,
    shutdown: CancellationToken,
) {
    let keeper = Keeper { api: Api::namespaced(client, &namespace), namespace, name, certs, changed };
    shutdown.run_until_cancelled(keeper.run()).await;
}

/// Keeps `certs` at an authority that lives in this process only, for ever.
pub async fn in_memory(certs: &ServingCerts, changed: impl Fn()) {
    loop {
        let wait = match Authority::generate(Timestamp::now()) {
            Ok(authority) => {
                let left = authority.renew_at().duration_since(Timestamp::now());
                certs.set_authority(authority);
                certs.set_trouble(None);
                Duration::try_from(left).unwrap_or(AGAIN)
            }
            Err(error) => {
                certs.set_trouble(Some(error.to_string()));
                AGAIN
            }
        };
        changed();
        tokio::time::sleep(wait).await;
    }
}

struct Keeper<F> {
    api: Api<Secret>,
    namespace: String,
    name: String,
    certs: Arc<ServingCerts>,
    changed: F,
}

impl<F: Fn() + Send + Sync> Keeper<F> {
    async fn run(&self) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = pin!(watch(self.api.clone(), config));
        let (mut seen, mut told, mut wait) = (None::<Secret>, false, LOOK);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = tokio::time::sleep(wait) => None,
            };
            let settled = match event {
                Some(Ok(watcher::Event::Init)) => {
                    seen = None;
                    continue;
                }
                Some(Ok(watcher::Event::InitApply(secret))) => {
                    seen = Some(secret);
                    continue;
                }
                Some(Ok(watcher::Event::Apply(secret))) => {
                    seen = Some(secret);
                    self.settle(seen.as_ref()).await
                }
                Some(Ok(watcher::Event::Delete(_))) => {
                    seen = None;
                    self.settle(None).await
                }
                Some(Ok(watcher::Event::InitDone)) | None => self.settle(seen.as_ref()).await,
                Some(Err(error)) => Err(error.to_string()),
            };
            match settled {
                Ok(()) => (told, wait) = (false, LOOK),
                Err(why) => {
                    wait = AGAIN;
                    self.make_do();
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            %why,
                            "the authority of the nodes' serving certificates cannot be kept in Secret {}/{}: until it \
                             can, clients see another one after every restart",
                            self.namespace, self.name
                        );
                    }
                }
            }
        }
    }

    /// Takes the Secret's authority, or writes one when there is none that is good.
    async fn settle(&self, seen: Option<&Secret>) -> Result<(), String> {
        let now = Timestamp::now();
        let old = seen.map(read);
        if let Some(Ok(authority)) = old.as_ref().filter(|a| a.as_ref().is_ok_and(|a| now < a.renew_at())) {
            if self.certs.authority().as_ref() != Some(authority.certificate())
                && let Some(Ok(authority)) = old
            {
                self.serve(authority);
            }
            return Ok(());
        }
        if let Some(Err(why)) = &old {
            tracing::warn!(why, "Secret {}/{} is damaged and made anew", self.namespace, self.name);
        }
        let made = Authority::generate(now).map_err(|e| e.to_string())?;
        let before = old.and_then(Result::ok);
        let secret = render(&self.name, &made, before.as_ref(), seen);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let written = async {
            match seen {
                Some(_) => self.api.replace(&self.name, &params, &secret).await,
                None => self.api.create(&params, &secret).await,
            }
        };
        match tokio::time::timeout(DEADLINE, written).await {
            Ok(Ok(_)) => {
                self.serve(made);
                Ok(())
            }
            // Another replica was faster: the watch brings what it wrote.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the API server did not answer in time".into()),
        }
    }

    fn make_do(&self) {
        if self.certs.authority().is_none()
            && let Ok(authority) = Authority::generate(Timestamp::now())
        {
            self.serve(authority);
        }
    }

    fn serve(&self, authority: Authority) {
        self.certs.set_authority(authority);
        (self.changed)();
    }
}

fn read(secret: &Secret) -> Result<Authority, String> {
    let text = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|d| d.get(key)).ok_or_else(|| format!("it has no {key}"))?;
        std::str::from_utf8(&bytes.0).map_err(|_| format!("its {key} is not text"))
    };
    Authority::from_pem(text(CERTIFICATE)?, text(KEY)?).map_err(|e| e.to_string())
}

fn render(name: &str, authority: &Authority, before: Option<&Authority>, seen: Option<&Secret>) -> Secret {
    let bundle = format!("{}{}", authority.pem(), before.map(Authority::pem).unwrap_or_default());
    let bytes = |text: String| ByteString(text.into_bytes());
    let data = [
        (CERTIFICATE.to_owned(), bytes(authority.pem().to_owned())),
        (KEY.to_owned(), bytes(authority.key_pem())),
        (BUNDLE.to_owned(), bytes(bundle)),
    ];
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            // Nobody's later write is lost.
            resource_version: seen.and_then(|s| s.resource_version()),
            labels: Some([("app.kubernetes.io/name".to_owned(), "vnode".to_owned())].into()),
            ..ObjectMeta::default()
        },
        // A type cannot be changed.
        type_: Some(seen.and_then(|s| s.type_.clone()).unwrap_or_else(|| "kubernetes.io/tls".into())),
        data: Some(data.into()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_the_old_one_stays_in_the_bundle() {
        let (old, new) =
            (Authority::generate(Timestamp::now()).unwrap(), Authority::generate(Timestamp::now()).unwrap());
        let first = render("ca", &old, None, None);
        assert_eq!(read(&first).unwrap().certificate(), old.certificate());
        let second = render("ca", &new, Some(&old), Some(&first));
        assert_eq!(read(&second).unwrap().certificate(), new.certificate());
        let bundle = String::from_utf8(second.data.unwrap()[BUNDLE].0.clone()).unwrap();
        assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 2);
        let damaged = Secret { data: Some([(CERTIFICATE.to_owned(), ByteString(b"x".to_vec()))].into()), ..first };
        assert!(read(&damaged).is_err());
    }
}
