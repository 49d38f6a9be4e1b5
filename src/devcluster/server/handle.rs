//! One request: who asks, for what, may they, and whose job it is to answer.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderMap};
use http::request::Parts;
use http::{Method, Request};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::create::check_identity;
use super::delete::Deleted;
use super::faults::control;
use super::faults::rules::Asked;
use super::http::{Answer, content_type, failure, json as answer_json, parse_as, read_body, text, warn};
use super::options::{DeleteOptions, Options};
use super::path::Target;
use super::read::{self, object_answer};
use super::{Api, Call, Written, admission, metrics, proxy, reviews, scale, subresources, watch};
use crate::auth::{Action, User, tokens};
use crate::selector::{required, required_name};
use crate::status::{ApiError, Result};

pub(crate) async fn handle(api: Arc<Api>, certified: Option<Arc<User>>, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    match route(&api, certified.as_deref(), parts, body).await {
        Ok(answer) => answer,
        Err(error) => failure(&error),
    }
}

async fn route(api: &Arc<Api>, certified: Option<&User>, parts: Parts, body: Incoming) -> Result<Answer> {
    let user = authenticate(api, certified, &parts.headers)?;
    let user = impersonate(api, user, &parts.headers)?;
    let path = parts.uri.path();
    if let Some(faults) = &api.faults {
        if let Some(below) = control::below(path) {
            return control::answer(api, faults, &user, &parts, below, body).await;
        }
        let watch = Options::parse(parts.uri.query()).flag("watch");
        let asked = Asked { method: parts.method.as_str(), path, user: &user.name, watch };
        faults.interfere(&asked, parts.extensions.get()).await?;
    }
    let Some(target) = Target::parse(path) else {
        let action = Action { verb: non_resource_verb(&parts.method), path: Some(path), ..Action::default() };
        if !api.authorizer.allows(&user, &action) {
            let message = format!("forbidden: {}", action.denial(&user));
            let mut error = ApiError::new(403, "Forbidden", message);
            error.details = json!({});
            return Err(error);
        }
        return other(api, &parts).await;
    };
    let options = Options::parse(parts.uri.query());
    let watching =
        options.flag("watch") || path.split('/').nth(if target.group.is_empty() { 3 } else { 4 }) == Some("watch");
    let verb = target.verb(&parts.method, watching);
    authorize(api, &user, &target, verb, &options)?;
    let kinds = api.registry.kinds();
    let missing = || {
        let mut error = ApiError::new(404, "NotFound", "the server could not find the requested resource");
        error.details = json!({});
        error
    };
    let Some(kind) = kinds.find(&target.group, &target.version, &target.resource).cloned() else {
        // Only a version with built-in kinds knows enough to answer with a Status.
        let served = kinds.versions(&target.group).into_iter().flatten();
        let mut served = served.filter(|(version, _)| **version == *target.version).flat_map(|(_, kinds)| kinds);
        return if served.any(|kind| !kind.custom) { Err(missing()) } else { Ok(page_not_found()) };
    };
    // A namespaced kind without a namespace can only be listed; a cluster-scoped one is in no namespace.
    let misplaced = if kind.namespaced {
        target.namespace.is_empty()
            && (!target.name.is_empty() || matches!(verb, "create" | "deletecollection"))
            && !kind.is_virtual()
    } else {
        !target.namespace.is_empty() && !kind.is("", "namespaces")
    };
    if misplaced {
        return Err(if target.name.is_empty() && !kind.custom { not_allowed() } else { missing() });
    }
    let resource = api.store.resource(&kind.storage);
    let call = Call { kind, resource, target, options, user, headers: parts.headers.clone() };
    if call.kind.is_virtual() {
        if parts.method != Method::POST {
            return Err(not_allowed());
        }
        let body = read_body(body).await?;
        return reviews::answer(api, &call, &body);
    }
    if &*call.kind.group == "metrics.k8s.io" {
        if !call.kind.verbs.contains(&verb) {
            return Err(not_allowed());
        }
        if !call.target.subresource.is_empty() {
            return Err(missing());
        }
        return metrics::answer(api, &call).await;
    }
    if !call.target.subresource.is_empty() && call.target.subresource != "status" {
        return subresource(api, call, parts, body).await;
    }
    if call.target.subresource == "status" && call.kind.subresource("status").is_none() {
        return Err(missing());
    }
    let method = &parts.method;
    if !matches!(*method, Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::PATCH | Method::DELETE) {
        return Err(not_allowed());
    }
    resource_request(api, call, verb, body).await
}

