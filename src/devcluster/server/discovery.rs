//! Discovery in both forms, and the OpenAPI documents.

use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use serde_json::{Value, json};

use super::Api;
use super::http::{Answer, accepted, agree, json as answer_json, json_bytes, not_acceptable};
use crate::auth::tokens::ISSUER;
use crate::kinds::{Kind, Kinds, Version};
use crate::openapi::protobuf;
use crate::status::{ApiError, Result};

/// Documents made for a set of kinds, kept until the kinds change.
#[derive(Debug, Default)]
pub(crate) struct OpenApiCache {
    made: Mutex<Vec<(String, Arc<Kinds>, bytes::Bytes)>>,
}

impl OpenApiCache {
    fn get(&self, name: &str, kinds: &Arc<Kinds>, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<bytes::Bytes> {
        let lock = || self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, _, bytes)) = lock().iter().find(|(n, of, _)| n == name && Arc::ptr_eq(of, kinds)) {
            return Ok(bytes.clone());
        }
        let bytes: bytes::Bytes = make()?.into();
        let mut made = lock();
        made.retain(|(n, of, _)| n != name && Arc::ptr_eq(of, kinds));
        made.push((name.into(), kinds.clone(), bytes.clone()));
        Ok(bytes)
    }
}

pub(crate) async fn answer(api: &Arc<Api>, parts: &Parts) -> Result<Answer> {
    let kinds = api.registry.kinds();
    let path = parts.uri.path().trim_end_matches('/');
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let missing = || Ok(super::handle::page_not_found());
    match segments.as_slice() {
        ["api"] => match aggregated(&parts.headers)? {
            true => Ok(discovery_list(&kinds, true)),
            false => Ok(answer_json(
                200,
                &json!({"kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": host(&parts.headers)}]}),
            )),
        },
        ["apis"] => match aggregated(&parts.headers)? {
            true => Ok(discovery_list(&kinds, false)),
            false => {
                let groups: Vec<_> =
                    kinds.groups.iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| group(g, versions(v))).collect();
                Ok(answer_json(200, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})))
            }
        },
        ["api" | "apis", ..] if segments.len() < 4 && agree(&parts.headers).is_err() => {
            agree(&parts.headers).and(Err(unknown_version()))
        }
        ["apis", name] => match kinds.versions(name).filter(|_| !name.is_empty()) {
            Some(found) => {
                let mut group = group(name, versions(found));
                (group["kind"], group["apiVersion"]) = ("APIGroup".into(), "v1".into());
                Ok(answer_json(200, &group))
            }
            None => missing(),
        },
        ["api", version] => match resources(&kinds, "", version) {
            Some(list) => Ok(answer_json(200, &list)),
            None => Err(unknown_version()),
        },
        ["apis", group, version] if !group.is_empty() => match resources(&kinds, group, version) {
            Some(list) => Ok(answer_json(200, &list)),
            // Groups of built-in kinds know what they have not.
            None if kinds.versions(group).is_some_and(has_builtin) => Err(unknown_version()),
            None => missing(),
        },
        ["openapi", "v2"] => openapi_v2(api, &kinds, &parts.headers),
        ["openapi", "v3", ..] => openapi_v3(api, &kinds, path, &parts.headers),
        [] | [""] => Ok(answer_json(200, &paths(&kinds))),
        [".well-known", "openid-configuration"] => Ok(answer_json(
            200,
            &json!({"issuer": ISSUER,
            "jwks_uri": format!("{ISSUER}/openid/v1/jwks"), "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"]}),
        )),
        _ => missing(),
    }
}

fn has_builtin(versions: &[Version]) -> bool {
    versions.iter().flat_map(|(_, kinds)| kinds).any(|kind| !kind.custom)
}

fn unknown_version() -> ApiError {
    let mut error = ApiError::new(404, "NotFound", "the server could not find the requested resource");
    error.details = json!({});
    error
}

