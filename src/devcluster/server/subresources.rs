//! Subresources that are more than a part of an object: binding, eviction, tokens, finalize, approval.

use http::Method;
use serde_json::{Value, json};

use super::delete::Deleted;
use super::handle::written;
use super::http::{Answer, content_type, json as answer_json, parse};
use super::options::DeleteOptions;
use super::read;
use super::strategy::{budgets_of, set_condition};
use super::{Api, Call, Source, Write, admission, conflict, not_found, now};
use crate::auth::tokens::{Bound, Claims, ISSUER, Reference, audiences};
use crate::status::{ApiError, FieldError, Result};

/// Shortest and longest life of a service account token, and the usual one.
const TOKEN_SECONDS: (i64, i64, i64) = (600, 1 << 32, 3600);

pub(crate) fn answer(api: &Api, call: &Call, method: &Method, body: bytes::Bytes) -> Result<Answer> {
    let kind = &call.kind;
    let not_allowed = super::handle::not_allowed;
    let name = call.target.subresource.as_str();
    let create_only = matches!(name, "binding" | "eviction" | "token");
    if create_only != (*method == Method::POST) {
        return Err(not_allowed());
    }
    match name {
        "binding" => bind(api, call, &request(call, "Binding", &["v1"], &body)?),
        "eviction" => evict(api, call, &request(call, "Eviction", &["policy/v1", "policy/v1beta1"], &body)?),
        "token" => token(api, call, request(call, "TokenRequest", &["authentication.k8s.io/v1"], &body)?),
        "finalize" if *method != Method::PUT => Err(not_allowed()),
        _ if *method == Method::GET => read::get(call),
        _ if *method == Method::PATCH => written(call, api.patch(call, body)?),
        _ if *method != Method::PUT => Err(not_allowed()),
        "approval" => {
            let wanted = parse(&content_type(&call.headers), &body)?;
            written(call, api.modify(&call.write()?, &call.key(), |_| Ok(wanted.clone()))?)
        }
        "finalize" => {
            let wanted = parse(&content_type(&call.headers), &body)?;
            let finalized = |old: &Value| {
                let mut new = wanted.clone();
                new["status"] = old["status"].clone();
                Ok(new)
            };
            written(call, api.modify(&call.write()?, &call.key(), finalized)?)
        }
        "ephemeralcontainers" => {
            let wanted = parse(&content_type(&call.headers), &body)?;
            let add = |old: &Value| {
                let mut new = old.clone();
                new["metadata"]["resourceVersion"] = wanted["metadata"]["resourceVersion"].clone();
                new["spec"]["ephemeralContainers"] = wanted["spec"]["ephemeralContainers"].clone();
                Ok(new)
            };
            written(call, api.modify(&call.write()?, &call.key(), add)?)
        }
        "resize" => {
            let wanted = parse(&content_type(&call.headers), &body)?;
            written(call, api.modify(&call.write()?, &call.key(), |_| Ok(wanted.clone()))?)
        }
        _ => Err(not_found(kind, &call.target.name)),
    }
}

/// What is asked of a subresource, which must be of the kind that it takes.
fn request(call: &Call, kind: &str, versions: &[&str], body: &[u8]) -> Result<Value> {
    let request = parse(&content_type(&call.headers), body)?;
    super::create::check_kind(&request, kind, versions)?;
    Ok(request)
}

fn success(code: u16) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code});
    answer_json(code, &status)
}

