//! What the fuzz targets call: each function takes bytes of anybody's choice and panics when a promise is broken.
//!
//! Built for tests and for `fuzz/` alone. Tests here feed the same functions with less patience.

use std::sync::LazyLock;

use http::HeaderMap;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::auth::User;
use crate::pki::Authority;
use crate::selector::{Selector, required_name};
use crate::server::http::{DEPTH_LIMIT, agree, depth_within, parse};
use crate::server::options::{DeleteOptions, Options};
use crate::server::pages::Continue;
use crate::server::path::Target;
use crate::server::{Api, Call};
use crate::status::ApiError;
use crate::store::Store;

const MEDIA: [&str; 4] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/merge-patch+json"];
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// A cluster with one object of each kind that is asked for.
static API: LazyLock<Api> = LazyLock::new(|| {
    let authority = Authority::open(None).expect("keys can be made");
    let api =
        crate::cluster::assemble(&authority, Store::open(None), &crate::Options::default(), CancellationToken::new());
    let api = api.expect("it can be assembled");
    api.bootstrap(([127, 0, 0, 1], 6443).into(), &authority.certificate_pem).expect("the first objects are fine");
    for (path, object) in objects() {
        let call = call(&api, path, "POST", "", "application/json").expect("the path is served");
        let write = call.write().expect("no options");
        assert!(api.create(&write, &call.target.namespace, object).is_ok(), "{path}");
    }
    api
});

fn objects() -> Vec<(&'static str, Value)> {
    let container =
        json!({"name": "c", "image": "i", "ports": [{"containerPort": 80}], "env": [{"name": "A", "value": "b"}]});
    let spec = json!({"containers": [container], "volumes": [{"name": "v", "emptyDir": {}}]});
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": spec});
    let named = json!({"name": "x"});
    vec![
        ("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})),
        ("/api/v1/namespaces/default/configmaps", json!({"metadata": named, "data": {"k": "v"}})),
        ("/api/v1/namespaces/default/pods", json!({"metadata": named, "spec": spec})),
        ("/api/v1/nodes", json!({"metadata": named, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}})),
        ("/api/v1/namespaces/default/services", json!({"metadata": named, "spec": {"ports": [{"port": 80}]}})),
        (
            "/apis/apps/v1/namespaces/default/deployments",
            json!({"metadata": named, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}}),
        ),
        ("/apis/coordination.k8s.io/v1/namespaces/default/leases", json!({"metadata": named, "spec": {}})),
        (
            "/apis/batch/v1/namespaces/default/jobs",
            json!({"metadata": named, "spec": {"template": {"spec":
            {"restartPolicy": "Never", "containers": [container]}}}}),
        ),
        ("/apis/policy/v1/namespaces/default/poddisruptionbudgets", json!({"metadata": named, "spec": {}})),
        ("/apis/rbac.authorization.k8s.io/v1/clusterroles", json!({"metadata": named, "rules": []})),
        (
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            json!({"metadata": {"name": "xs.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "xs", "kind": "X"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}}}}}}]}}),
        ),
    ]
}

fn call(api: &Api, path: &str, method: &str, query: &str, media: &str) -> Option<Call> {
    let mut target = Target::parse(path)?;
    if method != "POST" && target.name.is_empty() {
        target.name = "x".into();
    }
    let kind = api.registry.kinds().find(&target.group, &target.version, &target.resource)?.clone();
    let resource = api.store.resource(&kind.storage);
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, media.parse().ok()?);
    let user = User { name: "fuzz".into(), groups: vec!["system:masters".into()], ..User::default() };
    Some(Call { kind, resource, target, options: Options::parse(Some(query)), user, headers })
}

/// Refusals are fine; a failure of the server itself is not. Some refusals have a code of failures in Kubernetes.
fn expected(error: &ApiError) {
    let refused = [
        "request is too large",
        "failed to create typed patch object",
        "strconv.ParseUint: parsing",
        // Strategic merge patches.
        "list element types are not identical",
        "does not contain declared merge key",
        "doesn't match $setElementOrder list",
    ];
    assert!(error.code < 500 || refused.iter().any(|r| error.message.contains(r)), "{} {error}", error.code);
    let _ = error.body().to_string();
}

/// A request's line and headers: path, query with selectors and tokens, `Accept`.
pub fn request(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (line, accept) = text.split_once('\n').unwrap_or((&text, ""));
    let (path, query) = line.split_once('?').unwrap_or((line, line));
    if let Some(target) = Target::parse(path) {
        let _ = target.verb(&http::Method::GET, true);
    }
    let options = Options::parse(Some(query));
    let kinds = API.registry.kinds();
    let pods = kinds.find("", "v1", "pods").expect("pods are served");
    let checks = [
        options.check_list().err(),
        options.revision().err(),
        options.number("limit").err(),
        options.dry_run().err(),
        options.field_validation().err(),
        DeleteOptions::read(&Value::Null, &options).err(),
        Selector::parse(options.get("labelSelector"), options.get("fieldSelector"), &pods.fields).err(),
        Selector::parse(Some(query), None, &pods.fields).err(),
        Selector::parse(None, Some(query), &pods.fields).err(),
    ];
    checks.iter().flatten().for_each(expected);
    let _ = (options.manager(query), required_name(query));
    match Continue::decode(options.get("continue").unwrap_or(query), None) {
        Ok(token) => assert_eq!(Continue::decode(&token.encode(None), None).as_ref(), Ok(&token)),
        Err(error) => expected(&error),
    }
    if let Ok(accept) = http::HeaderValue::from_str(accept) {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::ACCEPT, accept);
        let _ = agree(&headers);
    }
}

