//! The cluster's client authority, followed while it changes.

use std::pin::pin;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use kube::runtime::watcher;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::User;

use crate::cluster::watch::watch;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";
const KEY: &str = "client-ca-file";

/// The authorities whose certificates name users. Empty until the ConfigMap was read; afterwards the last
/// readable bundle, because a damaged or deleted ConfigMap says nothing against the old authority.
#[derive(Default)]
pub(super) struct ClientCas {
    verifier: ArcSwapOption<Trusted>,
}

struct Trusted {
    pem: String,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientCas {
    /// Follows the ConfigMap for ever, by one watch on this one object.
    pub(super) async fn follow(&self, client: kube::Client) {
        let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let mut events = pin!(watch(api, config));
        let mut seen = false;
        // Each trouble is told once, until the bundle can be read again.
        let mut told = false;
        while let Some(event) = events.next().await {
            let trouble = match event {
                Ok(watcher::Event::Apply(map) | watcher::Event::InitApply(map)) => {
                    seen = true;
                    let data = map.data.unwrap_or_default();
                    data.get(KEY).ok_or_else(|| format!("it has no {KEY}")).and_then(|pem| self.trust(pem)).err()
                }
                Ok(watcher::Event::Init) => {
                    seen = false;
                    continue;
                }
                Ok(watcher::Event::InitDone) if seen => continue,
                Ok(watcher::Event::InitDone) => Some("it does not exist".to_owned()),
                Ok(watcher::Event::Delete(_)) => Some("it was deleted".to_owned()),
                Err(error) => Some(error.to_string()),
            };
            let Some(why) = trouble else {
                told = false;
                continue;
            };
            if !std::mem::replace(&mut told, true) {
                let trusted = self.verifier.load().is_some();
                let effect =
                    if trusted { "the last one read stays in force" } else { "only bearer tokens are accepted" };
                tracing::warn!(%why, "the cluster's client CA (ConfigMap {NAMESPACE}/{NAME}) cannot be read: {effect}");
            }
        }
    }

    /// Trusts the authorities of a PEM bundle from now on, and no other.
    pub(super) fn trust(&self, pem: &str) -> Result<(), String> {
        if self.verifier.load().as_ref().is_some_and(|t| t.pem == pem) {
            return Ok(());
        }
        let certs: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).collect();
        let mut roots = RootCertStore::empty();
        let (added, _ignored) = roots.add_parsable_certificates(certs);
        if added == 0 {
            return Err(format!("{KEY} holds no certificate"));
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()))
            .build()
            .map_err(|e| e.to_string())?;
        self.verifier.store(Some(Arc::new(Trusted { pem: pem.to_owned(), verifier })));
        tracing::debug!(authorities = added, "client certificates of the cluster's CA are accepted");
        Ok(())
    }

    /// Whom a certificate chain names, when it leads to a trusted authority and is valid now.
    pub(super) fn identify(&self, chain: &[CertificateDer<'static>]) -> Option<User> {
        let (end_entity, intermediates) = chain.split_first()?;
        let trusted = self.verifier.load();
        let verifier = &trusted.as_ref()?.verifier;
        if let Err(error) = verifier.verify_client_cert(end_entity, intermediates, UnixTime::now()) {
            tracing::debug!(%error, "a client certificate was not accepted");
            return None;
        }
        user_of(end_entity)
    }
}

/// The common name is the user, the organisations are the groups.
fn user_of(cert: &CertificateDer<'_>) -> Option<User> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let subject = cert.subject();
    let name = subject.iter_common_name().last()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push("system:authenticated".to_owned());
    Some(User { name, uid: None, groups, extra: Default::default() })
}