fn host(headers: &HeaderMap) -> &str {
    headers.get(http::header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

fn paths(kinds: &Kinds) -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".into(), "/apis".into()];
    for (group, versions) in kinds.groups.iter().filter(|(g, _)| !g.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|(version, _)| format!("/apis/{group}/{version}")));
    }
    paths.extend(
        ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(Into::into),
    );
    json!({"paths": paths})
}

fn versions(found: &[Version]) -> Vec<&str> {
    found.iter().map(|(version, _)| &**version).collect()
}

fn group(name: &str, versions: Vec<&str>) -> Value {
    let version = |v: &&str| json!({"groupVersion": format!("{name}/{v}"), "version": v});
    let preferred = versions.first().map(version);
    json!({"name": name, "versions": versions.iter().map(version).collect::<Vec<_>>(), "preferredVersion": preferred})
}

fn resources(kinds: &Kinds, group: &str, version: &str) -> Option<Value> {
    let (_, found) = kinds.versions(group)?.iter().find(|(v, _)| &**v == version)?;
    let mut list = Vec::new();
    for kind in found {
        let mut resource = json!({"name": &*kind.plural, "singularName": &*kind.singular, "namespaced": kind.namespaced,
            "kind": &*kind.kind, "verbs": kind.verbs});
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        if !kind.is_virtual() {
            resource["storageVersionHash"] = hash(kind).into();
        }
        list.push(resource);
        for sub in &kind.subresources {
            let mut resource = json!({"name": format!("{}/{}", kind.plural, sub.name), "singularName": "",
                "namespaced": kind.namespaced, "kind": &*sub.kind, "verbs": sub.verbs});
            if (&*sub.group, &*sub.version) != (group, version) {
                (resource["group"], resource["version"]) = ((*sub.group).into(), (*sub.version).into());
            }
            list.push(resource);
        }
    }
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let mut answer = json!({"kind": "APIResourceList", "groupVersion": api_version, "resources": list});
    // The list of the core group is older than the field.
    if !group.is_empty() {
        answer["apiVersion"] = "v1".into();
    }
    Some(answer)
}