/// A body in any of the formats; the first byte chooses.
pub fn body(data: &[u8]) {
    let Some((first, body)) = data.split_first() else { return };
    match parse(MEDIA[usize::from(*first) % MEDIA.len()], body) {
        Ok(value) => {
            assert!(value.is_object() && depth_within(&value, DEPTH_LIMIT));
            let text = value.to_string();
            assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(value), "what was read can be written and read");
        }
        Err(error) => expected(&error),
    }
}

/// A patch of an object of some kind, as a dry run; the first byte chooses patch and subresource, the second the kind.
pub fn patch(data: &[u8]) {
    let [how, which, patch @ ..] = data else { return };
    let media = PATCHES[usize::from(how & 3)];
    let objects = objects();
    let (path, _) = objects[usize::from(*which) % objects.len()];
    let subresource = if how & 4 == 0 { "" } else { "status" };
    let query = if how & 8 == 0 {
        "dryRun=All&fieldManager=fuzz"
    } else {
        "dryRun=All&fieldManager=f&force=true&fieldValidation=Strict"
    };
    let name = Target::parse(path).map_or("x", |target| match &*target.resource {
        "serviceaccounts" => "default",
        "customresourcedefinitions" => "xs.example.com",
        _ => "x",
    });
    let Some(mut call) = call(&API, path, "PATCH", query, media) else { return };
    call.target.name = name.into();
    call.target.subresource = subresource.into();
    if !subresource.is_empty() && call.kind.subresource(subresource).is_none() {
        return;
    }
    match API.patch(&call, patch.to_vec().into()) {
        Ok(written) => {
            let value: Value = serde_json::from_slice(&written.object.json).expect("what is stored can be read");
            assert_eq!(value["metadata"]["name"], name);
        }
        Err(error) => expected(&error),
    }
}

/// An object that is created and applied, as dry runs; the first byte chooses its kind. Applying twice is applying once.
pub fn apply(data: &[u8]) {
    let [which, body @ ..] = data else { return };
    let objects = objects();
    let (path, _) = objects[usize::from(*which) % objects.len()];
    let Ok(value) = parse("application/yaml", body) else { return };
    let Some(create) = call(&API, path, "POST", "dryRun=All", "application/json") else { return };
    let Ok(write) = create.write() else { return };
    if let Err(error) = API.create(&write, &create.target.namespace, value.clone()) {
        expected(&error);
    }
    let Some(schema) = &create.kind.schema else { return };
    let mut applied = value;
    if schema.check_types(&applied, None).is_err() || !applied["metadata"].is_object() {
        return;
    }
    schema.prune(&mut applied);
    let request = crate::apply::Request {
        manager: "fuzz",
        force: true,
        subresource: None,
        api_version: "v1",
        now: "2026-01-01T00:00:00Z",
        reset: crate::apply::Reset::Nothing,
    };
    let Ok(once) = crate::apply::apply(None, &applied, &request, schema) else { return };
    match crate::apply::apply(Some(&once), &applied, &request, schema) {
        Ok(twice) => assert_eq!(once, twice, "applying twice is applying once"),
        Err(error) => expected(&error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// JSON that looks like objects and patches now and then.
    fn value() -> impl Strategy<Value = Value> {
        let word = prop_oneof![
            Just("metadata"),
            Just("spec"),
            Just("status"),
            Just("name"),
            Just("containers"),
            Just("labels"),
            Just("template"),
            Just("$patch"),
            Just("delete"),
            Just("env"),
            Just("x"),
            Just("op"),
            Just("path"),
            Just("value"),
            Just("add"),
            Just("/spec"),
            Just("taints"),
            Just("key"),
            Just("conditions"),
            Just("type"),
            Just("ports"),
            Just("managedFields"),
            Just("finalizers"),
            Just("ownerReferences"),
            Just("rules"),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            word.clone().prop_map(Value::from),
            Just(json!("")),
        ];
        leaf.prop_recursive(5, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(word.clone(), inner, 0..5).prop_map(|fields| fields
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect::<serde_json::Map<_, _>>()
                    .into()),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn no_request_breaks_its_parsers(text in "[a-z/?&=%+,!()<> 0-9.\\n-]{0,60}") {
            request(text.as_bytes());
        }

        #[test]
        fn no_bytes_break_the_decoders(data in prop::collection::vec(any::<u8>(), 0..100)) {
            body(&data);
            request(&data);
        }

        #[test]
        fn no_patch_breaks_an_object(how: u8, which: u8, value in value()) {
            patch(&[&[how, which], value.to_string().as_bytes()].concat());
            patch(&[&[how & !3, which], json!([value]).to_string().as_bytes()].concat());
        }

        #[test]
        fn no_object_breaks_creation_or_apply(which: u8, value in value()) {
            apply(&[&[which], value.to_string().as_bytes()].concat());
        }
    }
}
