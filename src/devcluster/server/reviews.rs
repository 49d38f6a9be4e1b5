//! Kinds that are only asked, never stored: token and access reviews, and bindings by name.

use serde_json::{Value, json};

use super::create::{check_identity, record};
use super::http::{Answer, content_type, json as answer_json, parse};
use super::{Api, Call, now};
use crate::auth::node::node_name;
use crate::auth::tokens::audiences;
use crate::auth::{Action, User};
use crate::selector::required;
use crate::status::{ApiError, FieldError, Result};

pub(crate) fn answer(api: &Api, call: &Call, body: &[u8]) -> Result<Answer> {
    let mut review = parse(&content_type(&call.headers), body)?;
    let kind = &call.kind;
    check_identity(kind, &mut review, &call.target.namespace, "")?;
    let invalid_all = |errors: &[FieldError]| {
        // The validation of access reviews names no kind.
        let mut error = ApiError::invalid(
            if &*kind.group == "authorization.k8s.io" { "" } else { &kind.kind },
            &kind.group,
            "",
            errors,
        );
        if error.details["kind"] == ""
            && let Some(details) = error.details.as_object_mut()
        {
            details.remove("kind");
        }
        error
    };
    let invalid = |error| invalid_all(&[error]);
    if let Some(schema) = &kind.schema {
        schema.canonical(&mut review, None);
    }
    record(&call.write()?, None, &mut review);
    let spec = &review["spec"];
    let status = match &*kind.plural {
        "tokenreviews" if spec["token"].as_str().is_none_or(str::is_empty) => {
            return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
        }
        "tokenreviews" => token_review(api, spec),
        "selfsubjectreviews" => json!({"userInfo": call.user.info()}),
        "selfsubjectrulesreviews" => {
            let namespace = spec["namespace"].as_str().unwrap_or_default();
            if namespace.is_empty() {
                return Err(ApiError::bad_request("no namespace on request"));
            }
            let (resources, paths) = api.authorizer.rules(&call.user, namespace);
            let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
            if node_name(&call.user).is_some() {
                // What a node may read depends on its pods and is in no list of rules.
                status["incomplete"] = true.into();
                status["evaluationError"] = "node authorizer does not support user rule resolution".into();
            }
            status
        }
        "selfsubjectaccessreviews" => access(api, spec, &call.user).map_err(invalid)?,
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            let user = User::from_review(spec);
            if user.name.is_empty() && user.groups.is_empty() {
                let error =
                    FieldError::invalid("spec.user", &json!(""), "at least one of user or group must be specified");
                let mut errors: Vec<_> = asked_once(spec).err().into_iter().collect();
                errors.push(error);
                return Err(invalid_all(&errors));
            }
            if &*kind.plural == "localsubjectaccessreviews" {
                local(spec, &call.target.namespace).map_err(invalid)?;
            }
            access(api, spec, &user).map_err(invalid)?
        }
        _ => return Err(ApiError::new(405, "MethodNotAllowed", "use the binding subresource of the pod")),
    };
    review["status"] = status;
    if &*kind.plural == "selfsubjectrulesreviews" {
        // The answer is made anew: what was asked is not in it.
        (review["metadata"], review["spec"]) = (json!({}), json!({}));
    }
    if &*kind.plural == "selfsubjectreviews" {
        review["metadata"]["creationTimestamp"] = now().into();
    }
    Ok(answer_json(201, &review))
}

fn token_review(api: &Api, spec: &Value) -> Value {
    let token = spec["token"].as_str().unwrap_or_default();
    let wanted = audiences(spec);
    let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
    match api.token_user(token, &names) {
        Ok((user, audiences)) => json!({"authenticated": true, "user": user.info(), "audiences": audiences}),
        Err(error) => json!({"user": {}, "error": error}),
    }
}

/// A review is of a resource or of a path.
fn asked_once(spec: &Value) -> Result<(), FieldError> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() && path.is_object() {
        let detail = "cannot be specified in combination with resourceAttributes";
        return Err(FieldError::invalid("spec.nonResourceAttributes", &shown(path), detail));
    }
    if !resource.is_object() && !path.is_object() {
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        return Err(FieldError::invalid("spec.resourceAttributes", &Value::Null, detail));
    }
    Ok(())
}

fn access(api: &Api, spec: &Value, user: &User) -> Result<Value, FieldError> {
    asked_once(spec)?;
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |value: &'_ Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let decision = if path.is_object() {
        let (verb, path) = (text(path, "verb"), text(path, "path"));
        api.authorizer.decide(user, &Action { verb: &verb, path: Some(&path), ..Action::default() })
    } else {
        let [verb, group, name, namespace, kind, subresource] =
            ["verb", "group", "name", "namespace", "resource", "subresource"].map(|key| text(resource, key));
        let selected_node = selected_node(resource).unwrap_or_default();
        let action = Action {
            verb: &verb,
            group: &group,
            resource: &kind,
            subresource: &subresource,
            namespace: &namespace,
            name: &name,
            node: &selected_node,
            path: None,
        };
        api.authorizer.decide(user, &action)
    };
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.into();
    }
    Ok(status)
}

/// A local review is about its own namespace.
fn local(spec: &Value, namespace: &str) -> Result<(), FieldError> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if path.is_object() {
        let detail = "disallowed on this kind of request";
        return Err(FieldError::invalid("spec.nonResourceAttributes", &shown(path), detail));
    }
    if resource.is_object() && resource["namespace"] != namespace {
        let given = json!(resource["namespace"].as_str().unwrap_or_default());
        return Err(FieldError::invalid("spec.resourceAttributes.namespace", &given, "must match metadata.namespace"));
    }
    Ok(())
}

/// Attributes as the API server's own type prints them.
fn shown(path: &Value) -> Value {
    let text = |key: &str| path[key].as_str().unwrap_or_default();
    json!({"Path": text("path"), "Verb": text("verb")})
}

/// The node that a review's field selector asks for.
fn selected_node(resource: &Value) -> Option<String> {
    let selector = &resource["fieldSelector"];
    if let Some(raw) = selector["rawSelector"].as_str().filter(|raw| !raw.is_empty()) {
        return required(raw, "spec.nodeName");
    }
    let wanted = selector["requirements"].as_array()?.iter().find(|r| r["key"] == "spec.nodeName")?;
    wanted["values"][0].as_str().filter(|_| wanted["operator"] == "In").map(str::to_owned)
}

impl Api {
    /// The user of a service account token and the audiences it was accepted for.
    pub(crate) fn token_user(&self, token: &str, audiences: &[&str]) -> Result<(User, Vec<String>), String> {
        let claims = self.tokens.check(token, audiences)?;
        let user = claims.user(|plural, namespace, name| {
            let object = self.get("", plural, namespace, name)?;
            Some(object.uid.to_string())
        })?;
        let accepted = claims.aud.iter().filter(|a| audiences.contains(&a.as_str())).cloned().collect();
        Ok((user, accepted))
    }
}
