//! The Secrets that VirtualNodes name: read by name, from the operator's own namespace only.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use super::plan::Problem;
use super::{Fleet, is_not_found, within};
use crate::api::VirtualNode;
use crate::provider::Credentials;

/// How often a Secret that is missing is looked for.
pub(super) const MISSING_RETRY: Duration = Duration::from_secs(3);
/// How often one that is there is looked at for changes.
pub(super) const REFRESH: Duration = Duration::from_secs(60);

/// A Secret's data and its resourceVersion, by which a change is recognised.
pub(super) struct Found {
    pub(super) data: Arc<Credentials>,
    pub(super) version: String,
}

impl Fleet {
    /// The credentials of a VirtualNode: `None` when it asks for none.
    pub(super) async fn credentials(&self, vn: &VirtualNode) -> Result<Option<Found>, Problem> {
        if let Some(alone) = &self.alone {
            return Ok(alone.node.credentials.clone().map(|data| Found { data, version: String::new() }));
        }
        let Some(reference) = &vn.spec.credentials_secret_ref else { return Ok(None) };
        let (name, namespace) = (&reference.name, &self.config.namespace);
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        match within(api.get(name)).await {
            // Its token is the way into the cluster, and providers send tokens to wherever their node's author says.
            Ok(secret) if secret.type_.as_deref() == Some("kubernetes.io/service-account-token") => Err(Problem::new(
                "SecretForbidden",
                format!("Secret {name} in namespace {namespace} is a ServiceAccount's token, which no provider gets"),
            )),
            Ok(secret) => {
                let data = secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0.into())).collect();
                let version = secret.metadata.resource_version.unwrap_or_default();
                Ok(Some(Found { data: Arc::new(Credentials(data)), version }))
            }
            Err(error) if is_not_found(&error) => Err(Problem::new(
                "SecretNotFound",
                format!("spec.credentialsSecretRef.name: there is no Secret {name} in namespace {namespace}"),
            )),
            Err(kube::Error::Api(status)) if status.code == 403 => Err(Problem::new(
                "SecretForbidden",
                format!("the operator may not read Secret {name} in namespace {namespace}: {}", status.message),
            )),
            Err(error) => Err(Problem::new(
                "SecretUnreadable",
                format!("reading Secret {name} in namespace {namespace}: {error}"),
            )),
        }
    }
}
