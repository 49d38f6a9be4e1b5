//! ClusterTrustBundles, where the API server serves them.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt as _};
use serde_json::Value;

/// How often they are looked at again.
pub(super) const REFRESH: Duration = Duration::from_secs(600);
const DEADLINE: Duration = Duration::from_secs(10);
/// Newest first; the last one only as long as clusters have it.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

/// The certificates that the projection names, as PEM.
pub(super) async fn bundle(client: &kube::Client, source: &ClusterTrustBundleProjection) -> Result<String, String> {
    let optional = source.optional == Some(true);
    let found = match (&source.name, &source.signer_name) {
        (Some(name), _) => by_name(client, name).await?.into_iter().collect(),
        (None, Some(signer)) => by_signer(client, signer, source.label_selector.as_ref()).await?,
        (None, None) => return Err("clusterTrustBundle needs a name or a signerName".into()),
    };
    if found.is_empty() && !optional {
        return Err(match (&source.name, &source.signer_name) {
            (Some(name), _) => format!("clustertrustbundle {name:?} not found"),
            (_, signer) => format!("no clustertrustbundle of signer {:?} found", signer.as_deref().unwrap_or_default()),
        });
    }
    Ok(merged(&found))
}

/// Each certificate once, in an order that does not depend on that of the bundles.
fn merged(bundles: &[String]) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    let blocks: BTreeSet<&str> = bundles
        .iter()
        .flat_map(|b| b.split_inclusive(END))
        .filter_map(|b| b.find("-----BEGIN CERTIFICATE-----").map(|at| b[at..].trim()))
        .filter(|b| b.ends_with(END))
        .collect();
    blocks.into_iter().map(|b| format!("{b}\n")).collect()
}

async fn by_name(client: &kube::Client, name: &str) -> Result<Option<String>, String> {
    for version in VERSIONS {
        let path = format!("/apis/certificates.k8s.io/{version}/clustertrustbundles/{name}");
        if let Some(object) = get(client, &path).await? {
            return Ok(object["spec"]["trustBundle"].as_str().map(str::to_owned));
        }
    }
    Ok(None)
}

async fn by_signer(
    client: &kube::Client,
    signer: &str,
    selector: Option<&LabelSelector>,
) -> Result<Vec<String>, String> {
    // Kubernetes: an absent selector selects nothing, an empty one everything.
    let Some(selector) = selector else { return Ok(Vec::new()) };
    let selector: Selector = selector.clone().try_into().map_err(|e| format!("labelSelector: {e}"))?;
    for version in VERSIONS {
        let path = format!("/apis/certificates.k8s.io/{version}/clustertrustbundles");
        let Some(list) = get(client, &path).await? else { continue };
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let chosen = items.iter().filter(|item| {
            let labels = serde_json::from_value(item["metadata"]["labels"].clone()).unwrap_or_default();
            item["spec"]["signerName"] == signer && selector.matches(&labels)
        });
        return Ok(chosen.filter_map(|i| i["spec"]["trustBundle"].as_str().map(str::to_owned)).collect());
    }
    Ok(Vec::new())
}

async fn get(client: &kube::Client, path: &str) -> Result<Option<Value>, String> {
    let request = http::Request::get(path).body(Vec::new()).map_err(|e| e.to_string())?;
    match tokio::time::timeout(DEADLINE, client.request::<Value>(request)).await {
        Ok(Ok(value)) => Ok(Some(value)),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the API server did not answer in time".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_merged_and_each_is_there_once() {
        let pem = |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----");
        let bundles = [format!("# a comment\n{}\n{}", pem("b"), pem("a")), pem("b")];
        assert_eq!(merged(&bundles), format!("{}\n{}\n", pem("a"), pem("b")));
        assert_eq!(merged(&["garbage".into()]), "");
    }
}