async fn resource_request(api: &Arc<Api>, call: Call, verb: &str, body: Incoming) -> Result<Answer> {
    let allowed = match call.target.subresource.as_str() {
        "" => call.kind.verbs.contains(&verb),
        _ => matches!(verb, "get" | "update" | "patch"),
    };
    let named = !call.target.name.is_empty();
    if !allowed || verb == "create" && named || matches!(verb, "update" | "patch") && !named {
        return Err(not_allowed());
    }
    match verb {
        "get" if call.options.flag("watch") && call.target.subresource.is_empty() => watch::watch(api, call),
        "get" => {
            read::check_revision(api, &call)?;
            read::get(&call)
        }
        "list" => read::list(api, &call),
        "watch" => watch::watch(api, call),
        "create" => {
            let body = read_body(body).await?;
            let value = parse_as(&call.kind.kind, &content_type(&call.headers), &body)?;
            written(&call, api.create(&call.write()?, &call.target.namespace, value)?)
        }
        "update" => {
            let body = read_body(body).await?;
            let mut value = parse_as(&call.kind.kind, &content_type(&call.headers), &body)?;
            // Before the object is looked up: a body for another object is a bad request even when this one is missing.
            check_identity(&call.kind, &mut value, &call.target.namespace, &call.target.name)?;
            written(&call, api.modify(&call.write()?, &call.key(), |_| Ok(value.clone()))?)
        }
        "patch" => {
            let body = read_body(body).await?;
            written(&call, api.patch(&call, body)?)
        }
        "delete" => {
            let options = delete_options(&call, body).await?;
            let mut write = call.write()?;
            write.dry_run = options.dry_run;
            if let Some(object) = call.resource.get(&call.key()) {
                admission::node::delete(&call.user, &call.kind, &object.value())?;
            }
            let deleted = api.delete(&write, &call.key(), &options)?;
            Ok(answer_json(200, &Api::deletion_answer(&call.kind, &deleted)))
        }
        "deletecollection" => {
            let options = delete_options(&call, body).await?;
            delete_collection(api, &call, &options)
        }
        _ => Err(not_allowed()),
    }
}

async fn delete_options(call: &Call, body: Incoming) -> Result<DeleteOptions> {
    let body = read_body(body).await?;
    let media = content_type(&call.headers);
    let value = if body.is_empty() { Value::Null } else { parse_as("DeleteOptions", &media, &body)? };
    DeleteOptions::read(&value, &call.options)
}

fn delete_collection(api: &Api, call: &Call, options: &DeleteOptions) -> Result<Answer> {
    let page = read::select(api, call)?;
    let mut write = call.write()?;
    write.dry_run = options.dry_run;
    let mut items = Vec::with_capacity(page.objects.len());
    for object in &page.objects {
        admission::node::delete(&call.user, &call.kind, &object.value())?;
        match api.delete(&write, &object.key, options) {
            Ok(Deleted::Gone(object) | Deleted::Pending(object)) => items.push(Api::served_value(&call.kind, &object)),
            // Somebody else was faster; that is what was asked for.
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let list = json!({"kind": &*call.kind.list_kind, "apiVersion": call.kind.api_version(),
        "metadata": {"resourceVersion": api.store.revision().to_string()}, "items": items});
    Ok(answer_json(200, &list))
}

pub(crate) fn written(call: &Call, written: Written) -> Result<Answer> {
    let mut answer = object_answer(call, if written.created { 201 } else { 200 }, &written.object)?;
    warn(&mut answer, &written.warnings);
    Ok(answer)
}

async fn subresource(api: &Arc<Api>, call: Call, parts: Parts, body: Incoming) -> Result<Answer> {
    let name = call.target.subresource.clone();
    if call.kind.subresource(&name).is_none() {
        let mut error = ApiError::new(404, "NotFound", "the server could not find the requested resource");
        error.details = json!({});
        return Err(error);
    }
    match name.as_str() {
        "scale" => scale::answer(api, &call, &parts.method, read_body(body).await?),
        "proxy" => proxy::forward::forward(api, &call, parts, body).await,
        "log" => proxy::log::log(api, &call).await,
        "exec" | "attach" | "portforward" => proxy::stream::stream(api, &call, parts).await,
        _ => subresources::answer(api, &call, &parts.method, read_body(body).await?),
    }
}

fn not_allowed() -> ApiError {
    let mut error =
        ApiError::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
    error.details = json!({});
    error
}

/// What a path that nothing serves is answered with.
pub(super) fn page_not_found() -> Answer {
    let mut answer = text(404, "404 page not found\n");
    answer.headers_mut().insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    answer
}

fn non_resource_verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::HEAD => "head",
        Method::OPTIONS => "options",
        _ => "get",
    }
}

