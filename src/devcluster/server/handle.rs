//! One request: who asks, for what, may they, and whose job it is to answer.

use std::sync::Arc;

use http::header::{AUTHORIZATION, CACHE_CONTROL, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::create::check_identity;
use super::delete::Deleted;
use super::faults::rules::Asked;
use super::faults::{Line, control};
use super::http::{
    Answer, Asking, content_type, duplicates, failure, into_yaml, json as answer_json, parse_as, read_body, text,
    wants_yaml, warn,
};
use super::options::{DeleteOptions, Options};
use super::path::Target;
use super::read::{self, object_answer};
use super::{Api, Call, Write, Written, admission, metrics, not_found, proxy, reviews, scale, subresources, watch};
use crate::auth::{Action, User, tokens};
use crate::selector::{required, required_name};
use crate::status::{ApiError, Result};

pub(crate) async fn handle(api: Arc<Api>, certified: Option<Arc<User>>, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let yaml = wants_yaml(&parts.headers);
    let mut answer = match admit(&api, certified.as_deref(), parts, Either::Left(body)).await {
        Ok(answer) => answer,
        Err(error) => failure(&error),
    };
    if !answer.headers().contains_key(CACHE_CONTROL) {
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    }
    if yaml { into_yaml(answer).await } else { answer }
}

/// Lets a request through, with the faults that were asked for.
async fn admit(api: &Arc<Api>, certified: Option<&User>, parts: Parts, mut body: Asking) -> Result<Answer> {
    let user = authenticate(api, certified, &parts.headers)?;
    let user = impersonate(api, user, &parts.headers)?;
    let Some(faults) = &api.faults else { return route(api, user, parts, body).await };
    let path = parts.uri.path();
    if let Some(below) = control::below(path) {
        return control::answer(api, faults, &user, &parts, below, body).await;
    }
    let watch = Options::parse(parts.uri.query()).flag("watch");
    let asked = Asked { method: parts.method.as_str(), path, user: &user.name, watch };
    let Some(strike) = faults.judge(&asked) else { return route(api, user, parts, body).await };
    let line = parts.extensions.get::<Arc<Line>>().cloned();
    if strike.after {
        let answer = route(api, user, parts, body).await;
        strike.fall(line.as_ref()).await?;
        return answer;
    }
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        // A client that leaves is only noticed behind its body; then what it asked for is forgotten.
        body = Either::Right(Full::new(read_body(body).await?));
    }
    strike.fall(line.as_ref()).await?;
    route(api, user, parts, body).await
}

async fn route(api: &Arc<Api>, user: User, parts: Parts, body: Asking) -> Result<Answer> {
    let path = parts.uri.path();
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
    let mut options = Options::parse(parts.uri.query());
    options.kind = match parts.method {
        Method::PUT => "UpdateOptions",
        Method::PATCH => "PatchOptions",
        Method::DELETE => "DeleteOptions",
        _ => "CreateOptions",
    };
    let verb = target.verb(&parts.method, options.flag("watch"));
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
        let unlisted = kind.namespaced && target.name.is_empty() && !kind.custom;
        return Err(if unlisted { not_allowed() } else { missing() });
    }
    if target.watched && !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(not_allowed());
    }
    let resource = api.store.resource(&kind.storage);
    let target_named = !target.name.is_empty();
    let call = Call { kind, resource, target, options, user, headers: parts.headers.clone() };
    if call.kind.is_virtual() {
        if parts.method != Method::POST {
            return Err(if target_named { missing() } else { not_allowed() });
        }
        let body = read_body(body).await?;
        if &*call.kind.plural == "bindings" {
            return subresources::bind_named(api, call, &body);
        }
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
        return Err(if call.kind.custom { not_found(&call.kind, &call.target.name) } else { missing() });
    }
    let method = &parts.method;
    if !matches!(*method, Method::GET | Method::POST | Method::PUT | Method::PATCH | Method::DELETE) {
        return Err(not_allowed());
    }
    let warning = deprecation(&call);
    let mut answer = match resource_request(api, call, verb, body).await {
        Err(error) if warning.is_some() => failure(&error),
        answer => answer?,
    };
    warn(&mut answer, warning.as_slice());
    Ok(answer)
}