/// Binds the pod that a Binding without a pod's path names.
pub(crate) fn bind_named(api: &Api, mut call: Call, body: &[u8]) -> Result<Answer> {
    let binding = request(&call, "Binding", &["v1"], body)?;
    if binding["metadata"]["name"].as_str().is_none_or(str::is_empty) {
        return Err(ApiError::bad_request("Name parameter required."));
    }
    let kinds = api.registry.kinds();
    let Some(pods) = kinds.find("", "v1", "pods").cloned() else { return Err(not_found(&call.kind, "")) };
    call.resource = api.store.resource(&pods.storage);
    call.kind = pods;
    call.target.name = binding["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    call.target.subresource = "binding".into();
    bind(api, &call, &binding)
}

/// Puts a pod on a node; once.
fn bind(api: &Api, call: &Call, binding: &Value) -> Result<Answer> {
    let name = &call.target.name;
    if binding["metadata"]["name"].as_str().is_some_and(|given| !given.is_empty() && given != name) {
        return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
    }
    let target = &binding["target"];
    let node = target["name"].as_str().unwrap_or_default();
    let mut errors = Vec::new();
    let kind = target["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        errors.push(FieldError::not_supported("target.kind", &target["kind"], &["Node", "<empty>"]));
    }
    if node.is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if !errors.is_empty() {
        // Kubernetes hands on the list of faults itself, which is no error of any kind.
        let faults: Vec<_> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        let message = if faults.len() == 1 { faults.concat() } else { format!("[{}]", faults.join(", ")) };
        return Err(ApiError::new(500, "", message));
    }
    let uid = binding["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty());
    let revision = binding["metadata"]["resourceVersion"].as_str().filter(|revision| !revision.is_empty());
    let bound = |pod: &Value| {
        for (key, what, wanted) in [("uid", "UID", uid), ("resourceVersion", "ResourceVersion", revision)] {
            let Some(wanted) = wanted.filter(|wanted| pod["metadata"][key] != **wanted) else { continue };
            let message = format!(
                "StorageError: invalid object, Code: 4, Key: /registry/pods/{}/{name}, ResourceVersion: 0, \
                 AdditionalErrorMsg: Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {}",
                call.target.namespace,
                pod["metadata"][key].as_str().unwrap_or_default()
            );
            return Err(conflict(&call.kind, name, &message));
        }
        if pod["metadata"]["deletionTimestamp"].is_string() {
            let message = format!("pod {name} is being deleted, cannot be assigned to a host");
            return Err(binding_conflict(name, &message));
        }
        if let Some(host) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
            return Err(binding_conflict(name, &format!("pod {name} is already assigned to node {host:?}")));
        }
        if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
            return Err(binding_conflict(name, &format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        let mut pod = pod.clone();
        pod["spec"]["nodeName"] = node.into();
        for field in ["annotations", "labels"] {
            for (key, value) in binding["metadata"][field].as_object().into_iter().flatten() {
                if !pod["metadata"][field].is_object() {
                    pod["metadata"][field] = json!({});
                }
                pod["metadata"][field][key] = value.clone();
            }
        }
        set_condition(&mut pod, "PodScheduled", "True", "", "");
        if let Some(condition) = pod["status"]["conditions"].as_array_mut().and_then(|list| list.last_mut()) {
            let empty = |c: &mut Value| {
                for key in ["reason", "message"] {
                    super::create::remove(c, key);
                }
            };
            empty(condition);
        }
        Ok(pod)
    };
    // Binding is no update of the pod by anybody: nobody owns what it sets.
    let write = Write { source: Source::Apply, ..call.write()? };
    api.modify(&write, &call.key(), bound)?;
    Ok(success(201))
}

fn binding_conflict(name: &str, message: &str) -> ApiError {
    ApiError::conflict("pods/binding", "", name, message)
}

/// Deletes a pod unless a disruption budget forbids it for now.
fn evict(api: &Api, call: &Call, eviction: &Value) -> Result<Answer> {
    let key = call.key();
    let current = call.resource.get(&key).ok_or_else(|| not_found(&call.kind, &key.name))?;
    if eviction["metadata"]["name"].as_str().unwrap_or_default() != &*key.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let options = DeleteOptions::read(&eviction["deleteOptions"], &call.options)?;
    let pod = current.value();
    admission::node::evict(&call.user, &call.kind, &pod)?;
    let terminal = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"));
    if !terminal && !pod["metadata"]["deletionTimestamp"].is_string() {
        spend_budget(api, call, &pod, options.dry_run)?;
    }
    let mut write = call.write()?;
    write.dry_run |= options.dry_run;
    if !terminal || pod["status"]["phase"] == "Pending" {
        let marked = |pod: &Value| {
            let mut pod = pod.clone();
            let message = "Eviction API: evicting";
            set_condition(&mut pod, "DisruptionTarget", "True", "EvictionByEvictionAPI", message);
            Ok(pod)
        };
        api.modify(&Write { source: Source::Apply, ..write }, &key, marked)?;
    }
    write.subresource = "";
    match api.delete(&write, &key, &options)? {
        Deleted::Gone(_) | Deleted::Pending(_) => Ok(success(201)),
    }
}

fn spend_budget(api: &Api, call: &Call, pod: &Value, dry_run: bool) -> Result<()> {
    let budgets = budgets_of(api, pod);
    let name = &call.target.name;
    if budgets.len() > 1 {
        let message =
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(ApiError::new(500, "", message));
    }
    let Some(budget) = budgets.first() else { return Ok(()) };
    let budget_name = budget["metadata"]["name"].as_str().unwrap_or_default();
    let ready = pod["status"]["conditions"].as_array().into_iter().flatten();
    let ready = ready.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    if !ready && budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" {
        return Ok(());
    }
    let refuse = |message: String| {
        let mut error =
            ApiError::new(429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.");
        error.details = json!({"causes": [{"reason": "DisruptionBudget", "message": message}]});
        error
    };
    let kinds = api.registry.kinds();
    let Some(kind) = kinds.find("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    let resource = api.store.resource(&kind.storage);
    let mut write = call.write()?;
    (write.kind, write.resource, write.subresource, write.dry_run) = (kind, &resource, "status", dry_run);
    let key = crate::store::Key::new(&call.target.namespace, budget_name);
    let spent = api.modify(&write, &key, |budget| {
        let generation = budget["metadata"]["generation"].as_i64().unwrap_or(0);
        if budget["status"]["observedGeneration"].as_i64().unwrap_or(0) < generation {
            return Err(refuse(format!("The disruption budget {budget_name} is still being processed by the server.")));
        }
        let allowed = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
        if allowed <= 0 {
            let (needs, has) = (&budget["status"]["desiredHealthy"], &budget["status"]["currentHealthy"]);
            if needs.as_i64().unwrap_or(0) == 0 {
                let message = format!("The disruption budget {budget_name} does not allow evicting pods currently");
                return Err(refuse(message));
            }
            return Err(refuse(format!(
                "The disruption budget {budget_name} needs {needs} healthy pods and has {has} currently"
            )));
        }
        let mut budget = budget.clone();
        budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
        budget["status"]["disruptedPods"][name] = now().into();
        Ok(budget)
    });
    match spent {
        Err(error) if error.code != 404 => Err(error),
        _ => Ok(()),
    }
}

/// Signs a token for a service account, bound to what the request names.
fn token(api: &Api, call: &Call, mut request: Value) -> Result<Answer> {
    let (namespace, name) = (call.target.namespace.as_str(), call.target.name.as_str());
    let account = call.resource.get(&call.key()).ok_or_else(|| not_found(&call.kind, name))?;
    api.check_namespace(&call.kind, namespace, &account.value())?;
    let given = request["metadata"]["name"].as_str().filter(|given| !given.is_empty() && *given != name);
    if let Some(given) = given {
        let detail = "must match the service account name if specified";
        let error = FieldError::invalid("metadata.name", &given.into(), detail);
        return Err(ApiError::invalid("TokenRequest", "authentication.k8s.io", name, &[error]));
    }
    admission::node::token(api, &call.user, &call.kind, &account.value(), &request["spec"])?;
    let (least, most, usual) = TOKEN_SECONDS;
    let spec = &request["spec"];
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(usual);
    let fault = match seconds {
        s if s < least => Some("may not specify a duration less than 10 minutes"),
        s if s > most => Some("may not specify a duration larger than 2^32 seconds"),
        _ => None,
    };
    if let Some(fault) = fault {
        let error = FieldError::invalid("spec.expirationSeconds", &json!(seconds), fault);
        return Err(ApiError::invalid("TokenRequest", "authentication.k8s.io", "", &[error]));
    }
    let mut bound = Bound {
        namespace: namespace.into(),
        serviceaccount: Reference { name: name.into(), uid: account.uid.to_string() },
        ..Bound::default()
    };
    let reference = &spec["boundObjectRef"];
    if reference.is_object() {
        let (kind, object) =
            (reference["kind"].as_str().unwrap_or_default(), reference["name"].as_str().unwrap_or_default());
        let plural = match kind {
            "Pod" => "pods",
            "Secret" => "secrets",
            "Node" => "nodes",
            other => {
                let version = reference["apiVersion"].as_str().unwrap_or_default();
                let slash = if version.contains('/') { "" } else { "/" };
                return Err(ApiError::bad_request(format!(
                    "cannot bind token to object of type {slash}{version}, Kind={other}"
                )));
            }
        };
        let at = if plural == "nodes" { "" } else { namespace };
        let found = api.get("", plural, at, object).ok_or_else(|| ApiError::not_found(plural, "", object))?;
        if let Some(uid) = reference["uid"].as_str().filter(|uid| !uid.is_empty() && **uid != *found.uid) {
            let message = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. \
                The object might have been deleted and then recreated"
            );
            return Err(ApiError::conflict(plural, "", object, &message));
        }
        let place = match plural {
            "pods" => {
                let pod = found.value();
                if pod["spec"]["serviceAccountName"] != name {
                    return Err(ApiError::bad_request(format!(
                        "cannot bind token for serviceaccount {name:?} to pod running with different serviceaccount name."
                    )));
                }
                let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
                if let Some(node) = api.get("", "nodes", "", node) {
                    bound.node = Some(Reference { name: node.key.name.to_string(), uid: node.uid.to_string() });
                }
                &mut bound.pod
            }
            "secrets" => &mut bound.secret,
            _ => &mut bound.node,
        };
        *place = Some(Reference { name: object.into(), uid: found.uid.to_string() });
    }
    let audiences = audiences(spec);
    let at = jiff::Timestamp::now().as_second();
    let claims = Claims {
        aud: audiences.clone(),
        exp: at + seconds,
        iat: at,
        nbf: at,
        iss: ISSUER.into(),
        jti: uuid::Uuid::new_v4().to_string(),
        sub: format!("system:serviceaccount:{namespace}:{name}"),
        bound,
    };
    let token = api.tokens.sign(&claims).map_err(|error| ApiError::internal(error.to_string()))?;
    let expires = jiff::Timestamp::from_second(claims.exp).unwrap_or_default();
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["metadata"] = json!({"name": name, "namespace": namespace, "creationTimestamp": now(),
        "uid": uuid::Uuid::new_v4().to_string()});
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = seconds.into();
    if request["spec"].get("boundObjectRef").is_none() {
        request["spec"]["boundObjectRef"] = Value::Null;
    }
    let expires = expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    request["status"] = json!({"token": token, "expirationTimestamp": expires});
    Ok(answer_json(201, &request))
}