/// Changes with the version that objects are stored in, as clients expect of it. apiserver: `StorageVersionHash`.
fn hash(kind: &Kind) -> String {
    use base64::Engine;
    use sha2::Digest;
    let digest = sha2::Sha256::digest(format!(
        "{}{}, Kind={}",
        if kind.storage_version.contains('/') { "" } else { "/" },
        kind.storage_version,
        kind.kind
    ));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

/// Whether a client accepts aggregated discovery; 406 when it accepts neither form.
fn aggregated(headers: &HeaderMap) -> Result<bool> {
    let aggregated = accepted(headers).iter().any(|(media, parameters)| {
        let get = |name: &str| parameters.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        media == "application/json"
            && get("g") == Some("apidiscovery.k8s.io")
            && get("as") == Some("APIGroupDiscoveryList")
            && get("v") == Some("v2")
    });
    if !aggregated {
        agree(headers)?;
    }
    Ok(aggregated)
}

fn discovery_list(kinds: &Kinds, core: bool) -> Answer {
    let response_kind = |of: &Kind, group: &str, version: &str, kind: &str| {
        // Left empty where it is the version that is described.
        let own = (group, version) == (&*of.group, &*of.version);
        let (group, version) = if own { ("", "") } else { (group, version) };
        json!({"group": group, "version": version, "kind": kind})
    };
    let resource = |kind: &Arc<Kind>| {
        let subresources: Vec<_> = kind
            .subresources
            .iter()
            .map(|sub| {
                json!({"subresource": sub.name, "verbs": sub.verbs,
                    "responseKind": response_kind(kind, &sub.group, &sub.version, &sub.kind)})
            })
            .collect();
        let mut resource = json!({"resource": &*kind.plural, "singularResource": &*kind.singular, "verbs": kind.verbs,
            "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
            "responseKind": response_kind(kind, &kind.group, &kind.version, &kind.kind)});
        for (key, list) in [
            ("shortNames", json!(kind.short_names)),
            ("categories", json!(kind.categories)),
            ("subresources", json!(subresources)),
        ] {
            if list.as_array().is_some_and(|list| !list.is_empty()) {
                resource[key] = list;
            }
        }
        resource
    };
    let items: Vec<_> = kinds
        .groups
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<_> = versions
                .iter()
                .map(|(version, kinds)| {
                    let resources: Vec<_> = kinds.iter().map(resource).collect();
                    json!({"version": &**version, "freshness": "Current", "resources": resources})
                })
                .collect();
            let metadata = if core { json!({"creationTimestamp": null}) } else { json!({"name": &**group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let body = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {}, "items": items});
    let mut answer = answer_json(200, &body);
    let media = HeaderValue::from_static("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    answer.headers_mut().insert(CONTENT_TYPE, media);
    answer.headers_mut().insert("vary", HeaderValue::from_static("Accept"));
    answer
}

fn takes_json(headers: &HeaderMap) -> Result<()> {
    let ranges = accepted(headers);
    let fine = ranges.is_empty()
        || ranges.iter().any(|(media, _)| matches!(media.as_str(), "application/json" | "application/*" | "*/*"));
    if fine { Ok(()) } else { Err(not_acceptable(&["application/json"])) }
}

fn openapi_v2(api: &Api, kinds: &Arc<Kinds>, headers: &HeaderMap) -> Result<Answer> {
    let document = || crate::openapi::v2(&infos(kinds, None));
    let ranges = accepted(headers);
    let protobuf = ranges.iter().position(|(media, _)| media == protobuf::ACCEPTED);
    let json = ranges.iter().position(|(media, _)| media == "application/json");
    if protobuf.is_some() && (json.is_none() || protobuf < json) {
        let bytes = api.openapi.get("v2 protobuf", kinds, || Ok(protobuf::encode(&document())))?;
        let mut answer = json_bytes(200, bytes);
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(protobuf::ANSWERED));
        return Ok(answer);
    }
    takes_json(headers)?;
    let bytes = api.openapi.get("v2", kinds, || Ok(document().to_string().into()))?;
    Ok(json_bytes(200, bytes))
}

fn openapi_v3(api: &Api, kinds: &Arc<Kinds>, path: &str, headers: &HeaderMap) -> Result<Answer> {
    takes_json(headers)?;
    let rest = path.trim_start_matches("/openapi/v3").trim_matches('/');
    if rest.is_empty() {
        let bytes =
            api.openapi.get("v3", kinds, || Ok(crate::openapi::v3_index(&infos(kinds, None)).to_string().into()))?;
        return Ok(json_bytes(200, bytes));
    }
    let api_version = rest.strip_prefix("apis/").or(rest.strip_prefix("api/")).unwrap_or(rest);
    let bytes = api.openapi.get(rest, kinds, || {
        let infos = infos(kinds, Some(api_version));
        if infos.is_empty() {
            return Err(ApiError::new(404, "NotFound", "the server could not find the requested resource"));
        }
        Ok(crate::openapi::v3(api_version, &infos).to_string().into())
    })?;
    Ok(json_bytes(200, bytes))
}

/// The kinds of a group version, or all, as the documents' author wants them.
fn infos(kinds: &Kinds, api_version: Option<&str>) -> Vec<crate::openapi::KindInfo> {
    let wanted = kinds.iter().filter(|kind| api_version.is_none_or(|v| v == kind.api_version()));
    wanted
        .filter_map(|kind| {
            Some(crate::openapi::KindInfo {
                group: kind.group.to_string(),
                version: kind.version.to_string(),
                kind: kind.kind.to_string(),
                plural: kind.plural.to_string(),
                namespaced: kind.namespaced,
                definition: kind.definition.to_string(),
                subresources: kind.subresources.iter().map(|s| s.name.to_string()).collect(),
                schema: kind.schema.clone()?,
            })
        })
        .collect()
}