async fn resource_request(api: &Arc<Api>, call: Call, verb: &str, body: Asking) -> Result<Answer> {
    let allowed = match call.target.subresource.as_str() {
        "" => call.kind.verbs.contains(&verb),
        _ => matches!(verb, "get" | "update" | "patch"),
    };
    let named = !call.target.name.is_empty();
    if !allowed || verb == "create" && named || matches!(verb, "update" | "patch") && !named {
        return Err(match call.kind.custom && !call.target.subresource.is_empty() {
            true => unsupported(&call, verb),
            false => not_allowed(),
        });
    }
    call.options.check_timeout()?;
    match verb {
        "get" => {
            read::check_revision(api, &call)?;
            read::get(&call)
        }
        "list" => read::list(api, &call),
        "watch" => watch::watch(api, call),
        "create" => {
            let body = read_body(body).await?;
            let media = content_type(&call.headers);
            let value = parse_as(&call.kind.kind, &media, &body)?;
            let duplicates = duplicates(&media, &body);
            let write = Write { duplicates: &duplicates, body: &body, ..call.write()? };
            written(&call, api.create(&write, &call.target.namespace, value)?)
        }
        "update" => {
            let body = read_body(body).await?;
            let mut value = parse_as(&call.kind.kind, &content_type(&call.headers), &body)?;
            // Before the object is looked up: a body for another object is a bad request even when this one is missing.
            check_identity(&call.kind, &mut value, &call.target.namespace, &call.target.name)?;
            let duplicates = duplicates(&content_type(&call.headers), &body);
            let write = Write { duplicates: &duplicates, body: &body, ..call.write()? };
            if call.kind.creates_on_update() && call.target.subresource.is_empty() {
                return replaced_or_created(api, &call, &write, value);
            }
            written(&call, api.modify(&write, &call.key(), |_| Ok(value.clone()))?)
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
                admission::node::delete(&call.user, &call.kind, &object)?;
            }
            let deleted = api.delete(&write, &call.key(), &options)?;
            let mut answer = answer_json(200, &Api::deletion_answer(&call.kind, &deleted));
            if call.kind.is("batch", "jobs") && options.propagation.is_none() {
                let said = "child pods are preserved by default when jobs are deleted; set \
                            propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress \
                            this warning";
                warn(&mut answer, &[said.to_owned()]);
            }
            Ok(answer)
        }
        "deletecollection" => {
            let options = delete_options(&call, body).await?;
            delete_collection(api, &call, &options).await
        }
        _ => Err(not_allowed()),
    }
}

/// Kinds whose clients may begin with an update. apiserver: `AllowCreateOnUpdate`.
fn replaced_or_created(api: &Api, call: &Call, write: &Write<'_>, value: Value) -> Result<Answer> {
    loop {
        if write.resource.get(&call.key()).is_none() {
            match api.create(write, &call.target.namespace, value.clone()) {
                Err(error) if error.reason == "AlreadyExists" => continue,
                other => return written(call, other?),
            }
        }
        match api.modify(write, &call.key(), |_| Ok(value.clone())) {
            Err(error) if error.code == 404 && write.resource.get(&call.key()).is_none() => {}
            other => return written(call, other?),
        }
    }
}

async fn delete_options(call: &Call, body: Asking) -> Result<DeleteOptions> {
    let body = read_body(body).await?;
    let media = content_type(&call.headers);
    let value = match body.is_empty() {
        true => Value::Null,
        false => parse_as(DELETE_OPTIONS, &media, &body)?,
    };
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    if !matches!(text("kind"), "" | DELETE_OPTIONS) {
        let registered = "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27";
        let (kind, version) = (text("kind"), text("apiVersion"));
        let message = format!("no kind {kind:?} is registered for version {version:?} in scheme {registered:?}");
        return Err(ApiError::bad_request(message));
    }
    DeleteOptions::read(&value, &call.options)
}