/// A bearer token is looked at first, then the certificate; without either the request is anonymous.
fn authenticate(api: &Api, certified: Option<&User>, headers: &HeaderMap) -> Result<User> {
    let bearer = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| {
        let (scheme, token) = v.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match (bearer, certified) {
        (Some(token), _) if !token.is_empty() => api
            .token_user(token, &[tokens::ISSUER])
            .map(|(user, _)| user)
            .map_err(|_| ApiError::new(401, "Unauthorized", "Unauthorized")),
        (_, Some(user)) => Ok(user.clone()),
        _ => Ok(User::anonymous()),
    }
}

/// Acts as somebody else when the headers say so and the user may.
fn impersonate(api: &Api, user: User, headers: &HeaderMap) -> Result<User> {
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let groups: Vec<&str> = headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok()).collect();
    let extras = headers.keys().any(|key| key.as_str().starts_with("impersonate-extra-"));
    let Some(name) = header("impersonate-user").filter(|name| !name.is_empty()) else {
        if groups.is_empty() && !extras && header("impersonate-uid").is_none() {
            return Ok(user);
        }
        let list = match groups.is_empty() {
            true => "[]string(nil)".to_owned(),
            false => format!("[]string{{{}}}", groups.iter().map(|g| format!("{g:?}")).collect::<Vec<_>>().join(", ")),
        };
        let uid = header("impersonate-uid").unwrap_or_default();
        let asked = format!("Name:\"\", UID:{uid:?}, Groups:{list}, Extra:map[string][]string(nil)");
        let message = format!("requested &user.DefaultInfo{{{asked}}} without impersonating a user name");
        return Err(ApiError::bad_request(message));
    };
    let check_part = |resource: &str, subresource: &str, group: &str, namespace: &str, name: &str| {
        let action = Action { verb: "impersonate", group, resource, subresource, namespace, name, ..Action::default() };
        let decision = api.authorizer.decide(&user, &action);
        match decision.allowed {
            true => Ok(()),
            false => {
                let denial = action.denial_because(&user, &decision.reason);
                Err(ApiError::forbidden(resource, group, name, &denial))
            }
        }
    };
    let check =
        |resource: &str, group: &str, namespace: &str, name: &str| check_part(resource, "", group, namespace, name);
    let mut acting = User { name: name.into(), ..User::default() };
    match name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, account)) => {
            check("serviceaccounts", "", namespace, account)?;
            if groups.is_empty() {
                acting.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
            }
        }
        None => check("users", "", "", name)?,
    }
    for group in groups {
        check("groups", "", "", group)?;
        acting.groups.push(group.into());
    }
    if let Some(uid) = header("impersonate-uid") {
        check("uids", "authentication.k8s.io", "", uid)?;
        acting.uid = uid.into();
    }
    for (key, value) in headers {
        if let Some(key) = key.as_str().strip_prefix("impersonate-extra-") {
            let value = value.to_str().unwrap_or_default();
            let key = super::path::decode(key);
            check_part("userextras", &key, "authentication.k8s.io", "", value)?;
            acting.extra.entry(key).or_default().push(value.into());
        }
    }
    let class = if acting.name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    if !acting.in_group("system:authenticated") && !acting.in_group("system:unauthenticated") {
        acting.groups.push(class.into());
    }
    Ok(acting)
}

fn authorize(api: &Api, user: &User, target: &Target, verb: &str, options: &Options) -> Result<()> {
    let selected = match verb {
        "list" | "watch" | "deletecollection" => options.get("fieldSelector").and_then(required_name),
        _ => None,
    };
    let name = if target.name.is_empty() { selected.unwrap_or_default() } else { &target.name };
    let action = Action {
        verb,
        group: &target.group,
        resource: &target.resource,
        subresource: &target.subresource,
        // A namespace is in itself for RBAC.
        namespace: if target.resource == "namespaces" && target.group.is_empty() {
            &target.name
        } else {
            &target.namespace
        },
        name,
        node: options.get("fieldSelector").and_then(|fields| required(fields, "spec.nodeName")).unwrap_or_default(),
        path: None,
    };
    let decision = api.authorizer.decide(user, &action);
    if decision.allowed {
        return Ok(());
    }
    let shown = Action { namespace: &target.namespace, ..action };
    let denial = shown.denial_because(user, &decision.reason);
    Err(ApiError::forbidden(&target.resource, &target.group, name, &denial))
}

/// Paths that name no resource.
async fn other(api: &Arc<Api>, parts: &Parts) -> Result<Answer> {
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(not_allowed());
    }
    let path = parts.uri.path();
    let verbose = Options::parse(parts.uri.query()).get("verbose").is_some();
    match path.trim_end_matches('/') {
        "/healthz" | "/livez" | "/readyz" if verbose => {
            let name = path.trim_matches('/');
            let checks = ["ping", "log", "etcd", "informer-sync"].map(|c| format!("[+]{c} ok\n")).concat();
            Ok(text(200, format!("{checks}{name} check passed\n")))
        }
        "/healthz" | "/livez" | "/readyz" | "/healthz/ping" | "/livez/ping" | "/readyz/ping" => Ok(text(200, "ok")),
        "/version" => Ok(answer_json(200, &version())),
        "/metrics" => Ok(text(200, own_metrics(api))),
        _ => super::discovery::answer(api, parts).await,
    }
}

fn version() -> Value {
    let os = if cfg!(target_os = "macos") { "darwin" } else { std::env::consts::OS };
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0+vnode", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": format!("{os}/{arch}"),
        "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1", "minCompatibilityMinor": "35"})
}

/// Objects by resource, as the API server's own metric has them.
fn own_metrics(api: &Api) -> String {
    let mut out = String::from("# TYPE apiserver_storage_objects gauge\n");
    for resource in api.store.all() {
        let id = &resource.id;
        let name = if id.group.is_empty() { id.plural.to_string() } else { format!("{}.{}", id.plural, id.group) };
        out.push_str(&format!("apiserver_storage_objects{{resource={name:?}}} {}\n", resource.len()));
    }
    out
}