const DELETE_OPTIONS: &str = "DeleteOptions";

/// Objects of a collection that are deleted before others get their turn.
const TURN: usize = 16;

async fn delete_collection(api: &Api, call: &Call, options: &DeleteOptions) -> Result<Answer> {
    let page = read::select(api, call)?;
    let mut write = call.write()?;
    write.dry_run = options.dry_run;
    let mut deleted = Vec::with_capacity(page.objects.len());
    for (n, object) in page.objects.into_iter().enumerate() {
        if n % TURN == TURN - 1 {
            // Ten thousand of them take seconds, in which others want their answers.
            tokio::task::yield_now().await;
        }
        admission::node::delete(&call.user, &call.kind, &object)?;
        match api.delete(&write, &object.key, options) {
            // The answer tells what was there, not what became of it.
            Ok(Deleted::Gone(_) | Deleted::Pending(_)) => deleted.push(object),
            // Somebody else was faster; that is what was asked for.
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let mut meta = json!({"resourceVersion": api.store.revision().to_string()});
    if call.kind.custom {
        meta["continue"] = "".into();
    }
    Ok(read::stream_list(&call.kind, &meta, deleted))
}

/// What Kubernetes says of kinds that are on their way out.
fn deprecation(call: &Call) -> Option<String> {
    if let Some(said) = &call.kind.deprecation {
        return Some(said.to_string());
    }
    (call.kind.group.is_empty() && &*call.kind.plural == "endpoints")
        .then(|| "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned())
}

pub(crate) fn written(call: &Call, written: Written) -> Result<Answer> {
    let mut answer = object_answer(call, if written.created { 201 } else { 200 }, &written.object)?;
    warn(&mut answer, &written.warnings);
    Ok(answer)
}

async fn subresource(api: &Arc<Api>, call: Call, parts: Parts, body: Asking) -> Result<Answer> {
    let name = call.target.subresource.clone();
    if call.kind.subresource(&name).is_none() && call.kind.custom {
        return Err(not_found(&call.kind, &call.target.name));
    }
    if call.kind.subresource(&name).is_none() {
        let mut error = ApiError::new(404, "NotFound", "the server could not find the requested resource");
        error.details = json!({});
        return Err(error);
    }
    if parts.method == Method::PUT && name == "log" {
        return Err(not_allowed());
    }
    match name.as_str() {
        "scale" => scale::answer(api, &call, &parts.method, read_body(body).await?),
        "proxy" => proxy::forward::forward(api, &call, parts, body).await,
        "log" => proxy::log::log(api, &call).await,
        "exec" | "attach" | "portforward" => proxy::stream::stream(api, &call, parts).await,
        _ => subresources::answer(api, &call, &parts.method, read_body(body).await?),
    }
}

/// As the handler of custom kinds refuses a verb.
fn unsupported(call: &Call, verb: &str) -> ApiError {
    let name = format!("{}.{}", call.kind.plural, call.kind.group);
    let message = format!("{verb} is not supported on resources of kind {name:?}");
    let mut error = ApiError::new(405, "MethodNotAllowed", message);
    error.details = json!({"group": &*call.kind.group, "kind": &*call.kind.plural});
    error
}

pub(super) fn not_allowed() -> ApiError {
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
    let selected = selected.unwrap_or_default();
    let node = options.get("fieldSelector").and_then(|fields| required(fields, "spec.nodeName")).unwrap_or_default();
    let name = if target.name.is_empty() { &selected } else { &target.name };
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
        node: &node,
        path: None,
    };
    let decision = api.authorizer.decide(user, &action);
    if decision.allowed {
        return Ok(());
    }
    let denial = action.denial_because(user, &decision.reason);
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
